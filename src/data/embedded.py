"""Tables that are installed with scikit-learn, read without importing it, which takes more than a second."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from ..errors import UserError


def read_embedded(name: str) -> np.ndarray:
    """Return a table of ``sklearn/datasets/data``, for instance ``"digits.csv.gz"``, as float64.

    Raises:
        UserError: scikit-learn is not installed, or does not contain the file.
    """
    found = importlib.util.find_spec("sklearn")
    path = Path(found.origin).parent / "datasets" / "data" / name if found and found.origin else None
    if path is None or not path.is_file():
        raise UserError(f"the embedded data {name} is part of scikit-learn, which is not installed here with its data")
    with np.errstate(all="raise"):
        return np.loadtxt(path, delimiter="," if name.startswith("digits") else None)
