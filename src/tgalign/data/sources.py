"""Where rows come from: JSON lines, a JSON array, a CSV file, Hugging Face ``datasets``.

A source gives raw rows one after the other and holds none of them; what a row means is told by
``tgalign.data.shapes``. What cannot even be split into rows is a row whose content is a fault.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from tgalign.data.shapes import PICTURE_COLUMNS
from tgalign.errors import UserError
from tgalign.files import RepeatedKeyError, numbered, unique_keys
from tgalign.terminal import bar_on_stderr

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

Data: TypeAlias = "Path | Dataset | IterableDataset"
"""What rows can be read from."""

MAX_ROW = 64 * 2**20
"""Characters: no row of a JSON array and no cell of a CSV file may be longer."""
_PIECE = 2**20
_PLAIN, _STRICT = json.JSONDecoder(), json.JSONDecoder(object_pairs_hook=unique_keys)
_FIRST, _NEXT = re.compile(r"\s*\[\s*"), re.compile(r"\s*,\s*")
_AFTER = re.compile(r"\s*[,\]]")
_EMPTY, _END = re.compile(r"\s*\[\s*\]\s*\Z"), re.compile(r"\s*\]\s*\Z")
_EXPECTED = (
    "expected a file of JSON lines, a JSON array as LLaVA's, a CSV file, a parquet file, a folder "
    "of pictures with one CSV file, or a folder saved by Hugging Face datasets"
)


@dataclass(frozen=True)
class Raw:
    """One row as it stands in the source.

    Attributes:
        number: The line of a file of JSON lines; the position, from 1, in a JSON array or a data
            set; the row of a CSV file as a spreadsheet shows it, whose header is row 1.
        content: A line of JSON, what was decoded already, or why there is nothing.
        done: How far reading has come, in the unit of the source's ``total``.
    """

    number: int
    content: bytes | Any | ValueError
    done: int


@dataclass(frozen=True)
class Source:
    """Rows to be read once.

    Attributes:
        name: Stands in problems as their file.
        rows: The rows.
        total: What there is to read, in bytes or rows; None if that is not known.
        table: Whether the rows are those of a table, which may have columns of other use.
    """

    name: str
    rows: Iterator[Raw]
    total: int | None
    table: bool = False


def open_source(data: Data) -> Source:
    """Find out what data is, and open it.

    Raises:
        UserError: There is nothing, or nothing that we can read.
    """
    if not isinstance(data, Path):
        return _dataset(data, "dataset")
    if data.is_dir():
        return _folder(data)
    if not data.is_file():
        raise UserError(f"no records at {data}: {_EXPECTED}")
    suffix = data.suffix.lower()
    if suffix == ".csv":
        return Source(data.name, _csv(data), data.stat().st_size, table=True)
    if suffix in (".parquet", ".arrow"):
        return _stored(data, [data], suffix[1:])
    first = b"" if suffix == ".jsonl" else _first(data)
    rows = _array(data) if first == b"[" else _lines(data)
    if first == b"{" and _is_one_object(data):
        reason = "the file is one JSON object over several lines: expected one a line, or an array"
        rows = iter([Raw(1, ValueError(reason), data.stat().st_size)])
    return Source(data.name, rows, data.stat().st_size)


def image_root_of(data: Path) -> Path:
    """Where the pictures of data lie if nothing else is said: beside its file, or in its folder."""
    return data if data.is_dir() else data.parent


def with_bar(source: Source, title: str | None) -> Source:
    """Show on stderr how far reading has come and how long it will take.

    Args:
        source: The source.
        title: Of the bar; None: there is none.
    """
    if title is None:
        return source

    def rows() -> Iterator[Raw]:
        with bar_on_stderr(True) as bar:
            task = bar.add_task(title, total=source.total)
            for raw in source.rows:
                bar.update(task, completed=raw.done)
                yield raw

    return replace(source, rows=rows())


def _folder(path: Path) -> Source:
    if (path / "dataset_dict.json").is_file():
        splits = sorted(it.name for it in path.iterdir() if (it / "state.json").is_file())
        raise UserError(f"{path} holds several splits: give one of {path}/{{{','.join(splits)}}}")
    if (path / "state.json").is_file():
        return _stored(path, [], "saved")
    shards = sorted(path.glob("*.parquet"))
    if shards:
        return _stored(path, shards, "parquet")
    tables = sorted(path.glob("*.csv"))
    if len(tables) == 1:
        return Source(tables[0].name, _csv(tables[0]), tables[0].stat().st_size, table=True)
    found = f"{len(tables)} CSV files" if tables else "none of these"
    raise UserError(f"{path} holds {found}: {_EXPECTED}")


def _first(path: Path) -> bytes:
    """The first byte that is no blank."""
    with path.open("rb") as file:
        while chunk := file.read(4096):
            if chunk.strip():
                return chunk.lstrip().removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    return b""


def _is_one_object(path: Path) -> bool:
    """Whether a file is a single object over several lines, as ``json.dump(indent=1)`` has it."""
    if path.stat().st_size > MAX_ROW:
        return False
    with path.open("rb") as file:
        if _is_json(next(line for _, line in numbered(file) if line.strip())):
            return False
    return _is_json(path.read_bytes())


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content.removeprefix(codecs.BOM_UTF8))
    except (ValueError, RecursionError):
        return False
    return True


def _lines(path: Path) -> Iterator[Raw]:
    with path.open("rb") as file:
        for number, line in numbered(file):
            if line.strip():
                yield Raw(number, line, file.tell())


def _array(path: Path) -> Iterator[Raw]:
    """The elements of a JSON array, read piece by piece: only the piece at hand is held."""
    # Bytes that are no UTF-8 become halves of characters, which no text of a row may hold.
    decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
    number, text, at, ended = 1, "", 0, False
    with path.open("rb") as file:
        while True:
            try:
                start = (_FIRST if number == 1 else _NEXT).match(text, at)
                if start is None:
                    raise ValueError(f"expected another element, got {text[at : at + 20]!r}")
                content, end = _decoded(text, start.end())
                if not ended and not _AFTER.match(text, end):
                    raise ValueError("the rest of a number may be in the next piece")
            except (ValueError, RecursionError) as fault:
                if not ended and len(text) - at <= MAX_ROW:
                    piece = file.read(max(_PIECE, len(text) - at))
                    ended = not piece
                    text, at = text[at:] + decode(piece, ended), 0
                    continue
                if not (_EMPTY if number == 1 else _END).match(text, at):
                    reason = f"not valid JSON ({fault}); nothing after this row can be read"
                    yield Raw(number, ValueError(reason), file.tell())
                return
            yield Raw(number, content, file.tell())
            number, at = number + 1, end


def _decoded(text: str, at: int) -> tuple[Any, int]:
    """An element of an array, or why it is none, and where it ends."""
    try:
        return _STRICT.raw_decode(text, at)
    except RepeatedKeyError as fault:
        return fault, _PLAIN.raw_decode(text, at)[1]


def _csv(path: Path) -> Iterator[Raw]:
    csv.field_size_limit(MAX_ROW)  # a text that is too long is told in tokens, as of any source
    header: list[str] | None = None
    number = 0
    with path.open("rb") as file:
        text = TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        table = csv.reader(text, strict=True)
        while True:
            number += 1
            try:
                cells = next(table)
            except StopIteration:
                return
            except csv.Error as fault:
                yield Raw(number, ValueError(f"not valid CSV ({fault})"), file.tell())
                continue
            if header is None:
                header = cells
                if not any(column in header for column in PICTURE_COLUMNS):
                    raise UserError(
                        f"{path} has the columns {', '.join(header)}: expected columns separated "
                        "by commas, of which one names the picture "
                        f"({' or '.join(PICTURE_COLUMNS)}); docs/data.md lists the others"
                    )
                name, times = Counter(filter(None, header)).most_common(1)[0]
                if times > 1:
                    said = f"the column {name!r} stands twice"
                    raise UserError(f"{path}: {said}: rename or remove one of them")
            elif len(cells) > len(header):
                reason = f"{len(cells)} cells, and the header has {len(header)}"
                yield Raw(number, ValueError(reason), file.tell())
            elif cells:
                yield Raw(number, dict(zip(header, cells, strict=False)), file.tell())


def _stored(path: Path, shards: list[Path], kind: str) -> Source:
    """A data set in files, opened by Hugging Face ``datasets``; none of it is copied."""
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"{path} needs Hugging Face datasets: pip install 'tgalign[datasets]'"
        ) from None
    try:
        if kind == "saved":
            return _dataset(datasets.load_from_disk(str(path)), path.name)
        files = [str(shard) for shard in shards]
        return _dataset(
            datasets.load_dataset(kind, data_files=files, split="train", streaming=True), path.name
        )
    except Exception as fault:  # its readers fail on damaged files in any way
        raise UserError(f"{path} cannot be read as a data set: {fault}") from None


def _dataset(data: Dataset | IterableDataset, name: str) -> Source:
    length = len(data) if hasattr(data, "__len__") else None
    streamed: IterableDataset = data.to_iterable_dataset() if length is not None else data
    if streamed.features is not None:
        streamed = streamed.decode(False)  # a picture is given as its file

    def rows() -> Iterator[Raw]:
        number = 0
        try:
            for number, content in enumerate(streamed, start=1):
                yield Raw(number, content, number)
        except Exception as fault:  # its readers fail on damaged files in any way
            reason = f"cannot be read ({fault}); nothing after this row can be read"
            yield Raw(number + 1, ValueError(reason), number)

    return Source(name, rows(), length, table=True)
