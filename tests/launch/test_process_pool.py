"""Jobs in child processes: order, slots and devices, the records of jobs that die, retries, and signals."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import pytest

from src.config.schema import typed
from src.errors import UserError
from src.launch.process_pool import IsolatedSettings, JobCommand, OnError, run_commands
from src.tracking.record_reader import load_job
from tests.commands import running

PRELUDE = """
import json, os, pathlib, resource, signal, subprocess, sys, time
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
folder = pathlib.Path(sys.argv[1])
def note(**facts):
    (folder / "facts.json.new").write_text(json.dumps(facts))
    os.replace(folder / "facts.json.new", folder / "facts.json")
def finish(status="completed", objective=0.5, error=None):
    (folder / "summary.json").write_text(json.dumps({"status": status, "objective": objective, "error": error}))
"""
# Ignores SIGTERM, and has a child.
STUBBORN = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
below = subprocess.Popen([sys.executable, "-ISc", "import time; time.sleep(60)"])
note(pids=[os.getpid(), below.pid])
time.sleep(60)
"""
POLITE = "note(pids=[os.getpid()]); time.sleep(60)"
RUNNER = """
import sys
from pathlib import Path
from src.launch.process_pool import IsolatedSettings, JobCommand, run_commands
jobs = zip(sys.argv[1::2], sys.argv[2::2])
commands = [JobCommand(name, (sys.executable, "-ISc", code, name), Path(name), {}) for name, code in jobs]
run_commands(commands, IsolatedSettings(slots=2), lambda job, end, _: print(job.folder.name, end.status, flush=True))
"""


def job_command(folder, code, **summary):
    return JobCommand(folder.name, (sys.executable, "-ISc", PRELUDE + code, str(folder)), folder, summary)


def run(tmp_path, *codes, **settings):
    """Run jobs; return how each ended, in the order of their ends: label, status, objective, error, attempts."""
    jobs = [job_command(tmp_path / str(place), code, job_id=f"id{place}") for place, code in enumerate(codes)]
    ends = []

    def on_end(job, record, attempts):
        ends.append((job.label, record.status, record.objective, record.error, attempts))

    run_commands(jobs, IsolatedSettings(**settings), on_end)
    return ends


def read(path):
    return json.loads(path.read_text())


def facts(folder, patience=10.0):
    """Return what a child wrote, waiting for it."""
    until = time.monotonic() + patience
    while not (folder / "facts.json").exists():
        assert time.monotonic() < until, f"{folder.name} did not start"
        time.sleep(0.02)
    return read(folder / "facts.json")


def alive(pid):
    """Tell whether a process runs; a zombie does not."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self").exists():
        try:
            return stat.read_text().rpartition(")")[2].split()[0] not in "ZX"
        except (FileNotFoundError, ProcessLookupError):
            return False
    return subprocess.run(["ps", "-p", str(pid)], capture_output=True, check=False).returncode == 0


def assert_gone(pids, patience=5.0):
    until = time.monotonic() + patience
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < until, f"still alive: {[pid for pid in pids if alive(pid)]}"
        time.sleep(0.05)


# --- order, slots and devices ----------------------------------------------------------------------------------------


def test_each_job_is_reported_once_when_it_ends(tmp_path):
    codes = ["time.sleep(0.6); finish(objective=1.0)", "finish('diverged', 'Infinity')", "finish(objective=3.0)"]
    assert run(tmp_path, *codes, slots=2) == [
        ("1", "diverged", math.inf, None, 1),
        ("2", "completed", 3.0, None, 1),
        ("0", "completed", 1.0, None, 1),
    ]


def test_a_slot_is_one_job_at_a_time_and_one_device(tmp_path):
    codes = [
        f"begin = time.time(); time.sleep({seconds}); finish()\n"
        "note(begin=begin, end=time.time(), device=os.environ['CUDA_VISIBLE_DEVICES'])"
        for seconds in (0.9, 0.1, 0.1, 0.3, 0.1)  # the second slot serves several jobs while the first is busy
    ]
    run(tmp_path, *codes, slots=2, devices=("4", "5"))
    jobs = [facts(tmp_path / str(place)) for place in range(5)]
    pairs = [(a, b) for a in jobs for b in jobs if a is not b and a["begin"] <= b["begin"] < a["end"]]
    assert pairs
    assert all(a["device"] != b["device"] for a, b in pairs)  # so there are never three at once
    assert {job["device"] for job in jobs} == {"4", "5"}


def test_the_environment_of_a_child(tmp_path, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    code = """
note(env=dict(os.environ), stdin=sys.stdin.read(), leads=os.getpid() == os.getpgrp() == os.getsid(0))
print("out", flush=True); print("err", file=sys.stderr)
finish()
"""
    run(tmp_path, code)
    found = facts(tmp_path / "0")
    assert "HYDRA_FULL_ERROR" not in found["env"]
    assert {k: v for k, v in found["env"].items() if k != "LC_CTYPE"} == {
        k: v for k, v in os.environ.items() if k not in ("HYDRA_FULL_ERROR", "LC_CTYPE")
    }
    assert found["stdin"] == ""
    assert found["leads"]
    assert (tmp_path / "0/console.log").read_text() == "out\nerr\n"


def test_starts_are_staggered(tmp_path):
    begin = time.monotonic()
    run(tmp_path, *["finish()"] * 3, slots=3, stagger=0.5)
    assert time.monotonic() - begin > 1.0


# --- jobs that die ---------------------------------------------------------------------------------------------------

DEATHS = {
    "os.kill(os.getpid(), signal.SIGKILL)": "killed by SIGKILL (out of memory?)",
    "import ctypes; ctypes.string_at(0)": "segmentation fault",
    "print('Check failed: x', flush=True); os.abort()": "killed by SIGABRT: Check failed: x",
    "print('one'); print('two\\n'); sys.exit(3)": "exit code 3: two",
    "sys.exit(3)": "exit code 3",
    "raise ValueError('no such file')": "exit code 1: ValueError: no such file",
    "sys.exit('it broke\\n\\nSet the environment variable HYDRA_FULL_ERROR=1 for a complete stack trace.\\n-----')": (
        "exit code 1: it broke"
    ),
    "print('bye')": "ended without a summary: bye",
    "(folder / 'summary.json').write_text('{')": "ended without a summary",
}


def test_a_job_that_dies_has_a_record_with_the_cause_and_other_jobs_complete(tmp_path):
    codes = [*DEATHS, "time.sleep(0.5); finish()"]
    ended = sorted(run(tmp_path, *codes, slots=3))
    assert [error for *_, error, _ in ended] == [*DEATHS.values(), None]
    assert [status for _, status, *_ in ended] == ["failed"] * len(DEATHS) + ["completed"]
    for place, error in enumerate(DEATHS.values()):
        job = load_job(tmp_path / str(place), "job")
        assert (job.status, job.error, job.job_id) == ("failed", error, f"id{place}")
        assert {path.name for path in (tmp_path / str(place)).iterdir()} == {"summary.json", "console.log"}


def test_a_command_that_does_not_exist_is_a_failed_job(tmp_path):
    lost = JobCommand("lost", ("no-such-program",), tmp_path / "lost", {})
    run_commands([lost], IsolatedSettings(), lambda *_: None)
    job = load_job(lost.folder, "lost")
    assert job.status == "failed"
    assert "no-such-program" in str(job.error) or "No such file" in str(job.error)


def test_the_record_of_a_job_that_died_has_the_known_fields_and_the_end_of_the_log(tmp_path):
    code = "[print('line', n) for n in range(50)]; sys.stdout.flush(); os.write(1, b'caf\\xff\\n'); os.abort()"
    known = {"job_id": "abc", "config": {"seed": 0}, "overrides": ["seed=0"]}
    run_commands([job_command(tmp_path, code, **known)], IsolatedSettings(), lambda *_: None)
    summary = read(tmp_path / "summary.json")
    assert known.items() <= summary.items()
    assert summary["log_tail"] == [*(f"line {n}" for n in range(31, 50)), "caf\ufffd"]
    assert summary["seconds"] > 0


def test_the_summary_of_a_child_is_kept(tmp_path):
    codes = ["finish('failed', None, 'lr is too odd'); print('other words'); sys.exit(1)", "finish(); os.abort()"]
    ended = run(tmp_path, *codes)
    assert ended == [("0", "failed", None, "lr is too odd", 1), ("1", "completed", 0.5, None, 1)]
    assert read(tmp_path / "0/summary.json") == {"status": "failed", "objective": None, "error": "lr is too odd"}


def test_an_earlier_summary_and_log_are_removed(tmp_path):
    run(tmp_path, "finish(); print('before')")
    (ended,) = run(tmp_path, "sys.exit(3)")
    assert ended == ("0", "failed", None, "exit code 3", 1)
    assert read(tmp_path / "0/summary.json")["log_tail"] == []


# --- retries, stop, timeout ------------------------------------------------------------------------------------------


def test_a_failed_job_is_retried(tmp_path):
    code = """
tries = len(list(folder.glob("try*")))
(folder / f"try{tries}").touch()
print("this is", tries, "and a summary", (folder / "summary.json").exists(), flush=True)
if tries == 0: finish("failed", None, "bad luck"); sys.exit(1)
if tries == 1: os.kill(os.getpid(), signal.SIGKILL)
finish()
"""
    ended = run(tmp_path, code, "finish()", retries=2, on_error=OnError["stop"])
    assert ended == [("0", "completed", 0.5, None, 3), ("1", "completed", 0.5, None, 1)]
    assert (tmp_path / "0/console.log").read_text().splitlines() == [
        "this is 0 and a summary False", "", "--- attempt 2 of 3 ---",
        "this is 1 and a summary False", "", "--- attempt 3 of 3 ---",
        "this is 2 and a summary False",
    ]  # fmt: skip


def test_the_failure_of_the_last_attempt_is_the_result(tmp_path):
    code = "first = not (folder / 'x').exists(); (folder / 'x').touch(); print('first' if first else ''); sys.exit(3)"
    (ended,) = run(tmp_path, code, retries=1)
    assert ended == ("0", "failed", None, "exit code 3", 2)


def test_stop_starts_no_further_job_and_lets_the_running_ones_finish(tmp_path):
    codes = ["sys.exit(1)", "time.sleep(0.6); finish()", "finish()", "finish()"]
    assert run(tmp_path, *codes, slots=2, on_error=OnError["stop"]) == [
        ("0", "failed", None, "exit code 1", 1),
        ("2", "skipped", None, None, 0),
        ("3", "skipped", None, None, 0),
        ("1", "completed", 0.5, None, 1),
    ]
    assert not (tmp_path / "2").exists()


def test_a_timeout_ends_the_process_group(tmp_path):
    # The second writes a failed summary on SIGTERM: the recorded cause is still the timeout.
    on_sigterm = (
        "signal.signal(signal.SIGTERM, lambda *_: (finish('failed', None, 'terminated'), sys.exit(1))); time.sleep(60)"
    )
    codes = [STUBBORN, on_sigterm, "finish()"]
    ended = run(tmp_path, *codes, slots=3, timeout=1.5)
    assert [error for *_, error, _ in sorted(ended)] == ["took longer than 1.5 s", "took longer than 1.5 s", None]
    assert read(tmp_path / "1/summary.json")["error"] == "took longer than 1.5 s"
    assert not any(alive(pid) for pid in facts(tmp_path / "0")["pids"])


def test_a_job_s_children_end_with_it(tmp_path):
    below = "below = subprocess.Popen([sys.executable, '-ISc', 'import time; time.sleep(60)']); note(pids=[below.pid])"
    run(tmp_path, f"{below}; os.kill(os.getpid(), signal.SIGKILL)")
    assert_gone(facts(tmp_path / "0")["pids"])


# --- the end of the parent -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def running_jobs(tmp_path, *codes, setup=""):
    """Start a process that runs jobs two at a time; yield it and the ids of the first two jobs' processes."""
    folders = [tmp_path / str(place) for place in range(len(codes))]
    words = [word for folder, code in zip(folders, codes, strict=True) for word in (str(folder), PRELUDE + code)]
    with running("-c", f"import signal\n{setup}\n{RUNNER}", *words, stdout=subprocess.PIPE) as runner:
        yield runner, [pid for folder in folders[:2] for pid in facts(folder)["pids"]]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_every_child_and_leaves_them_unfinished(tmp_path, number):
    on_sigterm = (
        "signal.signal(signal.SIGTERM, lambda *_: (finish('failed', None, 'terminated'), sys.exit(1)));" + POLITE
    )
    with running_jobs(tmp_path, STUBBORN, on_sigterm, POLITE) as (runner, pids):
        runner.send_signal(number)
        out, _ = runner.communicate(timeout=10)
    assert not any(alive(pid) for pid in pids)
    assert runner.returncode == -number
    assert out == "2 skipped\n"
    assert not list(tmp_path.glob("*/summary.json"))


def test_a_signal_that_the_caller_ignores_ends_no_child(tmp_path):
    """A shell starts a background command with SIGINT ignored, ``nohup`` with SIGHUP ignored; SIGTERM still ends it."""
    ignored = "signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    with running_jobs(tmp_path, POLITE, POLITE, setup=ignored) as (runner, pids):
        runner.send_signal(signal.SIGINT)
        runner.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert all(alive(pid) for pid in [runner.pid, *pids])
        runner.send_signal(signal.SIGTERM)
        runner.communicate(timeout=10)
    assert runner.returncode == -signal.SIGTERM
    assert not any(alive(pid) for pid in pids)


def test_a_job_between_two_attempts_is_unfinished(tmp_path):
    reported, settings = Mock(), IsolatedSettings(retries=1, stagger=60.0)
    interrupt = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        run_commands([job_command(tmp_path / "0", "finish('failed')")], settings, reported)
    interrupt.join()
    assert (tmp_path / "0/console.log").exists()
    assert not (tmp_path / "0/summary.json").exists()
    reported.assert_not_called()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent was killed")
def test_children_do_not_outlive_a_parent_that_is_killed(tmp_path):
    ignores_sigterm = "signal.signal(signal.SIGTERM, signal.SIG_IGN);" + POLITE
    with running_jobs(tmp_path, ignores_sigterm, POLITE) as (runner, pids):
        runner.kill()
        runner.communicate(timeout=10)
    assert_gone(pids)


def test_an_error_in_the_callback_ends_the_children(tmp_path):
    def on_end(job, record, attempts):
        raise RuntimeError(job.label)

    wait = "while not (folder.parent / '1' / 'facts.json').exists(): time.sleep(0.02)\n"
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    jobs = [job_command(tmp_path / str(i), code) for i, code in enumerate((wait + "finish()", POLITE))]
    with pytest.raises(RuntimeError, match="0"):
        run_commands(jobs, IsolatedSettings(slots=2), on_end)
    assert not any(alive(pid) for pid in facts(tmp_path / "1")["pids"])
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


# --- settings -------------------------------------------------------------------------------------------------------


def test_settings_come_from_plain_values():
    values = {"slots": 2, "devices": [0, 1], "on_error": "stop", "timeout": 60}
    assert typed(IsolatedSettings, values, "isolated") == IsolatedSettings(2, ("0", "1"), 0.0, OnError["stop"], 0, 60.0)
    assert typed(IsolatedSettings, {"on_error": "continue"}, "isolated") == IsolatedSettings()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"slots": 0}, "isolated.slots is 0; allowed: a whole number >= 1"),
        ({"timeout": 0}, "isolated.timeout is 0.0; allowed: a finite number > 0"),
        ({"slots": 2, "devices": ["0"]}, "devices has 1 entries and slots is 2; allowed: one per slot, or none"),
        ({"on_error": "halt"}, "isolated.on_error: Invalid value 'halt', expected one of [continue, stop]"),
    ],
)
def test_settings_that_cannot_work_are_refused(values, sentence):
    with pytest.raises(UserError) as refused:
        typed(IsolatedSettings, values, "isolated")
    assert str(refused.value) == sentence
