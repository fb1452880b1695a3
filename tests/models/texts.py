"""Rows of random tokens, packed and not, and small networks for them."""

from dataclasses import replace

import jax
import numpy as np

from src.models import bert, gpt2
from src.models.bert import Bert
from src.models.gpt2 import Gpt2

WORDS, LENGTH = 40, 12
SMALL = {"vocab_size": WORDS, "width": 16, "layers": 2, "heads": 2, "intermediate": 24, "positions": 16}
MODELS = {
    "bert-classify": Bert(**SMALL),
    "bert-first": Bert(**SMALL, pooling=bert.BertPooling.first),
    "bert-mean": Bert(**SMALL, pooling=bert.BertPooling.mean),
    "bert-tokens": Bert(**SMALL, head=bert.BertHead.tokens),
    "bert-spans": Bert(**SMALL, head=bert.BertHead.spans),
    "bert-masked": Bert(**SMALL, head=bert.BertHead.masked),
    "gpt2-classify": Gpt2(**SMALL, head=gpt2.Gpt2Head.classify),
    "gpt2-mean": Gpt2(**SMALL, head=gpt2.Gpt2Head.classify, pooling=gpt2.Gpt2Pooling.mean),
    "gpt2-tokens": Gpt2(**SMALL, head=gpt2.Gpt2Head.tokens),
    "gpt2-spans": Gpt2(**SMALL, head=gpt2.Gpt2Head.spans),
    "gpt2-causal": Gpt2(**SMALL, head=gpt2.Gpt2Head.causal),
}


def outputs_of(model):
    """How many outputs a model's head has."""
    return {"spans": 2, "masked": WORDS, "pretraining": WORDS, "causal": WORDS}.get(model.head.name, 3)


def whole(model):
    """Whether the head answers for whole examples."""
    return model.head.name == "classify"


def parameters(model, seed=0):
    """Random parameters, large enough that everything matters; biases and scales too."""
    params = model.init(jax.random.PRNGKey(seed), (3, 1), outputs_of(model))
    rng = np.random.default_rng(seed)
    return {p: np.asarray(leaf) + rng.normal(0, 0.2, leaf.shape).astype(np.float32) for p, leaf in params.items()}


def examples(lengths, seed=0):
    """Examples of these lengths, each (2, length): ids and types."""
    rng = np.random.default_rng(seed)
    return [np.stack([rng.integers(0, WORDS, n), np.arange(n) >= n // 2]) for n in lengths]


def row(parts, length=LENGTH):
    """Examples side by side in one row, (3, length)."""
    cells = [np.concatenate([part, np.full((1, part.shape[1]), i)]) for i, part in enumerate(parts, 1)]
    filled = np.concatenate(cells, axis=1)
    return np.pad(filled, ((0, 0), (0, length - filled.shape[1]))).astype(np.int32)


def packing(model, count):
    """The same model for rows of so many examples."""
    return replace(model, examples=count)
