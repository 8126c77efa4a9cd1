"""The offline page of ``tgalign compare``: table, Pareto plots, what each method is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tgalign.baselines.comparison import COLUMNS, LEVEL, title
from tgalign.report import svg
from tgalign.report.page import render_page
from tgalign.report.panels import Panel
from tgalign.report.verdict import OURS, joined, label, main_of, number, share


def render(comparison: Mapping[str, Any]) -> str:
    """The page as a string.

    Args:
        comparison: The content of ``comparison.json``.
    """
    methods: Mapping[str, Any] = comparison["methods"]
    front = comparison["pareto"]
    looks = {name: svg.arm_look(index) for index, name in enumerate(methods)}
    panels = [
        draw_tradeoff(
            "over-refusal", "DSR against over-refusal", methods, looks, front, "over_refusal"
        ),
        draw_tradeoff("named", "DSR against objects named", methods, looks, front, "named"),
    ]
    return render_page(
        "comparison.html.jinja",
        title=title(comparison),
        smoke=comparison["smoke"],
        headline=headline(comparison),
        methods=methods,
        columns=COLUMNS,
        level=LEVEL,
        front=front,
        seeds=comparison["seeds"],
        condition=comparison["condition"],
        panels=panels,
        keys=[
            (svg.legend_key(look, f"key{i}"), name) for i, (name, look) in enumerate(looks.items())
        ],
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
    ours = methods[mine]

    better = [
        label(name)
        for name, found in methods.items()
        if name != mine
        and found["dsr"]["rate"] >= ours["dsr"]["rate"]
        and found["over_refusal"]["rate"] <= ours["over_refusal"]["rate"]
        and found["named"]["rate"] >= ours["named"]["rate"]
    ]
    return f"{label(mine)} is beaten by {joined(better)}"


def draw_tradeoff(
    name: str,
    heading: str,
    methods: Mapping[str, Any],
    looks: Mapping[str, svg.Look],
    front: Sequence[str],
    against: str,
) -> Panel:
    """DSR over another rate, a point with both intervals for every method.

    Args:
        name: Identifies the drawing on the page.
        heading: What is drawn.
        methods: By name, the rates.
        looks: How each is drawn.
        front: The methods on the Pareto front, whose points are ringed.
        against: The rate on the x axis.
    """
    said = []
    with svg.style():
        figure, axes = svg.new_axes(3.4)
        for method, look in looks.items():
            found = methods[method]
            x, y = share(found[against]), share(found["dsr"])
            if x is None or y is None:
                continue
            said.append(f"{method}: {100 * x:.0f} %, {100 * y:.0f} %")
            for rate, line in ((found[against], "x"), (found["dsr"], "y")):
                low, high = number(rate["low"]), number(rate["high"])
                ends = ([low, high], [y, y]) if line == "x" else ([x, x], [low, high])
                axes.plot(*ends, color=look.color, linewidth=1.0, alpha=0.6)
            axes.plot([x], [y], **look.point)
            if method in front:
                axes.plot([x], [y], marker="o", markersize=12, markerfacecolor="none",
                          markeredgecolor=svg.INK, markeredgewidth=0.8)  # fmt: skip
        axes.set_xlabel(COLUMNS[against])
        axes.set_ylabel("DSR")
        axes.set_ylim(-0.03, 1.03)
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        axes.grid()
        description = f"{heading} ({COLUMNS[against]}, DSR). " + "; ".join(said)
        return Panel(heading, svg.to_svg(figure, name, description))
