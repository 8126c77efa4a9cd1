"""Read a calibration from a folder: what a defence of one's own model may look at before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tgalign.baselines.defence import Calibration
from tgalign.data.pictures import read_picture
from tgalign.data.records import Problem, read_records, require_all_good
from tgalign.synthetic import read_texts

HARMLESS, TOXIC, DESCRIPTORS = "harmless.jsonl", "toxic.jsonl", "descriptors.jsonl"


def read_calibration(folder: Path, **settings: Any) -> Calibration:
    """Read harmless pictures with captions, and toxic captions in words alone.

    Args:
        folder: Holds ``harmless.jsonl`` (records with ``image`` and ``caption``, images in the
            folder), ``toxic.jsonl`` and, if a zero-shot detector is to be used,
            ``descriptors.jsonl`` (both ``{"text": ...}`` a line).
        settings: Other fields of ``Calibration``.

    Raises:
        UserError: A file is missing or empty, or naming the rows that lack a picture or a caption.
    """
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
        **settings,
    )
