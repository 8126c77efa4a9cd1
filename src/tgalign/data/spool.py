"""Rows on disk in place of memory, so that LLaVA's 665,000 fit a laptop."""

from __future__ import annotations

import json
import os
import tempfile
import zlib
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

from tgalign.data.encode import EncodedRecord, Span
from tgalign.data.records import Record

T = TypeVar("T")


class Lazy(Sequence[T]):
    """A sequence that makes an item when it is asked for.

    Args:
        length: How many items there are.
        make: Makes one of its number; the same each time.
    """

    def __init__(self, length: int, make: Callable[[int], T]) -> None:
        self._numbers = range(length)
        self._make = make

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self._make(number) for number in self._numbers[index]]
        return self._make(self._numbers[index])


def spool_records(records: Iterable[Record]) -> Sequence[Record]:
    """Write records to a temporary file, which vanishes with the sequence."""

    def pack(it: Record) -> Any:
        image = None if it.image is None else str(it.image)
        return it.row, image, it.caption, it.retrieved, it.messages

    def unpack(data: Any) -> Record:
        row, image, caption, retrieved, messages = data
        path = None if image is None else Path(image)
        return Record(row, path, caption, retrieved, tuple((who, what) for who, what in messages))

    return _spool(records, pack, unpack)


def spool_encoded(rows: Iterable[EncodedRecord]) -> Sequence[EncodedRecord]:
    """Write encoded rows, still without companions, to a temporary file."""

    def pack(it: EncodedRecord) -> Any:
        assert it.companion is None
        spans = [
            span and (span.input_ids, span.start, span.end) for span in (it.caption, it.retrieved)
        ]
        image = None if it.image is None else str(it.image)
        return it.input_ids, it.labels, image, *spans, it.question

    def unpack(data: Any) -> EncodedRecord:
        input_ids, labels, image, caption, retrieved, question = data
        return EncodedRecord(
            input_ids,
            labels,
            None if image is None else Path(image),
            None if caption is None else Span(*caption),
            None if retrieved is None else Span(*retrieved),
            question=None if question is None else tuple(question),
        )

    return _spool(rows, pack, unpack)


def _spool(rows: Iterable[T], pack: Callable[[T], Any], unpack: Callable[[Any], T]) -> Sequence[T]:
    file = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the sequence
    ends = array("q", [0])
    for row in rows:
        # The fastest level: what it saves most is the image token, which stands 576 times in a row.
        data = zlib.compress(json.dumps(pack(row)).encode(), 1)
        file.write(data)
        ends.append(ends[-1] + len(data))
    file.flush()

    def read(number: int) -> T:
        # Without a position of its own, so that threads and forked processes may share the file.
        start, end = ends[number], ends[number + 1]
        return unpack(json.loads(zlib.decompress(os.pread(file.fileno(), end - start, start))))

    return Lazy(len(ends) - 1, read)
