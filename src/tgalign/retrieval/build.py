"""``tgalign retrieve build``: from a corpus of texts to an index on disk, shard by shard."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tgalign.errors import UserError
from tgalign.files import INCOMPLETE, file_at_once, named, read_json, sha256, write_json
from tgalign.locks import sole_writer
from tgalign.retrieval import approximate
from tgalign.retrieval.approximate import Kind
from tgalign.retrieval.corpus import Source, Text, mix
from tgalign.retrieval.embed import LAB, Embedder, Identity
from tgalign.retrieval.index import (
    FAISS,
    Index,
    pyarrow_module,
    read_vectors,
    texts_path,
    vectors_path,
)
from tgalign.retrieval.jobs import SETTINGS, Engine, Worker, run_shards, work_folder
from tgalign.retrieval.manifest import (
    MANIFEST,
    Approximate,
    Corpus,
    Manifest,
    Shard,
    read_manifest,
)

SHARD_ROWS = 16_384
_SOURCES = "sources.json"


def build_index(
    corpus: Path,
    out: Path,
    *,
    encoder: str | Path = LAB,
    backend: Literal["exact", "faiss"] = "exact",
    kind: Kind = "auto",
    toxic: Path | None = None,
    toxic_share: float | None = None,
    shard_rows: int = SHARD_ROWS,
    engine: Engine = "local",
    workers: int = 2,
    progress_bar: bool = True,
) -> Index:
    """Build an index, or go on with one that was interrupted; a finished one is kept.

    Args:
        corpus: The texts (``tgalign.retrieval.corpus.Source``).
        out: Folder of the index. It appears only when the index is complete.
        encoder: Folder of an image-text or a text model; by default the lab's CLIP.
        backend: ``exact``, or ``faiss`` for an approximate index beside the vectors; a finished
            index gets it without being encoded again.
        kind: Which faiss index (``tgalign.retrieval.approximate.choose``).
        toxic: A second corpus, of toxic snippets.
        toxic_share: Their share of all texts; None: all of them.
        shard_rows: Texts in a shard.
        engine: Where shards are encoded (``tgalign.retrieval.jobs``).
        workers: With ``ray``: how many.
        progress_bar: Whether to draw one.

    Raises:
        UserError: Options that do not go together, a corpus is missing or holds no text, the
            encoder cannot be loaded or gives vectors that are not finite, or ``out`` holds
            something else.
    """
    if toxic_share is not None and (toxic is None or not 0 < toxic_share < 1):
        raise UserError(
            f"toxic share {toxic_share}: expected a number between 0 and 1, and a toxic corpus"
        )
    if kind != "auto" and backend != "faiss":
        raise UserError(f"kind {kind} is one of faiss: give --backend faiss too")
    identity = Embedder.load(encoder).identity
    sources = [Source(corpus)] + ([Source(toxic, toxic=True)] if toxic else [])
    settings: dict[str, Any] = {
        "encoder": identity.model_dump(exclude={"path"}),
        "corpora": [_digest(source) for source in sources],
        "toxic_share": toxic_share,
        "shard_rows": shard_rows,
    }
    out = named(out)
    with sole_writer(out, beside=True):
        if out.exists():
            _check_same(out, settings)
        else:
            work = out.with_name(out.name + INCOMPLETE).resolve()
            work_folder(work, settings)
            where = encoder if str(encoder) == LAB else Path(encoder).resolve()
            _write_texts(work, sources, toxic_share, shard_rows)
            shards = range(len(list(work.glob("texts-*.parquet"))))
            run_shards(
                partial(_encoder, work, where),
                [shard for shard in shards if not vectors_path(work, shard).is_file()],
                engine=engine,
                workers=workers,
                title=f"encoding {shards.stop} shard(s) of texts",
                progress_bar=progress_bar,
            )
            _write_manifest(work, settings, identity)
            work.replace(out)
        for name in (SETTINGS, _SOURCES):  # here, as a kill may have come before
            (out / name).unlink(missing_ok=True)
        if backend == "faiss":
            add_faiss(out, kind)
        return Index.open(out, verify=False)


def add_faiss(folder: Path, kind: Kind = "auto") -> None:
    """Add an approximate index to an index, unless it has one of this kind."""
    index = Index.open(folder, verify=False)
    manifest = index.manifest
    chosen, factory, reason = approximate.choose(manifest.count, manifest.dimension, kind)
    if manifest.faiss is not None and manifest.faiss.kind == chosen:
        return
    made, effort, recall = approximate.build(
        factory, manifest.count, index.blocks, manifest.dimension
    )
    exact = manifest.model_copy(update={"faiss": None})
    write_json(folder / MANIFEST, exact.model_dump())  # an old faiss index is none from here on
    found = Approximate(
        kind=chosen,
        factory=factory,
        reason=reason,
        effort=effort,
        recall_at_10=recall,
        sha256=approximate.write(made, folder / FAISS),
    )
    write_json(folder / MANIFEST, exact.model_copy(update={"faiss": found}).model_dump())


def write_vectors(path: Path, vectors_ND: Any) -> None:
    """Write vectors beside ``path``, then rename."""
    with file_at_once(path) as beside, beside.open("wb") as file:
        np.save(file, np.asarray(vectors_ND, dtype=np.float32), allow_pickle=False)


def _digest(source: Source) -> dict[str, str]:
    if not source.path.is_file():
        raise UserError(f"no corpus at {source.path}: expected a file of texts, one a line")
    return {"file": source.path.name, "sha256": sha256(source.path)}


def _check_same(out: Path, settings: dict[str, Any]) -> None:
    """Refuse another index, or something else, at ``out``."""
    if not (out / MANIFEST).is_file():
        raise UserError(f"{out} exists and is no index: give another --out")
    found = read_manifest(out)
    theirs = {
        "encoder": found.encoder.model_dump(exclude={"path"}),
        "corpora": [
            it.model_dump(include={"file", "sha256"}) for it in (found.corpus, found.toxic) if it
        ],
        "toxic_share": found.toxic_share,
        "shard_rows": found.shard_rows,
    }
    differ = [key for key in settings if settings[key] != theirs[key]]
    if differ:
        raise UserError(
            f"{out} holds an index made otherwise ({', '.join(differ)} differ, by content or by "
            "setting): give another --out, or remove it"
        )


def _write_texts(
    work: Path, sources: list[Source], toxic_share: float | None, shard_rows: int
) -> None:
    """Write the side tables, and what reading the corpora met."""
    if (work / _SOURCES).is_file():
        return
    pyarrow = pyarrow_module()
    texts = mix(sources[0], sources[1] if len(sources) > 1 else None, toxic_share)
    for number, rows in enumerate(_batches(texts, shard_rows)):
        columns = {
            "text": [it.text for it in rows],
            "toxic": [it.toxic for it in rows],
            "line": [it.line for it in rows],
        }
        pyarrow.parquet.write_table(pyarrow.table(columns), texts_path(work, number))
    if sources[0].kept == 0:
        faults = "".join(f"\n  {fault}" for fault in sources[0].faults())
        raise UserError(f"{sources[0].path} holds no text to retrieve{faults}")
    found = [
        {"kept": it.kept, "skipped": it.skipped.total(), "faults": it.faults()} for it in sources
    ]
    write_json(work / _SOURCES, found)


def _batches(texts: Iterator[Text], size: int) -> Iterator[list[Text]]:
    while batch := list(islice(texts, size)):
        yield batch


def _encoder(work: Path, encoder: str | Path) -> Worker:
    """What encodes a shard: its texts, read from the side table, to its vectors."""
    embedder = Embedder.load(encoder)

    def encode(shard: int) -> None:
        table = pyarrow_module().parquet.read_table(texts_path(work, shard))
        vectors_ND = embedder.texts(table["text"].to_pylist())
        bad = (~vectors_ND.isfinite().all(dim=1)).nonzero().flatten().tolist()
        if bad:
            raise UserError(
                f"the encoder at {embedder.identity.path} gives NaN or infinity for {len(bad)} "
                f"text(s), the first on line {table['line'][bad[0]].as_py()}: "
                f"{table['text'][bad[0]].as_py()[:60]!r}; its weights are damaged"
            )
        write_vectors(vectors_path(work, shard), vectors_ND)

    return encode


def _write_manifest(work: Path, settings: dict[str, Any], encoder: Identity) -> None:
    shards = []
    for number in range(len(list(work.glob("vectors-*.npy")))):
        path = vectors_path(work, number)
        rows, dimension = read_vectors(path).shape
        digests = {
            "vectors_sha256": sha256(path),
            "texts_sha256": sha256(texts_path(work, number)),
        }
        shards.append(Shard(rows=rows, **digests))
    corpora = [
        Corpus(**said, **found)
        for said, found in zip(settings["corpora"], read_json(work / _SOURCES), strict=True)
    ]
    manifest = Manifest(
        format=1,
        encoder=encoder,
        dimension=dimension,
        normalised=True,
        count=sum(shard.rows for shard in shards),
        shards=shards,
        corpus=corpora[0],
        toxic=corpora[1] if len(corpora) > 1 else None,
        toxic_share=settings["toxic_share"],
        shard_rows=settings["shard_rows"],
        faiss=None,
    )
    write_json(work / MANIFEST, manifest.model_dump())
