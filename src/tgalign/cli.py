"""The command line. Imports stay inside the commands, so that ``--help`` is instant."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from tgalign import __version__
from tgalign.commands import (
    app as page,
)
from tgalign.commands import (
    caption,
    check,
    compare,
    compose,
    demo,
    diagnose,
    evaluate,
    lab,
    parity,
    pool,
    report,
    retrieve,
    train,
)
from tgalign.errors import UserError, disk_refusal, printable
from tgalign.termination import STATUS, exit_on_sigterm

app = typer.Typer(
    name="tgalign",
    help="Text-Guided Alignment: make a vision-language model as safe on images as its language "
    "model is on text.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for command in (
    demo, check, caption, compose, retrieve, train, evaluate, parity, pool, diagnose, compare,
    report, page, lab,
):  # fmt: skip
    command.register(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tgalign {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show version.")
    ] = False,
) -> None:
    pass


PRIVATE = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "RAY_USAGE_STATS_ENABLED": "0",
    "DO_NOT_TRACK": "1",
}
"""Nothing that a command imports reports home or fetches models."""


def main() -> None:
    """Run the command line; a user's mistake, or a full disk, ends with one message, status 2."""
    os.environ |= PRIVATE
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # a log wants no bars
    try:
        with exit_on_sigterm():
            app()
    except UserError as fault:
        typer.echo(f"tgalign: {printable(str(fault))}", err=True)
        sys.exit(2)
    except Exception as fault:
        refused = disk_refusal(fault)
        if refused is None:
            raise
        typer.echo(
            f"tgalign: {refused}, and give the same command again, which goes on from what was "
            "finished",
            err=True,
        )
        sys.exit(2)
    except SystemExit as end:
        if end.code in (130, STATUS):  # what typer makes of a KeyboardInterrupt, and we of SIGTERM
            how = "interrupted" if end.code == 130 else "stopped by SIGTERM"
            typer.echo(f"tgalign: {how}; the same command goes on from what was finished", err=True)
        raise


if __name__ == "__main__":
    main()
