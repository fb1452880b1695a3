"""Notices that are given once a process."""

from __future__ import annotations

import functools
import logging


@functools.cache
def warn_once(text: str) -> None:
    """Say something once a process."""
    logging.getLogger(__name__).warning(text)
