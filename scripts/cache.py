"""List or prune the stage cache: pre-trained parameters, and what was computed from them.

python scripts/cache.py ls
python scripts/cache.py prune --limit 500MB
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import _root  # noqa: F401
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from src.config.choices import CacheMode
from src.errors import UserError, run_script
from src.training.stage_cache import EntryInfo, StageCache, parse_size


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument("--folder", type=Path, default=Path("outputs/cache"), help="the cache (default: %(default)s)")
    parser = argparse.ArgumentParser(description="The cache of pre-trained parameters.")
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("ls", parents=[where], help="list the entries, most recently used first")
    prune = actions.add_parser("prune", parents=[where], help="remove the least recently used entries")
    prune.add_argument("--limit", default="0", metavar="SIZE", help="the size to keep, for instance 500MB (default: 0)")
    return parser.parse_args()


def amount(entries: Sequence[EntryInfo]) -> str:
    """Return ``"2 entries, 1.3 MB"``."""
    size = decimal(sum(entry.bytes for entry in entries))
    return f"{len(entries)} {'entry' if len(entries) == 1 else 'entries'}, {size}"


def description(entry: EntryInfo) -> str:
    """Return an entry's stage and its final metrics."""
    metrics = entry.facts.get("metrics") or {}
    ended = [f"{name} {value:.4g}" for name, value in metrics.items() if isinstance(value, (int, float))]
    if entry.facts.get("diverged"):
        ended = [f"diverged after update {entry.facts.get('last_finite_step', '?')}"]
    return "; ".join(filter(None, (entry.label, ", ".join(ended))))


def show(entries: Sequence[EntryInfo]) -> None:
    """Print a table, most recently used first; outside a terminal, lines are not wrapped."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column("key", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("last used", no_wrap=True)
    table.add_column("stage", overflow="fold")
    for entry in reversed(entries):
        last_used = f"{entry.last_used.astimezone():%Y-%m-%d %H:%M}"
        table.add_row(entry.key, decimal(entry.bytes), last_used, Text(description(entry)))
    Console(highlight=False, width=None if sys.stdout.isatty() else 1000).print(table)


def main() -> None:
    """List or prune."""
    arguments = read_arguments()
    folder: Path = arguments.folder
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--folder is '{folder}', which is a file; allowed: a folder")
    cache = StageCache(folder, CacheMode.use, limit_bytes=0, warn=print)
    if arguments.action == "prune":
        removed = cache.prune(parse_size(arguments.limit, "--limit"))
        for entry in removed:
            print(f"removed {entry.key} ({decimal(entry.bytes)}) {entry.label}".rstrip())
        print(f"removed {amount(removed)}; left in {folder}: {amount(cache.entries())}")
        return
    entries = cache.entries()
    if entries:
        show(entries)
    print(f"{amount(entries)} in {folder}")


if __name__ == "__main__":
    run_script(main)
