"""What is written in PEFT's format, loaded by PEFT itself. It runs where torch, transformers and peft can be imported:

python3 -m venv reference
reference/bin/pip install torch==2.13.0 transformers peft -r requirements.lock pytest
reference/bin/python -m pytest tests/checkpoints/test_peft_reference.py
"""

# pyright: reportMissingImports=false

import importlib.util
import json
import warnings

import numpy as np
import pytest

from src.finished.conversion import job_to_peft
from tests.checkpoints.exported import batch
from tests.checkpoints.tuned import JOBS, logits, make_named

pytestmark = [
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("torch", "transformers", "peft")),
        reason="torch, transformers and peft, the reference, are not installed",
    ),
    pytest.mark.filterwarnings("default"),  # theirs are not ours to mend
]


@pytest.mark.parametrize("name", JOBS)
def test_peft_gives_the_same_logits(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import peft
    import torch
    import transformers

    model, strategy, params, outputs = make_named(tmp_path / "job", name)
    job_to_peft(tmp_path / "job", tmp_path / "out", tmp_path / "base", pad_token_id=0)
    kind = json.loads((tmp_path / "base" / "config.json").read_text())["architectures"][0]
    base = getattr(transformers, kind).from_pretrained(tmp_path / "base").eval()
    ids, types, mask = (torch.from_numpy(batch()[:, i].astype(np.int64)) for i in range(3))
    known = {"token_type_ids": types} if name.startswith("bert") else {}

    def answers(network):
        with torch.no_grad():
            found = network(input_ids=ids, attention_mask=mask, **known)
        ends = [found.start_logits, found.end_logits] if "spans" in name else []
        values = (torch.stack(ends, -1) if ends else found.logits).numpy()
        return values[mask.numpy() > 0] if values.ndim == 3 else values

    before = answers(base)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adapted = peft.PeftModel.from_pretrained(base, tmp_path / "out").eval()
    assert not [w for w in caught if "missing" in str(w.message) or "fan_in_fan_out" in str(w.message)]
    # Not `adapted` itself: PEFT 0.21's own forward of a question's answer leaves the types of tokens out.
    found, ours = (
        answers(adapted.get_base_model() if "spans" in name else adapted),
        logits(model, strategy, params, outputs),
    )
    ours = ours[mask.numpy() > 0] if ours.ndim == 3 else ours
    with capsys.disabled():
        print(f"\n{name}: largest difference {np.abs(found - ours).max():.1e}")
    np.testing.assert_allclose(found, ours, atol=1e-5, rtol=0)
    assert np.abs(before - ours).max() > 0.05
