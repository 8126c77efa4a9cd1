"""Records: rows of any source and shape as one type, read with every fault named by file and row.

A record of our own is ``{"image", "caption", "retrieved", "messages"}``, all but one of image and
messages optional:

- ``image``: a path relative to the image root, which it may not leave; absent for text-only rows;
- ``messages``: turns ``{"role": "user" | "assistant", "content": str}``. The image stands before
  the first user turn. Without an assistant turn nothing is learnt by cross-entropy;
- ``caption``: the text C the image's states are aligned to; absent rows take no part in the guide;
- ``retrieved``: ``[{"text", "score", "id"}]``, best first, of which the first is R; or R itself;
- ``id``: anything, not read.

In JSON another key is a fault: a misspelt ``caption`` must not pass for a row without one. The rows
of LLaVA, TRL and tables are turned into this shape first (``tgalign.data.shapes``).
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tgalign.data.pictures import inside, read_picture
from tgalign.data.shapes import DEFAULT_QUESTION, IMAGE_TOKEN, as_ours
from tgalign.data.sources import Data, Raw, Source, open_source
from tgalign.errors import UserError, printable
from tgalign.files import INCOMPLETE, RepeatedKeyError, is_unicode, unique_keys

__all__ = [
    "DEFAULT_QUESTION",
    "IMAGE_TOKEN",
    "Problem",
    "Record",
    "read",
    "read_records",
    "require_all_good",
]


@dataclass(frozen=True)
class Record:
    """One checked row of alignment data.

    Attributes:
        row: Line number in the file, from 1.
        image: Absolute path of the picture, or None for a text-only row.
        caption: The caption C, or None.
        retrieved: The retrieved text R, or None.
        messages: Alternating user and assistant turns, the user's first.
    """

    row: int
    image: Path | None
    caption: str | None
    retrieved: str | None
    messages: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Problem:
    """Why a row cannot be used."""

    file: str
    row: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.row}: {self.reason}"


def read(
    source: Source, image_root: Path, *, unpack: Path | None = None, verify: bool = True
) -> Iterator[Record | Problem]:
    """Read the rows of a source, one after the other, and open every picture.

    Pictures are opened in threads, each file once. Nothing is held but the rows at hand and the
    names of the pictures that were found good.

    Args:
        source: Where the rows come from.
        image_root: The folder that image paths are relative to and may not leave.
        unpack: Where pictures that stand in the rows themselves are written, each once, under its
            SHA-256; None: they are checked, and the image of their record is no file.
        verify: Whether to open the pictures.

    Yields:
        For every row, in order, the record or why there is none.

    Raises:
        UserError: The image root is missing, or there is no row at all.
    """
    if not image_root.is_dir():
        raise UserError(f"no image root at {image_root}: expected the folder that holds the images")
    root = image_root.resolve()
    good: set[Path] = set()

    def work(raw: Raw) -> Record | Problem:
        try:
            record, picture = _parse(raw, root, table=source.table)
            if verify and record.image is not None and record.image not in good:
                read_picture(record.image if picture is None else picture)
                good.add(record.image)
            if picture is not None and unpack is not None:
                record = replace(record, image=_unpacked(picture, unpack))
            return record
        except ValueError as fault:
            return Problem(source.name, raw.number, printable(str(fault)).replace("\n", "\\n"))

    # What PIL has to say of a picture that it can read is no concern of the user's.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    waiting: deque[Future[Record | Problem]] = deque()
    workers = min(16, 2 * (os.cpu_count() or 1))
    empty = True
    pool = ThreadPoolExecutor(workers)
    try:
        for raw in source.rows:
            empty = False
            waiting.append(pool.submit(work, raw))
            if len(waiting) > 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
    if empty:
        raise UserError(f"{source.name} holds no record: expected at least one row")


def read_records(data: Data, image_root: Path) -> tuple[list[Record], list[Problem]]:
    """Read data of any kind into memory, opening every picture (see ``read``).

    Returns:
        The good records, and a problem for every row that is not one.

    Raises:
        UserError: The data or the image root is missing, or there is no row at all.
    """
    records: list[Record] = []
    problems: list[Problem] = []
    for it in read(open_source(data), image_root):
        if isinstance(it, Record):
            records.append(it)
        else:
            problems.append(it)
    return records, problems


def require_all_good(problems: list[Problem]) -> None:
    """Refuse data with any bad row.

    Raises:
        UserError: Naming the first bad rows by file and row, and how many there are.
    """
    if problems:
        raise UserError(f"{len(problems)} bad row(s); mend or remove them:\n{listed(problems, 5)}")


def listed(problems: list[Problem], shown: int) -> str:
    """The first problems, a line each, and how many there are more."""
    lines = [f"  {problem}" for problem in problems[:shown]]
    if len(problems) > shown:
        lines.append(f"  … and {len(problems) - shown} more")
    return "\n".join(lines)


def parse_record(line: bytes, row: int, image_root: Path) -> Record:
    """Check one line of a JSONL file; the picture itself is not opened.

    Args:
        line: The line.
        row: Its number, from 1.
        image_root: The folder, resolved, that image paths are relative to and may not leave.

    Raises:
        ValueError: Why the line is no record.
    """
    return _parse(Raw(row, line, 0), image_root, table=False)[0]


def _parse(raw: Raw, root: Path, *, table: bool) -> tuple[Record, bytes | None]:
    """A record, and the file of a picture that stands in the row itself."""
    content = raw.content
    if isinstance(content, ValueError):
        raise content
    if isinstance(content, bytes):
        try:
            content = json.loads(content.decode("utf-8"), object_pairs_hook=unique_keys)
        except UnicodeDecodeError as fault:
            raise ValueError(f"not UTF-8 ({fault})") from None
        except RepeatedKeyError:
            raise
        except (ValueError, RecursionError) as fault:
            raise ValueError(f"not valid JSON ({fault})") from None
    row = as_ours(content, table=table)
    image, picture = row.get("image"), None
    if isinstance(image, Mapping):  # as datasets gives it
        picture, image = image.get("bytes"), image.get("path")
    if picture is not None:
        if not isinstance(picture, bytes):
            raise ValueError(f"the bytes of an image must be bytes, got {type(picture).__name__}")
        path: Path | None = Path(f"the picture of row {raw.number}")
    else:
        path = None if image is None else inside(root, image)
    caption = _text(row.get("caption"), "caption")
    messages = _messages(row.get("messages"))
    if path is None and not messages:
        raise ValueError("neither an image nor messages: nothing to learn from")
    if path is None and all(role == "user" for role, _ in messages):
        raise ValueError("a text-only row without an assistant turn: nothing to learn from")
    if not messages:
        messages = (("user", DEFAULT_QUESTION),)
    retrieved = _best_retrieved(row.get("retrieved"))
    return Record(raw.number, path, caption, retrieved, messages), picture


def _unpacked(picture: bytes, folder: Path) -> Path:
    """Write a picture under its SHA-256, complete or not at all, unless it is there."""
    path = folder / hashlib.sha256(picture).hexdigest()
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"{path.name}.{uuid.uuid4().hex}{INCOMPLETE}")
        beside.write_bytes(picture)
        beside.replace(path)
    return path


def _text(value: Any, field: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"{field} must be a string, got {type(value).__name__}")
    if IMAGE_TOKEN in value:
        raise ValueError(
            f"{field} contains a literal {IMAGE_TOKEN!r}, which the model would take for an image: "
            "remove it"
        )
    if not is_unicode(value):
        raise ValueError(f"{field} holds what is no character (not UTF-8)")
    return value.strip() or None


def _best_retrieved(value: Any) -> str | None:
    if not value:
        return None
    if isinstance(value, str):
        return _text(value, "retrieved text")
    if not isinstance(value, list) or not isinstance(value[0], Mapping) or "text" not in value[0]:
        raise ValueError(
            'retrieved must be a list of {"text", "score", "id"}, best first, or one string'
        )
    return _text(value[0]["text"], "retrieved text")


def _messages(value: Any) -> tuple[tuple[str, str], ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise ValueError(f"messages must be a list of turns, got {type(value).__name__}")
    turns = []
    for number, turn in enumerate(value):
        expected = ("user", "assistant")[number % 2]
        role = turn.get("role") if isinstance(turn, dict) else None
        if role != expected:
            raise ValueError(f"turn {number + 1} must be the {expected}'s, got role {role!r}")
        content = _text(turn.get("content"), f"turn {number + 1}")
        if content is None:
            raise ValueError(f"turn {number + 1} ({role}) is empty")
        turns.append((expected, content))
    return tuple(turns)
