"""Compares the offline file of `wandb_files` with the one of the official client for the same run."""

import gzip
import http.server
import io
import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
import wandb

from src.tracking.trackers import Publisher, Wandb
from src.tracking.wandb_files import BLOCK, FRAGMENT, HEADER, framed, read_records, read_run, write_offline_run
from src.tracking.wandb_process import RunWriter

CONFIG = {
    "seed": 3,
    "lr_fine": 1e-7,
    "strategy": {"name": "full", "layers": [1, 2.5], "decay": None},
    "none": None,
    "flag": True,
    "empty": {},
    "text": "é ✓",
    "large": math.inf,
    "unknown": math.nan,
}
SUMMARY = {"val_loss": 0.5, "objective": math.inf, "low": -math.inf, "unknown": math.nan, "count": 3, "small": 1e-9}


def rows(count):
    losses = {1: math.inf, 2: -math.inf, 3: math.nan}
    for stage in ("pretrain", "finetune"):
        for step in range(count):
            loss = losses.get(step, 1e6 / (step + 1))
            yield {f"{stage}/step": step, f"{stage}/loss": loss, f"{stage}/lr": 1e-7, f"{stage}/size": 1e22}


def settings(folder, **changed):
    run = {"project": "p", "entity": None, "group": "study", "job_type": "full", "tags": ["b", "a"], "name": "a job"}
    return {**run, "dir": str(folder), "config": CONFIG, **changed}


def official(run, rows, summary, exit_code):
    """Write the run through the official client; return its file."""
    writer = RunWriter(io.StringIO())
    writer.handle({"op": "start", "mode": "offline", "timeout": 20.0, "run": run})
    for row in rows:
        writer.handle({"op": "log", "row": row})
    writer.handle({"op": "finish", "summary": summary, "exit_code": exit_code})
    (file,) = Path(run["dir"]).glob("wandb/offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 20
    while read_run(file).exit_code is None and time.monotonic() < deadline:
        time.sleep(0.02)  # W&B's service closes the file after finish() has returned
    return file


def ours(*content):
    """Write the same run with `write_offline_run`; return its file."""
    folder = write_offline_run(*content)
    (file,) = folder.glob("run-*.wandb")
    assert file.stem == f"run-{folder.name.rpartition('-')[2]}"
    return file


def both(tmp_path, count=5, exit_code=0, summary=SUMMARY, **changed):
    files = []
    for write in (official, ours):
        (tmp_path / write.__name__).mkdir()
        files.append(write(settings(tmp_path / write.__name__, **changed), list(rows(count)), summary, exit_code))
    return files


VOLATILE = ("_runtime", "_timestamp", "runtime")


def normal(file):
    """Return a file's records as plain values, without what differs between any two runs, and without telemetry."""
    found = []
    for record in read_records(file):
        kind, items = record.WhichOneof("record_type"), []
        if kind == "telemetry":
            continue
        assert record._info.stream_id in ("", file.stem.removeprefix("run-"))
        from_client = bool(record._info.stream_id)
        if kind == "header":
            record.header.version_info.producer = record.header.version_info.producer.partition("+")[0]
        if kind == "run":
            assert record.run.run_id == file.stem.removeprefix("run-")
            assert abs(record.run.start_time.seconds - time.time()) < 60
            for field in ("run_id", "start_time", "telemetry"):
                record.run.ClearField(field)
            items = taken(record.run.config, "update")
        if kind == "summary":
            items = sorted(taken(record.summary, "update"))  # the service writes in the random order of a Go map
        if kind == "exit":
            record.exit.ClearField("runtime")  # whole seconds: a slow machine's run has taken one
        if kind == "history":
            items = sorted(taken(record.history, "item"))
        content = str(getattr(record, kind))
        found.append((kind, from_client, content, items))
    return found


def taken(message, field):
    """Take a message's items out of it, as (place, value) with numbers as floats; clocks have no value."""
    items = [((item.key, *item.nested_key), item.value_json) for item in getattr(message, field)]
    message.ClearField(field)
    return [(at, "" if at[-1] in VOLATILE else repr(json.loads(value, parse_int=float))) for at, value in items]


@pytest.mark.parametrize(
    ("count", "exit_code", "changed"),
    [
        (5, 0, {}),
        (0, 1, {"summary": {}}),
        (1, 0, {"entity": "me", "group": None, "job_type": None, "name": None, "tags": [], "config": {}}),
    ],
)
def test_the_records_are_the_official_ones(tmp_path, count, exit_code, changed):
    theirs, mine = (normal(file) for file in both(tmp_path, count, exit_code, **changed))
    assert len(mine) == 2 + 4 + 3 * 2 * count + 3
    assert mine == theirs


@pytest.mark.parametrize("count", [3, 300])
def test_both_files_read_alike(tmp_path, count):
    theirs, mine = (read_run(file) for file in both(tmp_path, count, exit_code=3))
    assert mine.path.stat().st_size > (5 * BLOCK if count == 300 else 0)
    for name in ("project", "name", "group", "job_type", "tags", "exit_code", "commit"):
        assert getattr(mine, name) == getattr(theirs, name), name
    for name in ("config", "summary", "history"):
        assert repr(plain(getattr(mine, name))) == repr(plain(getattr(theirs, name))), name  # repr: NaN equals NaN
    assert len(mine.history) == 2 * count
    assert [row["_step"] for row in mine.history] == list(range(2 * count))
    assert abs(mine.started - theirs.started) < 60
    assert [record.num for record in read_records(mine.path)] == list(range(1, 2 + 4 + 6 * count + 4))


def plain(value):
    """Return nested values sorted by key, numbers as floats, without clocks."""
    if isinstance(value, dict):
        return {key: plain(value[key]) for key in sorted(value) if key not in VOLATILE}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


@pytest.mark.parametrize("before", [0, 1, BLOCK - len(HEADER) - 7 * FRAGMENT.size])
def test_messages_of_every_size_survive_the_ends_of_blocks(tmp_path, before, monkeypatch):
    """Sizes that end before, in and after the last bytes of a block, where no header fits, or a header and no data."""
    monkeypatch.setattr("src.tracking.wandb_files.parse", lambda message, path: message)
    free = BLOCK - len(HEADER) - 2 * FRAGMENT.size - before
    sizes = [*range(free - 20, free + 10), BLOCK, 3 * BLOCK - 8, 100_000]
    for size in sizes:
        messages = [b"a" * before, os.urandom(max(size, 0)), b"", b"end"]
        file = tmp_path / "run-x.wandb"
        file.write_bytes(framed(messages))
        assert list(read_records(file)) == messages, size


def test_the_official_file_s_messages_framed_are_the_official_file(tmp_path, monkeypatch):
    file = official(settings(tmp_path), list(rows(200)), SUMMARY, 0)
    monkeypatch.setattr("src.tracking.wandb_files.parse", lambda message, path: message)
    assert file.stat().st_size > 3 * BLOCK
    assert framed(read_records(file)) == file.read_bytes()


def test_the_official_reader_reads_it(tmp_path):
    """W&B's own reader, in Go."""
    file = ours(settings(tmp_path), list(rows(300)), {"val_loss": 0.5}, 0)
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    expected = {"project": "p", "name": "a job", "state": "finished", "exit_code": 0, "step": 599, "tags": ["b", "a"]}
    assert {key: found[key] for key in expected} == expected
    assert found["config"]["strategy"] == CONFIG["strategy"]
    assert (found["summary"]["val_loss"], found["summary"]["finetune/step"]) == (0.5, 299)


class Server(http.server.BaseHTTPRequestHandler):
    """The part of a W&B server that ``wandb sync`` needs; stores the requests."""

    received: ClassVar[list[dict]] = []

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
        if self.path.startswith("/sdk/"):  # W&B's own measurements of its client
            return self.answer({})
        message = json.loads(body)
        self.received.append(message)
        if "UpsertBucket" in message.get("query", ""):
            project = {"id": "p", "name": "p", "entity": {"id": "e", "name": "me"}}
            bucket = {"id": "b", "name": message["variables"]["name"], "config": "{}", "project": project}
            return self.answer({"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}})
        return self.answer({"data": {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": []}}})

    def answer(self, content):
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args):
        pass


def uploaded(file, home):
    """Upload a run with ``wandb sync`` to a local server; return what it received, without clocks."""
    Server.received.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = {
            "WANDB_MODE": "online",
            "WANDB_API_KEY": "0" * 40,
            "WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}",
        }
        command = [sys.executable, "-m", "wandb", "sync", str(file.parent)]
        environment = {**os.environ, "HOME": str(home), **host}
        done = subprocess.run(
            command, env=environment, cwd=home, capture_output=True, text=True, timeout=60, check=False
        )
        server.shutdown()
    assert done.returncode == 0, done.stderr
    assert "Finished syncing" in done.stderr
    run, lines, summary, ended = {}, [], {}, {}
    for message in Server.received:
        run |= {key: value for key, value in message.get("variables", {}).items() if value is not None}
        files = message.get("files", {}) if "query" not in message else {}
        lines += files.get("wandb-history.jsonl", {}).get("content", [])
        summary |= json.loads(files.get("wandb-summary.json", {"content": ["{}"]})["content"][-1])
        ended |= {key: message[key] for key in ("complete", "exitcode") if key in message}
    config = json.loads(run.pop("config"))
    for noise in ("t", "e"):
        config["_wandb"]["value"].pop(noise, None)
    metrics = config["_wandb"]["value"]["m"]  # in any order; "5" is the place of the axis among them, "1" a name
    named = [{**metric, **({"5": metrics[metric["5"] - 1]["1"]} if "5" in metric else {})} for metric in metrics]
    config["_wandb"]["value"]["m"] = sorted(repr(plain(metric)) for metric in named)
    run = {key: run[key] for key in ("project", "groupName", "displayName", "jobType", "tags", "host")}
    return repr((run, ended, plain(config), plain(summary), [plain(json.loads(line)) for line in lines]))


def test_wandb_sync_uploads_the_same(tmp_path):
    theirs, mine = (uploaded(file, tmp_path) for file in both(tmp_path, 300))
    assert "'exitcode': 0" in mine
    assert mine.count("'finetune/loss'") == 300 + 1
    assert mine == theirs


@pytest.mark.parametrize("where", ["rows", "write_bytes", "rename"])
def test_a_crash_leaves_no_run(tmp_path, monkeypatch, where):
    def crash(*_):
        raise KeyboardInterrupt

    def crashing():
        yield {"finetune/step": 0}
        crash()

    if where != "rows":
        monkeypatch.setattr(Path, where, crash)
    with pytest.raises(KeyboardInterrupt):
        write_offline_run(settings(tmp_path), crashing() if where == "rows" else [], {}, 0)
    assert not [path for path in tmp_path.rglob("*") if path.name != "wandb"]


def test_an_unfinished_folder_is_no_run(tmp_path):
    """What a killed process leaves has another name, and does not prevent the next run."""
    folder = write_offline_run(settings(tmp_path), [], {}, 0)
    shutil.move(folder, folder.with_name(f".{folder.name}"))
    assert not list(tmp_path.rglob("offline-run-*"))
    assert write_offline_run(settings(tmp_path), [], {}, 0).exists()


def publish_three(monkeypatch, folder, **environment):
    """Publish two recorded runs with a live one between them; return the process's answers."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    publisher = Publisher()
    options: dict[str, Any] = {"mode": Wandb().effective_mode(), "timeout": 1.0}
    recorded = [{"finetune/step": step, "finetune/loss": 1.0 / (step + 1)} for step in range(3)]
    summary = {"val_loss": 0.5, "objective": math.inf}
    for number in (0, 2):
        run = settings(folder / str(number), group=None, config={"seed": number})
        publisher.send("record", **options, run=run, rows=recorded, summary=summary, exit_code=number)
        if number == 0:
            publisher.send("start", **options, run=settings(folder / "1", group=None, config={"seed": 1}))
            for row in recorded:
                publisher.send("log", row=row)
            publisher.send("finish", summary=summary, exit_code=1)
    return publisher.close()


def logged(folder):
    """Return the events of the official client's own log of a run; there is none where it made no run."""
    return list((folder / "logs").glob("debug.log"))


def test_recorded_runs_equal_live_ones(tmp_path, monkeypatch):
    answers = publish_three(monkeypatch, tmp_path, WANDB_RUN_GROUP="around", WANDB_ENTITY="me")
    folders = [Path(answer["folder"]) for answer in answers]
    assert [answer["url"] for answer in answers] == [None] * 3
    assert [bool(logged(folder)) for folder in folders] == [False, True, False]
    runs = [read_run(next(folder.glob("run-*.wandb"))) for folder in folders]
    assert [(run.config["seed"], run.exit_code, run.group) for run in runs] == [(i, i, "around") for i in range(3)]
    assert len({run.run_id for run in runs}) == 3
    assert plain(runs[0].history) == plain(runs[1].history) == plain(runs[2].history)
    assert plain(runs[0].summary) == plain(runs[1].summary)
    entities = {record.run.entity for run in runs for record in read_records(run.path) if record.HasField("run")}
    assert entities == {"me"}


@pytest.mark.parametrize(
    "environment",
    [{"WANDB_RUN_ID": "chosen", "WANDB_SWEEP_ID": "s"}, {"WANDB_NOTES": "why"}, {"WANDB_RESUME": "allow"}],
)
def test_runs_that_need_the_official_client_use_it(tmp_path, monkeypatch, environment):
    answers = publish_three(monkeypatch, tmp_path, **environment)
    folders = [Path(answer["folder"]) for answer in answers]
    assert all(logged(folder) for folder in folders)
    if "WANDB_RUN_ID" in environment:
        assert {folder.name.rpartition("-")[2] for folder in folders} == {"chosen"}


def test_a_recorded_run_whose_server_cannot_be_reached_is_kept_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    answers = publish_three(monkeypatch, tmp_path, WANDB_API_KEY="0" * 40, WANDB_BASE_URL="http://127.0.0.1:9")
    assert ["warning" in answer for answer in answers] == [True, False, False, False]
    assert "continuing offline" in answers[0]["warning"]
    runs = [read_run(next(Path(answer["folder"]).glob("run-*.wandb"))) for answer in answers[1:]]
    assert [run.config["seed"] for run in runs] == [0, 1, 2]


@pytest.fixture(scope="module", autouse=True)
def service():
    yield
    wandb.teardown()
