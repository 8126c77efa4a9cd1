"""Where a command's files go, checked before the work for them is done."""

from __future__ import annotations

import re
from pathlib import Path

from tgalign.errors import UserError
from tgalign.files import named


def file_at(path: Path) -> Path:
    """A file that can be written: it has a name, and its folder is there.

    Raises:
        UserError: It is a folder, or its own cannot be made.
    """
    found = named(path)
    try:
        found.parent.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise UserError(f"cannot write to {path}: {fault}") from None
    if found.is_dir():
        raise UserError(f"cannot write to {path}: it is a folder; name a file")
    return found


def files_at(path: Path, *endings: str, sign: str) -> list[Path]:
    """Files of one name and several endings, all free or written by an earlier call.

    Args:
        path: Without an ending, or with one of these.
        endings: Of the files.
        sign: What the first file begins with, as a pattern, if an earlier call wrote it.

    Raises:
        UserError: One cannot be written, or is somebody else's.
    """
    stem = path.stem if path.suffix.lower() in endings else path.name
    if stem in ("", ".."):
        raise UserError(f"cannot write to {path}: name files without an ending, as {path / 'all'}")
    files = [file_at(path.with_name(stem + ending)) for ending in endings]
    there = [file for file in files if file.exists()]
    text = files[0].read_text("utf-8", errors="replace") if files[0].is_file() else ""
    known = re.match(sign, text, re.DOTALL)
    if there and not known:
        raise UserError(f"{there[0]} is none that an earlier call wrote: give another --out")
    return files
