"""Which folders of this machine the page may open."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tgalign.errors import UserError


def inside(text: str, roots: Sequence[Path], what: str) -> Path:
    """A folder that somebody named on the page.

    Everybody who reaches the page, such as another user of this machine, opens folders with the
    rights of whoever started it; so only those below the roots are opened.

    Args:
        text: A path, relative to the working directory or absolute.
        roots: Folders given with ``--root``.
        what: What it is for, in words.

    Raises:
        UserError: It is empty, outside all roots, or not there.
    """
    text = text.strip()
    if not text:
        raise UserError(f"{what}: write the path of a folder")
    path = Path(text).expanduser().resolve()
    if not any(path.is_relative_to(root.resolve()) for root in roots):
        raise UserError(
            f"{what}: {path} is outside the folders that this page may open "
            f"({', '.join(str(root) for root in roots)}); start it with --root to add one"
        )
    if not path.is_dir():
        raise UserError(f"{what}: there is no folder at {path}")
    return path
