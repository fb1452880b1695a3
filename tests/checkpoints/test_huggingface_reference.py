"""What is exported, loaded by transformers itself. It runs where torch and transformers can be imported:

python3 -m venv reference
reference/bin/pip install torch==2.13.0 transformers -r requirements.lock pytest
reference/bin/python -m pytest tests/checkpoints/test_huggingface_reference.py
"""

import importlib.util
import os

import numpy as np
import pytest

from src.finished.conversion import export_job
from tests.checkpoints.exported import CASES, batch, logits, make_job

pytestmark = [
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")),
        reason="torch and transformers, the reference, are not installed",
    ),
    pytest.mark.filterwarnings("default"),  # theirs are not ours to mend
]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_transformers_gives_the_same_logits(tmp_path, name, lora):
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    node, outputs = CASES[name]
    model, params = make_job(tmp_path / "job", node, outputs, lora)
    cls = getattr(transformers, export_job(tmp_path / "job", tmp_path / "out", pad_token_id=0))
    loaded, report = cls.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids, types, mask = (torch.from_numpy(batch()[:, i].astype(np.int64)) for i in range(3))
    bert = node["name"] == "bert"
    known = {"token_type_ids": types} if bert and node.get("types") != 0 else {}
    with torch.no_grad():
        found = loaded.eval()(input_ids=ids, attention_mask=mask, **known)
    ends = [found.start_logits, found.end_logits] if name.endswith("spans") else []
    ours = logits(model, params, outputs)
    if name.endswith("pretraining"):
        np.testing.assert_allclose(ours[:, 0, :2], found.seq_relationship_logits.numpy(), atol=1e-5, rtol=0)
        ours, found.logits = ours[:, 1:], found.prediction_logits
    theirs = (torch.stack(ends, -1) if ends else found.logits).numpy()
    if theirs.ndim == 3:
        theirs, ours = theirs[mask.numpy() > 0], ours[mask.numpy() > 0]
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)
    assert np.abs(ours).max() > 0.1
