"""The checkpoints that the page asks, each used by one visitor at a time."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tgalign.errors import UserError
from tgalign.terminal import quiet_libraries

if TYPE_CHECKING:
    from tgalign.diagnose.anatomy import Anatomy

DEMO_ARMS = ("ce", "tga")
"""The arms of the demo that the page shows when it is given no model."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model in memory.

    Attributes:
        name: As the page calls it, unique.
        path: Its checkpoint.
        model: An ``AutoModelForImageTextToText``.
        processor: Its processor.
        parts: Where its hidden states are read.
        lock: Held while it computes: hooks that read or change its states must meet nobody else's
            forward.
    """

    name: str
    path: Path
    model: Any
    processor: Any
    parts: Anatomy
    lock: threading.Lock = field(default_factory=threading.Lock)


def demo_models(demo: Path) -> list[Path]:
    """The CE-only and TGA checkpoints of a demo's first seed.

    Raises:
        UserError: The demo is not there.
    """
    paths = [demo / "seed0" / arm / "checkpoint" for arm in DEMO_ARMS]
    missing = [path for path in paths if not (path / "config.json").is_file()]
    if missing:
        raise UserError(
            f"no checkpoint at {missing[0]}: run `tgalign demo --out {demo}` first (minutes), or "
            "give the folders of the models to show"
        )
    return paths


def load_models(paths: Sequence[Path]) -> list[Loaded]:
    """Load the checkpoints.

    Args:
        paths: Their folders.

    Returns:
        The models in this order.

    Raises:
        UserError: One is missing, damaged, or of a kind whose layers cannot be read.
    """
    from tgalign.checkpoint import load_lvlm
    from tgalign.diagnose.anatomy import anatomy

    quiet_libraries()
    found = []
    for name, path in zip(short_names(paths), paths, strict=True):
        model, processor = load_lvlm(path)
        found.append(Loaded(name, path, model.eval(), processor, anatomy(model)))
    return found


def short_names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart; a last ``checkpoint`` is left out.

    Raises:
        UserError: A folder is given twice.
    """
    parts = [[part for part in path.resolve().parts if part != path.anchor] for path in paths]
    parts = [it[:-1] if len(it) > 1 and it[-1] == "checkpoint" else it for it in parts]
    for length in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(it[-length:]) for it in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError("a model is given twice: " + ", ".join(str(path) for path in paths))
