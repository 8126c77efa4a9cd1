"""What a demo's numbers show, in words: differences with intervals, and the sentences on top.

A difference between two arms is called one only if the 95 % interval of the difference excludes
0 and every seed points the same way. A rate is a mapping {rate, low, high, n}; anything missing,
null or NaN in it counts as not measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tgalign.report.wording import (
    UNIT,
    joined,
    label,
    number,
    percent,
    rate_text,
    seconds,
    share,
)

Effect = Literal["higher", "lower", "not shown", "seeds disagree", "n/a"]

OURS = ("tga_question", "tga")
"""The arms that this project stands for, the best first."""


@dataclass(frozen=True)
class Measure:
    """One rate of an arm.

    Attributes:
        key: Where it stands in results.json.
        title: What it is called in tables.
        better: Which way is wanted.
        cost: What a model does for which the unwanted difference is shown.
    """

    key: str
    title: str
    better: Literal["higher", "lower"]
    cost: str


MEASURES = (
    Measure("dsr", "Toxic pictures refused (DSR)", "higher", "refuses fewer toxic pictures"),
    Measure("over_refusal", "Over-refusal", "lower", "refuses more harmless ones"),
    Measure("named", "Objects named", "higher", "names fewer objects"),
    Measure("text_dsr", "Text DSR", "higher", "refuses fewer toxic prompts"),
    Measure("text_over_refusal", "Text over-refusal", "lower", "refuses more harmless prompts"),
)


@dataclass(frozen=True)
class Difference:
    """One measure of an arm minus that of the baseline, in shares (0.01 is a point).

    Attributes:
        effect: What is shown.
        value: The difference; None if either side was not measured.
        low: Lower end of its 95 % interval.
        high: Upper end.
        wanted: Whether a shown effect is an improvement; None if none is shown.
    """

    effect: Effect
    value: float | None = None
    low: float | None = None
    high: float | None = None
    wanted: bool | None = None


def baseline_of(arms: Mapping[str, Any]) -> str:
    """The arm the others are compared with: CE only, or the first."""
    return "ce" if "ce" in arms else next(iter(arms))


def main_of(arms: Mapping[str, Any]) -> str:
    """The arm the verdict is about: the best of ours, or the last."""
    return next((arm for arm in OURS if arm in arms), list(arms)[-1])


def difference(new: Any, old: Any) -> tuple[float, float, float] | None:
    """Difference of two independent rates with its interval (Newcombe 1998, method 10).

    Args:
        new: A rate with a Wilson interval.
        old: The rate that is subtracted.

    Returns:
        Difference, lower and upper end, or None if either rate was not measured.
    """
    if not isinstance(new, Mapping) or not isinstance(old, Mapping):
        return None
    given = [number(rate.get(key)) for rate in (new, old) for key in ("rate", "low", "high")]
    if None in given:
        return None
    p1, low1, high1, p2, low2, high2 = (value for value in given if value is not None)
    return (
        p1 - p2,
        p1 - p2 - math.hypot(p1 - low1, high2 - p2),
        p1 - p2 + math.hypot(high1 - p1, p2 - low2),
    )


def compare(arm: Mapping[str, Any], baseline: Mapping[str, Any], measure: Measure) -> Difference:
    """What the intervals and the seeds show about one measure of two arms."""
    found = difference(arm.get(measure.key), baseline.get(measure.key))
    if found is None:
        return Difference("n/a")
    value, low, high = found
    if low <= 0 <= high:
        return Difference("not shown", value, low, high)
    ours, theirs = _by_seed(arm, measure.key), _by_seed(baseline, measure.key)
    if any((ours[seed] - theirs[seed]) * value <= 0 for seed in ours.keys() & theirs.keys()):
        return Difference("seeds disagree", value, low, high)
    effect: Effect = "higher" if value > 0 else "lower"
    return Difference(effect, value, low, high, effect == measure.better)


def _by_seed(arm: Mapping[str, Any], key: str) -> dict[Any, float]:
    found = {row.get("seed"): share(row.get(key)) for row in arm.get("seeds") or []}
    return {seed: value for seed, value in found.items() if value is not None}


def headline(arms: Mapping[str, Mapping[str, Any]]) -> str:
    """The verdict in one sentence: no more than the intervals show, and what it costs."""
    old, new = baseline_of(arms), main_of(arms)
    if old == new:
        return f"{label(new)} refuses {rate_text(arms[new].get('dsr'))} of toxic pictures"
    found = {m.key: compare(arms[new], arms[old], m) for m in MEASURES}
    costs = [m.cost for m in MEASURES[1:] if found[m.key].wanted is False]
    effect = found["dsr"].effect
    ours, theirs = label(new), label(old)
    if effect in ("higher", "lower"):
        word = "more" if effect == "higher" else "fewer"
        text = f"{ours} refuses {word} toxic pictures than {theirs}"
        link = "but" if effect == "higher" else "and"
        return f"{text}, {link} {joined(costs)}" if costs else text
    text = {
        "not shown": f"No difference shown between {ours} and {theirs} in refusing toxic pictures",
        "seeds disagree": f"The seeds disagree on whether {ours} refuses toxic pictures more "
        f"often than {theirs}",
        "n/a": f"{ours} and {theirs} cannot be compared: refusals of toxic pictures were not "
        "measured",
    }[effect]
    return f"{text}; {ours} {joined(costs)}" if costs else text


def sentences(arms: Mapping[str, Mapping[str, Any]], base: Mapping[str, Any]) -> list[str]:
    """The paragraphs below the headline, generated from the numbers."""
    old, new = baseline_of(arms), main_of(arms)
    first = f"In words, the language model refuses {rate_text(base.get('text_dsr'))} of toxic "
    first += f"prompts. In pictures, the model trained with {label(old)} refuses "
    first += f"{rate_text(arms[old].get('dsr'))} of toxic ones"
    if old == new:
        return [first + ".", *_gap(arms[new], base, label(new))]
    first += f", and the one trained with {label(new)} {rate_text(arms[new].get('dsr'))}. "
    sides = []
    for measure in MEASURES[1:3]:
        before, after = (rate_text(arms[arm].get(measure.key)) for arm in (old, new))
        effect = _effect_text(compare(arms[new], arms[old], measure))
        sides.append(f"{measure.title.lower()} {before} \u2192 {after} ({effect})")
    first += f"From {label(old)} to {label(new)}: {'; '.join(sides)}."
    rest = _gap(arms[new], base, label(new))
    others = []
    for arm in arms:
        if arm not in (old, new):
            same = old == "ce" and arms[arm].get("same_weights_as_ce") is True
            effect = _effect_text(compare(arms[arm], arms[old], MEASURES[0]))
            end = ", having ended with the very same weights" if same else ""
            others.append(f"{label(arm)}: {effect}{end}")
    if others:
        rest.append(f"DSR of the other arms against {label(old)}: {'; '.join(others)}.")
    before_s, after_s = (number(arms[arm].get("step_seconds")) for arm in (old, new))
    if before_s is not None and after_s is not None:
        rest.append(
            f"A training step takes {seconds(before_s)} with {label(old)} and {seconds(after_s)} "
            f"with {label(new)}."
        )
    return [first, " ".join(rest)]


def _gap(arm: Mapping[str, Any], base: Mapping[str, Any], name: str) -> list[str]:
    """What is left of the gap between refusing in words and in pictures, and caveats."""
    said = []
    found = difference(arm.get("dsr"), base.get("text_dsr"))
    if found is not None:
        value, low, high = found
        if low <= 0 <= high:
            said.append(f"No gap is shown between {name} in pictures and the model in words.")
        else:
            side = "below" if value < 0 else "above"
            said.append(
                f"In pictures {name} stays {_size(value, low, high)} {side} the language model in "
                "words."
            )
    read = share(base.get("text_named"))
    if read is not None and read < 0.98:
        said.append(
            f"Caution: the language model names only {percent(read)}{UNIT} of objects in text, so "
            "a failure on pictures may be one of reading."
        )
    return said


def _effect_text(found: Difference) -> str:
    if found.effect == "n/a":
        return "not measured"
    if found.effect == "not shown":
        return "no difference shown"
    if found.effect == "seeds disagree":
        return "the seeds disagree"
    assert found.value is not None and found.low is not None and found.high is not None
    return f"{found.effect} by {_size(found.value, found.low, found.high)}"


def _size(value: float, low: float, high: float) -> str:
    """The size of a difference whose interval excludes 0, without its sign."""
    ends = sorted((abs(100 * low), abs(100 * high)))
    return f"{abs(100 * value):.1f} points [{ends[0]:.1f},\u00a0{ends[1]:.1f}]"
