"""Tables of a sweep: one row for each job, and one row for each logged step."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import UserError
from ..files import atomic_write
from ..tracking.record_reader import Job, job_folders, load_jobs, relative_name

# Order of the columns: the job, its configuration, the results, the cost, the origin. src/analysis/comparison.py relies
# on the configuration columns being those between `status` and `objective`.
IDENTITY = ("job", "job_id", "status")
COUNTS = ("trainable_parameters", "total_parameters", "last_finite_step")
SECONDS = ("seconds", "seconds_per_update", "compile_seconds")
OUTCOME = (*COUNTS[:2], "flops_per_step", *SECONDS, "error", COUNTS[2])
ORIGIN = ("started", "data_fingerprint", "git_commit")


def load_sweep(sweep_dir: Path | str) -> list[Job]:
    """Read the jobs of a sweep's folder, and the offline W&B runs in it that have no record.

    A ``.wandb`` file in a job's folder counts only if the folder has neither summary.json nor metrics.jsonl, as in
    Hydra jobs of other projects. A :class:`UserError` names a ``sweep_dir`` that is not a folder.
    """
    sweep_dir = Path(sweep_dir)
    jobs = {job.name: job for job in load_jobs(sweep_dir)}
    folders = list(job_folders(sweep_dir))
    records = ("summary.json", "metrics.jsonl")
    recorded = {folder for folder in folders if any((folder / name).exists() for name in records)}
    files = [file for file in sorted(sweep_dir.rglob("*.wandb")) if recorded.isdisjoint(file.parents)]
    files = list({file.resolve(): file for file in files}.values())  # `latest-run` is a link to one of them
    if not files:
        return list(jobs.values())
    from ..tracking.wandb_files import load_wandb_files

    described = {relative_name(f, sweep_dir) for f in folders if any(f in file.parents for file in files)}
    return [*(job for name, job in jobs.items() if name not in described), *load_wandb_files(files)]


def flatten_config(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested configuration under dotted names, ``strategy.name`` as ``strategy``, with lists as JSON."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten_config(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            flat[prefix + key] = json.dumps(value, sort_keys=True)
        else:
            flat[prefix[:-1] if key == "name" and prefix else prefix + key] = value
    return flat


def with_kinds(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose columns have one kind each, as parquet needs, with counts as nullable integers.

    Mixed text, booleans and numbers become text; missing values stay missing.
    """

    def uniform(values: pd.Series) -> pd.Series:
        known = values.dropna()
        kinds = {bool if isinstance(v, bool) else float if isinstance(v, int | float) else str for v in known}
        if len(kinds) > 1:
            values = values.map(lambda value: value if pd.isna(value) else str(value))
        return pd.Series(list(values), index=values.index)  # pandas infers the kind

    kept = {name: uniform(values) if values.dtype == object else values for name, values in table.items()}
    counts = [name for name in COUNTS if name in table]
    kinds = pd.DataFrame(kept, index=table.index).astype(dict.fromkeys(counts, "Int64"))
    return kinds.copy()  # consolidated: pandas warns about inserts into fragmented tables


def varies(values: pd.Series) -> bool:
    """Return whether a column has more than one value, where missing counts as a value."""
    return len(values.drop_duplicates()) > 1


def jobs_table(jobs: Iterable[Job]) -> pd.DataFrame:
    """Return a table with one row for each job.

    Columns in order: ``job``, ``job_id``, ``status``; the flattened configuration; ``objective``; the final metrics;
    cost and outcome (``OUTCOME``, in parameters, floating-point operations and seconds); origin, with versions as
    ``version.<package>``. A metric with the name of one of these columns is called ``metric.<name>``, and a
    configuration value with the name of a column or metric ``config.<name>``.
    """
    jobs = list(jobs)
    own = {*IDENTITY, "objective", *OUTCOME, *ORIGIN}
    names = {name: f"metric.{name}" if name in own else name for job in jobs for name in job.metrics}
    taken = own | set(names.values())
    rows, config_columns, version_columns = [], {}, {}
    for job in jobs:
        config = {f"config.{key}" if key in taken else key: value for key, value in flatten_config(job.config).items()}
        metrics = {names[key]: value for key, value in job.metrics.items()}
        versions = {f"version.{key}": value for key, value in job.versions.items()}
        fixed = {key: getattr(job, "name" if key == "job" else key) for key in own}
        rows.append(config | metrics | versions | fixed)
        config_columns |= dict.fromkeys(config)
        version_columns |= dict.fromkeys(versions)
    results = ["objective", *dict.fromkeys(names.values()), *OUTCOME, *ORIGIN]
    columns = pd.Index([*IDENTITY, *config_columns, *results, *version_columns])
    return with_kinds(pd.DataFrame(rows, columns=columns, dtype=object))


def history_table(jobs: Iterable[Job]) -> pd.DataFrame:
    """Return one row for each logged step: ``job``, ``job_id``, varying configuration, ``stage``, ``step``, values.

    A configuration column with the name of a value is called ``config.<name>``. A :class:`UserError` names a
    metrics.jsonl that is damaged before its last line.
    """
    jobs = list(jobs)
    rows = [{"_job": index} | row for index, job in enumerate(jobs) for row in job.rows()]
    table = pd.DataFrame(rows, columns=None if rows else pd.Index(["_job", "stage", "step"]))
    configs = pd.DataFrame([flatten_config(job.config) for job in jobs], dtype=object)
    configs = with_kinds(configs.drop(columns=[name for name in configs if not varies(configs[name])]))
    taken = {"job", "job_id", *table.columns}
    configs = configs.rename(columns=lambda name: f"config.{name}" if name in taken else name)
    configs.insert(0, "job", pd.Series([job.name for job in jobs], dtype=object))
    configs.insert(1, "job_id", pd.Series([job.job_id for job in jobs], dtype=object))
    index = table.pop("_job").astype(int)
    left = configs.iloc[index].reset_index(drop=True)
    first = [name for name in ("stage", "step") if name in table]
    return pd.concat([left, table[first], table.drop(columns=first)], axis=1)


def check_format(path: Path) -> None:
    """Raise a :class:`UserError` unless a path ends in ``.parquet`` or ``.csv``."""
    if path.suffix not in (".parquet", ".csv"):
        raise UserError(f"a table is a .parquet or .csv file, got '{path}'")


def write_table(table: pd.DataFrame, path: Path | str) -> None:
    """Write a table as .parquet or .csv atomically, and create its folder.

    In CSV, an empty cell is a missing value or NaN, ``inf`` is infinity, and floats keep every bit. A
    :class:`UserError` names another suffix, or a path that cannot be written.
    """
    path = Path(path)
    check_format(path)
    table = with_kinds(table)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            if path.suffix == ".csv":
                table.to_csv(file, index=False)
            else:
                table.to_parquet(file, index=False)
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error.strerror or error}") from error


def read_table(path: Path | str) -> pd.DataFrame:
    """Read a table that :func:`write_table` wrote, or raise a :class:`UserError`."""
    path = Path(path)
    check_format(path)
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        names = pd.read_csv(path, nrows=0).columns
        text = {name for name in names if name in (*IDENTITY, *ORIGIN, "error") or name.startswith("version.")}
        table = pd.read_csv(
            path,
            dtype=dict.fromkeys(text, str),  # a commit may read like 12345e67
            keep_default_na=False,
            na_values=[""],  # a strategy may be called "none" or "NA"
        )
    except FileNotFoundError as error:
        raise UserError(f"there is no table '{path}' (scripts/export_sweep.py writes one)") from error
    except (OSError, ValueError) as error:  # the errors of pyarrow and pandas are ValueErrors
        raise UserError(f"'{path}' cannot be read as a table: {error}") from error
    return with_kinds(table)
