"""``tgalign report``: what a folder holds decides which report is made of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tgalign.errors import UserError
from tgalign.files import blamed_on
from tgalign.report import diagnosis_report


def report_runs(runs: Sequence[Path], out: Path | None) -> str:
    """Report on diagnoses (``diagnosis_report``) or on demos (``conditions``).

    Args:
        runs: Folders of one kind.
        out: Where to, without an ending; one diagnosis takes none.

    Returns:
        What to print.

    Raises:
        UserError: Demos without ``out``, or what the reports raise.
    """
    remedy = "give folders that this version wrote, or make them again"
    with blamed_on(runs[0] if len(runs) == 1 else Path(", ".join(map(str, runs))), remedy):
        return _report(runs, out)


def _report(runs: Sequence[Path], out: Path | None) -> str:
    if any((run / diagnosis_report.FILE).is_file() for run in runs):
        return diagnosis_report.report_diagnoses(runs, out)
    if out is None:
        raise UserError("a report on demos needs --out, where to put it")
    from tgalign.report.conditions import combine

    return combine(runs, out)
