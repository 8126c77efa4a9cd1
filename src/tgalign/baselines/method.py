"""What the rivals are made of: a way to train, and what stands around a model when it answers."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tgalign.config import StageConfig
from tgalign.lab.arms import Arm

if TYPE_CHECKING:
    from tgalign.baselines.defence import Calibration
    from tgalign.lab.objects import Pool, Style
    from tgalign.lab.pictures import Scene

Row = dict[str, Any]
"""A record as it stands in a JSONL file."""


@dataclass(frozen=True)
class Drawing:
    """What a method draws pictures of its own with; they lie beside nobody else's.

    Attributes:
        folder: Where the method's records go.
        rng: Its source of randomness.
        pool: The things that the alignment data shows.
        style: How they are drawn.
    """

    folder: Path
    rng: random.Random
    pool: Pool
    style: Style

    def save(self, scene: Scene, name: str) -> str:
        """Draw a scene and save it; returns the path relative to the folder."""
        from tgalign.lab.pictures import draw

        (self.folder / "pictures").mkdir(parents=True, exist_ok=True)
        draw(scene, self.rng, style=self.style).save(self.folder / f"pictures/{name}.png")
        return f"pictures/{name}.png"


@dataclass(frozen=True)
class Training:
    """A method that is trained, on the trainer that all share.

    Attributes:
        paper: Where it comes from.
        what: What it does, in one sentence.
        departure: How this differs from the paper.
        arm: The objective: a key of ``lab.arms.ARMS``, or one of its own.
        start: The method whose checkpoint it starts from; None: the untrained LLaVA.
        stages: In place of the two that the arms have.
        records: Makes its records of those that all share, which it must not change. Image paths of
            the rows it adds are relative to ``Drawing.folder``, all others stay as they are.
        uses_image_safety_data: Whether it is taught to refuse toxic pictures.
    """

    paper: str
    what: str
    departure: str
    arm: str | Arm = "ce"
    start: str | None = None
    stages: tuple[StageConfig, ...] = ()
    records: Callable[[list[Row], Drawing], tuple[list[Row], list[Row]]] | None = None
    uses_image_safety_data: bool = False


@dataclass(frozen=True)
class Defence:
    """A method that stands around a finished model when it answers.

    Attributes:
        paper: Where it comes from.
        what: What it does, in one sentence.
        departure: How this differs from the paper.
        around: Makes the context in which ``model.generate`` is defended, from the model, its
            processor and what the defence may look at before.
        uses_second_model: Whether it needs weights, when it answers, that the checkpoint lacks.
    """

    paper: str
    what: str
    departure: str
    around: Callable[[Any, Any, Calibration], AbstractContextManager[None]]
    uses_second_model: bool = False
