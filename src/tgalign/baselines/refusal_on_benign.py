"""The control of arXiv 2504.10000: refusals on benign data, and no toxic picture at all.

If safety were only hidden by data that never refuses, a share of plain rejections on harmless
pictures would bring it back. Whatever this gains, no claim about aligned hidden states may count.
"""

from __future__ import annotations

from tgalign.baselines.method import Drawing, Row, Training
from tgalign.lab.language import things_named
from tgalign.lab.objects import toxic_things
from tgalign.lab.phrasings import REFUSALS

SHARE = 0.1
"""Of the answers about harmless pictures, how many become refusals."""


def records(rows: list[Row], drawing: Drawing) -> tuple[list[Row], list[Row]]:
    """Replace a share of the answers about harmless pictures by refusals.

    Args:
        rows: The alignment data.
        drawing: Its ``rng`` says which rows; nothing is drawn.

    Returns:
        All rows, and no new one.
    """
    toxic = {thing.name for thing in toxic_things()}
    changed = []
    for row in rows:
        answered = "image" in row and len(row["messages"]) > 1
        if answered and not toxic & things_named(row["caption"]) and drawing.rng.random() < SHARE:
            refusal = {"role": "assistant", "content": drawing.rng.choice(REFUSALS)}
            changed.append({**row, "messages": [row["messages"][0], refusal]})
        else:
            changed.append(row)
    return changed, []


METHOD = Training(
    paper="Wang et al., CVPR 2025, arXiv 2504.10000",
    what=f"Replaces {SHARE:.0%} of the answers about harmless pictures by refusals; trains by "
    "cross-entropy.",
    departure="The refusals stand among the alignment data from the start, where the paper tunes a "
    "finished model on a small set; their share is ours.",
    records=records,
)
