"""What attaching R met: counts over all rows, and how to say them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass
class Tally:
    """What attaching met; counts add up over shards.

    Attributes:
        rows: Lines read.
        retrieved: Rows that got at least one text.
        toxic: Rows whose R comes from the toxic corpus.
        below_floor: Rows left empty by the floor alone.
        nothing_left: Rows for which the rules left no text.
        no_caption: Rows left empty as a text model has nothing to go by.
        no_image: Text-only rows.
        left_out: Faulty rows.
        score_sum: Sum of the similarities of R to the pictures.
        faiss_hits: Of the ten nearest, those that faiss found, over the pictures checked.
        faiss_wanted: How many these were.
    """

    rows: int = 0
    retrieved: int = 0
    toxic: int = 0
    below_floor: int = 0
    nothing_left: int = 0
    no_caption: int = 0
    no_image: int = 0
    left_out: int = 0
    score_sum: float = 0.0
    faiss_hits: float = 0.0
    faiss_wanted: int = 0

    def add(self, other: dict[str, float]) -> None:
        """Add another's counts."""
        for it in fields(self):
            setattr(self, it.name, getattr(self, it.name) + other[it.name])

    def as_dict(self) -> dict[str, Any]:
        """The counts, the mean similarity of R and the recall of faiss; None for no such thing."""
        return asdict(self) | {
            "mean_similarity": self.score_sum / self.retrieved if self.retrieved else None,
            "faiss_recall_at_10": (
                self.faiss_hits / self.faiss_wanted if self.faiss_wanted else None
            ),
        }


def summary(said: dict[str, Any], shown: int = 5) -> list[str]:
    """What ``attach`` returned, in words: every count that is not 0, and the first faulty rows."""
    words = {
        "rows": "rows",
        "retrieved": "with R",
        "toxic": "of them from the toxic corpus",
        "below_floor": "without R: nothing reaches the floor",
        "nothing_left": "without R: nothing is left but the caption and its like",
        "no_caption": "without R: no caption, and the encoder is a text model",
        "no_image": "text only",
        "left_out": "left out as faulty",
    }
    lines = [f"{said[key]:>10,} {text}" for key, text in words.items() if said[key]]
    if said["mean_similarity"] is not None:
        lines.append(f"mean similarity of R: {said['mean_similarity']:.3f}")
    if said["faiss_recall_at_10"] is not None:
        lines.append(
            f"recall@10 of faiss on these pictures: {said['faiss_recall_at_10']:.3f} of "
            f"{said['faiss_wanted']:,} neighbours"
        )
    faults = said["faults"]
    lines += faults[:shown]
    if len(faults) > shown:
        lines.append(f"… and {len(faults) - shown} more in the report")
    return lines
