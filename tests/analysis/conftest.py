from pathlib import Path

import pytest

from tests.fabricate import make_sweep


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sweep(tmp_path_factory.mktemp("made") / "sweep")
