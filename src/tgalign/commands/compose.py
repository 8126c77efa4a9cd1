"""``tgalign compose``: a language model and a vision encoder into a LLaVA checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tgalign.limits import MAX_SEED


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(
        epilog="Examples:\n\n"
        "`tgalign compose --llm Mistral-7B-Instruct-v0.2 --vision clip-vit-large-patch14-336 "
        "--out base`\n\n"
        "`tgalign compose --llm Qwen3-4B --vision siglip2-so400m-patch14-384 --out base "
        "--dtype bfloat16`"
    )
    def compose(
        llm: Annotated[Path, typer.Option(help="Folder of a causal language model.")],
        vision: Annotated[Path, typer.Option(help="Folder of a CLIP, SigLIP or DINOv2.")],
        out: Annotated[Path, typer.Option(help="The new folder.")],
        projector_seed: Annotated[
            int, typer.Option(min=0, max=MAX_SEED, help="Seed of the projector's random weights.")
        ] = 0,
        dtype: Annotated[
            Literal["auto", "float32", "bfloat16", "float16"],
            typer.Option(help="Of all weights; auto: the language model's."),
        ] = "auto",
        vision_feature_layer: Annotated[
            int,
            typer.Option(
                max=-1, help="The encoder's layer that is read, from the end; -2 as LLaVA-1.5."
            ),
        ] = -2,
        square_pad: Annotated[
            bool,
            typer.Option(
                help="Pad pictures to a square, as LLaVA-1.5, or let the encoder's own image "
                "processor crop or squeeze them."
            ),
        ] = True,
        trust_remote_code: Annotated[
            bool, typer.Option(help="Run code that comes with the models.")
        ] = False,
    ) -> None:
        """Compose any causal language model and a vision encoder into a stock LLaVA checkpoint.

        On text the new model gives the language model's logits, which is checked on the saved
        checkpoint; what stock LLaVA cannot carry is refused. The projector is random: train it.
        """
        from tgalign.compose import REPORT
        from tgalign.compose import compose as run
        from tgalign.files import read_json
        from tgalign.terminal import quiet_libraries

        quiet_libraries()
        out = run(
            llm,
            vision,
            out,
            projector_seed=projector_seed,
            dtype=dtype,
            vision_feature_layer=vision_feature_layer,
            square_pad=square_pad,
            trust_remote_code=trust_remote_code,
        )
        show(read_json(out / REPORT))
        typer.echo(out)


def show(report: dict[str, Any]) -> None:
    """Print what was composed and what the stages of training move."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="What is trained")
    for column in ("part", "parameters", "stage 1", "stage 2"):
        table.add_column(column, justify="right" if column == "parameters" else "left")
    for row in report["parameters"]:
        stages = ["trained" if row[stage] else "frozen" for stage in ("stage1", "stage2")]
        part = row["part"] if row["parameters"] else f"{row['part']} (tied)"
        table.add_row(part, f"{row['parameters']:,}", *stages)
    table.add_section()
    trained = [
        f"{sum(row['parameters'] for row in report['parameters'] if row[stage]):,} trained"
        for stage in ("stage1", "stage2")
    ]
    table.add_row("all", f"{sum(row['parameters'] for row in report['parameters']):,}", *trained)
    Console().print(table)
    changes, logits = report["changes"], report["text_logits"]
    if changes["tokens_added"]:
        added = " ".join(changes["tokens_added"])
        typer.echo(f"tokens added: {added} (embeddings: {changes['embeddings_added']})")
    if changes["head_untied"]:
        typer.echo("the LM head was tied, which stock LLaVA cannot do here: it is a copy now")
    typer.echo(f"chat template: {changes['chat_template']}")
    typer.echo(
        f"text-only logits, as saved: at most {logits['difference']:.2g} from the language model's "
        f"(allowed: {logits['allowed']:.2g})"
    )
