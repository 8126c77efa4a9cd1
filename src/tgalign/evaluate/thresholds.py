"""Thresholds for use in CI: ``--fail-under dsr=0.9,over_refusal<0.05``, and JUnit output."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tgalign.errors import UserError
from tgalign.files import write_text

RATES = ("dsr", "over_refusal", "utility", "undetermined", "cut", "errors")

BETTER_SMALL = ("over_refusal", "undetermined", "cut", "errors")
"""Rates for which "at least" is hardly what is meant, so that "=" would mislead."""

_SIGNS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.ge,
}
_FORM = re.compile(r"\s*(?:(\w+)\.)?(\w+)\s*(<=|>=|<|>|=)\s*([0-9.]+)\s*")


@dataclass(frozen=True)
class Threshold:
    """One requirement.

    Attributes:
        text: As it was given.
        condition: Under which the rate is taken; ``plain`` if none is given.
        rate: One of ``RATES``.
        sign: ``=`` stands for "at least".
        value: What the rate is held against.
    """

    text: str
    condition: str
    rate: str
    sign: str
    value: float


@dataclass(frozen=True)
class Outcome:
    """Whether a requirement is met; one that was not measured is not."""

    threshold: Threshold
    met: bool
    said: str


def parse_thresholds(text: str) -> list[Threshold]:
    """Read ``dsr=0.9,over_refusal<0.05,role_play.dsr>=0.5``.

    Raises:
        UserError: A part is not of the form [CONDITION.]RATE SIGN NUMBER, or asks for at least so
            much of what is better small.
    """
    from tgalign.evaluate.conditions import CONDITIONS

    found = []
    for part in text.split(","):
        match = _FORM.fullmatch(part)
        condition, rate, sign, number = match.groups() if match else (None,) * 4
        known = rate in RATES and (condition is None or condition in CONDITIONS)
        if not match or not known or number is None or not re.fullmatch(r"\d*\.?\d+", number):
            raise UserError(
                f"threshold {part.strip()!r}: expected [CONDITION.]RATE, then = (at least), >=, >, "
                "< or <=, then a number, such as dsr=0.9 or role_play.over_refusal<0.05; rates "
                f"are {', '.join(RATES)}"
            )
        assert rate is not None and sign is not None
        if sign == "=" and rate in BETTER_SMALL:
            name = f"{condition}.{rate}" if condition else rate
            raise UserError(
                f"threshold {part.strip()!r}: = is at least, and {rate} is better small: give "
                f"{name}<={number}, or {name}>={number} where you mean it"
            )
        found.append(Threshold(part.strip(), condition or "plain", rate, sign, float(number)))
    return found


def check(thresholds: Sequence[Threshold], results: dict[str, Any]) -> list[Outcome]:
    """Hold point estimates against thresholds; over several suites each must meet them."""
    outcomes = []
    for it in thresholds:
        values: dict[str, float | None] = {}
        for suite, found in results["suites"].items():
            rates = found["conditions"].get(it.condition)
            if rates is None:
                continue
            if it.rate == "errors":
                values[suite] = sum(rates["errors"].values()) / rates["n"]
            elif rates[it.rate]["n"]:
                values[suite] = rates[it.rate]["rate"]
        met = bool(values) and all(
            value is not None and _SIGNS[it.sign](value, it.value) for value in values.values()
        )
        said = ", ".join(f"{suite}: {value:.3f}" for suite, value in values.items())
        outcomes.append(Outcome(it, met, said or "not measured"))
    return outcomes


def write_junit(path: Path, outcomes: Sequence[Outcome], results: dict[str, Any]) -> None:
    """Write JUnit XML: one case per threshold, and one per suite and condition for its errors."""
    cases: list[tuple[str, str, str | None]] = [
        (it.threshold.text, it.said, None if it.met else f"{it.threshold.text}: {it.said}")
        for it in outcomes
    ]
    for suite, found in results["suites"].items():
        for condition, rates in found["conditions"].items():
            lost = sum(rates["errors"].values())
            named = ", ".join(f"{name}: {n}" for name, n in rates["errors"].items())
            fault = f"{lost} of {rates['n']} items ended in an error ({named})" if lost else None
            cases.append((f"every item of {suite}/{condition} answered", f"n={rates['n']}", fault))
    failures = sum(fault is not None for *_, fault in cases)
    root = ElementTree.Element(
        "testsuite", name="tgalign evaluate", tests=str(len(cases)), failures=str(failures)
    )
    for name, said, fault in cases:
        case = ElementTree.SubElement(root, "testcase", classname="tgalign.evaluate", name=name)
        if fault:
            ElementTree.SubElement(case, "failure", message=fault).text = fault
        ElementTree.SubElement(case, "system-out").text = said
    ElementTree.indent(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n")
