# `make demo` and `make test` are all that a newcomer needs (Python 3.11 or 3.12); `make runtimes` tests the extras.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUNTIMES := openvino,ncnn,litert,executorch

.PHONY: demo test runtimes lint clean

demo: $(VENV)/.installed
	$(BIN)/ofa specialize --model cifar10 --out out

test: lint
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

runtimes: $(VENV)-runtimes/.installed
	$(VENV)-runtimes/bin/python -m pytest -n auto --maxprocesses 8 --dist loadscope --require $(RUNTIMES) \
	    tests/devices tests/test_runtimes.py tests/test_cli.py

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.installed: EXTRAS := dev
$(VENV)-runtimes/.installed: EXTRAS := dev,$(RUNTIMES),tflite-micro
$(VENV)/.installed $(VENV)-runtimes/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info < (3, 13), f"Python {sys.version.split()[0]}: 3.11 or 3.12 is needed; say make PYTHON=python3.12"'
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-runtimes out
