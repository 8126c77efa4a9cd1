"""``tgalign pool``: evaluations of several seeds in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(
        epilog="Example:\n\n`tgalign pool ce=runs/ce0,runs/ce1 tga=runs/tga0,runs/tga1 --out table`"
    )(pool)


def pool(
    columns: Annotated[
        list[str], typer.Argument(help="LABEL=FOLDER,FOLDER,... with an evaluation in each folder.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Write OUT.md and OUT.json, without an ending.")
    ] = None,
) -> None:
    """Put evaluations of several seeds into one table, a column per label."""
    from tgalign.evaluate.pool import parse_columns, write_pool

    typer.echo(write_pool(parse_columns(columns), out), nl=False)
