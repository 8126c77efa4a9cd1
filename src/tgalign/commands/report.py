"""``tgalign report``: demos' tables side by side, and diagnoses' pages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(
        epilog="Examples:\n\n`tgalign report absent guided captioned --out docs/conditions`\n\n"
        "`tgalign report docs/conditions.json --out docs/conditions`\n\n"
        "`tgalign report diagnosis/tga`\n\n"
        "`tgalign report diagnosis/ce diagnosis/tga --out diagnosis/compared`"
    )(report)


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Folders of finished demos (or a report's JSON), or of diagnoses."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Where to, without an ending; one diagnosis takes none."),
    ] = None,
) -> None:
    """Put demos of several conditions into one table and one plot: OUT.md, OUT.svg, OUT.json.

    Of one diagnosis rebuild its report.html; put several side by side as OUT.html and OUT.md.
    """
    from tgalign.report.runs import report_runs

    typer.echo(report_runs(runs, out))
