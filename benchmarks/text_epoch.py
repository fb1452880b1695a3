"""How long an epoch over real sentences takes, full fine-tuning, against the Trainer of transformers.

python benchmarks/text_epoch.py --model FOLDER --train train.tsv [--reference PYTHON]

``--model``: a BERT in Hugging Face's files; ``--train``: ``sentence<TAB>label`` a line, such as SST-2's. The Trainer
pads each batch of 32 to its longest sentence; here, sentences are packed into rows of 64 tokens, 12 rows an update,
which hold about as many. float32, dropout 0.1, AdamW, gradients clipped to norm 1, on both sides. What is compiled and
tokenized before the first update is not counted; the seconds of compiling are printed.
"""

import argparse
import json
import subprocess
import time
from pathlib import Path

import jax
from _runs import first_phase, runner, start_untrained
from _timing import machine, table
from text import reference_python

from src.checkpoints.huggingface import load_config
from src.data.text import Text
from src.models.bert import Bert, BertPooling
from src.optim.optimizers import Adamw
from src.recipe.spec import Recipe
from src.strategies.full import Full
from src.training.compiled import prepare_jax

BATCH, LENGTH, ROWS, PACKED, AIM = 32, 64, 12, 8, 1.5


def theirs(python: str, model: str, train: str) -> dict[str, float]:
    """Return the seconds of the Trainer's epoch."""
    script = str(Path(__file__).with_name("_text_epoch_torch.py"))
    command = [python, script, model, train, str(BATCH), str(LENGTH)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(next(line for line in said.splitlines() if line.startswith("RESULT ")).removeprefix("RESULT "))


def ours(model: str, train: str) -> tuple[float, float, int, int]:
    """Return the seconds of our epoch and of compiling before it, its updates and its sentences."""
    source = Text(
        path=train, val_path=train, test_path=train, header=False, text="0", label="1", max_seq_len=LENGTH,
        examples=PACKED, tokenizer=model,
    )  # fmt: skip
    data = source.load()
    rows = len(data.target["train"].x)
    updates = -(-rows // ROWS)
    network = load_config(Bert(checkpoint=model, examples=PACKED, pooling=BertPooling.mean, dropout=0.1))
    recipe = Recipe(
        model=network, strategy=Full(), optimizer=Adamw(weight_decay=0.01, clip_norm=1.0), lr_fine=5e-5,
        batch_size=ROWS, finetune_steps=updates, log_every=updates,
    )  # fmt: skip
    start = start_untrained(recipe, data)
    stage = first_phase(recipe, data)
    run = runner(stage, start.params, data.target["train"])
    begin = time.perf_counter()
    jax.block_until_ready(run.advance(0, 1))
    compiled = time.perf_counter()
    jax.block_until_ready(run.advance(0, updates))
    sentences = int((data.target["train"].y >= 0).sum())
    return time.perf_counter() - compiled, compiled - begin, updates, sentences


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder with config.json, model.safetensors and tokenizer")
    parser.add_argument("--train", help="sentence<TAB>label a line")
    parser.add_argument("--reference", metavar="PYTHON", help="a Python with torch, transformers and accelerate")
    arguments = parser.parse_args()
    if arguments.model is None or arguments.train is None:
        print("left out: it needs --model and --train, files that do not come with the project")
        return
    prepare_jax()
    print(machine())
    other = theirs(reference_python(arguments.reference), arguments.model, arguments.train)
    seconds, compiling, updates, sentences = ours(arguments.model, arguments.train)
    print(f"against {other['versions']}; {sentences} sentences, {updates} updates; compiling {compiling:.0f} s")
    ratio = f"{other['seconds'] / seconds:.2f}"
    header = ("an epoch", "Trainer, s", "Thaw, s", "Trainer / Thaw", "wanted")
    table(header, [("full fine-tuning", f"{other['seconds']:.0f}", f"{seconds:.0f}", ratio, f"{AIM}")])


if __name__ == "__main__":
    main()
