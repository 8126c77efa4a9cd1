"""The log of a stage's training, ``metrics.jsonl``, read back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tgalign.files import blamed_on

METRICS = "metrics.jsonl"


def read_metrics(stage: Path) -> list[dict[str, Any]]:
    """The lines that the folder of a stage holds so far: none before the first is written.

    A last line that is being written, or that a kill cut short, is left out.

    Raises:
        UserError: Another line is damaged.
    """
    path = stage / METRICS
    if not path.exists():
        return []
    whole = path.read_bytes()
    with blamed_on(path, "remove the folder of the stage"):
        return [dict(json.loads(line)) for line in whole.split(b"\n")[:-1]]


def stage_seconds(lines: Sequence[dict[str, Any]]) -> float:
    """Seconds of all steps of a finished stage, each taken for as long as the median one.

    The median is that of undisturbed steps, whatever else the machine did.

    Args:
        lines: What ``read_metrics`` gives.
    """
    median = sorted(line["step_seconds"] for line in lines)[len(lines) // 2]
    return float(median * lines[-1]["step"])
