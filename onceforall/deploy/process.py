"""Python code in a process of its own."""

from __future__ import annotations

import subprocess
import sys

from onceforall.errors import OFAError


def run_python(code: str, *arguments: str) -> str:
    """What the code prints; `sys.argv[1:]` are the arguments. Raises OFAError with the last line of what went wrong."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OFAError((done.stderr.strip() or f"it ended with exit code {done.returncode}").splitlines()[-1])
    return done.stdout
