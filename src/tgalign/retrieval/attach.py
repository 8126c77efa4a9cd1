"""``tgalign retrieve attach``: give every record with a picture its retrieved texts, by shards.

Rows keep all that they have; ``retrieved`` is replaced. A row that is no record, or whose picture
the encoder cannot read, would be refused by training: it is left out, counted and named. A text
encoder goes by captions: then no picture is opened, and training names those that are unreadable.
The same command, given again, looks at faulty rows again.
"""

from __future__ import annotations

import codecs
import shutil
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from tgalign.errors import UserError
from tgalign.files import (
    INCOMPLETE,
    file_at_once,
    named,
    numbered,
    read_json,
    sha256,
    write_json,
    write_jsonl,
)
from tgalign.locks import sole_writer
from tgalign.retrieval.attached_rows import Job, Rows, mended
from tgalign.retrieval.embed import Embedder
from tgalign.retrieval.index import Index
from tgalign.retrieval.jobs import Engine, Worker, offsets_of, run_shards, work_folder
from tgalign.retrieval.manifest import MANIFEST
from tgalign.retrieval.nearest import Rules
from tgalign.retrieval.tally import Tally

SHARD_ROWS = 2_048


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
    with records.open("rb") as file:
        if file.read(64).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
            raise UserError(
                f"{records} is a JSON array: expected JSON lines, one record a line, which "
                "jq -c '.[]' makes of it, and tgalign caption of any source"
            )
    if out.resolve() == records.resolve():
        raise UserError(f"{out} is the file of the records itself: give another --out")
    root = (image_root or records.parent).resolve()
    if not root.is_dir():
        raise UserError(f"no image root at {root}: expected the folder that holds the images")
    opened = Index.open(index)
    where = str(encoder.resolve() if encoder else opened.manifest.encoder.path)
    opened.check_encoder(where)
    kind = opened.manifest.encoder.kind
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
            if not mended(records, root, kind, said["faults"]):
                shutil.rmtree(work, ignore_errors=True)  # of a run killed just before its end
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
        done = [path for shard in shards if (path := _counts_path(work, shard)).is_file()]
        faults = [fault for path in done for fault in read_json(path)["faults"]]
        for number in mended(records, root, kind, faults):
            _counts_path(work, (number - 1) // shard_rows).unlink(missing_ok=True)
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
        rows = Rows(job, embedder)
        with job.records.open("rb") as file:
            file.seek(job.offsets[shard])
            for number, line in numbered(islice(file, shard_rows), shard * shard_rows + 1):
                if line.strip():
                    rows.read(line, number)
        rows.retrieve(index, shard)
        write_jsonl(_rows_path(job.work, shard), rows.data)
        # Last, as it says that the shard is done.
        write_json(_counts_path(job.work, shard), asdict(rows.tally) | {"faults": rows.faults})

    return attach_shard


def _gather(job: Job, out: Path, report: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Put the shards together and say what was met."""
    tally, faults = Tally(), []
    out.parent.mkdir(parents=True, exist_ok=True)
    again = out.exists()
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
        if not again:  # an output without a report is taken for somebody else's
            write_json(report, said)
    if again:  # after the rename, as the report says that mended rows are in it
        write_json(report, said)
    shutil.rmtree(job.work)
    return said
