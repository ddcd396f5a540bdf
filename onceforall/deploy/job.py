"""Where the steps of a specialisation were: see choosing.py, precision.py and finishing.py."""

from onceforall.deploy.precision import KEPT

__all__ = ["KEPT"]
