"""PyTorch's side of ``benchmarks/text_epoch.py``: one epoch under the Trainer of transformers, its seconds as JSON."""

# pyright: reportMissingImports=false

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

MODEL, TRAIN, BATCH, LENGTH = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])


class Sentences(torch.utils.data.Dataset):
    """Tokenized sentences and their labels; padded when they meet in a batch."""

    def __init__(self, tokenizer: Any) -> None:
        lines = [line.split("\t") for line in Path(TRAIN).read_text().splitlines()]
        encoded = tokenizer([text for text, _ in lines], truncation=True, max_length=LENGTH)
        self.rows = [
            {"input_ids": ids, "labels": int(label)}
            for ids, (_, label) in zip(encoded["input_ids"], lines, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.rows[row]


def main() -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(MODEL, num_labels=2)
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder, num_train_epochs=1, per_device_train_batch_size=BATCH, learning_rate=5e-5, weight_decay=0.01,
            max_grad_norm=1.0, save_strategy="no", report_to=[], logging_steps=100, disable_tqdm=True,
            dataloader_pin_memory=False,
        )  # fmt: skip
        collate = transformers.DataCollatorWithPadding(tokenizer)
        trainer = transformers.Trainer(model, arguments, data_collator=collate, train_dataset=Sentences(tokenizer))
        done = trainer.train()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print("RESULT " + json.dumps({"seconds": done.metrics["train_runtime"], "versions": versions}), flush=True)


if __name__ == "__main__":
    main()
