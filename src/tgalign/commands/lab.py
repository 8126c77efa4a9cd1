"""``tgalign lab``: the base models, experiments and their tables, probes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tgalign.commands.honoured import refuse_others
from tgalign.limits import MAX_SEED

lab = typer.Typer(no_args_is_help=True, help="The embedded lab: base models, experiments.")


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.add_typer(lab, name="lab")


@lab.command(
    "build",
    epilog="Examples:\n\n`tgalign lab build --out lab`\n\n`tgalign lab build --check`",
)
def lab_build(
    context: typer.Context,
    out: Annotated[
        Path | None,
        typer.Option(help="Build here; a killed build goes on after the last finished model."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of a build.")] = 0,
    check: Annotated[
        bool,
        typer.Option(help="Rebuild from the shipped models' seed and compare how both behave."),
    ] = False,
    gates: Annotated[
        bool, typer.Option(help="Only measure the gates of the shipped models (a minute).")
    ] = False,
    progress: Annotated[bool, typer.Option(help="Draw progress bars.")] = True,
) -> None:
    """Train the lab's base LLM and vision encoder from a seed (about half an hour on two cores).

    Give one of --out, --check and --gates.
    """
    from tgalign.lab.build_command import run_build
    from tgalign.terminal import quiet_libraries

    if out is None and check != gates:
        refuse_others(context, "--check" if check else "--gates", ("check", "gates", "progress"))
    quiet_libraries()
    sys.exit(run_build(out, seed, check=check, gates_only=gates, progress_bar=progress))


@lab.command(
    "experiment",
    epilog="Examples:\n\n"
    "`tgalign lab experiment tga --condition captioned --out runs/experiments`\n\n"
    "`tgalign lab experiment ce --out runs/experiments --set stage2.llm_lr=2.0e-4`",
)
def lab_experiment(
    arm: Annotated[str, typer.Argument(help="The arm to start from (see lab/arms.py).")],
    out: Annotated[Path, typer.Option(help="Folder of experiments.")],
    condition: Annotated[str, typer.Option(help="absent, guided or captioned.")] = "guided",
    toxic_share: Annotated[
        float | None, typer.Option(help="Share of toxic pictures; by default as of the demo.")
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED, help="Of data, training and suite.")
    ] = 0,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="A changed setting, KEY=VALUE: of the recipe (companions=0.5), of a stage "
            "(stage2.llm_lr=1.0e-4, stage1.objective.weight=1), of both (objective.weight=1) or of "
            "the data (data.pictures=4000).",
        ),
    ] = None,
    conflict: Annotated[
        bool, typer.Option(help="Log where cross-entropy and guide pull apart, by layer.")
    ] = False,
    progress: Annotated[bool, typer.Option(help="Draw progress bars.")] = True,
) -> None:
    """Train one arm, changed at will, and measure it on the things that tuning may look at.

    What was run and measured is printed and appended to OUT/results.jsonl.
    """
    import json

    from tgalign.lab.experiment import run_experiment
    from tgalign.terminal import quiet_libraries

    quiet_libraries()
    found = run_experiment(
        out.resolve(),
        arm,
        condition=condition,
        toxic_share=toxic_share,
        seed=seed,
        changes=changes or [],
        conflict=conflict,
        progress_bar=progress,
    )
    typer.echo(json.dumps(found))


@lab.command("table", epilog="Example:\n\n`tgalign lab table runs/experiments/results.jsonl`")
def lab_table(
    results: Annotated[Path, typer.Argument(help="The results.jsonl of lab experiment.")],
) -> None:
    """Print experiments as one table, and where cross-entropy and guide pulled apart."""
    from tgalign.lab.experiment_tables import conflict_table, table

    typer.echo(table(results))
    typer.echo(conflict_table(results), nl=False)


@lab.command("probes", epilog="Example:\n\n`tgalign lab probes --out probes`")
def lab_probes(
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Of the pictures.")] = 0,
    per_scene: Annotated[int, typer.Option(min=1, help="Pairs per scene.")] = 12,
    objects: Annotated[
        str, typer.Option(help="Things shown: all, development or held_out.")
    ] = "all",
    style: Annotated[str, typer.Option(help="emoji or icons.")] = "emoji",
) -> None:
    """Write the lab's probes as a folder: to look at, to change, or to make one's own alike."""
    from tgalign.diagnose.command import write_lab_probes

    typer.echo(write_lab_probes(out, seed, per_scene, objects, style))
