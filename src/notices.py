"""Warnings that are logged once per process."""

from __future__ import annotations

import functools
import logging


@functools.cache
def warn_once(text: str, level: int = logging.WARNING) -> None:
    """Log a text the first time it is given."""
    logging.getLogger(__name__).log(level, text)
