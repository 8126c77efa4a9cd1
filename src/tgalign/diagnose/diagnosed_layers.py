"""The layers that a diagnosis found, for a training to align."""

from __future__ import annotations

from pathlib import Path

from tgalign.errors import UserError
from tgalign.files import check_schema, read_json

DIAGNOSED = ("safety", "causal")
"""Choices of layers that ``tgalign diagnose`` makes."""
DIAGNOSIS_SCHEMA = 1
"""Schema version of diagnosis.json."""
MAX_LAYERS = 10_000
"""No model is as deep: a larger number in a diagnosis is damage."""


def diagnosed_layers(path: Path, choice: str) -> list[int]:
    """The layers that a diagnosis found.

    Args:
        path: A diagnosis.json.
        choice: One of ``DIAGNOSED``.

    Raises:
        UserError: There is no diagnosis, or it found no such layers.
    """
    if not path.is_file():
        raise UserError(f"no diagnosis at {path}: expected the diagnosis.json of tgalign diagnose")
    found = read_json(path)
    if not isinstance(found, dict):
        raise UserError(f"{path} is no diagnosis.json of tgalign diagnose")
    check_schema(found, path, DIAGNOSIS_SCHEMA, "a diagnosis")
    try:
        if choice == "causal":
            layers = list(found["causal_layers"])
        else:
            rules = found["safety_layers"]
            first, last = rules["paper"] or rules["released"] or (1, 0)
            layers = list(range(first, min(last, MAX_LAYERS) + 1))
        if not all(isinstance(it, int) and 0 <= it <= MAX_LAYERS for it in layers):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path} is no diagnosis.json of tgalign diagnose") from None
    if not layers:
        raise UserError(f"{path} found no {choice} layers: name the layers yourself")
    return layers
