"""Where bundles were: see onceforall/bundle."""

from onceforall.bundle.bundle import Bundle, write_bundle

__all__ = ["Bundle", "write_bundle"]
