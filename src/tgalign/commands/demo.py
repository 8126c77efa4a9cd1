"""``tgalign demo``: the experiment in small, from data to page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tgalign.terminal import quiet_libraries


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(
        epilog="Examples:\n\n`tgalign demo --out demo`\n\n`tgalign demo --out demo3 --seeds 3`\n\n"
        "`tgalign demo --out captioned --condition captioned --toxic-share 0.01 "
        "--arms ce,paper,tga`"
    )(demo)


def demo(
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for results.json and report.html; by default demo, or demo-smoke."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How often to repeat, with seeds 0, 1, …")] = 1,
    condition: Annotated[
        str, typer.Option(help="How toxic pictures enter the data: absent, guided or captioned.")
    ] = "guided",
    toxic_share: Annotated[
        float | None,
        typer.Option(help="Share of toxic pictures; by default 0.1, in captioned 0.05."),
    ] = None,
    style: Annotated[
        str,
        typer.Option(help="How pictures are drawn: emoji, or icons (nothing was tuned on them)."),
    ] = "emoji",
    arms: Annotated[
        str | None,
        typer.Option(
            help="Arms, comma-separated (see lab/arms.py); by default ce,released_nograd,tga."
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Arms trained side by side; by default one a core."),
    ] = None,
    smoke: Annotated[
        bool,
        typer.Option(
            help="A run of a minute or two to see that all works; its figures mean nothing."
        ),
    ] = False,
    progress: Annotated[bool, typer.Option(help="Draw progress bars.")] = True,
) -> None:
    """Train CE-only, released and TGA models on the lab's pictures and measure their safety.

    Takes minutes on two cores. Interrupt it at will: the same command goes on where it was.
    """
    from tgalign.demo import run_demo

    quiet_libraries()
    run_demo(
        out or Path("demo-smoke" if smoke else "demo"),
        num_seeds=seeds,
        condition=condition,
        toxic_share=toxic_share,
        style=style,
        arms=[arm.strip() for arm in arms.split(",")] if arms else None,
        jobs=jobs,
        smoke=smoke,
        progress_bar=progress,
    )
