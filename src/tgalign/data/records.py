"""Records: one line of JSON each, read with every fault named by file and row.

A record is ``{"image", "caption", "retrieved", "messages"}``, all but one of image and messages
optional:

- ``image``: a path relative to the image root, which it may not leave; absent for text-only rows;
- ``messages``: turns ``{"role": "user" | "assistant", "content": str}`` (TRL's format). The image
  stands before the first user turn. Without an assistant turn nothing is learnt by cross-entropy;
- ``caption``: the text C the image's states are aligned to; absent rows take no part in the guide;
- ``retrieved``: ``[{"text", "score", "id"}]``, best first, of which the first is R; or R itself;
- ``id``: anything, not read.

Another key is a fault: a misspelt ``caption`` must not pass for a row without one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tgalign.errors import UserError

IMAGE_TOKEN = "<image>"
KEYS = frozenset(("id", "image", "caption", "retrieved", "messages"))
DEFAULT_QUESTION = "Describe this image."
MAX_PIXELS = 64_000_000
"""A larger picture is refused unread, as a decompression bomb."""


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


def read_records(path: Path, image_root: Path) -> tuple[list[Record], list[Problem]]:
    """Read a JSONL file of records, opening every picture to check that it decodes.

    Args:
        path: The file.
        image_root: The folder that image paths are relative to and may not leave.

    Returns:
        The good records, and a problem for every row that is not one.

    Raises:
        UserError: The file or the image root is missing, or the file holds no row at all.
    """
    if not path.is_file():
        raise UserError(f"no records at {path}: expected a JSONL file, one record a line")
    if not image_root.is_dir():
        raise UserError(f"no image root at {image_root}: expected the folder that holds the images")
    records: list[Record] = []
    problems: list[Problem] = []
    with path.open("rb") as lines:
        for row, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = parse_record(line, row, image_root.resolve())
                if record.image is not None:
                    check_image(record.image)
                records.append(record)
            except ValueError as fault:
                problems.append(Problem(path.name, row, str(fault)))
    if not records and not problems:
        raise UserError(f"{path} holds no record: expected one JSON object a line")
    return records, problems


def require_all_good(problems: list[Problem], shown: int = 5) -> None:
    """Refuse data with any bad row.

    Raises:
        UserError: Naming the first bad rows by file and row, and how many there are.
    """
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems[:shown])
        more = f"\n  … and {len(problems) - shown} more" if len(problems) > shown else ""
        raise UserError(f"{len(problems)} bad row(s); mend or remove them:\n{listed}{more}")


def check_image(path: Path) -> None:
    """Check that a picture exists, is no decompression bomb, and decodes.

    Raises:
        ValueError: Saying which of these fails.
    """
    import warnings

    from PIL import Image, UnidentifiedImageError

    width = height = 0
    try:
        if not path.is_file():
            raise FileNotFoundError
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as picture:
                width, height = picture.size
                if width * height <= MAX_PIXELS:
                    picture.convert("RGB")
    except FileNotFoundError:
        raise ValueError(f"image {path} does not exist") from None
    except UnidentifiedImageError:
        raise ValueError(f"image {path} is no picture that PIL can read") from None
    except Exception as fault:  # decoders fail on damaged files in any way
        raise ValueError(f"image {path} cannot be read: {fault}") from None
    if width * height > MAX_PIXELS:
        raise ValueError(f"image {path} has {width}×{height} pixels, more than {MAX_PIXELS:,}")


def parse_record(line: bytes, row: int, image_root: Path) -> Record:
    """Check one line of a JSONL file; the picture itself is not opened.

    Args:
        line: The line.
        row: Its number, from 1.
        image_root: The folder, resolved, that image paths are relative to and may not leave.

    Raises:
        ValueError: Why the line is no record.
    """
    try:
        data = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as fault:
        raise ValueError(f"not UTF-8 ({fault})") from None
    except (json.JSONDecodeError, RecursionError) as fault:
        raise ValueError(f"not valid JSON ({fault})") from None
    if not isinstance(data, dict):
        raise ValueError(f"expected a JSON object, got {type(data).__name__}")
    unknown = sorted(data.keys() - KEYS)
    if unknown:
        raise ValueError(f"unknown key(s) {', '.join(unknown)}; known: {', '.join(sorted(KEYS))}")
    image = data.get("image")
    if image is not None:
        image = _inside(image_root, image)
    caption = _text(data.get("caption"), "caption")
    messages = _messages(data.get("messages"))
    if image is None and not messages:
        raise ValueError("neither an image nor messages: nothing to learn from")
    if image is None and all(role == "user" for role, _ in messages):
        raise ValueError("a text-only row without an assistant turn: nothing to learn from")
    if not messages:
        messages = (("user", DEFAULT_QUESTION),)
    return Record(row, image, caption, _best_retrieved(data.get("retrieved")), messages)


def _inside(root: Path, name: Any) -> Path:
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(f"image must be a relative path, got {name!r}")
    try:
        path = (root / name).resolve()
    except (OSError, RuntimeError) as fault:  # a loop of links
        raise ValueError(f"image {name!r} cannot be found: {fault}") from None
    if not path.is_relative_to(root):
        raise ValueError(f"image {name!r} leads outside the image root {root}")
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
