"""The log of a stage's training, ``metrics.jsonl``: written line by line, and read back."""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from tgalign.errors import UserError
from tgalign.files import blamed_on, write_text
from tgalign.parallel import over_processes

METRICS = "metrics.jsonl"
REMEDY = (
    "Nothing of it is saved; the state saved before, if any, is kept. Lower projector_lr, llm_lr "
    "or the weight of the objective, or set precision to fp32, and name another out"
)
"""What to do where a training has gone to NaN or infinity."""
_PER_LAYER = ("cosine", "centered_cosine", "caption_retrieval")
_MEND = "remove the folder of the stage"


class MetricsLog:
    """What is averaged for the next line; several processes have one each and share the lines.

    Losses are sums over a step's batches, averaged over steps; per-layer figures are averaged over
    batches.

    Args:
        stage: The folder of the stage, which has its name.
        writes: Whether this process is the one that writes.
    """

    def __init__(self, stage: Path, *, writes: bool) -> None:
        self._path, self._writes = stage / METRICS, writes
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = defaultdict(int)
        self.begin(0)

    def begin(self, step: int) -> None:
        """Count from this step and this moment on."""
        self._step, self._at = step, time.monotonic()
        self._sums.clear()
        self._counts.clear()

    def add(self, outputs: dict[str, Tensor]) -> None:
        """Take in the named figures of a batch."""
        for name, value in outputs.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach()
            self._counts[name] += 1

    def write(self, step: int, more: dict[str, float]) -> None:
        """Write the line of a step, unless it is written; every process must call it.

        Raises:
            UserError: Since the last line the loss has become NaN or infinite, or the norm of its
                gradients has: in every process, and no line is written.
        """
        if not self._sums:
            return
        steps = step - self._step
        line: dict[str, Any] = {"step": step, "stage": self._path.parent.name}
        sums, counts = over_processes(self._sums, self._counts)
        for name, total in sums.items():
            if name in _PER_LAYER:
                line[name] = (total / counts[name]).tolist()
            else:
                line[name] = float(total / steps)
        for name, value in (line | more).items():
            if name in ("loss", "grad_norm") and not math.isfinite(value):
                since = f"steps {self._step + 1} to {step}" if steps > 1 else f"step {step}"
                raise UserError(f"stage {line['stage']}, {since}: {name} is {value}. {REMEDY}")
        line["step_seconds"] = (time.monotonic() - self._at) / steps
        self.begin(step)
        if self._writes:
            append_line(self._path, line | more)


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Add a line of JSON to a log."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def keep_until(path: Path, step: int) -> None:
    """Drop the lines of a log that come after a step, or were cut by a kill.

    Raises:
        UserError: Another line is damaged.
    """
    if path.exists():
        kept = []
        with blamed_on(path, "remove it: its lines are lost, and the run goes on"):
            for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
                if not line.endswith("\n") or json.loads(line)["step"] > step:
                    break
                kept.append(line)
        write_text(path, "".join(kept))


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
    with blamed_on(path, _MEND):
        return [dict(json.loads(line)) for line in whole.split(b"\n")[:-1]]


def stage_seconds(lines: Sequence[dict[str, Any]]) -> float:
    """Seconds of all steps of a finished stage, each taken for as long as the median one.

    The median is that of undisturbed steps, whatever else the machine did.

    Args:
        lines: What ``read_metrics`` gives.
    """
    median = sorted(line["step_seconds"] for line in lines)[len(lines) // 2]
    return float(median * lines[-1]["step"])
