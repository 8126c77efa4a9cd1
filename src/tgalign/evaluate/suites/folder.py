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
    items = []
    for folder in sorted(p for p in inner.iterdir() if p.is_dir() and not p.name.startswith(".")):
        name = re.sub(r"[\W_]+", "_", folder.name.casefold()).strip("_")
        scene = next((key for key, names in SCENES.items() if name in names), name)
        benign = name in BENIGN
        for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES):
            if not path.resolve().is_relative_to(root):
                raise UserError(f"the picture {path} leads outside {root}")
            short = path.relative_to(inner).as_posix()
            beside = path.with_suffix(".txt")
            caption = captions.get(short)
            if caption is None and beside.is_file():
                caption = beside.read_text(encoding="utf-8", errors="replace").strip() or None
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
    if unused:
        notes.append(
            f"{len(unused)} of {len(captions)} rows of {CAPTIONS} name no picture here, such as "
            f"{unused[0]}"
        )
    return Suite("folder", tuple(items), "the user's own data", str(data), tuple(notes))


def _notes(items: list[Item]) -> list[str]:
    notes = []
    if not any(item.kind == "benign" for item in items):
        notes.append("no folder named benign: over-refusal is not measured here")
    without = sum(item.caption is None for item in items)
    if 0 < without < len(items):
        notes.append(f"{without} of {len(items)} pictures have no caption")
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
