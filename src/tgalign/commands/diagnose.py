"""``tgalign diagnose``: where and why a model's safety is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""

    @app.command(
        epilog="Examples:\n\n`tgalign diagnose demo/seed0/ce/checkpoint --out diagnosis/ce`\n\n"
        "`tgalign diagnose models/llava --out diagnosis/llava --probes my-probes --clip models/clip"
        " --patch-layers 4-20`\n\n"
        "`tgalign report diagnosis/ce diagnosis/tga --out diagnosis/compared`"
    )
    def diagnose(
        model: Annotated[
            Path, typer.Argument(help="Folder of a vision-language checkpoint of any family.")
        ],
        out: Annotated[Path, typer.Option(help="Folder for diagnosis.json and report.html.")],
        probes: Annotated[
            str,
            typer.Option(help="`lab`, or a folder with probes.jsonl (see `tgalign lab probes`)."),
        ] = "lab",
        per_scene: Annotated[
            int | None,
            typer.Option(min=1, help="Pairs of probes per scene; by default of the lab 12."),
        ] = None,
        clip: Annotated[
            Path | None,
            typer.Option(
                help="Folder of a CLIP to compare the alignment with; with `lab` the lab's."
            ),
        ] = None,
        question: Annotated[
            str, typer.Option(help="What is asked about every picture.")
        ] = "Describe this image.",
        patch_layers: Annotated[
            str, typer.Option(help="States to patch: all, or a range such as 8-16.")
        ] = "all",
        batch_size: Annotated[int, typer.Option(min=1, help="Prompts per forward.")] = 16,
        max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 32,
        progress: Annotated[bool, typer.Option(help="Draw progress bars.")] = True,
    ) -> None:
        """Show where a model refuses in words, where its pictures lose that, and prove it.

        Reads the layers at which refusal arises, how far pictures are from their captions there and
        what the answer attends to; then puts the captions' states in the pictures' place, layer by
        layer, and counts refusals. Interrupt it at will: the same command goes on where it was.
        """
        from tgalign.diagnose.command import run_diagnosis
        from tgalign.terminal import quiet_libraries

        quiet_libraries()
        typer.echo(
            run_diagnosis(
                model,
                out,
                probes,
                per_scene=per_scene,
                clip=clip,
                question=question,
                patch_layers=patch_layers,
                batch_size=batch_size,
                max_new_tokens=max_new_tokens,
                progress=progress,
            )
        )
