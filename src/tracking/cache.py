"""Opens the stage cache that a configuration names; its warnings go to the console."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.schema import StudyConfig
from .console import echo

if TYPE_CHECKING:
    from ..training.stage_cache import StageCache


@functools.cache
def stage_cache(study: StudyConfig) -> StageCache:
    """Return the cache of pre-trained stages."""
    from ..training.stage_cache import StageCache

    limit = int(study.cache_limit * 1e6)
    return StageCache(Path(study.cache_folder), study.cache, limit, lambda text: echo(f"warning: {text}", "yellow"))
