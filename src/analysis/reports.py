"""Find the study that a sweep names, run it on the records of the sweep, and write its report.

A study is a file in ``src/analysis/studies`` with a function ``study(table, history, folder) -> Report`` that draws its
pictures into ``folder``. This module imports nothing heavy, because the name is checked before training starts.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.identity import VOLATILE
from ..environment import PACKAGE
from ..errors import UserError, did_you_mean, listed
from ..tracking.record_reader import STATUSES, Job, natural_key

if TYPE_CHECKING:
    import pandas as pd

STUDIES = Path(__file__).parent / "studies"
PAGE = "report.md"
USABLE = ("completed", "diverged")  # a diverged job counts: its rate cannot be chosen


@dataclass(frozen=True)
class Report:
    """The result of a study.

    Attributes:
        title: the question.
        conclusion: one sentence; it begins with "Undecided" if the intervals decide nothing.
        body: parts of the page as Markdown: tables and how they were made.
        pictures: titles by file name, as drawn into the folder.
        notes: further sentences for the page.
        remarks: sentences that are also printed, such as the number of jobs left out.
    """

    title: str
    conclusion: str
    body: Sequence[str]
    pictures: Mapping[str, str]
    notes: Sequence[str] = ()
    remarks: Sequence[str] = ()

    def page(self) -> str:
        """Return the report as Markdown."""
        parts = [f"# {self.title}", f"**{self.conclusion}**", *self.body]
        for name, title in self.pictures.items():
            parts += [f"## {title}", f"![{title}]({name})"]
        if self.notes or self.remarks:
            parts += ["## Notes", "\n".join(f"- {note}" for note in (*self.remarks, *self.notes))]
        return "\n\n".join(parts) + "\n"


def study_names() -> list[str]:
    """Return the names of the studies, which are those of their files."""
    return sorted(path.stem for path in STUDIES.glob("*.py") if path.stem != "__init__")


def check_report(name: str | None) -> None:
    """Check that a study of that name exists; ``None`` stands for no report.

    Raises:
        UserError: there is no such study; the message lists the allowed names.
    """
    names = study_names()
    if name is not None and name not in names:
        raise UserError(
            f"report is '{name}'{did_you_mean(name, names)}; allowed: {listed(names, 40)}, or null for none"
        )


def find_study(name: str) -> Callable[[pd.DataFrame, pd.DataFrame | None, Path], Report]:
    """Return the function of a study.

    Raises:
        UserError: see :func:`check_report`.
    """
    check_report(name)
    return importlib.import_module(f"{PACKAGE}.analysis.studies.{name}").study


def write_study(name: str, sweep: Path) -> tuple[Report, Path]:
    """Run a study on the folder of a sweep and write ``report.md`` and its pictures into it.

    Returns:
        The report, and the path of the page.

    Raises:
        UserError: there is no such folder or study, no job completed, the sweep lacks what the study compares, or the
            folder cannot be written.
    """
    study = find_study(name)
    from .export import load_sweep

    jobs = sorted(load_sweep(sweep), key=lambda job: natural_key(job.name))
    usable = [job for job in jobs if job.status in USABLE]
    if not any(job.status == "completed" for job in usable):
        raise UserError(f"no job of '{sweep}' has completed, so there is nothing to report")
    remarks = lost_jobs(jobs)
    table, history = tables(usable, remarks)
    try:
        report = study(table, history, sweep)
        report = replace(report, remarks=(*remarks, *report.remarks))
        page = sweep / PAGE
        page.write_text(report.page(), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write the report to '{sweep}': {error.strerror or error}") from error
    return report, page


def tables(jobs: Sequence[Job], remarks: list[str]) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Return the jobs and their history without the columns that change no result.

    If a history is damaged, it is None and a sentence is added to ``remarks``.
    """
    from .export import history_table, jobs_table

    def stable(table: pd.DataFrame) -> pd.DataFrame:
        # A sweep that was resumed under another name or tracker is still one sweep.
        return table.loc[:, [name.removeprefix("config.").split(".")[0] not in VOLATILE for name in table]]

    try:
        history = stable(history_table(jobs))
    except UserError as error:
        remarks.append(f"There are no curves: {error}.")
        history = None
    return stable(jobs_table(jobs)), history


def lost_jobs(jobs: Sequence[Job]) -> list[str]:
    """Return a sentence with the number of jobs that did not end, if any."""
    lost = [job for job in jobs if job.status not in USABLE]
    if not lost:
        return []
    count = Counter(job.status for job in lost)
    kinds, rest = ", ".join(f"{count[status]} {status}" for status in STATUSES if count[status]), len(jobs) - len(lost)
    return [f"{len(lost)} of {len(jobs)} jobs did not complete ({kinds}): the report uses the other {rest}."]


def recorded_report(sweep: Path) -> str:
    """Return the name of the report in the configuration of a sweep's jobs.

    Raises:
        UserError: there is no such folder, or its jobs name no report or several.
    """
    from .export import load_sweep

    names = {job.config.get("report") for job in load_sweep(sweep)} - {None}
    if len(names) != 1:
        found = f"name several reports ({listed(sorted(map(str, names)))})" if names else "name no report"
        raise UserError(f"the jobs of '{sweep}' {found}: give --report, one of {listed(study_names(), 40)}")
    return str(names.pop())
