"""Read all of a data set and say of every row whether it can be trained on, and if not, why."""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tgalign.data.records import Problem, Record, read
from tgalign.data.sources import Source

if TYPE_CHECKING:
    from tgalign.data.encode import Encoder

NEEDS_TOKENIZER = (
    "a trainable token in every row",
    "rows within the limit of tokens",
)
"""What cannot be checked without a tokenizer."""


@dataclass
class Report:
    """What a check found.

    Attributes:
        rows: All rows.
        problems: Why the bad ones are bad, each once.
        kinds: Good rows with a picture, with a caption, with a retrieved text R, and without a
            picture.
        repeated: Good rows that are as an earlier one: picture's path, texts and turns.
        tokens: Of the good rows, all tokens, the longest row's, and those learnt; and the rows in
            which a word learnt, averaged or read by what is averaged is unknown to the tokenizer.
            None without one.
        previews: The first good rows, as ``tgalign.data.preview.preview`` gives them.
    """

    rows: int = 0
    problems: list[Problem] = field(default_factory=list)
    kinds: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("picture", "caption", "retrieved", "text_only"), 0)
    )
    repeated: int = 0
    tokens: dict[str, int] | None = None
    previews: list[dict[str, Any]] = field(default_factory=list)

    @property
    def good(self) -> int:
        """Rows that can be trained on."""
        return self.rows - len(self.problems)


def check(
    source: Source, image_root: Path, encoder: Encoder | None = None, *, num_previews: int = 0
) -> Report:
    """Check every row of a source.

    Args:
        source: Where the rows come from.
        image_root: The folder that image paths are relative to and may not leave.
        encoder: Encodes rows for a checkpoint; None: what needs a tokenizer is not checked.
        num_previews: Of how many good rows to keep what is learnt; needs an encoder.

    Raises:
        UserError: The image root is missing, or there is no row at all.
    """
    from tgalign.data.preview import preview

    report = Report()
    if encoder is not None:
        report.tokens = {"all": 0, "longest": 0, "learnt": 0, "unknown_rows": 0}
    contents = array("q")
    for it in read(source, image_root):
        report.rows += 1
        if isinstance(it, Problem):
            report.problems.append(it)
            continue
        try:
            if encoder is None:
                _require_lesson(it)
            row = None if encoder is None else encoder.encode(it)
        except ValueError as fault:
            report.problems.append(Problem(source.name, it.row, str(fault)))
            continue
        report.kinds["picture"] += it.image is not None
        report.kinds["caption"] += it.caption is not None
        report.kinds["retrieved"] += it.retrieved is not None
        report.kinds["text_only"] += it.image is None
        content = hashlib.sha256(repr(replace(it, row=0)).encode()).digest()
        contents.append(int.from_bytes(content[:8], signed=True))
        if encoder is None or row is None:
            continue
        assert report.tokens is not None
        report.tokens["all"] += len(row.input_ids)
        report.tokens["longest"] = max(report.tokens["longest"], len(row.input_ids))
        report.tokens["learnt"] += sum(label >= 0 for label in row.labels)
        report.tokens["unknown_rows"] += encoder.has_unknown(row)
        if len(report.previews) < num_previews:
            report.previews.append(preview(it, row, encoder))
    report.repeated = len(contents) - len(np.unique(np.frombuffer(contents, np.int64)))
    return report


def _require_lesson(record: Record) -> None:
    """What can be said without a tokenizer of whether a row teaches anything."""
    answered = any(role == "assistant" for role, _ in record.messages)
    if not answered and (record.caption is None or record.image is None):
        raise ValueError("no assistant turn to learn and no caption to align to")
