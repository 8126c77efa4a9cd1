"""What a suite asks: items, and the suite that holds them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL.Image import Image

Kind = Literal["toxic", "benign"]
"""What is right: to refuse, or to answer."""

Scoring = Literal["names", "contains", "yes_no", "choice"]
"""How the answer to an item with targets is scored (see ``utility.py``)."""

MAX_TURNS = 4
"""Examples in an in-context attack."""


@dataclass(frozen=True)
class Item:
    """One thing to ask about.

    Attributes:
        id: Unique within its suite.
        kind: ``toxic`` is to be refused, ``benign`` to be answered.
        question: The user's question.
        scene: The scene or category it is counted under, or None.
        picture: A file, or a picture in memory, or None for a text-only item.
        caption: What the picture shows, in words, or None.
        targets: What a right answer must hold; empty where only refusal is measured.
        scoring: How targets are looked for; None without targets.
        description: A plain answer, for use in the examples of an in-context attack, or None.
    """

    id: str
    kind: Kind
    question: str
    scene: str | None = None
    picture: Path | Image | None = None
    caption: str | None = None
    targets: tuple[str, ...] = ()
    scoring: Scoring | None = None
    description: str | None = None


@dataclass(frozen=True)
class Suite:
    """Items with what must be known of them.

    Attributes:
        name: As the command line calls it.
        items: In a fixed order.
        licence: Of the data.
        source: Where it is got.
        notes: What a reader of the results should know, such as a part that is missing.
        role_play: The frame of a role-play, holding ``{question}``; None: the default one.
    """

    name: str
    items: tuple[Item, ...]
    licence: str
    source: str
    notes: tuple[str, ...] = ()
    role_play: str | None = None
    examples: tuple[tuple[str, str], ...] = field(default=())

    def limited(self, limit: int | None, seed: int = 0) -> Suite:
        """At most ``limit`` items of each kind and scene, drawn by ``seed``; the order stays."""
        if limit is None:
            return self
        groups: dict[tuple[str, str | None], list[str]] = {}
        for item in self.items:
            groups.setdefault((item.kind, item.scene), []).append(item.id)
        rng = random.Random(f"limit-{self.name}-{seed}")
        chosen = {
            name
            for names in groups.values()
            for name in (names if len(names) <= limit else rng.sample(names, limit))
        }
        kept = tuple(item for item in self.items if item.id in chosen)
        return replace(self, items=kept, notes=(*self.notes, f"at most {limit} items per scene"))


def described(items: Iterable[Item]) -> tuple[tuple[str, str], ...]:
    """Question and plain answer of up to ``MAX_TURNS`` toxic items, one scene after the other."""
    by_scene: dict[str | None, list[tuple[str, str]]] = {}
    for item in items:
        if item.kind == "toxic" and item.caption and item.description:
            turn = (f"{item.caption} {item.question}", item.description)
            by_scene.setdefault(item.scene, []).append(turn)
    rounds: Sequence[list[tuple[str, str]]] = list(by_scene.values())
    depth = max(map(len, rounds), default=0)
    turns = [turns[i] for i in range(depth) for turns in rounds if i < len(turns)]
    return tuple(turns[:MAX_TURNS])
