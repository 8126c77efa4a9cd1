"""``tgalign compare``: rivals side by side, and ablations of TGA."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from tgalign.commands.honoured import refuse_others
from tgalign.errors import UserError

ABLATION = ("ablation", "out", "seeds", "scale", "jobs", "smoke", "progress")
"""Parameters that an ablation has a use for; it states its other settings itself."""


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(
        epilog="Examples:\n\n`tgalign compare --out compare --seeds 3`\n\n"
        "`tgalign compare --out compare --methods ce,tga,ecso,tga+hiddendetect`\n\n"
        "`tgalign compare --out compare --seeds 3 --estimate`\n\n"
        "`tgalign compare --out given --methods ce --checkpoint mine=demo/seed0/tga/checkpoint`\n\n"
        "`tgalign compare --out ablations --ablation layers --seeds 3`"
    )(compare)


def compare(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder for comparison.json, .html, .csv and .md.")],
    seeds: Annotated[int, typer.Option(min=1, help="How often to repeat, with seeds 0, 1, …")] = 1,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Methods, comma-separated: trainings (tga), defences around the ce model (ecso), "
            "or both (tga+ecso); by default all trainings and all defences."
        ),
    ] = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FOLDER: a LLaVA of the lab's language to measure as it is."),
    ] = None,
    ablation: Annotated[
        str | None,
        typer.Option(help="Instead of rivals, one ablation of TGA; an unknown name lists all."),
    ] = None,
    condition: Annotated[
        str, typer.Option(help="How toxic pictures enter the data: absent, guided or captioned.")
    ] = "guided",
    toxic_share: Annotated[
        float | None, typer.Option(help="Share of toxic pictures; by default as of the demo.")
    ] = None,
    style: Annotated[str, typer.Option(help="How pictures are drawn: emoji or icons.")] = "emoji",
    scale: Annotated[
        float,
        typer.Option(
            help="Factor of the steps and of the data; 1 is the demo's. Of an ablation: of "
            "its steps and pictures."
        ),
    ] = 1.0,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes side by side; by default one a core.")
    ] = None,
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate", help="Only say how many hours are left, of a comparison of methods."
        ),
    ] = False,
    smoke: Annotated[
        bool,
        typer.Option(
            "--smoke",
            help="A run of a minute or two to see that all works; its figures mean nothing.",
        ),
    ] = False,
    progress: Annotated[bool, typer.Option(help="Draw progress bars.")] = True,
) -> None:
    """Put TGA beside rival methods on the lab: one table, with intervals, tests and Pareto plots.

    Every method is trained and measured once per seed; what is finished is not repeated, so the
    same command goes on where it was, and methods and seeds can be added.
    """
    if ablation is not None:
        refuse_others(context, "--ablation", ABLATION)
        from tgalign.baselines.ablate import run_ablation

        run_ablation(
            out, ablation, num_seeds=seeds, scale=scale, jobs=jobs, smoke=smoke,
            progress_bar=progress,
        )  # fmt: skip
        return
    from tgalign.baselines.compare import run_compare

    with _place(out, estimate) as place:
        run_compare(
            place,
            num_seeds=seeds,
            methods=[name.strip() for name in methods.split(",")] if methods else None,
            checkpoints=_named_folders(checkpoint or []),
            condition=condition,
            toxic_share=toxic_share,
            style=style,
            scale=scale,
            jobs=jobs,
            estimate=estimate,
            smoke=smoke,
            progress_bar=progress,
        )


@contextmanager
def _place(out: Path, estimate: bool) -> Iterator[Path]:
    """Where a comparison works: an estimate, which binds nothing, beside one that is not begun."""
    if not estimate or (out / "compare.json").is_file():
        yield out
        return
    with TemporaryDirectory() as folder:
        yield Path(folder)


def _named_folders(texts: list[str]) -> dict[str, Path]:
    folders: dict[str, Path] = {}
    for text in texts:
        name, sign, folder = text.partition("=")
        if not (name and sign and folder):
            raise UserError(f"checkpoint {text!r}: expected NAME=FOLDER")
        if name in folders:
            raise UserError(f"checkpoint {text!r}: {name} is {folders[name]} already, name another")
        folders[name] = Path(folder)
    return folders
