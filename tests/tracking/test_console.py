"""The progress bar, which only a terminal shows."""

import io

import pytest
from rich.console import Console

from src.tracking import console
from src.tracking.console import ProgressBar


@pytest.mark.parametrize("terminal", [True, False])
def test_the_progress_bar_shows_steps_and_loss_in_a_terminal(monkeypatch, terminal):
    output = io.StringIO()
    fake = Console(file=output, force_terminal=terminal, width=100)
    monkeypatch.setattr(console, "console", lambda: fake)
    with ProgressBar({"pretrain": 20, "finetune": 10}, enabled=True) as bar:
        bar.update("pretrain", {"step": 20.0, "loss": 0.25})
        bar.update("finetune", {"step": 0.0, "val_loss": 0.5})
        bar.update("finetune", {"step": 5.0, "loss": 0.125})
    shown = output.getvalue()
    assert all((words in shown) == terminal for words in ("pretrain", "20/20", "loss 0.2500", "5/10", "loss 0.1250"))
