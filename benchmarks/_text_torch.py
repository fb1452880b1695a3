"""PyTorch's side of ``benchmarks/text.py``: reads a case's name a line, answers with an update's seconds as JSON.

With a case as argument it prints the bytes that the process grew by at most, and ends.
"""

# pyright: reportMissingImports=false

import json
import sys
import time
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

ROWS, LENGTH, WORDS, UPDATES = 32, 64, 30522, 2


def made(case: str) -> tuple[Any, Any]:
    """Return a network and its optimizer."""
    config = transformers.BertConfig(
        vocab_size=WORDS, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536,
        num_labels=2,
    )  # fmt: skip
    model: Any = transformers.BertForSequenceClassification(config)
    if case.startswith("LoRA"):
        lora = peft.LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"])
        model = peft.get_peft_model(model, lora)
    if case.startswith("frozen"):
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name.startswith("classifier")
    model.train()
    moving = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return model, torch.optim.AdamW(moving, lr=1e-5, weight_decay=0.01)


def updates(model: Any, optimizer: Any) -> float:
    """Return the seconds of an update."""
    ids = torch.randint(1000, WORDS, (ROWS, LENGTH))
    labels = torch.randint(0, 2, (ROWS,))
    mask = torch.ones_like(ids)
    start = time.perf_counter()
    for _ in range(UPDATES):
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return (time.perf_counter() - start) / UPDATES


def peak() -> int:
    """Return the most memory that the process had so far, in bytes; getrusage's would be the parent's at first."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def main() -> None:
    if sys.argv[1:]:
        before = peak()
        case = made(sys.argv[1])
        updates(*case)
        print(peak() - before)
        return
    cases: dict[str, tuple[Any, Any]] = {}
    for line in sys.stdin:
        case = line.strip()
        if case == "versions":
            names = f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}"
            print(json.dumps({"versions": names}), flush=True)
            continue
        if case not in cases:
            cases[case] = made(case)
            updates(*cases[case])
        print(json.dumps({"seconds": updates(*cases[case])}), flush=True)


if __name__ == "__main__":
    main()
