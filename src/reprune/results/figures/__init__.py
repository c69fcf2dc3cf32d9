"""numbers: what figures show, as plain data; drawing: how they look; files: which there are, written and checked."""

from reprune.results.figures.files import for_page, write

__all__ = ["for_page", "write"]
