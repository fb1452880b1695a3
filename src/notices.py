"""Notices that are logged once a process, however many runs of a sweep give rise to them."""

from __future__ import annotations

import functools
import logging


@functools.cache
def warn_once(text: str, level: int = logging.WARNING) -> None:
    """Log a text the first time it is given."""
    logging.getLogger(__name__).log(level, text)
