"""Create a W&B workspace that compares strategies; needs the extra `dashboard`.

python scripts/create_dashboard.py --project thaw --entity my-team --group demo
"""

from __future__ import annotations

import argparse

import _root  # noqa: F401

from src.analysis.dashboard import build_workspace, save_workspace, workspace_json
from src.errors import run_script


def main() -> None:
    """Build the workspace, and save it or print it."""
    parser = argparse.ArgumentParser(description="Create a W&B workspace that compares strategies.")
    parser.add_argument("--project", required=True, help="W&B project of the runs")
    parser.add_argument("--entity", default="", help="user or team (default: that of the logged-in user)")
    parser.add_argument("--group", metavar="SWEEP", help="show only the runs of this group, usually a sweep")
    parser.add_argument("--name", default="Fine-tuning", help="title of the workspace (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="print the JSON without a login or a network")
    arguments = parser.parse_args()
    workspace = build_workspace(arguments.project, arguments.entity, arguments.group, arguments.name)
    print(workspace_json(workspace) if arguments.dry_run else f"created {save_workspace(workspace)}")


if __name__ == "__main__":
    run_script(main)
