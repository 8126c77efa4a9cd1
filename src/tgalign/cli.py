"""The command line. Imports stay inside the commands, so that ``--help`` is instant."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from tgalign import __version__
from tgalign.commands import app as app_command
from tgalign.commands import caption, check, compare, compose, evaluate, retrieve
from tgalign.commands import diagnose as diagnose_command
from tgalign.commands.honoured import refuse
from tgalign.commands.lab import lab
from tgalign.errors import UserError, disk_refusal, printable
from tgalign.terminal import quiet_libraries
from tgalign.termination import STATUS, exit_on_sigterm

app = typer.Typer(
    name="tgalign",
    help="Text-Guided Alignment: make a vision-language model as safe on images as its language "
    "model is on text.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.add_typer(lab, name="lab")
check.register(app)
evaluate.register(app)
app_command.register(app)
compare.register(app)
compose.register(app)
caption.register(app)
retrieve.register(app)


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


@app.command(
    epilog="Examples:\n\n`tgalign demo --out demo`\n\n`tgalign demo --out demo3 --seeds 3`\n\n"
    "`tgalign demo --out captioned --condition captioned --toxic-share 0.01 --arms ce,paper,tga`"
)
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


@app.command(
    epilog="Examples:\n\n`tgalign train recipes/lab.yaml`\n\n"
    "`tgalign train recipes/paper_stage2.yaml --dry-run --processes 8`\n\n"
    "`torchrun --nproc-per-node 8 -m tgalign train recipes/paper_stage2.yaml`"
)
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


@app.command(
    epilog="Examples:\n\n`tgalign report absent guided captioned --out docs/conditions`\n\n"
    "`tgalign report docs/conditions.json --out docs/conditions`\n\n"
    "`tgalign report diagnosis/tga`\n\n"
    "`tgalign report diagnosis/ce diagnosis/tga --out diagnosis/compared`"
)
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Folders of finished demos (or a report's JSON), or of diagnoses."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Where to, without an ending; not needed for one diagnosis."),
    ] = None,
) -> None:
    """Put demos of several conditions into one table and one plot: OUT.md, OUT.svg, OUT.json.

    Of one diagnosis rebuild its report.html; put several side by side as OUT.html and OUT.md.
    """
    from tgalign.report.runs import report_runs

    typer.echo(report_runs(runs, out))


diagnose_command.register(app, lab)


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
