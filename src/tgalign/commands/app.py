"""``tgalign app``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(
        "app",
        epilog="Examples:\n\n`tgalign app`\n\n"
        "`tgalign app demo/seed0/ce/checkpoint demo/seed0/tga/checkpoint --port 7860`\n\n"
        "`tgalign app CHECKPOINT --root /data/pictures`",
    )(serve)


def serve(
    models: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Checkpoints to ask; by default ce and tga of --demo.", metavar="MODEL"
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on. Whoever reaches it can use the page.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="By default the first free one from 7860 on; 0: any."),
    ] = None,
    roots: Annotated[
        list[Path] | None,
        typer.Option(
            "--root",
            help="A folder that the page may open for comparisons, audits and their results; by "
            "default the working directory. May be given several times.",
        ),
    ] = None,
    demo: Annotated[Path, typer.Option(help="Folder of a finished tgalign demo.")] = Path("demo"),
) -> None:
    """Open a page on this machine: ask models about pictures, compare, audit.

    Prints the address when it is ready. Works offline; nothing leaves the machine. Needs the extra
    `app`: pip install 'tgalign[app]'.
    """
    from tgalign.app.server import run_app

    run_app(models or [], host=host, port=port, roots=roots or [Path.cwd()], demo=demo)
