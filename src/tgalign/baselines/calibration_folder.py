"""Read a calibration from a folder: what a defence of one's own model may look at before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from tgalign.baselines.calibration import lab_calibration
from tgalign.baselines.defence import Calibration
from tgalign.data.pictures import read_picture
from tgalign.data.records import Problem, read_records, require_all_good
from tgalign.errors import UserError
from tgalign.synthetic import read_texts
from tgalign.yaml_text import parse_yaml

HARMLESS, TOXIC, DESCRIPTORS = "harmless.jsonl", "toxic.jsonl", "descriptors.jsonl"
SETTINGS, CLIP = "settings.yaml", "clip"


class Settings(BaseModel):
    """What ``settings.yaml`` may set: fields of ``Calibration``."""

    model_config = ConfigDict(extra="forbid")

    question: str | None = None
    caption_question: str | None = None
    refusal: str | None = None
    safety_prompt: str | None = None
    budget: float | None = Field(None, ge=0, lt=1)


def find_calibration(name: str) -> Calibration:
    """The calibration that the command line calls ``lab``, or else one in a folder.

    Raises:
        UserError: There is no such folder, or it lacks something.
    """
    return lab_calibration(0) if name == "lab" else read_calibration(Path(name))


def read_calibration(folder: Path, **settings: Any) -> Calibration:
    """Read harmless pictures with captions, and toxic captions in words alone.

    Args:
        folder: Holds ``harmless.jsonl`` (records with ``image`` and ``caption``, images in the
            folder), ``toxic.jsonl`` and, if a zero-shot detector is to be used,
            ``descriptors.jsonl`` (both ``{"text": ...}`` a line) and the CLIP in ``clip``; if
            defaults are not to be used, ``settings.yaml`` (see ``Settings``).
        settings: Fields of ``Calibration``, in place of those of the folder.

    Raises:
        UserError: A file is missing, empty or of another form, or naming the rows that lack a
            picture or a caption.
    """
    if not folder.is_dir():
        raise UserError(
            f"no calibration at {folder}: expected a folder with {HARMLESS} and {TOXIC}"
        )
    records, problems = read_records(folder / HARMLESS, folder)
    problems += [
        Problem(HARMLESS, it.row, "calibration needs an image and a caption in every row")
        for it in records
        if it.image is None or it.caption is None
    ]
    require_all_good(problems)
    pictures = []
    for record in records:
        assert record.image is not None
        pictures.append(read_picture(record.image))
    descriptors = folder / DESCRIPTORS
    return Calibration(
        pictures=pictures,
        captions=[it.caption or "" for it in records],
        toxic_captions=read_texts(folder / TOXIC),
        descriptors=read_texts(descriptors) if descriptors.is_file() else (),
        **({"clip": folder / CLIP} if (folder / CLIP).is_dir() else {})
        | _settings(folder / SETTINGS)
        | settings,
    )


def _settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = Settings.model_validate(parse_yaml(path.read_text(encoding="utf-8")) or {})
    except (OSError, ValueError) as fault:
        raise UserError(f"{path} sets no calibration: {fault}") from None
    return found.model_dump(exclude_none=True)
