"""Write files complete or not at all, and read what we wrote with clear errors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tgalign.errors import UserError

INCOMPLETE = ".incomplete"
"""Suffix of what is being written; whatever bears it can be removed."""


def write_text(path: Path, text: str) -> None:
    """Write beside ``path``, then rename: a kill never leaves half a file there."""
    beside = path.with_name(path.name + INCOMPLETE)
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def write_json(path: Path, content: Any) -> None:
    """The same for JSON; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON of our own.

    Raises:
        UserError: The file is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as fault:
        raise UserError(f"{path} is damaged ({fault}): remove it, and what it stands in") from None


def make_parent(path: Path) -> None:
    """Make the folder that a file or folder will lie in, before any work for it is done.

    Raises:
        UserError: It cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise UserError(f"cannot write to {path}: {fault}") from None


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


def is_free(folder: Path) -> bool:
    """Whether a folder is missing, or holds nothing but what a killed write left."""
    return not folder.is_dir() or all(p.name.endswith(INCOMPLETE) for p in folder.iterdir())
