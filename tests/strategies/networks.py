"""Parameter paths and groups of the networks that the tables are tried on, and what moves there by their own words."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from src.models.base import Model
from src.models.mlp import Mlp
from src.optim.partition import match_rules

MLP = Mlp(widths=(4,) * 6)
MLP_PARAMS = jax.eval_shape(lambda: MLP.init(jax.random.PRNGKey(0), (3,), 2))
WIDTH, HIDDEN, WORDS = 768, 3072, 30522


def bert_shapes():
    """BERT-base's parameters (Devlin et al., arXiv 1810.04805), with a classifier of two classes."""
    dense = {
        "query": (WIDTH, WIDTH),
        "key": (WIDTH, WIDTH),
        "value": (WIDTH, WIDTH),
        "attention_output": (WIDTH, WIDTH),
    }
    dense |= {"intermediate": (WIDTH, HIDDEN), "output": (HIDDEN, WIDTH)}
    shapes = {"embeddings/word/embedding": (WORDS, WIDTH), "embeddings/position/embedding": (512, WIDTH)}
    shapes |= {"embeddings/type/embedding": (2, WIDTH)}
    shapes |= {f"embeddings/norm/{leaf}": (WIDTH,) for leaf in ("scale", "bias")}
    for layer in range(1, 13):
        for name, shape in dense.items():
            shapes[f"encoder/layer_{layer}/{name}/kernel"] = shape
            shapes[f"encoder/layer_{layer}/{name}/bias"] = shape[1:]
        for norm in ("attention_norm", "output_norm"):
            shapes |= {f"encoder/layer_{layer}/{norm}/{leaf}": (WIDTH,) for leaf in ("scale", "bias")}
    for name, units in (("pooler", WIDTH), ("classifier", 2)):
        shapes |= {f"{name}/kernel": (WIDTH, units), f"{name}/bias": (units,)}
    return shapes


def resnet_paths():
    """A residual network of four stages: batch statistics are leaves, and the stem is no block."""
    paths = ["conv_stem/kernel", *(f"bn_stem/{leaf}" for leaf in ("scale", "bias", "mean", "var"))]
    for stage in range(4):
        for block in range(2):
            paths.append(f"stage_{stage}/block_{block}/conv/kernel")
            paths += [f"stage_{stage}/block_{block}/bn/{leaf}" for leaf in ("scale", "bias", "mean", "var")]
    return [*paths, "fc/kernel", "fc/bias"]


@dataclass(frozen=True)
class Grouped(Model):
    """A model of which only the groups are known."""

    names: tuple[tuple[str, str], ...]

    def groups(self):
        return self.names


BERT = Grouped(
    (
        ("embeddings", "embeddings/.*"),
        *((f"layer_{i}", f"encoder/layer_{i}/.*") for i in range(1, 13)),
        ("head", "pooler/.*|classifier/.*"),
    )
)
RESNET = Grouped(
    (
        ("stem", "(conv|bn)_stem/.*"),
        *((f"stage_{i}", f"stage_{i}/.*") for i in range(4)),
        ("head", "fc/.*"),
    )
)
BERT_PATHS = list(bert_shapes())
# name -> groups, paths, number of blocks
NETWORKS = {
    "mlp": (MLP.groups(), list(MLP_PARAMS), 6),
    "bert": (BERT.groups(), BERT_PATHS, 12),
    "resnet": (RESNET.groups(), resnet_paths(), 4),
}


def depth(path):
    """Where a path lies, read off its words: 0 under the blocks, 1 for the lowest block, ... and 99 for the head."""
    word = next((word for word in path.split("/") if word.startswith(("Dense_", "layer_", "stage_"))), path)
    if word == "Dense_6" or path.startswith(("pooler", "classifier", "fc")):
        return 99
    if path.startswith(("embeddings", "conv_stem", "bn_stem")):
        return 0
    return int(word.split("_")[1]) + (not word.startswith("layer_"))


def where(paths, moves):
    """The paths whose depth satisfies ``moves``."""
    return {path for path in paths if moves(depth(path))}


def moving(table, name):
    """What a table moves in one of the networks."""
    groups, paths, _ = NETWORKS[name]
    return set(match_rules(table, paths, groups).trainable)


def phases(strategy, name):
    """What each phase moves."""
    return [moving(table, name) for table in strategy.tables(NETWORKS[name][0])]


def rates(table, name):
    """What a table says of each depth: one learning-rate scale, the same for all its leaves."""
    groups, paths, _ = NETWORKS[name]
    found = {}
    for path, value in match_rules(table, paths, groups).lr_scale.items():
        assert found.setdefault(depth(path), value) is value or found[depth(path)] == value
    return found


def zeros(shapes):
    """Parameters of these shapes."""
    return {path: jnp.zeros(shape) for path, shape in shapes.items()}
