"""``tgalign train``: a recipe, from checkpoint to checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tgalign.commands.honoured import refuse
from tgalign.terminal import quiet_libraries


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(
        epilog="Examples:\n\n`tgalign train recipes/lab.yaml`\n\n"
        "`tgalign train recipes/paper_stage2.yaml --dry-run --processes 8`\n\n"
        "`torchrun --nproc-per-node 8 -m tgalign train recipes/paper_stage2.yaml`"
    )(train)


def train(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(help="A YAML recipe (see recipes/).")],
    progress: Annotated[bool, typer.Option(help="Draw progress bars.")] = True,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Validate the recipe, print sizes, steps and memory, stop."),
    ] = False,
    processes: Annotated[
        int, typer.Option(min=1, help="With --dry-run: how many would share a step.")
    ] = 1,
) -> None:
    """Train a LLaVA checkpoint through the stages of a recipe.

    Writes a stock LLaVA checkpoint to OUT/checkpoint and the named losses to
    OUT/STAGE/metrics.jsonl. A killed run goes on where it was. Bad rows are left out, counted and
    named, up to the recipe's `max_bad_share`. Processes that torchrun or accelerate launch started
    share every step.
    """
    from accelerate import PartialState

    from tgalign.recipe import load_recipe

    if dry_run:
        from tgalign.dry_run import print_plan

        quiet_libraries()
        print_plan(load_recipe(config), processes)
        return
    mend = "give --dry-run too, or start as many by torchrun or accelerate launch"
    refuse(context, "train without --dry-run", ("processes",), mend)
    from tgalign.train import train as run

    quiet_libraries()
    path = run(load_recipe(config), progress_bar=progress)
    if PartialState().is_main_process:
        typer.echo(path)
    PartialState().destroy_process_group()
