"""Warnings that are logged once per process."""

from __future__ import annotations

import functools
import logging


@functools.cache
def warn_once(text: str) -> None:
    """Log a warning once per process."""
    logging.getLogger(__name__).warning(text)
