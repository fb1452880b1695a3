"""What a sweep shows at its end: finds a study by name, asks it about a sweep's records, writes its page.

A study is a file of ``src/results/studies`` with one function, ``study(table, history, folder) -> Report``, which draws
its pictures into ``folder``. Nothing heavy is imported here: the name is checked before anything is trained.
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
from ..tracking.records import STATUSES, Job, natural_key

if TYPE_CHECKING:
    import pandas as pd

STUDIES = Path(__file__).parent / "studies"
PAGE = "report.md"
USABLE = ("completed", "diverged")  # a divergence is an answer, too: that rate is no choice


@dataclass(frozen=True)
class Report:
    """What a study found.

    Attributes:
        title: the question.
        conclusion: one sentence, which says "undecided" where the numbers do not carry more.
        body: Markdown: the table, and how it was made.
        pictures: titles by file name, as drawn into the folder.
        notes: what a reader must know, a sentence each.
        remarks: what is to be said at once: jobs that are not in it.
    """

    title: str
    conclusion: str
    body: str
    pictures: Mapping[str, str]
    notes: Sequence[str] = ()
    remarks: Sequence[str] = ()

    def page(self) -> str:
        """Return the report as Markdown."""
        parts = [f"# {self.title}", f"**{self.conclusion}**", self.body]
        for name, title in self.pictures.items():
            parts += [f"## {title}", f"![{title}]({name})"]
        if self.notes or self.remarks:
            parts += ["## What to know", "\n".join(f"- {note}" for note in (*self.remarks, *self.notes))]
        return "\n\n".join(parts) + "\n"


Study = Callable[["pd.DataFrame", "pd.DataFrame | None", Path], Report]


def study_names() -> list[str]:
    """Return the names of the studies there are: their files."""
    return sorted(path.stem for path in STUDIES.glob("*.py") if path.stem != "__init__")


def check_report(name: str | None) -> None:
    """Check that a study is called like that; ``None`` asks for none.

    Raises:
        UserError: none is; the allowed names are listed.
    """
    names = study_names()
    if name is not None and name not in names:
        raise UserError(
            f"report is '{name}'{did_you_mean(name, names)}; allowed: {listed(names, 40)}, or null for none"
        )


def find_study(name: str) -> Study:
    """Return a study's function.

    Raises:
        UserError: see :func:`check_report`.
    """
    check_report(name)
    return importlib.import_module(f"{PACKAGE}.analysis.studies.{name}").study


def write_study(name: str, sweep: Path) -> tuple[Report, Path]:
    """Run a study on a sweep's folder and write ``report.md`` with its pictures into it.

    Returns:
        The report, and the page's path.

    Raises:
        UserError: no such folder or study, no job that completed, a sweep that does not ask the study's question, or a
            folder that cannot be written.
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
    """Return the jobs' table and history without what changes no number; a history that is damaged is remarked on."""
    from .export import history_table, jobs_table

    def kept(table: pd.DataFrame) -> pd.DataFrame:
        # A sweep that was gone on with under another name or tracker is still one sweep.
        return table.loc[:, [name.removeprefix("config.").split(".")[0] not in VOLATILE for name in table]]

    try:
        history = kept(history_table(jobs))
    except UserError as error:
        remarks.append(f"There are no curves: {error}.")
        history = None
    return kept(jobs_table(jobs)), history


def lost_jobs(jobs: Sequence[Job]) -> list[str]:
    """Say how many jobs are left out because they did not end, if any."""
    lost = [job for job in jobs if job.status not in USABLE]
    if not lost:
        return []
    count = Counter(job.status for job in lost)
    kinds, rest = ", ".join(f"{count[status]} {status}" for status in STATUSES if count[status]), len(jobs) - len(lost)
    return [f"{len(lost)} of {len(jobs)} jobs did not complete ({kinds}): the report uses the other {rest}."]


def recorded_report(sweep: Path) -> str:
    """Return the report that a sweep's jobs were configured with.

    Raises:
        UserError: no such folder, or its jobs name none or several.
    """
    from .export import load_sweep

    names = {job.config.get("report") for job in load_sweep(sweep)} - {None}
    if len(names) != 1:
        found = f"name several reports ({listed(sorted(map(str, names)))})" if names else "name no report"
        raise UserError(f"the jobs of '{sweep}' {found}: give --report, one of {listed(study_names(), 40)}")
    return str(names.pop())
