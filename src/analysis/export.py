"""Tidy tables of a sweep: one row a job, and one row a logged step."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import UserError
from ..tracking.records import Job, job_folders, load_jobs, relative_name

# The table reads from left to right: which job, its configuration, what came out, what it cost, its origin.
# A configuration's columns are those between `status` and `objective`; the analysis relies on it.
IDENTITY = ("job", "job_id", "status")
OUTCOME = (
    "trainable_parameters",
    "total_parameters",
    "flops_per_step",
    "seconds",
    "seconds_per_update",
    "compile_seconds",
    "error",
    "last_finite_step",
)
ORIGIN = ("started", "data_fingerprint", "git_commit")
COUNTS = ("trainable_parameters", "total_parameters", "last_finite_step")


def load_sweep(sweep_dir: Path | str) -> list[Job]:
    """Read the jobs of a sweep's folder and the offline W&B runs in it that no job's own record describes.

    A ``.wandb`` file inside a job's folder is a view of that job. It counts only where the job itself
    recorded nothing, neither summary.json nor metrics.jsonl, as with another project's Hydra jobs.

    Raises:
        UserError: ``sweep_dir`` is not a folder.
    """
    sweep_dir = Path(sweep_dir)
    jobs = {job.name: job for job in load_jobs(sweep_dir)}
    folders = list(job_folders(sweep_dir))
    recorded = {
        folder for folder in folders if any((folder / name).exists() for name in ("summary.json", "metrics.jsonl"))
    }
    files = [file for file in sorted(sweep_dir.rglob("*.wandb")) if recorded.isdisjoint(file.parents)]
    files = list({file.resolve(): file for file in files}.values())  # `latest-run` is a link to one of them
    if not files:
        return list(jobs.values())
    from ..tracking.wandb_files import load_wandb_files

    described = {folder for folder in folders if any(folder in file.parents for file in files)}
    for folder in described:
        del jobs[relative_name(folder, sweep_dir)]
    return [*jobs.values(), *load_wandb_files(files)]


def flatten_config(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested configuration's values under dotted names, ``strategy.name`` as plain ``strategy``.

    Lists become their JSON text, so that they can be compared, grouped and written.
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten_config(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            flat[prefix + key] = json.dumps(value, sort_keys=True)
        else:
            flat[prefix[:-1] if key == "name" and prefix else prefix + key] = value
    return flat


def uniform(values: pd.Series) -> pd.Series:
    """Return a column of one kind: mixed text, booleans and numbers become text; what is missing stays so."""
    known = values.dropna()
    kinds = {bool if isinstance(v, bool) else float if isinstance(v, int | float) else str for v in known}
    if len(kinds) > 1:
        values = values.map(lambda value: value if pd.isna(value) else str(value))
    return pd.Series(list(values), index=values.index)  # pandas infers the kind anew


def uniform_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Give every column of a table one kind, so that parquet can hold it."""
    kept = {name: uniform(values) if values.dtype == object else values for name, values in table.items()}
    return pd.DataFrame(kept, index=table.index)


def varies(values: pd.Series) -> bool:
    """Tell whether a column holds more than one value; a missing one counts."""
    return len(values.drop_duplicates()) > 1


def jobs_table(jobs: Iterable[Job]) -> pd.DataFrame:
    """Return one row a job.

    Columns, from left to right: `job`, `job_id`, `status`; the configuration, flattened; `objective`; the
    final metrics under their own names; cost and outcome (`OUTCOME`, in parameters, floating-point operations
    and seconds); origin, with versions as ``version.<package>``. Where two would share a name, the record's
    own columns keep it, then the metrics (a metric is then called ``metric.<name>``), then the configuration
    (``config.<name>``): nothing is overwritten.
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
    columns = [
        *IDENTITY,
        *config_columns,
        "objective",
        *dict.fromkeys(names.values()),
        *OUTCOME,
        *ORIGIN,
        *version_columns,
    ]
    return with_kinds(pd.DataFrame(rows, columns=pd.Index(columns), dtype=object))


def with_kinds(table: pd.DataFrame) -> pd.DataFrame:
    """Give every column one kind, and counts whole numbers although some jobs have none."""
    table = uniform_columns(table)
    counts = [name for name in COUNTS if name in table]
    return table.astype(dict.fromkeys(counts, "Int64")).copy()  # in few pieces again: pandas warns of many


def history_table(jobs: Iterable[Job]) -> pd.DataFrame:
    """Return one row a logged step: `job`, `job_id`, varying configuration, `stage`, `step`, values.

    A configuration's column that shares its name with a value is called ``config.<name>``.

    Raises:
        UserError: a job's metrics.jsonl is damaged before its last line.
    """
    jobs = list(jobs)
    rows = [{"_job": index} | row for index, job in enumerate(jobs) for row in job.rows()]
    table = pd.DataFrame(rows, columns=None if rows else pd.Index(["_job", "stage", "step"]))
    configs = pd.DataFrame([flatten_config(job.config) for job in jobs], dtype=object)
    configs = uniform_columns(configs.drop(columns=[name for name in configs if not varies(configs[name])]))
    taken = {"job", "job_id", *table.columns}
    configs = configs.rename(columns=lambda name: f"config.{name}" if name in taken else name)
    configs.insert(0, "job", pd.Series([job.name for job in jobs], dtype=object))
    configs.insert(1, "job_id", pd.Series([job.job_id for job in jobs], dtype=object))
    index = table.pop("_job").astype(int)
    left = configs.iloc[index].reset_index(drop=True)
    first = [name for name in ("stage", "step") if name in table]
    return pd.concat([left, table[first], table.drop(columns=first)], axis=1)


def check_format(path: Path) -> None:
    """Check that a table's path ends in a format that tables are kept in.

    Raises:
        UserError: it does not.
    """
    if path.suffix not in (".parquet", ".csv"):
        raise UserError(f"a table is a .parquet or .csv file, got '{path}'")


def write_table(table: pd.DataFrame, path: Path | str) -> None:
    """Write a table as .parquet or .csv, whole or not at all, and make the folders above it.

    CSV: an empty cell is a missing value or NaN, ``inf`` is infinity, floats keep every bit.

    Raises:
        UserError: another suffix, or the path cannot be written.
    """
    path = Path(path)
    check_format(path)
    table = uniform_columns(table)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".csv":
            table.to_csv(draft, index=False)
        else:
            table.to_parquet(draft, index=False)
        draft.replace(path)
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def read_table(path: Path | str) -> pd.DataFrame:
    """Read what :func:`write_table` wrote.

    Raises:
        UserError: no such file, another suffix, or not a table.
    """
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
    except (OSError, ValueError) as error:  # pyarrow's and pandas' own errors are ValueErrors
        raise UserError(f"'{path}' cannot be read as a table: {error}") from error
    return with_kinds(table)
