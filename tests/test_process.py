import pytest

from onceforall.errors import OFAError
from onceforall.process import run_python


def test_code_prints_or_fails_with_its_last_line() -> None:
    assert run_python("import sys; print(sys.argv[1:])", "a", "b c") == "['a', 'b c']\n"
    with pytest.raises(OFAError, match=r"^ValueError: no$"):
        run_python("raise ValueError('no')")
    with pytest.raises(OFAError, match="exit code 3"):
        run_python("raise SystemExit(3)")
