"""Imported first by every script: puts the checkout on the path, so that ``src`` can be imported."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
