"""Opens the stage cache that a configuration names; its warnings go to the console."""

from __future__ import annotations

import functools
from pathlib import Path

from ..config.schema import StudyConfig
from ..training.stage_cache import StageCache
from .console import echo


@functools.cache
def stage_cache(study: StudyConfig) -> StageCache:
    """Return the cache of pre-trained stages."""
    limit = int(study.cache_limit * 1e6)
    return StageCache(Path(study.cache_folder), study.cache, limit, lambda text: echo(f"warning: {text}", "yellow"))
