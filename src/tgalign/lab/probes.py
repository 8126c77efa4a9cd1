"""The lab's probes for ``tgalign diagnose``: pairs that differ in one thing alone."""

from __future__ import annotations

import random

from tgalign.diagnose.probes import Probe, ProbeSet
from tgalign.lab.alignment_data import toxic_scene
from tgalign.lab.language import scene_caption
from tgalign.lab.objects import Objects, Style, picture_pool
from tgalign.lab.pictures import Scene, draw_with_boxes


def lab_probes(
    seed: int, *, per_scene: int = 16, objects: Objects = "all", style: Style = "emoji"
) -> ProbeSet:
    """Draw pairs of pictures: in the harmless one another thing stands in the toxic one's place.

    Both have the same layout, background, company and phrasing. Captions are in held-out phrasings.

    Args:
        seed: Another seed draws other pairs; none of them is in a suite or in training data.
        per_scene: Pairs per scene.
        objects: The things that pictures show.
        style: How they are drawn.
    """
    pool = picture_pool(objects, style)
    found = ProbeSet([], [], f"the lab ({objects} things, {style}, seed {seed})")
    for kind in pool.scenes:
        for number in range(per_scene):
            name = f"{kind}-{number}"
            rng = random.Random(f"lab-probe-{seed}-{name}")
            toxic = toxic_scene(rng, pool, kind)
            free = [thing for thing in pool.benign if thing not in toxic.things]
            other = rng.choice(free)
            things = tuple(other if thing.scene else thing for thing in toxic.things)
            key = rng.random()
            found.toxic.append(_probe(name, kind, toxic, key, style))
            found.benign.append(
                _probe(f"{name}-harmless", None, Scene(things, toxic.color), key, style)
            )
    return found


def _probe(name: str, kind: str | None, scene: Scene, key: float, style: Style) -> Probe:
    picture, boxes = draw_with_boxes(scene, random.Random(f"picture-{key}"), style=style)
    rng = random.Random(f"words-{key}")
    caption = paraphrase = scene_caption(scene, rng, "heldout")
    while paraphrase == caption:
        paraphrase = scene_caption(scene, rng, "heldout")
    toxic = next((number for number, it in enumerate(scene.things) if it.scene), None)
    return Probe(
        id=name,
        picture=picture,
        caption=caption,
        scene=kind,
        paraphrase=paraphrase,
        toxic_text=None if toxic is None else scene.things[toxic].name,
        box=None if toxic is None else boxes[toxic],
        names=() if kind else tuple(thing.name for thing in scene.things),
    )
