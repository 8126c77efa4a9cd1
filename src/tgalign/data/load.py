"""Read and encode what a run trains on: bad rows are left out, counted and named, or refused."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from tgalign.data.encode import EncodedRecord, Encoder
from tgalign.data.records import Problem, Record, listed, read
from tgalign.data.sources import open_source, with_bar
from tgalign.data.spool import Lazy, spool_encoded, spool_records
from tgalign.errors import UserError
from tgalign.files import INCOMPLETE, blamed_on, read_json, write_json
from tgalign.terminal import bar_on_stderr

SKIPPED = "skipped.json"
UNPACKED = f"images{INCOMPLETE}"
"""Pictures that stood in the rows of a data set, as long as a run goes on."""


@dataclass(frozen=True)
class _Began:
    """The rows with which a run began."""

    rows: int
    bad: dict[int, str]
    sha256: str | None  # of the others; older versions kept none


def _read_began(path: Path) -> _Began:
    """What ``TrainingData.write`` kept."""
    remedy = "remove it to have all rows checked anew"
    with blamed_on(path, remedy):
        found = read_json(path, remedy)
        bad = {it["row"]: it["reason"] for it in found["bad"]}
        return _Began(found["rows"], bad, found.get("sha256"))


class TrainingData:
    """The records of a run, and why rows are left out of it.

    A run that goes on leaves out the rows that it left out when it began, and opens no picture. Of
    several processes the first opens the pictures, and all leave out what it finds bad: a picture
    that only one of them fails to read must not give it other rows than the rest.

    Args:
        data: A file or folder (``tgalign.data.sources``).
        image_root: The folder that image paths are relative to.
        out: The run's folder, which holds what it left out if it began before.
        max_bad_share: Share of the rows that may be bad.
        progress_bar: Whether to draw one.

    Attributes:
        records: The good records, on disk.
        retrieved: Whether any of them has a retrieved text R.
        text_only: Whether any of them has no picture.

    Raises:
        UserError: The data or the image root is missing, too many rows are bad, or the data is not
            that with which the run began, or that of the first process.
    """

    def __init__(
        self,
        data: Path,
        image_root: Path,
        *,
        out: Path,
        max_bad_share: float,
        progress_bar: bool,
    ) -> None:
        self._max_bad_share = max_bad_share
        self._progress_bar = progress_bar
        self._rows = 0
        self._bad_by_stage: dict[str, list[Problem]] = {}
        self._unknown_by_stage: dict[str, int] = {}
        source = open_source(data)
        self._name = source.name
        processes = PartialState()
        first = processes.is_main_process
        if first:
            began = _read_began(out / SKIPPED) if (out / SKIPPED).is_file() else None
        else:
            (began,) = broadcast_object_list([None])
        known = {} if began is None else began.bad
        self._bad: list[Problem] = []
        self._root, self._unpacked = image_root.resolve(), out / UNPACKED
        digest = hashlib.sha256()

        def good() -> Iterator[Record]:
            title = f"read {source.name}" if progress_bar else None
            shown = with_bar(source, title)
            for it in read(shown, image_root, unpack=self._unpacked, verify=began is None):
                self._rows += 1
                if it.row in known:
                    self._bad.append(Problem(source.name, it.row, known[it.row]))
                elif isinstance(it, Problem):
                    self._bad.append(it)
                else:
                    self.retrieved |= it.retrieved is not None
                    self.text_only |= it.image is None
                    digest.update(self._said(it))
                    yield it

        self.retrieved = self.text_only = False
        self.records: Sequence[Record] = spool_records(good())
        self._sha256 = digest.hexdigest()
        if first:
            bad = {it.row: it.reason for it in self._bad}
            broadcast_object_list([_Began(self._rows, bad, self._sha256)])
        same = began is None or (
            (self._rows, len(self._bad)) == (began.rows, len(known))
            and began.sha256 in (None, self._sha256)
        )
        if not same:
            if not first:
                raise UserError(
                    f"process {processes.process_index} finds other rows in {data} than the first "
                    "one: all must see the same files"
                )
            raise UserError(
                f"{data} has changed since the run at {out} began with it: name another folder as "
                "out, or bring the data back"
            )
        self._require_few(self._bad)

    def leave_out_unaskable(self, encoder: Encoder) -> None:
        """Leave out captioned pictures that cannot be encoded even without their answers.

        The text gate asks about all others; it may drop answers, so these are not looked at.

        Args:
            encoder: Encodes for the checkpoint.

        Raises:
            UserError: Too many rows are bad.
        """
        records = self.records
        kept: list[int] = []
        problems: list[Problem] = []
        digest = hashlib.sha256()
        for number, it in enumerate(self._shown(records, "encode for the text gate")):
            if it.image is not None and it.caption is not None:
                asked = replace(it, messages=it.messages[:1])
                faults = encoder.encode_all([asked], self._name)[1]
                if faults:
                    problems += faults
                    continue
            kept.append(number)
            digest.update(self._said(it))
        self._require_few(self._bad + problems)
        self._bad = sorted(self._bad + problems, key=lambda it: it.row)
        self._sha256 = digest.hexdigest()
        self.records = Lazy(len(kept), lambda number: records[kept[number]])

    def encode(
        self, encoder: Encoder, records: Iterable[Record], stage: str
    ) -> Sequence[EncodedRecord]:
        """Encode records, on disk; those that cannot be are left out.

        Args:
            encoder: Encodes for the checkpoint.
            records: Some of the records.
            stage: The stage that trains on them.

        Raises:
            UserError: Too many rows are bad.
        """
        problems: list[Problem] = []
        unknown = 0

        def good() -> Iterator[EncodedRecord]:
            nonlocal unknown
            for record in self._shown(records, f"encode for {stage}"):
                rows, faults = encoder.encode_all([record], self._name)
                problems.extend(faults)
                unknown += sum(map(encoder.has_unknown, rows))
                yield from rows

        encoded = spool_encoded(good())
        self._require_few(self._bad + problems)
        self._bad_by_stage[stage] = problems
        self._unknown_by_stage[stage] = unknown
        return encoded

    def write(self, out: Path) -> None:
        """Keep what is left out, for people and for a run that goes on, and say so in the log."""
        kept = {
            "rows": self._rows,
            "sha256": self._sha256,
            "bad": [asdict(it) for it in self._bad],
            "bad_by_stage": {
                stage: [asdict(it) for it in problems]
                for stage, problems in self._bad_by_stage.items()
            },
        }
        write_json(out / SKIPPED, kept)
        every = {"all stages": self._bad}
        every |= {f"stage {stage}": problems for stage, problems in self._bad_by_stage.items()}
        for where, problems in every.items():
            if problems:
                logging.getLogger(__name__).warning(
                    "%s: bad and left out: %d of %d rows; %s names them all:\n%s",
                    where,
                    len(problems),
                    self._rows,
                    out / SKIPPED,
                    listed(problems, 20),
                )

        for stage, unknown in self._unknown_by_stage.items():
            if unknown:
                logging.getLogger(__name__).warning(
                    "stage %s: in %d rows a word that is learnt, averaged or read by what is "
                    "averaged is unknown to the tokenizer",
                    stage,
                    unknown,
                )

    def _shown(self, records: Iterable[Record], title: str) -> Iterator[Record]:
        """Some of the records, with a bar if one is wanted."""
        with bar_on_stderr(self._progress_bar) as bar:
            task = bar.add_task(title, total=len(self.records))
            for record in records:
                yield record
                bar.advance(task)
            bar.update(task, total=bar.tasks[task].completed)  # these were all

    def _said(self, record: Record) -> bytes:
        """What a record says; its picture by its place in the image root, which may move."""
        image = None
        if record.image is not None:
            inside = record.image.parent != self._unpacked
            image = str(record.image.relative_to(self._root)) if inside else record.image.name
        said = record.row, image, record.caption, record.retrieved, record.messages
        return json.dumps(said).encode()

    def _require_few(self, bad: list[Problem]) -> None:
        if len(bad) > self._max_bad_share * self._rows:
            raise UserError(
                f"{len(bad)} bad row(s) of {self._rows}, more than max_bad_share "
                f"{self._max_bad_share:g} allows; mend or remove them (`tgalign check` names them "
                f"all):\n{listed(bad, 5)}"
            )
