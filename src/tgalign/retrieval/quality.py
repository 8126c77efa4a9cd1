"""Worse R and worse captions, on purpose: what the ablations of retrieval change.

Works on a folder with ``records.jsonl``, its pictures and ``corpus.jsonl``, such as the lab's
alignment data.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from tgalign.data.pictures import read_picture
from tgalign.files import write_jsonl
from tgalign.retrieval.attach import attach
from tgalign.retrieval.build import build_index
from tgalign.retrieval.embed import LAB, Embedder
from tgalign.retrieval.nearest import Rules

# Shape legend: Q rows, D channels.

NUM_MEASURED = 1_000
"""Rows on which similarity is measured."""

Noise = Literal["none", "drop", "swap", "replace"]
_Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Quality:
    """How good R and C are; by default as good as they can be.

    Attributes:
        rank: R is the text of this rank instead of the nearest.
        random: R is a random text.
        floor: A text less similar than this is none; 1 leaves every R empty.
        shuffled: Share of the rows with another row's R.
        encoder: ``image-text``: R is retrieved by the picture; ``text``: by the caption.
        noise: What is done to the words of a caption: ``drop``, ``swap`` or ``replace``.
        noise_share: To which share of them.
    """

    rank: Annotated[int, Field(ge=1)] = 1
    random: bool = False
    floor: Annotated[float, Field(ge=-1, le=1)] = -1.0
    shuffled: _Share = 0.0
    encoder: Literal["image-text", "text"] = "image-text"
    noise: Noise = "none"
    noise_share: _Share = 0.0


def noisy(
    caption: str, noise: Noise, share: float, vocabulary: Sequence[str], rng: random.Random
) -> str:
    """A caption with a share of its words dropped, swapped or replaced; never an empty one.

    Args:
        caption: The caption.
        noise: ``drop``: a word goes; ``swap``: it changes places with another one of the caption;
            ``replace``: one of the vocabulary stands in its place.
        share: Probability with which each word is met.
        vocabulary: Words to replace by.
        rng: Source of all chance.
    """
    words = caption.split()
    met = [place for place in range(len(words)) if rng.random() < share]
    if noise == "drop":
        kept = [word for place, word in enumerate(words) if place not in set(met)]
        words = kept or [rng.choice(words)]
    elif noise == "swap":
        for place in met:
            other = rng.randrange(len(words))
            words[place], words[other] = words[other], words[place]
    elif noise == "replace":
        for place in met:
            words[place] = rng.choice(vocabulary)
    return " ".join(words)


def change_quality(out: Path, data: Path, quality: Quality, *, text_encoder: Path) -> None:
    """Write the records of ``data`` with R and C as good as asked for, unless ``out`` is there.

    Args:
        out: Where to, a file in ``data``.
        data: The folder of records, pictures and corpus.
        quality: How good.
        text_encoder: The text model for ``encoder="text"``.
    """
    if out.is_file():
        return
    index = build_index(
        data / "corpus.jsonl",
        data / f"index-{quality.encoder}",
        encoder=text_encoder if quality.encoder == "text" else LAB,
        progress_bar=False,
    )
    attached = out.with_suffix(".attached.jsonl")
    attach(
        data / "records.jsonl", attached, index=index.folder, shuffled=quality.shuffled,
        rules=Rules(rank=quality.rank, random=quality.random, floor=quality.floor),
        progress_bar=False,
    )  # fmt: skip
    rows = [json.loads(line) for line in attached.read_text(encoding="utf-8").splitlines()]
    if quality.noise != "none":
        rng = random.Random(f"noise-{data.name}")
        captions = [row["caption"] for row in rows if row.get("caption")]
        vocabulary = sorted({word for caption in captions for word in caption.split()})
        for row in rows:
            if row.get("caption"):
                row["caption"] = noisy(
                    row["caption"], quality.noise, quality.noise_share, vocabulary, rng
                )
    write_jsonl(out, rows)


def similarity(records: Path) -> dict[str, float | None]:
    """Mean cosines of pictures, captions and R by the lab's CLIP, over the first rows with both.

    Returns:
        ``picture_retrieved``, ``caption_retrieved`` (over rows with an R; None if there is none)
        and ``picture_caption``.
    """
    rows: list[dict[str, Any]] = []
    with records.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if row.get("image") and row.get("caption") and len(rows) < NUM_MEASURED:
                rows.append(row)
    embedder = Embedder.load()
    picture_QD = embedder.pictures([read_picture(records.parent / row["image"]) for row in rows])
    caption_QD = embedder.texts([row["caption"] for row in rows])
    found: dict[str, float | None] = {
        "picture_caption": (picture_QD * caption_QD).sum(dim=1).mean().item(),
        "picture_retrieved": None,
        "caption_retrieved": None,
    }
    having = torch.tensor([bool(row.get("retrieved")) for row in rows])
    if having.any():
        texts = [row["retrieved"][0]["text"] for row in rows if row.get("retrieved")]
        retrieved_QD = embedder.texts(texts)
        for name, other_QD in (("picture", picture_QD), ("caption", caption_QD)):
            cosine_Q = (other_QD[having] * retrieved_QD).sum(dim=1)
            found[f"{name}_retrieved"] = cosine_Q.mean().item()
    return found
