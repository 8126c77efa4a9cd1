"""The offline page of ``tgalign compare``: table, Pareto plots, what each method is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tgalign.baselines.comparison import COLUMNS, LEVEL, TRIALS, how, point, title
from tgalign.baselines.pareto import beats
from tgalign.report import svg
from tgalign.report.page import render_page
from tgalign.report.tradeoff import draw_tradeoff
from tgalign.report.verdict import OURS, main_of
from tgalign.report.wording import joined, label


def render(comparison: Mapping[str, Any]) -> str:
    """The page as a string.

    Args:
        comparison: The content of ``comparison.json``.
    """
    methods: Mapping[str, Any] = comparison["methods"]
    front = comparison["pareto"]
    looks = {name: svg.arm_look(index) for index, name in enumerate(methods)}
    panels = [
        draw_tradeoff(rate.replace("_", "-"), methods, front, rate, COLUMNS[rate])
        for rate in ("over_refusal", "named")
    ]
    return render_page(
        "comparison.html.jinja",
        title=title(comparison),
        smoke=comparison["smoke"],
        headline=headline(comparison),
        methods=methods,
        columns=COLUMNS,
        how=how(comparison),
        level=LEVEL,
        trials=TRIALS,
        front=front,
        seeds=comparison["seeds"],
        panels=panels,
        keys=svg.legend("comparison", looks.items()),
        versions=comparison["versions"],
    )


def headline(comparison: Mapping[str, Any]) -> str:
    """Whether the best of ours is on the Pareto front, and if not, what beats it."""
    methods = comparison["methods"]
    if not any(name in methods for name in OURS):
        return f"On the Pareto front: {joined([label(name) for name in comparison['pareto']])}"
    mine = main_of(methods)
    if mine in comparison["pareto"]:
        return f"No other method beats {label(mine)} on DSR, over-refusal and naming at once"
    ours = point(methods[mine])
    better = [label(name) for name, found in methods.items() if beats(point(found), ours)]
    return f"{label(mine)} is beaten by {joined(better)}"
