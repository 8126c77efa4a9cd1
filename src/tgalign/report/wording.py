"""Numbers, names and verdicts as readers see them; missing, null and NaN: not measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Tone = Literal["good", "bad", "unsure"]
MARKS: dict[Tone, str] = {"good": "\u2713", "bad": "\u2717", "unsure": "?"}
"""What stands beside an answer, so that colour does not stand alone."""

MISSING = "n/a"
UNIT = "\u00a0%"
LABELS = {
    "ce": "CE only",
    "released_nograd": "released (no gradient)",
    "paper": "TGA as in the paper",
    "tga": "TGA",
    "tga_question": "TGA at the question",
    "tga_plain": "TGA, no gate",
    "tga_gate": "TGA, gate alone",
    "tga_companions": "TGA, no synthetic pictures",
    "ce_gate": "CE only, with the gate",
}


def number(value: Any) -> float | None:
    """A finite number as float; None for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def whole(value: Any) -> str:
    """A count, seed or layer for readers."""
    found = number(value)
    return MISSING if found is None else f"{found:.0f}"


def share(rate: Any) -> float | None:
    """The point estimate of a rate, or None."""
    return number(rate.get("rate")) if isinstance(rate, Mapping) else None


def percent(value: float | None) -> str:
    """A share in whole per cent, without the sign; never rounded to 0 or 100 if it is neither."""
    if value is None:
        return MISSING
    if 0 < value < 0.01:
        return "<1"
    return ">99" if 0.99 < value < 1 else f"{100 * value:.0f}"


def interval(rate: Any) -> str:
    """The interval of a rate in whole per cent, as in ``[38, 52]``; empty if it has none."""
    if not isinstance(rate, Mapping):
        return ""
    low, high = number(rate.get("low")), number(rate.get("high"))
    return "" if low is None or high is None else f"[{100 * low:.0f},\u00a0{100 * high:.0f}]"


def rate_text(rate: Any) -> str:
    """A rate in a sentence, as in ``45 % [38, 52]``."""
    value = share(rate)
    return MISSING if value is None else f"{percent(value)}{UNIT} {interval(rate)}".rstrip()


def p_text(value: float | None) -> str:
    """A p-value for readers."""
    if value is None:
        return MISSING
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def points(value: float) -> str:
    """A signed difference in points with one decimal."""
    digits = f"{abs(100 * value):.1f}"
    sign = "" if float(digits) == 0 else "+" if value > 0 else "\u2212"
    return sign + digits


def seconds(value: float | None) -> str:
    """A duration for readers."""
    if value is None:
        return MISSING
    if value < 1:
        return f"{value:.3f}\u00a0s"
    if value < 90:
        return f"{value:.1f}\u00a0s"
    minutes = round(value / 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}\u00a0h {minutes}\u00a0min" if hours else f"{minutes}\u00a0min"


def label(arm: str) -> str:
    """An arm's name for readers, or those of an arm and the defence around it."""
    return " + ".join(LABELS.get(part, part.replace("_", " ")) for part in arm.split("+"))


def tone(verdict: str | None, *, toxic: bool) -> Tone:
    """Whether it was right to refuse, or to answer."""
    if verdict not in ("refused", "answered"):
        return "unsure"
    return "good" if (verdict == "refused") is toxic else "bad"


def joined(parts: Sequence[str]) -> str:
    """``a``, ``a and b``, or ``a, b and c``."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1] if parts else ""]))
