"""What defences may look at in the lab: development things, drawn for nothing else."""

from __future__ import annotations

from tgalign.baselines.defence import Calibration
from tgalign.lab.assets import ASSETS, CLIP
from tgalign.lab.objects import Style, toxic_things
from tgalign.lab.phrasings import REFUSALS
from tgalign.lab.suite import QUESTION, lab_suite

CALIBRATION = 4_000
"""Added to the seed: no test suite is drawn from the same stream."""

SAFETY_PROMPT = "sorry , i can not help with that ."


def lab_calibration(seed: int, *, style: Style = "emoji", num_pictures: int = 200) -> Calibration:
    """Harmless pictures of the development things with their captions, and toxic captions.

    No held-out thing is shown, and no toxic picture is kept.

    Args:
        seed: Another seed draws other pictures.
        style: How they are drawn.
        num_pictures: How many.
    """
    per_scene = max(1, num_pictures // 8)
    suite = lab_suite(
        CALIBRATION + seed,
        per_scene=per_scene,
        num_benign=num_pictures,
        num_texts=0,
        objects="development",
        style=style,
    )
    return Calibration(
        pictures=[item.picture for item in suite.benign],
        captions=[item.caption for item in suite.benign],
        toxic_captions=[item.caption for item in suite.toxic],
        descriptors=[f"a picture of {thing.phrase} ." for thing in toxic_things()],
        question=QUESTION,
        caption_question=QUESTION,
        refusal=REFUSALS[0],
        safety_prompt=SAFETY_PROMPT,
        clip=ASSETS / CLIP,
    )
