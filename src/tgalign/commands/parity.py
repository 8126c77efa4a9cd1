"""``tgalign parity``: two hosts, the same answers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(epilog="Example:\n\n`tgalign parity runs/local runs/served`")(parity)


def parity(
    one: Annotated[Path, typer.Argument(help="Folder of an evaluation on one host.")],
    other: Annotated[Path, typer.Argument(help="Folder of the same on another host.")],
    at_least: Annotated[
        float, typer.Option(min=0, max=1, help="Share of equal answers below which to exit with 1.")
    ] = 1.0,
) -> None:
    """Say whether two hosts give the same answers to the same items.

    Exit status: 1 where fewer are the same than --at-least says, or one host lacks an item.
    """
    import json

    from tgalign.evaluate.compare import load_pairs, require_finished
    from tgalign.evaluate.compare import parity as compare_hosts

    for where in (one, other):
        require_finished(where)
    found = compare_hosts(*load_pairs(one, other))
    typer.echo(json.dumps(found, indent=1))
    if found["same_answer"]["rate"] < at_least or found["unshared"]:
        sys.exit(1)
