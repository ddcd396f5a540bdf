"""Python code in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from onceforall.errors import OFAError


def run_python(code: str, *arguments: str, folder: str | None = None, same_paths: bool = False) -> str:
    """What the code prints; `sys.argv[1:]` are the arguments, `folder` is where it works.

    same_paths: whether it can import all that this process can. Raises OFAError with the last line of
    what went wrong.
    """
    environment = dict(os.environ)
    if same_paths:
        environment["PYTHONPATH"] = os.pathsep.join(str(Path(path).absolute()) for path in sys.path)
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OFAError((done.stderr.strip() or f"it ended with exit code {done.returncode}").splitlines()[-1])
    return done.stdout
