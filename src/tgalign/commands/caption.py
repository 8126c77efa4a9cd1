"""``tgalign caption``: captions for pictures that lack one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(
        epilog="Examples:\n\n"
        "`tgalign caption pictures --model llava-1.5-13b-hf --out pictures/records.jsonl`\n\n"
        "`tgalign caption records.jsonl --images pictures --model Qwen2.5-VL-7B-Instruct "
        "--out captioned.jsonl --batch-size 32 --prompt 'Describe this image in one sentence.'`"
    )
    def caption(
        source: Annotated[
            Path,
            typer.Argument(
                metavar="RECORDS|FOLDER",
                help="Records of any shape that train reads (docs/data.md), or a folder of "
                "pictures.",
            ),
        ],
        model: Annotated[
            Path, typer.Option(help="Folder of an image-text-to-text model and its processor.")
        ],
        out: Annotated[Path, typer.Option(help="The records with captions (JSONL).")],
        images: Annotated[
            Path | None,
            typer.Option(help="Folder that image paths are relative to; by default the records'."),
        ] = None,
        prompt: Annotated[
            str | None,
            typer.Option(
                help='What is asked; by default "Describe this image.", or nothing of a model '
                "without a chat template."
            ),
        ] = None,
        batch_size: Annotated[
            int, typer.Option(min=1, help="Pictures at a time; halved where memory runs out.")
        ] = 16,
        max_new_tokens: Annotated[
            int, typer.Option(min=1, help="Length at which a caption is cut.")
        ] = 128,
        dtype: Annotated[
            Literal["auto", "float32", "bfloat16", "float16"],
            typer.Option(help="Of the weights; auto: as saved."),
        ] = "auto",
        progress: Annotated[bool, typer.Option(help="Draw a progress bar.")] = True,
    ) -> None:
        """Caption the pictures that have no caption, with any image-text-to-text model.

        Interrupt it at will: the same command goes on where it was. Rows that have a caption are
        written as they are; pictures that cannot be read, or that the model refuses to caption, are
        left out and named in OUT.problems.jsonl. Exit status: 0 if there are none, else 1.
        """
        from tgalign.caption import PROBLEMS
        from tgalign.caption import caption as run
        from tgalign.terminal import quiet_libraries

        quiet_libraries()
        done = run(
            source,
            model,
            out,
            images=images,
            prompt=prompt,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            dtype=dtype,
            progress_bar=progress,
        )
        for problem in done.problems[:5]:
            typer.echo(f"  {problem}", err=True)
        if done.problems:
            typer.echo(f"{len(done.problems)} row(s) left out: {out}{PROBLEMS}", err=True)
        typer.echo(f"{out}: {done.captioned} captioned, {done.kept} as they were")
        sys.exit(1 if done.problems else 0)
