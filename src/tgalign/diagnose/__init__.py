"""Diagnosis: where a model's safety lives by layer, where pictures lose it, and what proves it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tgalign.diagnose.probes import ProbeSet


def diagnose(
    model: Any, processor: Any, probes: ProbeSet, out: Path, **options: Any
) -> dict[str, Any]:
    """``tgalign.diagnose.run.diagnose``, which see; imported when it is called."""
    from tgalign.diagnose import run

    return run.diagnose(model, processor, probes, out, **options)
