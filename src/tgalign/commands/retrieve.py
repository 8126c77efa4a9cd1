"""``tgalign retrieve``: build an index of texts, ask it, and attach R to records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from tgalign.commands.honoured import refuse
from tgalign.limits import MAX_SEED

retrieve = typer.Typer(no_args_is_help=True, help="Retrieved texts R: index, query, attach.")

_Encoder = Annotated[
    Path | None,
    typer.Option(help="Folder of the encoder, if it is not where the index was built with it."),
]
_Engine = Annotated[
    Literal["local", "ray"],
    typer.Option(help="local, or ray: on the workers of a Ray cluster ([scale])."),
]
_Workers = Annotated[int, typer.Option(min=1, help="With ray: how many workers.")]
_Progress = Annotated[bool, typer.Option(help="Draw progress bars.")]


def register(app: typer.Typer) -> None:
    """Add ``retrieve`` to the command line."""
    app.add_typer(retrieve, name="retrieve")


@retrieve.command(
    epilog="Examples:\n\n`tgalign retrieve build captions.txt --out index`\n\n"
    "`tgalign retrieve build captions.jsonl --toxic snippets.txt --toxic-share 0.005 --out index "
    "--encoder siglip --backend faiss`"
)
def build(
    context: typer.Context,
    corpus: Annotated[
        Path,
        typer.Argument(
            help="Texts, one a line; JSONL if it ends so, with a text or a caption in every line."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the index.")],
    encoder: Annotated[
        str,
        typer.Option(
            help="Folder of an image-text model (CLIP, SigLIP) or a text model; lab: the one that "
            "comes with tgalign."
        ),
    ] = "lab",
    backend: Annotated[
        Literal["exact", "faiss"], typer.Option(help="exact, or faiss ([retrieval]).")
    ] = "exact",
    kind: Annotated[
        Literal["auto", "flat", "hnsw", "ivf", "ivfpq"],
        typer.Option(help="Which faiss index; auto: by the number of texts."),
    ] = "auto",
    toxic: Annotated[
        Path | None, typer.Option(help="A second corpus, of toxic snippets to mix in.")
    ] = None,
    toxic_share: Annotated[
        float | None, typer.Option(help="Their share of all texts; by default all are taken.")
    ] = None,
    shard_rows: Annotated[
        int, typer.Option(min=1, help="Texts in a shard: what a kill may lose.")
    ] = 16_384,
    engine: _Engine = "local",
    workers: _Workers = 2,
    progress: _Progress = True,
) -> None:
    """Encode a corpus of texts and keep an index of it.

    Interrupt it at will: the same command goes on where it was. With --backend faiss a finished
    index gets an approximate one beside its vectors.
    """
    from tgalign.retrieval.build import build_index
    from tgalign.terminal import quiet_libraries

    if engine != "ray":
        refuse(context, "build without --engine ray", ("workers",), "give --engine ray too")
    quiet_libraries()
    index = build_index(
        corpus,
        out,
        encoder=encoder,
        backend=backend,
        kind=kind,
        toxic=toxic,
        toxic_share=toxic_share,
        shard_rows=shard_rows,
        engine=engine,
        workers=workers,
        progress_bar=progress,
    )
    said = index.manifest
    for source in (said.corpus, said.toxic):
        if source is not None:
            typer.echo(f"{source.file}: {source.kept:,} texts, {source.skipped:,} lines skipped")
            for fault in source.faults:
                typer.echo(f"  {fault}")
    typer.echo(
        f"{out}: {said.count:,} vectors of {said.dimension} channels by {said.encoder.model_type} "
        f"({said.encoder.kind})"
    )
    if said.faiss is not None:
        typer.echo(
            f"faiss {said.faiss.factory} (effort {said.faiss.effort}): {said.faiss.reason}; "
            f"recall@10 {said.faiss.recall_at_10:.3f} on texts of the corpus"
        )


@retrieve.command(
    epilog="Examples:\n\n`tgalign retrieve query index picture.png`\n\n"
    "`tgalign retrieve query index pictures/*.png --k 3 --json`"
)
def query(
    index: Annotated[Path, typer.Argument(help="Folder of the index.")],
    images: Annotated[list[Path], typer.Argument(help="Pictures.")],
    k: Annotated[int, typer.Option(min=1, help="How many texts.")] = 5,
    encoder: _Encoder = None,
    json_lines: Annotated[
        bool, typer.Option("--json", help="Print a line of JSON for each picture.")
    ] = False,
) -> None:
    """Show the texts that are nearest to pictures."""
    import json
    from dataclasses import asdict

    from tgalign.retrieval.query import query as run
    from tgalign.terminal import quiet_libraries

    quiet_libraries()
    for image, texts in zip(images, run(index, images, k=k, encoder=encoder), strict=True):
        if json_lines:
            row = {"image": str(image), "retrieved": [asdict(text) for text in texts]}
            typer.echo(json.dumps(row))
            continue
        typer.echo(image)
        for text in texts:
            typer.echo(f"  {text.score:.3f}  {text.id:>8}  {text.text}")


@retrieve.command(
    epilog="Examples:\n\n`tgalign retrieve attach records.jsonl --index index --out with_r.jsonl`"
    "\n\n`tgalign retrieve attach records.jsonl --index index --out with_r.jsonl --k 3 "
    "--floor 0.2 --engine ray --workers 8`"
)
def attach(
    context: typer.Context,
    records: Annotated[Path, typer.Argument(help="Records, JSONL, with image and caption.")],
    index: Annotated[Path, typer.Option(help="Folder of the index.")],
    out: Annotated[Path, typer.Option(help="Where to, JSONL; OUT.report.json goes beside it.")],
    k: Annotated[int, typer.Option(min=1, help="Texts per picture; training reads the first.")] = 1,
    floor: Annotated[
        float, typer.Option(help="Texts less similar than this are none (cosine).")
    ] = -1.0,
    near_duplicate: Annotated[
        float, typer.Option(help="Texts this similar to the caption count as the caption (cosine).")
    ] = 0.95,
    image_root: Annotated[
        Path | None,
        typer.Option(
            "--images", "--image-root", help="Folder of the pictures; by default that of RECORDS."
        ),
    ] = None,
    encoder: _Encoder = None,
    rank: Annotated[
        int, typer.Option(min=1, help="For ablations: begin with the text of this rank.")
    ] = 1,
    random: Annotated[bool, typer.Option("--random", help="For ablations: random texts.")] = False,
    shuffled: Annotated[
        float, typer.Option(help="For ablations: share of the rows given another row's R.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Of --random and --shuffled.")] = 0,
    engine: _Engine = "local",
    workers: _Workers = 2,
    progress: _Progress = True,
) -> None:
    """Attach R to records: ``retrieved``, a list of text, score and id, best first.

    The record's own caption and its near-duplicates are never R. Faulty rows are left out, counted
    and named. Interrupt it at will: the same command goes on where it was.
    """
    from tgalign.retrieval.attach import attach as run
    from tgalign.retrieval.nearest import Rules
    from tgalign.retrieval.tally import summary
    from tgalign.terminal import quiet_libraries

    if engine != "ray":
        refuse(context, "attach without --engine ray", ("workers",), "give --engine ray too")
    if not random and not shuffled:
        refuse(context, "attach without --random or --shuffled", ("seed",), "give one of them too")
    quiet_libraries()
    said = run(
        records,
        out,
        index=index,
        image_root=image_root,
        encoder=encoder,
        rules=Rules(k, rank, random, floor, near_duplicate, seed),
        shuffled=shuffled,
        engine=engine,
        workers=workers,
        progress_bar=progress,
    )
    for line in summary(said):
        typer.echo(line)
    typer.echo(out)
