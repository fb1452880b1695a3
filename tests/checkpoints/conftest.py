"""Copies of fixtures that a test may damage."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def copied(tmp_path):
    """Return a function that copies a checkpoint's folder anew."""

    def copy(folder):
        shutil.rmtree(tmp_path / folder.name, ignore_errors=True)
        return Path(shutil.copytree(folder, tmp_path / folder.name))

    return copy
