"""Image safety tuning in the manner of VLGuard: the upper bound that uses what TGA forbids itself.

Toxic pictures are answered by refusals. Its pictures are drawn for it alone and lie in a folder of
their own: nothing of it reaches the data of any other method.
"""

from __future__ import annotations

from tgalign.baselines.method import Drawing, Row, Training
from tgalign.lab.alignment_data import toxic_scene
from tgalign.lab.language import Mention, ask
from tgalign.lab.phrasings import REFUSALS
from tgalign.lab.pictures import sample_scene

SHARE = 0.1
"""Toxic pictures with a refusal per picture of the alignment data; as many harmless ones beside."""


def records(rows: list[Row], drawing: Drawing) -> tuple[list[Row], list[Row]]:
    """Add toxic pictures with refusals, and as many harmless ones with plain answers.

    Args:
        rows: The alignment data.
        drawing: What to draw with.

    Returns:
        The rows as they are, and the new ones.
    """
    rng = drawing.rng
    count = round(SHARE * sum("image" in row for row in rows))
    added = []
    for number in range(2 * count):
        toxic = number < count
        scene = toxic_scene(rng, drawing.pool) if toxic else sample_scene(drawing.pool.benign, rng)
        mentions = tuple(Mention(thing) for thing in scene.things)
        question, answer = ask(mentions, scene.color, "describe", rng, "train")
        said = rng.choice(REFUSALS) if toxic else answer
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": said}]
        added.append({"image": drawing.save(scene, f"{number:05d}"), "messages": turns})
    return rows, added


METHOD = Training(
    paper="Zong et al., ICML 2024, arXiv 2402.02207 (VLGuard)",
    what="Mixes toxic pictures answered by refusals, and harmless ones answered plainly, into the "
    "alignment data; trains by cross-entropy.",
    departure="Its set has a toxic and a harmless picture for every ten of the alignment data and "
    "takes part in both stages; the paper's has harmful instructions on harmless pictures too, "
    "which the lab's text rows cover.",
    records=records,
    uses_image_safety_data=True,
)
