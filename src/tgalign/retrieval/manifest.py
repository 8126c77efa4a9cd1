"""What an index says of itself: encoder, corpora, counts and checksums."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from tgalign.errors import UserError
from tgalign.files import check_schema, read_json
from tgalign.retrieval.embed import Identity

MANIFEST = "manifest.json"
FORMAT = 1
"""Schema version of an index."""


class Shard(BaseModel, extra="forbid"):
    """One shard: its rows, and the checksums of its two files."""

    rows: int
    vectors_sha256: str
    texts_sha256: str


class Corpus(BaseModel, extra="forbid"):
    """A corpus that went into an index: the file, texts kept, lines skipped and why, in words."""

    file: str
    sha256: str
    kept: int
    skipped: int
    faults: list[str]


class Approximate(BaseModel, extra="forbid"):
    """The faiss index: which kind and why, how wide it searches, and what it finds.

    Attributes:
        kind: ``flat``, ``hnsw``, ``ivf`` or ``ivfpq``.
        factory: As ``faiss.index_factory`` takes it.
        reason: Why this kind.
        effort: ``nprobe`` of IVF, ``efSearch`` of HNSW; 0 for flat.
        recall_at_10: Share of the ten nearest that it finds, for texts of the corpus as queries.
        sha256: Checksum of its file.
    """

    kind: Literal["flat", "hnsw", "ivf", "ivfpq"]
    factory: str
    reason: str
    effort: int
    recall_at_10: float
    sha256: str


class Manifest(BaseModel, extra="forbid"):
    """What an index says of itself.

    Attributes:
        format: Of the folder.
        encoder: Which encoder made the vectors.
        dimension: Channels D of a vector.
        normalised: Vectors have length 1.
        count: All rows.
        shards: The shards in order.
        corpus: The corpus.
        toxic: The corpus of toxic snippets, or None.
        toxic_share: The share of them that was asked for.
        shard_rows: Rows of a full shard.
        faiss: The approximate index, or None.
    """

    format: Literal[1]
    encoder: Identity
    dimension: int
    normalised: Literal[True]
    count: int
    shards: list[Shard]
    corpus: Corpus
    toxic: Corpus | None
    toxic_share: float | None
    shard_rows: int
    faiss: Approximate | None


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of an index.

    Raises:
        UserError: There is none, or it is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"no index at {folder}: expected a folder that `retrieve build` made")
    said = read_json(path)
    number = said.get("format") if isinstance(said, dict) else None
    check_schema({"schema_version": number}, path, FORMAT, "an index (its `format`)")
    try:
        return Manifest.model_validate(said)
    except ValidationError as fault:
        wrong = "; ".join(
            f"{'.'.join(map(str, it['loc']))}: {it['msg']}" for it in fault.errors()[:3]
        )
        raise UserError(f"{path} is damaged ({wrong}): build the index again") from None
