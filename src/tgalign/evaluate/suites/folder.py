"""One folder of pictures per scene: HOD's layout, ToViLaG's, or one's own."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from tgalign.data.records import DEFAULT_QUESTION
from tgalign.errors import UserError
from tgalign.evaluate.items import Item, Suite
from tgalign.evaluate.pictures import SUFFIXES
from tgalign.files import is_unicode, read_jsonl

SCENES = {
    "alcohol": ("alcohol", "alcoholic", "drink"),
    "bloody": ("bloody", "blood"),
    "cigarette": ("cigarette", "cigarettes", "smoking"),
    "gun": ("gun", "guns", "pistol"),
    "insulting_gesture": ("insulting_gesture", "insulting", "gesture", "middle_finger"),
    "knife": ("knife", "knives"),
    "porn": ("porn", "pornographic", "nsfw"),
    "violent": ("violent", "violence", "protest"),
}
"""The scenes of HOD and ToViLaG, by the names that their folders bear."""

BENIGN = ("benign", "harmless", "safe", "neutral")
"""Names of folders whose pictures are harmless."""

CAPTIONS = "captions.jsonl"


def folder_suite(data: Path) -> Suite:
    """Read a folder whose subfolders are scenes.

    A subfolder of a name in ``SCENES`` is that scene, one named ``benign`` or the like is
    harmless, any other is a toxic scene of its own name. Pictures are looked for at any depth, so
    that HOD's ``normal`` and ``hard`` are both found. A text ``NAME.txt`` beside a picture is its
    caption, and so is a row ``{"image", "caption"}`` of a ``captions.jsonl`` in the folder.

    Raises:
        UserError: There is no such folder, no picture in a subfolder of it, or captions that are
            all of other pictures.
    """
    if not data.is_dir():
        raise UserError(f"no folder at {data}: expected one with a subfolder of pictures per scene")
    root = data.resolve()
    inner = next((p for p in (root / "Dataset", root / "dataset" / "class") if p.is_dir()), root)
    captions = _captions(inner)
    items, passed = [], [it for it in _files(inner, deep=False) if it.name != CAPTIONS]
    empty = []
    for folder in sorted(p for p in inner.iterdir() if p.is_dir() and not _is_litter(p)):
        files = _files(folder)
        pictures = [path for path in files if path.suffix.lower() in SUFFIXES]
        captioned = {path.with_suffix(".txt") for path in pictures}
        passed += [it for it in files if it not in captioned and it.suffix.lower() not in SUFFIXES]
        if not pictures:
            empty.append(folder.name)
        name = re.sub(r"[\W_]+", "_", folder.name.casefold()).strip("_")
        scene = next((key for key, names in SCENES.items() if name in names), name)
        benign = name in BENIGN
        for path in pictures:
            if not path.resolve().is_relative_to(root):
                raise UserError(f"the picture {path} leads outside {root}")
            short = path.relative_to(inner).as_posix()
            beside = path.with_suffix(".txt")
            caption = captions.get(short)
            if caption is None and beside.is_file():
                caption = _read_caption(beside)
            items.append(
                Item(
                    id=short,
                    kind="benign" if benign else "toxic",
                    question=DEFAULT_QUESTION,
                    scene=None if benign else scene,
                    picture=path,
                    caption=caption,
                )
            )
    if not items:
        raise UserError(
            f"no picture in a subfolder of {inner}: expected one folder per scene, such as "
            f"{inner}/gun/1.jpg (endings: {', '.join(sorted(SUFFIXES))})"
        )
    known = {item.id for item in items}
    unused = [name for name in captions if name not in known]
    if captions and len(unused) == len(captions):
        raise UserError(
            f"no row of {inner / CAPTIONS} names a picture in {inner}: expected paths from there, "
            f"such as {items[0].id}, got {unused[0]}"
        )
    notes = _notes(items)
    if passed:
        first = passed[0].relative_to(inner).as_posix()
        notes.append(f"{len(passed)} files are no pictures in a scene's folder, such as {first}")
    if empty:
        notes.append(f"no picture in {', '.join(empty)}: no such scene is measured")
    if unused:
        notes.append(
            f"{len(unused)} of {len(captions)} rows of {CAPTIONS} name no picture here, such as "
            f"{unused[0]}"
        )
    return Suite("folder", tuple(items), "the user's own data", str(data), tuple(notes))


def _is_litter(path: Path) -> bool:
    """Whether systems and not users put it there."""
    return path.name.startswith((".", "__MACOSX"))


def _files(folder: Path, *, deep: bool = True) -> list[Path]:
    """The files in a folder, at any depth or right in it."""
    found = folder.rglob("*") if deep else folder.glob("*")
    return sorted(it for it in found if not _is_litter(it) and (it.is_file() or it.is_symlink()))


def _read_caption(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8-sig").strip() or None
    except ValueError as fault:
        raise UserError(f"the caption {path} is not UTF-8 ({fault}): save it so") from None


def _notes(items: list[Item]) -> list[str]:
    notes = []
    if not any(item.kind == "benign" for item in items):
        notes.append("no folder named benign: over-refusal is not measured here")
    without = sum(item.caption is None for item in items)
    if 0 < without < len(items):
        notes.append(
            f"{without} of {len(items)} pictures have no caption, so the condition caption is "
            "asked only if it is named (--condition plain,caption), of the others"
        )
    return notes


def _captions(folder: Path) -> dict[str, str]:
    path = folder / CAPTIONS
    if not path.is_file():
        return {}
    found = {}
    expected = '{"image": "...", "caption": "..."}'
    for number, row in read_jsonl(path, expected):
        image, caption = (
            (row.get("image"), row.get("caption")) if isinstance(row, dict) else (None, None)
        )
        if not (isinstance(image, str) and isinstance(caption, str)):
            raise UserError(f"{path}:{number}: expected {expected}, got {row!r:.60}")
        if not is_unicode(image + caption):
            raise UserError(f"{path}:{number}: a text holds what is no character (not UTF-8)")
        found[str(PurePosixPath(image))] = caption  # "./gun/1.jpg" is "gun/1.jpg"
    return found
