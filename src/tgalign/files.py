"""Write files complete or not at all, and read what we wrote with clear errors."""

from __future__ import annotations

import codecs
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tgalign.errors import UserError

INCOMPLETE = ".incomplete"
"""Suffix of what is being written; whatever bears it can be removed."""


def write_text(path: Path, text: str) -> None:
    """Write beside ``path``, then rename: a kill never leaves half a file there."""
    with file_at_once(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """The same for JSON; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """The same for JSON lines, in readable UTF-8; halves of characters are escaped."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_text(path, text.encode("utf-8", "backslashreplace").decode("utf-8"))


def read_json(path: Path, remedy: str = "remove it, and what it stands in") -> Any:
    """Read JSON of our own.

    Args:
        path: The file.
        remedy: What the user can do where it is damaged.

    Raises:
        UserError: The file is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as fault:
        raise UserError(f"{path} is damaged ({fault}): {remedy}") from None


def check_schema(content: Any, where: Path | str, version: int, what: str) -> None:
    """Refuse a file of another schema version than the one that is read here.

    Args:
        content: Of the file.
        where: The file, for the message.
        version: What is read here.
        what: What the file is, for the message.

    Raises:
        UserError: It states another version, or none.
    """
    said = content.get("schema_version") if isinstance(content, dict) else None
    if said == version:
        return
    newer = isinstance(said, int) and said > version
    mend = "update tgalign" if newer else "make it again, or use the tgalign that wrote it"
    has = "states no schema_version" if said is None else f"has schema_version {said!r}"
    raise UserError(
        f"{where} {has}, and this tgalign reads schema version {version} of {what}: {mend}"
    )


def read_jsonl(path: Path, expected: str) -> Iterator[tuple[int, Any]]:
    """Read JSON lines; lines end at line feeds alone, and blank ones are passed over.

    Args:
        path: The file.
        expected: What a line should be, for messages.

    Yields:
        The number of a line, from 1, and what it holds.

    Raises:
        UserError: The file cannot be read, or a line is no JSON.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as fault:
        raise UserError(f"{path} cannot be read: {fault}") from None
    for number, line in numbered(lines):
        if line.strip():
            try:
                yield number, json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError) as fault:
                raise UserError(f"{path}:{number}: expected {expected} ({fault})") from None


def numbered(lines: Iterable[bytes], first: int = 1) -> Iterator[tuple[int, bytes]]:
    """Lines of a file with their numbers; line 1 without its byte order mark, if it has one."""
    for number, line in enumerate(lines, start=first):
        yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


class RepeatedKeyError(ValueError):
    """An object has a key twice, of which all readers but the last value's would be misled."""


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An ``object_pairs_hook`` for what people write: a key that stands twice is a fault.

    Raises:
        RepeatedKeyError: Naming the key.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise RepeatedKeyError(f"the key {twice!r} stands twice")
    return found


def is_unicode(text: str) -> bool:
    """Whether a text can be written at all: JSON can hold halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def blamed_on(path: Path, remedy: str) -> Iterator[None]:
    """Whatever a reader stumbles over in a file that one of our commands wrote, blame the file.

    Args:
        path: The file, or the folder with several.
        remedy: What the user can do.

    Raises:
        UserError: In the place of any exception that speaks of the content.
    """
    try:
        yield
    except (UserError, OSError, ImportError, MemoryError):
        raise
    except Exception as fault:  # a damaged file makes its reader fail in any way
        said = f"{type(fault).__name__}: {fault}"[:300]
        raise UserError(f"{path} is damaged or of another version ({said}): {remedy}") from fault


def read_versioned(path: Path, version: int, what: str) -> dict[str, Any]:
    """Read JSON of ours of a kind whose first files stated no schema version: theirs is 1.

    Args:
        path: The file.
        version: As of ``check_schema``.
        what: As of ``check_schema``.

    Raises:
        UserError: The file is damaged, or of another version.
    """
    found = read_json(path)
    if isinstance(found, dict):
        found = {"schema_version": 1} | found
    check_schema(found, path, version, what)
    return dict(found)


def named(path: Path) -> Path:
    """A path beside which something can be written: one without a name, such as ``.``, is resolved.

    Raises:
        UserError: It has no name even so.
    """
    found = path if path.name not in ("", "..") else path.resolve()
    if not found.name:
        raise UserError(f"cannot write to {path}: it has no name; name a new file or folder")
    return found


@contextmanager
def file_at_once(path: Path) -> Iterator[Path]:
    """A file to write, which becomes ``path`` in one step if the context ends well."""
    beside = path.with_name(path.name + INCOMPLETE)
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def folder_at_once(folder: Path) -> Iterator[Path]:
    """A folder to write into, which becomes ``folder`` in one step if the context ends well."""
    beside = folder.with_name(folder.name + INCOMPLETE)
    shutil.rmtree(beside, ignore_errors=True)
    try:
        yield beside
        beside.replace(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def data_sha256(content: Any) -> str:
    """Hex digest of plain data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def digest(content: Any) -> str:
    """Ten hexadecimal digits that stand for plain data, for names of folders and files."""
    return data_sha256(content)[:10]


def is_free(folder: Path, *, but: Path | None = None) -> bool:
    """Whether a folder is missing, or holds nothing but what a killed write left.

    Args:
        folder: The folder.
        but: What it may hold all the same, or a folder of it may.
    """
    return not folder.is_dir() or all(
        path.name.endswith(INCOMPLETE)
        or (but is not None and but.resolve().is_relative_to(path.resolve()))
        for path in folder.iterdir()
    )


def differences(there: Any, here: Any, at: str = "") -> list[str]:
    """Where plain data differs, as ``stages[1].steps: 8 there, 9 here``.

    Args:
        there: What was found.
        here: What was given.
        at: Where in the whole both stand.
    """
    if isinstance(there, dict) and isinstance(here, dict):
        pairs = [
            (f"{at}.{key}" if at else str(key), there.get(key), here.get(key))
            for key in dict.fromkeys([*there, *here])
        ]
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        both = enumerate(zip(there, here, strict=True))
        pairs = [(f"{at}[{i}]", old, new) for i, (old, new) in both]
    else:
        return [] if there == here else [f"{at}: {_short(there)} there, {_short(here)} here"]
    return [line for where, old, new in pairs for line in differences(old, new, where)]


def _short(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= 70 else f"{said[:60]}…"


def listed_differences(there: Any, here: Any) -> str:
    """The first of ``differences``, for a message."""
    found = differences(there, here)
    return "; ".join(found[:5]) + (f"; and {len(found) - 5} more" if len(found) > 5 else "")


def claim(out: Path, marker: str, settings: Any, what: str) -> None:
    """Make a folder for a run, or check that the run found there has the same settings.

    Args:
        out: The folder.
        marker: The file in it that holds the settings.
        settings: Those of this run, plain data.
        what: What kind of run it is, for messages.

    Raises:
        UserError: It cannot be written, or holds something else.
    """
    path = out / marker
    try:
        if path.is_file():
            found = read_json(path)
            if "schema_version" in settings:
                check_schema(found, path, settings["schema_version"], f"a {what}")
            if found != settings:
                raise UserError(
                    f"{out} holds a {what} with other settings ({path}: "
                    f"{listed_differences(found, settings)}): give another --out, or remove it"
                )
            return
        if not is_free(out):
            raise UserError(f"{out} is not empty and holds no {what}: give another --out")
        write_json(path, settings)
    except OSError as fault:
        raise UserError(f"cannot write to {out}: {fault}") from None


def sha256(path: Path) -> str:
    """Hex digest of a file, read piece by piece."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
