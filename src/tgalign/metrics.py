"""The log of a stage's training, ``metrics.jsonl``, read back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"


def read_metrics(stage: Path) -> list[dict[str, Any]]:
    """The lines that the folder of a stage holds so far: none before the first is written.

    A last line that is being written, or that a kill cut short, is left out.
    """
    path = stage / METRICS
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def stage_seconds(lines: Sequence[dict[str, Any]]) -> float:
    """Seconds of all steps of a finished stage, each taken for as long as the median one.

    The median is that of undisturbed steps, whatever else the machine did.

    Args:
        lines: What ``read_metrics`` gives.
    """
    median = sorted(line["step_seconds"] for line in lines)[len(lines) // 2]
    return float(median * lines[-1]["step"])
