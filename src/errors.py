"""Errors that the user can correct: one sentence, no traceback."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Iterable


class UserError(Exception):
    """Invalid input. The message is one sentence with the key, the value given and what is allowed."""


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the closest allowed word, or ``""`` if none is close."""
    close = difflib.get_close_matches(given, list(allowed), n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""


def listed(words: Iterable[str], limit: int = 12) -> str:
    """Return ``"a, b, c"``, cut after ``limit`` words, with the number of words left out."""
    words = list(words)
    rest = f" and {len(words) - limit} more" if len(words) > limit else ""
    return ", ".join(words[:limit]) + rest


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its ``repr`` if it has none."""
    return (str(error).strip() or repr(error)).splitlines()[0]


# Read at import, because the command line sets the variable while Hydra runs (src/config/messages.py).
_TRACEBACK = os.environ.get("HYDRA_FULL_ERROR") == "1"


def wants_traceback() -> bool:
    """Tell whether the user requested tracebacks (``HYDRA_FULL_ERROR=1``, Hydra's variable)."""
    return _TRACEBACK


def run_script(main: Callable[[], None]) -> None:
    """Run a script's ``main``; a :class:`UserError` is printed to stderr and ends it with exit code 1."""
    try:
        main()
    except UserError as error:
        if wants_traceback():
            raise
        sys.exit(f"error: {error}")
    except BrokenPipeError:  # the output's reader, for instance `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
