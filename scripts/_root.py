"""Imported first by every script: makes ``src`` importable where the project is not installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
