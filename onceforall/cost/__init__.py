"""What networks cost: models from layers to a number with a unit."""

from onceforall.cost.registry import by_name, names, register

__all__ = ["by_name", "names", "register"]
