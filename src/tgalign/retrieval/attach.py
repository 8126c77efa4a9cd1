"""``tgalign retrieve attach``: give every record with a picture its retrieved texts, by shards.

Rows keep all that they have; ``retrieved`` is replaced. A row that is no record, or whose picture
the encoder cannot read, would be refused by training: it is left out, counted and named. A text
encoder goes by captions: then no picture is opened, and training names those that are unreadable.
"""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tgalign.data.pictures import read_picture
from tgalign.data.records import Record, parse_record
from tgalign.errors import UserError
from tgalign.files import (
    INCOMPLETE,
    file_at_once,
    named,
    numbered,
    read_json,
    sha256,
    write_json,
    write_text,
)
from tgalign.locks import sole_writer
from tgalign.retrieval.approximate import recall_at
from tgalign.retrieval.embed import Embedder
from tgalign.retrieval.index import Index
from tgalign.retrieval.jobs import Engine, Worker, offsets_of, run_shards, work_folder
from tgalign.retrieval.manifest import MANIFEST
from tgalign.retrieval.nearest import Found, Rules, nearest, shuffle
from tgalign.retrieval.tally import Tally

# Shape legend: Q pictures, D channels.

SHARD_ROWS = 2_048
_BATCH = 64
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


def attach(
    records: Path,
    out: Path,
    *,
    index: Path,
    image_root: Path | None = None,
    encoder: Path | None = None,
    rules: Rules | None = None,
    shuffled: float = 0.0,
    engine: Engine = "local",
    workers: int = 2,
    shard_rows: int = SHARD_ROWS,
    progress_bar: bool = True,
) -> dict[str, Any]:
    """Write records with R attached, or go on with what an interrupted call has done.

    Args:
        records: The records, JSONL.
        out: Where to, JSONL; beside it goes ``OUT.report.json``, with what is returned.
        index: Folder of the index.
        image_root: The folder that image paths are relative to; by default that of the records.
        encoder: The encoder, if it is no longer where the index was built with it.
        rules: Which texts are R.
        shuffled: Share of the rows that get another row's R; for ablations.
        engine: Where the work is done (``tgalign.retrieval.jobs``).
        workers: With ``ray``: how many.
        shard_rows: Rows in a shard.
        progress_bar: Whether to draw one.

    Returns:
        The counts (``Tally``), the mean similarity of R, the recall of faiss, the faulty rows, and
        the settings.

    Raises:
        UserError: Records or index are missing, the index does not match its manifest or encoder,
            or ``out`` is something else.
    """
    rules = rules or Rules()
    if not 0 <= shuffled <= 1:
        raise UserError(f"share of shuffled R {shuffled}: expected a number from 0 to 1")
    if not records.is_file():
        raise UserError(f"no records at {records}: expected a JSONL file, one record a line")
    if out.resolve() == records.resolve():
        raise UserError(f"{out} is the file of the records itself: give another --out")
    root = (image_root or records.parent).resolve()
    if not root.is_dir():
        raise UserError(f"no image root at {root}: expected the folder that holds the images")
    opened = Index.open(index)
    where = str(encoder.resolve() if encoder else opened.manifest.encoder.path)
    opened.check_encoder(where)
    settings = {
        "records": sha256(records),
        "image_root": str(root),
        "index": sha256(index / MANIFEST),
        "rules": asdict(rules),
        "shuffled": shuffled,
        "shard_rows": shard_rows,
    }
    out = named(out)
    with sole_writer(out, beside=True):
        report = out.with_name(out.name + ".report.json")
        work = out.with_name(out.name + ".shards" + INCOMPLETE)
        if out.exists():
            said = read_json(report) if report.is_file() else {}
            if said.get("settings") != settings:
                raise UserError(f"{out} exists and was made of something else: give another --out")
            shutil.rmtree(work, ignore_errors=True)  # of a run that was killed just before its end
            return dict(said)
        work_folder(work, settings)
        job = Job(
            records=records.resolve(),
            image_root=root,
            index=index.resolve(),
            encoder=where,
            rules=rules,
            shuffled=shuffled,
            work=work.resolve(),
            offsets=offsets_of(records, shard_rows),
        )
        shards = range(len(job.offsets) - 1)
        run_shards(
            partial(_attacher, job, shard_rows),
            [shard for shard in shards if not _counts_path(work, shard).is_file()],
            engine=engine,
            workers=workers,
            title=f"attaching R to {shards.stop} shard(s) of records",
            progress_bar=progress_bar,
        )
        return _gather(job, out, report, settings)


def _rows_path(work: Path, shard: int) -> Path:
    return work / f"rows-{shard:05d}.jsonl"


def _counts_path(work: Path, shard: int) -> Path:
    return work / f"counts-{shard:05d}.json"


def _attacher(job: Job, shard_rows: int) -> Worker:
    """What attaches R to a shard; the driver has checked the index's checksums."""
    index = Index.open(job.index, verify=False)
    embedder = Embedder.load(job.encoder)

    def attach_shard(shard: int) -> None:
        rows = _Rows(job, embedder)
        with job.records.open("rb") as file:
            file.seek(job.offsets[shard])
            for number, line in numbered(islice(file, shard_rows), shard * shard_rows + 1):
                if line.strip():
                    rows.read(line, number)
        rows.retrieve(index, shard)
        text = "".join(json.dumps(row) + "\n" for row in rows.data)
        write_text(_rows_path(job.work, shard), text)
        # Last, as it says that the shard is done.
        write_json(_counts_path(job.work, shard), asdict(rows.tally) | {"faults": rows.faults})

    return attach_shard


class _Rows:
    """The rows of one shard, and what is embedded of them."""

    def __init__(self, job: Job, embedder: Embedder) -> None:
        self.job, self.embedder = job, embedder
        self.tally = Tally()
        self.faults: list[str] = []
        self.data: list[dict[str, Any]] = []
        self.asked: list[tuple[int, Record]] = []
        self.query_QD: list[Tensor] = []
        self._pictures: list[Any] = []

    def read(self, line: bytes, number: int) -> None:
        """Read a line and, where the encoder sees pictures, its picture."""
        self.tally.rows += 1
        try:
            record = parse_record(line, number, self.job.image_root)
            if record.image is not None and self.embedder.identity.kind == "image-text":
                self._pictures.append(read_picture(record.image))
        except ValueError as fault:
            self.tally.left_out += 1
            self.faults.append(f"{self.job.records.name}:{number}: {fault}")
            return
        self.data.append(json.loads(line))
        if record.image is None:
            self.tally.no_image += 1
        elif record.caption is None and self.embedder.identity.kind == "text":
            self.tally.no_caption += 1
            self.data[-1]["retrieved"] = []
        else:
            self.asked.append((len(self.data) - 1, record))
        if len(self._pictures) == _BATCH:
            self._embed_pictures()

    def retrieve(self, index: Index, shard: int) -> None:
        """Attach R to the rows that have been read."""
        self._embed_pictures()
        if not self.asked:
            return
        texts = [record.caption for _, record in self.asked if record.caption is not None]
        caption_QD = torch.zeros(len(self.asked), index.manifest.dimension)
        if texts:
            has = torch.tensor([record.caption is not None for _, record in self.asked])
            caption_QD[has] = self.embedder.texts(texts)
        query_QD = torch.cat(self.query_QD) if self.query_QD else caption_QD
        if not (query_QD.isfinite().all() and caption_QD.isfinite().all()):
            raise UserError(
                f"the encoder at {self.job.encoder} gives NaN or infinity for a picture or caption "
                f"of {self.job.records.name}: its weights are damaged"
            )
        numbers = [record.row for _, record in self.asked]
        found = nearest(index, query_QD, caption_QD, numbers, self.job.rules)
        rng = random.Random(f"shuffle-{self.job.rules.seed}-{shard}")
        found = shuffle(index, query_QD, caption_QD, found, self.job.rules, self.job.shuffled, rng)
        self._count(index, found)
        for (place, _), it in zip(self.asked, found, strict=True):
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


def _gather(job: Job, out: Path, report: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Put the shards together and say what was met."""
    tally, faults = Tally(), []
    out.parent.mkdir(parents=True, exist_ok=True)
    with file_at_once(out) as beside:
        with beside.open("wb") as file:
            for shard in range(len(job.offsets) - 1):
                with _rows_path(job.work, shard).open("rb") as part:
                    shutil.copyfileobj(part, file)
                counts = read_json(_counts_path(job.work, shard))
                faults += counts.pop("faults")
                tally.add(counts)
        if not tally.rows:
            raise UserError(f"{job.records} holds no record: expected one JSON object a line")
        if len(faults) == tally.rows:
            raise UserError(
                f"{job.records}: none of {tally.rows:,} lines can be used; the first: {faults[0]}. "
                "Expected JSON lines, which tgalign caption writes of any source"
            )
        said = tally.as_dict() | {"faults": faults, "settings": settings}
        write_json(report, said)
    shutil.rmtree(job.work)
    return said
