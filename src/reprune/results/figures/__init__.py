"""Figures of the records: numbers (what they show, as plain data), drawing (matplotlib), files (which, where, checked)."""

from reprune.results.figures.files import for_page, main

__all__ = ["for_page", "main"]
