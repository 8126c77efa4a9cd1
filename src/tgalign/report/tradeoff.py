"""DSR over what it costs: a point with both intervals for every method."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from tgalign.report import svg
from tgalign.report.panels import Panel
from tgalign.report.wording import number, percent, share


def draw_tradeoff(
    name: str, methods: Mapping[str, Any], front: Collection[str], against: str, label: str
) -> Panel:
    """DSR over another rate.

    Args:
        name: Identifies the drawing on the page; the point of the method at a place is its
            ``NAME-point-PLACE``.
        methods: By name, the rates.
        front: The methods on the Pareto front, whose points are ringed.
        against: The rate on the x axis.
        label: What that is called.
    """
    title, said = f"DSR against {label}", []
    with svg.style():
        figure, axes = svg.new_axes(3.4)
        for place, (method, found) in enumerate(methods.items()):
            look = svg.arm_look(place)
            x, y = share(found.get(against)), share(found.get("dsr"))
            if x is None or y is None:
                continue
            said.append(f"{method}: {percent(x)} %, {percent(y)} %")
            for rate, along in ((found[against], "x"), (found["dsr"], "y")):
                ends = [number(rate.get(end)) for end in ("low", "high")]
                if None not in ends:
                    line = (ends, [y, y]) if along == "x" else ([x, x], ends)
                    axes.plot(*line, color=look.color, linewidth=1.0, alpha=0.6)
            if method in front:
                axes.plot([x], [y], marker="o", markersize=12, markerfacecolor="none",
                          markeredgecolor=svg.INK, markeredgewidth=0.8)  # fmt: skip
            axes.plot([x], [y], gid=f"point-{place}", **look.point)
        if not said:
            return Panel(title, None)
        axes.set_xlabel(label)
        axes.set_ylabel("DSR")
        axes.set_ylim(-0.03, 1.03)
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        axes.grid()
        description = f"{title} ({label}, DSR). " + "; ".join(said)
        return Panel(title, svg.to_svg(figure, name, description))
