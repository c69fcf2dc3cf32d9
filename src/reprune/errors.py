"""The one kind of error a user can cause: `run.py` prints it as a single line and exits with status 1."""

from __future__ import annotations

import sys
from collections.abc import Collection


class UserError(Exception):
    """Bad input, in one line: what is wrong, what was given, what is allowed, what to do."""


def ended(errors: Collection[str]) -> int:
    """Tells what was wrong, a line each. -> exit status of the command"""
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    return int(bool(errors))


def user_error(error: BaseException | None) -> str | None:
    """The line of the UserError behind an exception, however often it was wrapped; None if there is none."""
    while error is not None:
        if isinstance(error, UserError):
            return str(error)
        error = error.__cause__ or error.__context__
    return None
