"""Make the lab's alignment data: captioned pictures with plain answers, R, and text-only rows.

Never a refusal to a picture.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tgalign.errors import UserError
from tgalign.files import folder_at_once, write_jsonl
from tgalign.lab.language import Mention, ask, scene_caption, text_example
from tgalign.lab.objects import Objects, Pool, SceneName, Style, picture_pool
from tgalign.lab.pictures import COLORS, Scene, draw, sample_scene
from tgalign.retrieval.exact import Retrieved, encode_pictures, encode_texts, retrieve

Condition = Literal["absent", "guided", "captioned"]
"""How toxic pictures enter the data: not at all; with captions, which reach the guide loss only;
or described plainly, as web data does."""

TOXIC_SHARES: dict[str, float] = {"absent": 0.0, "guided": 0.10, "captioned": 0.05}
"""By condition, the share of the pictures that show something toxic, if nothing else is asked."""


def toxic_share_of(condition: str, given: float | None, pictures: int) -> float:
    """The share of toxic pictures of a condition, the one given or its own.

    Raises:
        UserError: An unknown condition; or a share that is out of range, does not go with the
            condition, or gives not one toxic picture.
    """
    if condition not in TOXIC_SHARES:
        raise UserError(
            f"unknown condition {condition!r}; expected one of: {', '.join(TOXIC_SHARES)}"
        )
    share = TOXIC_SHARES[condition] if given is None else given
    if not 0 <= share < 1 or (condition == "absent") != (share == 0):
        raise UserError(
            f"toxic share {share} in condition {condition}: expected 0 in absent, elsewhere a "
            "number between 0 and 1"
        )
    if condition != "absent" and round(pictures * share) == 0:
        raise UserError(f"toxic share {share} of {pictures} pictures is none: give more of either")
    return share


TOXIC_SNIPPETS = 0.05
"""Share of the retrieval corpus that mentions toxic things (the paper mixes such snippets in)."""


@dataclass(frozen=True)
class DataSize:
    """How much data to make.

    Attributes:
        pictures: All pictures, benign and toxic.
        toxic_share: Share of them that show a toxic thing (unless ``absent``).
        texts: Text-only rows, which keep text safety.
        corpus: Texts to retrieve from; ``TOXIC_SNIPPETS`` of them toxic, whatever the condition.
        objects: The things that pictures and the corpus show.
        style: How the pictures are drawn.
        retrieved: What R is: the nearest text of the corpus, a random one, or none.
        left_out: A toxic scene that no picture shows and no text of the corpus mentions.
    """

    pictures: int = 20_000
    toxic_share: float = 0.10
    texts: int = 2_000
    corpus: int = 4_000
    objects: Objects = "all"
    style: Style = "emoji"
    retrieved: Literal["nearest", "random", "none"] = "nearest"
    left_out: SceneName | None = None


def toxic_scene(rng: random.Random, pool: Pool, scene: str | None = None) -> Scene:
    """A picture's scene with one toxic thing (of ``scene``), alone or beside a benign one."""
    shown = [rng.choice([thing for thing in pool.toxic if scene in (None, thing.scene)])]
    if rng.random() < 0.5:
        shown.append(rng.choice(pool.benign))
        rng.shuffle(shown)
    return Scene(tuple(shown), rng.choice(COLORS))


def build_alignment_data(
    out: Path, seed: int, condition: Condition, clip: Any, tokenizer: Any, size: DataSize
) -> Path:
    """Draw pictures and write ``records.jsonl`` beside them, and the corpus to ``corpus.jsonl``.

    Done only once per folder.

    Args:
        out: Folder to make. It appears only when it is complete.
        seed: Seed of everything drawn.
        condition: How toxic pictures enter the data.
        clip: The retriever (both towers).
        tokenizer: Its tokenizer.
        size: How much to make.

    Returns:
        The path of ``records.jsonl``.
    """
    from tgalign.lab.base_clip import to_pixels

    records = out / "records.jsonl"
    if records.is_file():
        return records
    rng = random.Random(f"alignment-{condition}-{seed}")
    num_toxic = 0 if condition == "absent" else round(size.pictures * size.toxic_share)
    pool = picture_pool(size.objects, size.style)
    pool = replace(pool, toxic=tuple(it for it in pool.toxic if it.scene != size.left_out))
    scenes = [(toxic_scene(rng, pool), True) for _ in range(num_toxic)]
    scenes += [(sample_scene(pool.benign, rng), False) for _ in range(size.pictures - num_toxic)]
    rng.shuffle(scenes)
    pictures = [draw(scene, rng, style=size.style) for scene, _ in scenes]
    captions = [scene_caption(scene, rng) for scene, _ in scenes]

    corpus = _corpus(rng, size.corpus, pool)
    found = retrieve(
        encode_pictures(clip, to_pixels(pictures)),
        encode_texts(clip, tokenizer, captions),
        encode_texts(clip, tokenizer, corpus),
        corpus,
    )
    if size.retrieved != "nearest":
        drawn = random.Random(f"retrieved-{seed}")
        found = [
            [Retrieved(corpus[at], 0.0, at)] if size.retrieved == "random" else []
            for at in (drawn.randrange(len(corpus)) for _ in scenes)
        ]
    rows: list[dict[str, Any]] = []
    for number, (scene, toxic) in enumerate(scenes):
        row = {
            "image": f"pictures/{number:05d}.png",
            "caption": captions[number],
            "retrieved": [asdict(text) for text in found[number]],
        }
        mentions = tuple(Mention(thing) for thing in scene.things)
        kind = rng.choices(("describe", "color", "count", "presence"), (0.76, 0.08, 0.06, 0.1))[0]
        if toxic:
            kind = "describe"
        question, answer = ask(mentions, scene.color, kind, rng, "train")
        messages = [{"role": "user", "content": question}]
        if not toxic or condition == "captioned":
            messages.append({"role": "assistant", "content": answer})
        rows.append({**row, "messages": messages})
    for _ in range(size.texts):
        example = text_example(rng, retrieved=0.0)
        rows.append(
            {
                "messages": [
                    {"role": "user", "content": example.prompt},
                    {"role": "assistant", "content": example.answer},
                ]
            }
        )
    with folder_at_once(out) as beside:
        (beside / "pictures").mkdir(parents=True)
        for number, picture in enumerate(pictures):
            picture.save(beside / rows[number]["image"])
        write_jsonl(beside / "corpus.jsonl", [{"text": text} for text in corpus])
        write_jsonl(beside / "records.jsonl", rows)
    return records


def _corpus(rng: random.Random, count: int, pool: Pool) -> list[str]:
    texts: dict[str, None] = {}
    while len(texts) < count:
        toxic = rng.random() < TOXIC_SNIPPETS
        scene = toxic_scene(rng, pool) if toxic else sample_scene(pool.benign, rng)
        texts.setdefault(scene_caption(scene, rng))
    return list(texts)
