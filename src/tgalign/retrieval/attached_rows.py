"""The rows of a shard that get R: read, embedded, and given their texts."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from tgalign.data.pictures import read_picture
from tgalign.data.records import Record, parse_record
from tgalign.errors import UserError
from tgalign.files import numbered
from tgalign.retrieval.approximate import recall_at
from tgalign.retrieval.embed import Embedder
from tgalign.retrieval.index import Index
from tgalign.retrieval.nearest import Found, Rules, nearest, shuffle
from tgalign.retrieval.tally import Tally

if TYPE_CHECKING:
    from PIL.Image import Image

# Shape legend: Q pictures, D channels.

Kind = Literal["image-text", "text"]

_BATCH = 64
_NUMBER = re.compile(r":(\d+): ")
"""The row in a fault, behind the name of the file."""
_CHECKED = 16
"""Pictures of every shard on which an approximate index is compared with exact search."""


@dataclass(frozen=True)
class Job:
    """All that a worker needs to attach R to a shard.

    Attributes:
        records: The records.
        image_root: The folder of their pictures.
        index: Folder of the index.
        encoder: Folder of its encoder.
        rules: Which texts are R.
        shuffled: Share of the rows that get the R of another row of their shard.
        work: Where finished shards go.
        offsets: Byte at which each shard starts.
    """

    records: Path
    image_root: Path
    index: Path
    encoder: str
    rules: Rules
    shuffled: float
    work: Path
    offsets: tuple[int, ...]


def read_row(line: bytes, number: int, image_root: Path, kind: Kind) -> tuple[Record, Image | None]:
    """Read a row and, if an encoder of this kind looks at it, its picture.

    Raises:
        ValueError: The row is faulty.
    """
    record = parse_record(line, number, image_root)
    if record.image is None or kind == "text":
        return record, None
    return record, read_picture(record.image)


def mended(records: Path, image_root: Path, kind: Kind, faults: Iterable[str]) -> set[int]:
    """Those rows of a file that were faulty once and are no longer: their pictures are back.

    Args:
        records: The file, whose lines are what they were.
        image_root: The folder of their pictures.
        kind: Of the encoder.
        faults: As ``Rows`` gives them.
    """
    before = {int(match[1]) for fault in faults if (match := _NUMBER.search(fault))}
    found = set()
    with records.open("rb") as lines:
        for number, line in numbered(lines if before else ()):
            if number in before:
                with suppress(ValueError):
                    read_row(line, number, image_root, kind)
                    found.add(number)
    return found


class Rows:
    """The rows of one shard, and what is embedded of them.

    Args:
        job: What is attached.
        embedder: The encoder.

    Attributes:
        tally: What was counted.
        faults: The rows that were left out, and why.
        data: All others, which ``retrieve`` gives R.
    """

    def __init__(self, job: Job, embedder: Embedder) -> None:
        self.job, self.embedder = job, embedder
        self.tally = Tally()
        self.faults: list[str] = []
        self.data: list[dict[str, Any]] = []
        self._asked: list[tuple[int, Record]] = []
        self.query_QD: list[Tensor] = []
        self._pictures: list[Any] = []

    def read(self, line: bytes, number: int) -> None:
        """Read a line and, where the encoder sees pictures, its picture."""
        self.tally.rows += 1
        try:
            record, picture = read_row(
                line, number, self.job.image_root, self.embedder.identity.kind
            )
        except ValueError as fault:
            self.tally.left_out += 1
            self.faults.append(f"{self.job.records.name}:{number}: {fault}")
            return
        if picture is not None:
            self._pictures.append(picture)
        self.data.append(json.loads(line))
        if record.image is None:
            self.tally.no_image += 1
        elif record.caption is None and self.embedder.identity.kind == "text":
            self.tally.no_caption += 1
            self.data[-1]["retrieved"] = []
        else:
            self._asked.append((len(self.data) - 1, record))
        if len(self._pictures) == _BATCH:
            self._embed_pictures()

    def retrieve(self, index: Index, shard: int) -> None:
        """Attach R to the rows that have been read."""
        self._embed_pictures()
        if not self._asked:
            return
        texts = [record.caption for _, record in self._asked if record.caption is not None]
        caption_QD = torch.zeros(len(self._asked), index.manifest.dimension)
        if texts:
            has = torch.tensor([record.caption is not None for _, record in self._asked])
            caption_QD[has] = self.embedder.texts(texts)
        query_QD = torch.cat(self.query_QD) if self.query_QD else caption_QD
        if not (query_QD.isfinite().all() and caption_QD.isfinite().all()):
            raise UserError(
                f"the encoder at {self.job.encoder} gives NaN or infinity for a picture or caption "
                f"of {self.job.records.name}: its weights are damaged"
            )
        numbers = [record.row for _, record in self._asked]
        found = nearest(index, query_QD, caption_QD, numbers, self.job.rules)
        rng = random.Random(f"shuffle-{self.job.rules.seed}-{shard}")
        found = shuffle(index, query_QD, caption_QD, found, self.job.rules, self.job.shuffled, rng)
        self._count(index, found)
        for (place, _), it in zip(self._asked, found, strict=True):
            self.data[place]["retrieved"] = [asdict(text) for text in it.texts]
        if index.manifest.faiss is not None:
            few_QD = query_QD[:_CHECKED]
            wanted_QK = index.search_exactly(few_QD, 10)
            self.tally.faiss_wanted += wanted_QK.numel()
            recall = recall_at(index.search(few_QD, 10), wanted_QK)
            self.tally.faiss_hits += recall * wanted_QK.numel()

    def _count(self, index: Index, found: list[Found]) -> None:
        best = [it.texts[0] for it in found if it.texts]
        side = index.side(torch.tensor([text.id for text in best], dtype=torch.long))
        self.tally.retrieved += len(best)
        self.tally.toxic += sum(side[text.id][1] for text in best)
        self.tally.score_sum += sum(text.score for text in best)
        self.tally.below_floor += sum(it.below_floor for it in found)
        self.tally.nothing_left += sum(not it.texts and not it.below_floor for it in found)

    def _embed_pictures(self) -> None:
        if self._pictures:
            self.query_QD.append(self.embedder.pictures(self._pictures))
            self._pictures = []
