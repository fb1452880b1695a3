"""Find the study that a sweep names, run it on the records of the sweep, and write its report.

A study is a file in ``src/analysis/studies`` with a function ``study(table, history, folder) -> Report`` that draws its
pictures into ``folder`` and raises a :class:`UserError` if the sweep lacks what it compares. This module imports
nothing heavy, because the name is checked before training starts.
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
from ..tracking.record_reader import STATUSES, natural_key

if TYPE_CHECKING:
    import pandas as pd

STUDIES = Path(__file__).parent / "studies"
PAGE = "report.md"
USABLE = ("completed", "diverged")  # a diverged job counts: its rate cannot be chosen


@dataclass(frozen=True)
class Report:
    """The result of a study."""

    title: str  # the question
    conclusion: str  # one sentence; it begins with "Undecided" if the intervals decide nothing
    body: Sequence[str]  # parts of the page as Markdown: tables and how they were made
    pictures: Mapping[str, str]  # titles by file name, as drawn into the folder
    notes: Sequence[str] = ()  # further sentences for the page
    remarks: Sequence[str] = ()  # sentences that are also printed, such as the number of jobs left out

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
    """Check that a study exists (``None``: no report); else, a :class:`UserError` lists the allowed names."""
    names = study_names()
    if name is not None and name not in names:
        raise UserError(
            f"report is '{name}'{did_you_mean(name, names)}; allowed: {listed(names, 40)}, or null for none"
        )


def find_study(name: str) -> Callable[[pd.DataFrame, pd.DataFrame | None, Path], Report]:
    """Return the function of a study; see :func:`check_report`."""
    check_report(name)
    return importlib.import_module(f"{PACKAGE}.analysis.studies.{name}").study


def write_study(name: str, sweep: Path) -> tuple[Report, Path]:
    """Run a study on the folder of a sweep, write ``report.md`` and its pictures into it, and return report and page.

    Raises:
        UserError: there is no such folder or study, no job completed, the sweep lacks what the study compares, or the
            folder cannot be written.
    """
    study = find_study(name)
    from .export import history_table, jobs_table, load_sweep

    jobs = sorted(load_sweep(sweep), key=lambda job: natural_key(job.name))
    usable = [job for job in jobs if job.status in USABLE]
    if not any(job.status == "completed" for job in usable):
        raise UserError(f"no job of '{sweep}' has completed, so there is nothing to report")
    remarks = []
    if lost := len(jobs) - len(usable):
        count = Counter(job.status for job in jobs if job.status not in USABLE)
        kinds = ", ".join(f"{count[status]} {status}" for status in STATUSES if count[status])
        rest = f"the report uses the other {len(usable)}"
        remarks.append(f"{lost} of {len(jobs)} jobs did not complete ({kinds}): {rest}.")
    try:
        history = without_volatile(history_table(usable))
    except UserError as error:
        remarks.append(f"There are no curves: {error}.")
        history = None
    table = without_volatile(jobs_table(usable))

    def make() -> Report:
        report = study(table, history, sweep)
        return replace(report, remarks=(*remarks, *report.remarks))

    return write_report(make, sweep / PAGE), sweep / PAGE


def without_volatile(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table without the columns that change no result: a sweep resumed under another name is still one."""
    return table.loc[:, [name.removeprefix("config.").split(".")[0] not in VOLATILE for name in table]]


def write_report(make: Callable[[], Report], page: Path) -> Report:
    """Make a report, which draws pictures beside its page, and write the page, or raise a :class:`UserError`."""
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        report = make()
        page.write_text(report.page(), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write the {page.stem} to '{page.parent}': {error.strerror or error}") from error
    return report


def recorded_report(sweep: Path) -> str:
    """Return the report that a sweep's jobs name; it is a :class:`UserError` if they name none or several."""
    from .export import load_sweep

    names = {job.config.get("report") for job in load_sweep(sweep)} - {None}
    if len(names) != 1:
        found = f"name several reports ({listed(sorted(map(str, names)))})" if names else "name no report"
        raise UserError(f"the jobs of '{sweep}' {found}: give --report, one of {listed(study_names(), 40)}")
    return str(names.pop())
