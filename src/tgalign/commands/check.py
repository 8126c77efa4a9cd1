"""``tgalign check``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from tgalign.commands.honoured import refuse


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""

    @app.command(
        epilog="Examples:\n\n"
        "`tgalign check llava_v1_5_mix665k.json --images images --model llava-7b --preview 3`\n\n"
        "`tgalign check records.jsonl --all > problems.txt`\n\n"
        "`tgalign check records.jsonl --json > problems.json`\n\n"
        "`tgalign check pictures --tokenizer llava-7b --image-tokens 576 --max-length 1200`"
    )
    def check(
        context: typer.Context,
        data: Annotated[
            Path,
            typer.Argument(
                help="JSON lines, LLaVA's JSON, a CSV file or the folder of pictures with one, "
                "parquet, or a folder saved by Hugging Face datasets (docs/data.md)."
            ),
        ],
        images: Annotated[
            Path | None,
            typer.Option(help="Folder that image paths are relative to; by default the data's."),
        ] = None,
        as_json: Annotated[
            bool, typer.Option("--json", help="Print one JSON object and nothing else.")
        ] = False,
        show_all: Annotated[
            bool, typer.Option("--all", help="Name every bad row, not only the first 20.")
        ] = False,
        preview: Annotated[
            int, typer.Option(min=0, help="Show of so many rows what is masked and what is learnt.")
        ] = 0,
        model: Annotated[
            Path | None,
            typer.Option(help="LLaVA checkpoint to train: its tokenizer counts and masks tokens."),
        ] = None,
        tokenizer: Annotated[
            Path | None, typer.Option(help="In its place, a folder with no more than a tokenizer.")
        ] = None,
        image_tokens: Annotated[
            int, typer.Option(min=1, help="Tokens of a picture, with --tokenizer.")
        ] = 576,
        max_length: Annotated[int, typer.Option(min=1, help="Most tokens of a row.")] = 2048,
        retrieved_in_prompt: Annotated[
            float,
            typer.Option(min=0, max=1, help="Share of rows whose R stands in the prompt."),
        ] = 0.0,
        guide_span: Annotated[
            Literal["picture", "question", "question_words"],
            typer.Option(help="Whose states are guided (docs/own-data.md)."),
        ] = "picture",
        progress: Annotated[bool, typer.Option(help="Draw a progress bar on stderr.")] = True,
    ) -> None:
        """Read all of a data set, open every picture, and say which rows are bad and why.

        Names the first 20 bad rows; `--all` and `--json` name every one.
        Exit status: 0 if all rows are good, 1 if some are bad, 2 on misuse. `train` skips the same
        rows, or refuses the data if they are more than its `max_bad_share`.
        """
        from tgalign.data.check_command import run_check
        from tgalign.errors import UserError
        from tgalign.terminal import quiet_libraries

        if model is not None and tokenizer is not None:
            raise UserError("give one of --model and --tokenizer")
        if tokenizer is None:
            mend = "give it, or leave the other out"
            refuse(context, "check without --tokenizer", ("image_tokens",), mend)
        if model is None and tokenizer is None:
            refuse(
                context,
                "check without --model or --tokenizer",
                ("max_length", "retrieved_in_prompt", "guide_span"),
                "give one, or leave the others out",
            )
        else:
            quiet_libraries()
        sys.exit(
            run_check(
                data,
                images,
                as_json=as_json,
                show_all=show_all,
                num_previews=preview,
                model=model,
                tokenizer=tokenizer,
                image_tokens=image_tokens,
                max_length=max_length,
                retrieved_in_prompt=retrieved_in_prompt,
                guide_span=guide_span,
                progress_bar=progress,
            )
        )
