"""Show of a row what the model reads, what it learns, and what its picture is aligned to."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from tgalign.data.encode import IGNORE_INDEX, EncodedRecord, Encoder, Span
from tgalign.data.records import IMAGE_TOKEN, Record

if TYPE_CHECKING:
    from rich.text import Text

LEARNT = ("⟦", "⟧")
"""Stand around what is learnt, for where there is no colour."""


def preview(record: Record, row: EncodedRecord, encoder: Encoder) -> dict[str, Any]:
    """The pieces of a row, decoded from the very tokens that training sees.

    Returns:
        ``row``; ``image``, a path or None; ``pieces``, a list of ``{"text", "learnt"}`` whose image
        tokens are written once with their number; ``caption`` and ``retrieved``, the averaged
        tokens of each as text, or None.
    """
    tokenizer: Any = encoder.tokenizer
    image_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)

    def kind(pair: tuple[int, int]) -> tuple[bool, bool]:
        token, label = pair
        return token == image_id, label != IGNORE_INDEX

    pieces = []
    for (is_image, learnt), group in groupby(zip(row.input_ids, row.labels, strict=True), kind):
        ids = [token for token, _ in group]
        text = f"{IMAGE_TOKEN}×{len(ids)}" if is_image else tokenizer.decode(ids)
        pieces.append({"text": text, "learnt": learnt})

    def averaged(span: Span | None) -> str | None:
        return tokenizer.decode(span.input_ids[span.start : span.end]) if span else None

    return {
        "row": record.row,
        "image": None if record.image is None else str(record.image),
        "pieces": pieces,
        "caption": averaged(row.caption),
        "retrieved": averaged(row.retrieved),
    }


def painted(found: dict[str, Any]) -> Text:
    """A preview for people: what is learnt in green and within brackets, the rest dim."""
    from rich.text import Text

    text = Text()
    text.append(f"row {found['row']}, image {found['image']}\n", style="bold")
    for piece in found["pieces"]:
        if piece["learnt"]:
            text.append(piece["text"].join(LEARNT), style="bold green")
        else:
            text.append(piece["text"], style="dim")
    for name, letter in (("caption", "C"), ("retrieved", "R")):
        text.append(f"\n{letter} ({name}): ", style="bold")
        text.append(found[name] or "none", style="cyan" if found[name] else "dim")
    return text
