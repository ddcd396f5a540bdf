"""Plug-ins of onceforall: each file adds one thing, and pyproject.toml names it."""
