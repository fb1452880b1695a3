"""What retention and sequences refuse on the command line: one sentence, before anything is trained."""

import re

import pytest
from hydra import compose, initialize_config_dir

from src.config.identity import register_resolvers
from src.config.schema import CONF, register_schema
from src.errors import UserError
from src.launch.job import run_job
from tests.commands import summary, sweep, train

SEQUENCE = ("recipe=sequence", "data=rotated_digits", "strategy=full")
DIGITS = ("recipe=sequence", "data=split_digits", "strategy=full")
MOVES = "retention.name is 'isolate', and the strategy moves "
ANEW = "starts without pre-training, which leaves nothing to keep; allowed with it: none"
BAD = [
    (("retention=l2_sp", "retention.strength=-1"), "retention.strength is -1.0; allowed: a finite number >= 0"),
    (("retention=ewc", "retention.strength=nan"), "retention.strength is nan; allowed: a finite number >= 0"),
    (("retention=l2_sp", "retention.head_decay=-1"), "retention.head_decay is -1.0; allowed: a finite number >= 0"),
    (("retention=ewc", "retention.fisher=foo"), "'foo', expected one of [exact, sampled, empirical, batched]"),
    (("retention=ewc", "retention.samples=0"), "retention.samples is 0; allowed: a whole number >= 1"),
    (("retention=ewc", "retention.chunk=0"), "retention.chunk is 0; allowed: a whole number >= 1"),
    (("retention=online_ewc", "retention.gamma=2"), "retention.gamma is 2.0; allowed: a number from 0 to 1"),
    (("retention=replay", "retention.fraction=0"), "retention.fraction is 0.0; allowed: a number > 0 and at most 1"),
    (("retention=replay", "retention.count=0"), "retention.count is 0; allowed: a whole number >= 1"),
    (("retention=replay", "retention.batch_size=0"), "retention.batch_size is 0; allowed: a whole number >= 1"),
    (("retention=distill", "retention.temperature=0"), "retention.temperature is 0.0; allowed: a finite number > 0"),
    (
        ("retention=isolate", "strategy=full"),
        MOVES + "Dense_0/bias, Dense_0/kernel of the pre-trained network; allowed",
    ),
    (("retention=isolate", "strategy=bitfit"), MOVES + "Dense_0/bias of the pre-trained network; allowed: strategies"),
    (("retention=ewc", "strategy=scratch"), f"retention.name is 'ewc', and the strategy {ANEW}"),
    (
        ("recipe=sequence",),
        "data=diabetes is no sequence, and recipe is 'sequence'; allowed: recipe=transfer, or data=",
    ),
    (("recipe=sequence",), "data=permuted_mnist, rotated_digits, split_digits, split_mnist"),
    (("data=split_digits",), "data=split_digits is a sequence of tasks, and recipe is 'transfer'; allowed: recipe=seq"),
    ((*DIGITS, "retention=replay"), "retention=replay rehearses old tasks beside the new one, which needs one head"),
    ((*DIGITS, "retention=distill"), "allowed with it: tasks of one head, such as data.heads=one"),
    ((*SEQUENCE, "strategy=lora"), "strategy=lora adds parameters to the network, which each task of recipe=sequence"),
    ((*SEQUENCE, "strategy=lora", "retention=ewc"), "allowed with it: retention=isolate, not ewc"),
    ((*SEQUENCE, "strategy=lp_ft"), "strategy=lp_ft has 2 phases; allowed with recipe=sequence: one, as full has"),
    ((*SEQUENCE, "strategy=scratch"), "strategy=scratch starts from initial parameters, and a task of recipe=sequence"),
    ((*SEQUENCE, "retention=isolate"), MOVES + "Dense_0/bias, Dense_0/kernel of"),
    ((*SEQUENCE, "data.val_fraction=0"), "data.val_fraction is 0, which leaves no validation rows; allowed: more"),
    ((*SEQUENCE, "data.tasks=1"), "data.tasks is 1; allowed: a whole number >= 2"),
    ((*SEQUENCE, "data.angle_step=200"), "data.angle_step is 200 and data.tasks 4; allowed: a step below 120"),
    ((*SEQUENCE, "batch_size=16", "trainer.accumulate=5"), "trainer.accumulate is 5, which does not divide a batch"),
    ((*SEQUENCE, "data.train_rows=9999"), "data.train_rows is 9999; allowed: at most 1213"),
    ((*DIGITS, "data.heads=two"), "data.heads: Invalid value 'two', expected one of [one, each]"),
    (("recipe=sequence", "data=permuted_mnist"), "data.path is missing: give it as data.path=..."),
]


@pytest.fixture(scope="module")
def composed():
    """What the command line hands to a job; a process for each would cost a second or more."""
    register_schema()
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield lambda *arguments: compose("config", ["tracker=disk", "progress=false", *arguments])


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=lambda value: " ".join(value)[:60])
def test_bad_input_is_one_sentence(tmp_path, composed, arguments, words):
    with pytest.raises(UserError) as error:
        run_job(composed(*arguments), tmp_path, list(arguments), None)
    sentence = str(error.value)
    assert words in sentence
    assert "\n" not in sentence
    # The record is whole and says what was wrong; nothing was trained and nothing else is left.
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "summary.json"}
    assert (tmp_path / "metrics.jsonl").read_text() == ""
    record = summary(tmp_path)
    assert (record["status"], record["metrics"], record["error"]) == ("failed", {}, sentence)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("retention=ewcc",), "retention=ewcc: there is no such option (did you mean 'ewc'?); allowed: distill, ewc"),
        (("retention=l2_sp", "retention.strenght=1"), "'retention.strenght' (did you mean 'strength'?)"),
        (("retention=none", "retention.strength=1"), "there is no key 'retention.strength'; retention has: name"),
        (("recipe=seqence",), "recipe: Invalid value 'seqence', expected one of [transfer, sequence]"),
        ((*SEQUENCE, "retention=isolate"), MOVES + "Dense_0/bias, Dense_0/kernel of the pre-trained network; allowed"),
    ],
    ids=lambda value: " ".join(value)[:60],
)
def test_the_command_says_it_and_fails(tmp_path, arguments, words):
    done = train(tmp_path, *arguments)
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_replay_of_more_rows_than_there_are_takes_all_and_says_so_once(tmp_path):
    fast = ("strategy=full", "retention=replay", "retention.count=5000", "finetune_steps=2", "pretrain_steps=2")
    done = sweep(tmp_path, *fast, "cache=off", "progress=false", "lr_fine=0.01,0.02", "seed=0,1")
    assert done.returncode == 0, done.stderr
    words = r"retention\.count is 5000 and the task to be kept has fewer rows: all of them are kept"
    assert len(re.findall(words, done.stdout + done.stderr)) == 1


def test_a_setting_of_a_swept_group_is_swept_too(tmp_path):
    """Hydra looks for it in the group's default option, and there is none; the sentence says what helps."""
    fast = ("strategy=full", "retention=l2_sp,ewc", "finetune_steps=2", "pretrain_steps=2", "progress=false")
    done = sweep(tmp_path, *fast, "retention.strength=3")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "'retention.strength' must be swept too: give it as retention.strength=choice(...)" in done.stderr
    done = sweep(tmp_path, *fast, "retention.strength=choice(3)")
    assert done.returncode == 0, done.stderr
    assert [summary(path.parent)["config"]["retention"]["strength"] for path in tmp_path.glob("*/summary.json")] == [
        3,
        3,
    ]
