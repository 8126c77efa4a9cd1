"""The kinds of panels: rates with intervals, lines over layers or steps, shades by head."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tgalign.report import svg
from tgalign.report.tables import csv_table
from tgalign.report.wording import label, number, percent, share

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Panel:
    """One drawing: its title, its SVG (None where there was nothing to draw) and its data.

    ``keys`` is a legend of its own, where the drawing shares none: drawing and name of each series.
    """

    title: str
    svg: str | None
    csv: str = ""
    keys: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Series:
    """One line of a panel; NaN where a value is missing.

    ``low`` and ``high`` are the ends of its intervals, if it has any.
    """

    name: str
    look: svg.Look
    x: list[float]
    y: list[float]
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)


def draw_dots(
    name: str,
    title: str,
    rows: Mapping[str, Mapping[str, Any]],
    looks: Mapping[str, svg.Look],
    height: float,
    *,
    reference: float | None = None,
    total: bool = False,
) -> Panel:
    """Rates with their intervals: a row per name, in it a point per arm.

    Args:
        name: Identifies the drawing on the page.
        title: What is drawn.
        rows: By row and arm the rates.
        looks: How each arm is drawn, in order.
        height: Of the panel, in inches.
        reference: A share to compare with, drawn as a line through all rows.
        total: Whether the last row sums up the others.
    """
    if not any(share(rate) is not None for row in rows.values() for rate in row.values()):
        return Panel(title, None)
    step = min(0.22, 0.66 / max(len(looks), 1))
    said = []
    with svg.style():
        figure, axes = svg.new_axes(height)
        for index, (row_name, row) in enumerate(rows.items()):
            if index % 2 == 0:
                axes.axhspan(index - 0.5, index + 0.5, color=svg.LINE, alpha=0.3, linewidth=0)
            for place, (arm, look) in enumerate(looks.items()):
                rate = row.get(arm)
                value = share(rate)
                y = index + step * (place - (len(looks) - 1) / 2)
                if value is None or rate is None:
                    axes.text(0.01, y, "n/a", color=look.color, va="center", fontsize=6.5)
                    continue
                said.append(f"{row_name}, {label(arm)}: {percent(value)} %")
                low, high = number(rate.get("low")), number(rate.get("high"))
                if low is not None and high is not None:
                    axes.plot([low, high], [y, y], color=look.color, linewidth=2.0)
                fill = look.color if look.filled else svg.PAPER
                point = look.point | {"markerfacecolor": fill, "markersize": 6.0}
                axes.plot([value], [y], **point)
        if reference is not None:
            axes.axvline(reference, **svg.TEXT_LOOK.line, linewidth=1.4)
        if total:
            axes.axhline(len(rows) - 1.5, color=svg.INK, linewidth=0.8)
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(-0.02, 1.02)
        _percent_ticks(axes, "x")
        axes.grid(axis="x")
        drawing = svg.to_svg(figure, name, f"{title}. " + "; ".join(said))
        return Panel(title, drawing, _dots_csv(rows))


def _dots_csv(rows: Mapping[str, Mapping[str, Any]]) -> str:
    table: list[list[Any]] = [["row", "series", "rate", "low", "high", "n"]]
    for row_name, row in rows.items():
        for arm, rate in row.items():
            if share(rate) is not None:
                table.append([row_name, arm, *(rate.get(k) for k in ("rate", "low", "high", "n"))])
    return csv_table(table)


def _lines_csv(x_label: str, lines: Sequence[Series]) -> str:
    table: list[list[Any]] = [["series", x_label, "value", "low", "high"]]
    for line in lines:
        for at, (x, y) in enumerate(zip(line.x, line.y, strict=True)):
            ends = [line.low[at], line.high[at]] if line.low else ["", ""]
            table.append([line.name, x, y, *ends])
    return csv_table(table)


def _percent_ticks(axes: Axes, which: str) -> None:
    ticks = [0, 0.25, 0.5, 0.75, 1]
    names = [f"{100 * tick:.0f} %" for tick in ticks]
    (axes.set_xticks if which == "x" else axes.set_yticks)(ticks, names)


def draw_lines(
    name: str,
    title: str,
    x_label: str,
    lines: Sequence[Series],
    *,
    shares: bool = False,
    marks: Mapping[float, str] | None = None,
) -> Panel:
    """Lines over layers or steps.

    Args:
        name: Identifies the drawing on the page.
        title: What is drawn.
        x_label: Label of the x axis.
        lines: The lines; those without a finite value are left out.
        shares: Whether y is a share, shown from 0 to 100 %.
        marks: Names of places on the x axis, such as the beginnings of stages.
    """
    lines = [line for line in lines if any(map(math.isfinite, line.y))]
    if not lines:
        return Panel(title, None)
    said = []
    with svg.style():
        from matplotlib.ticker import MaxNLocator

        figure, axes = svg.new_axes(2.7)
        for line in lines:
            every = max(1, len(line.x) // 10)
            axes.plot(line.x, line.y, **line.look.line, **line.look.point, markevery=every)
            if line.low:
                axes.vlines(line.x, line.low, line.high, color=line.look.color, linewidth=1.2)
            values = [value for value in line.y if math.isfinite(value)]
            first, last = (
                f"{percent(value)} %" if shares else f"{value:.2f}"
                for value in (values[0], values[-1])
            )
            said.append(f"{line.name}: from {first} to {last}")
        axes.set_xlabel(x_label)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        if shares:
            axes.set_ylim(-0.03, 1.03)
            _percent_ticks(axes, "y")
        for at, stage in (marks or {}).items():
            axes.axvline(at, color=svg.LINE, linewidth=1.0, zorder=0.5)
            axes.annotate(
                stage.replace("_", " "), (at, 1), xycoords=("data", "axes fraction"),
                xytext=(3, -2), textcoords="offset points", va="bottom", fontsize=7.5,
                annotation_clip=False,
            )  # fmt: skip
        axes.grid(axis="y")
        drawing = svg.to_svg(figure, name, f"{title}. " + "; ".join(said))
        return Panel(title, drawing, _lines_csv(x_label, lines))


def draw_heads(name: str, title: str, rows: Sequence[Sequence[float]], first: int) -> Panel:
    """A value per layer and head, as shades from 0 to the largest.

    Args:
        name: Identifies the drawing on the page.
        title: What is drawn.
        rows: The values, layer by layer.
        first: Number of the first layer.
    """
    values = [value for row in rows for value in row if math.isfinite(value)]
    if not values:
        return Panel(title, None)
    largest = max(*values, 1e-9)
    with svg.style():
        from matplotlib.patches import Rectangle
        from matplotlib.ticker import MaxNLocator

        figure, axes = svg.new_axes(2.7)
        color = svg.arm_look(0).color
        for y, row in enumerate(rows):
            for x, value in enumerate(row):
                shade = min(max(value / largest, 0.0), 1.0)
                corner = (first + y - 0.5, x - 0.5)
                axes.add_patch(Rectangle(corner, 1, 1, facecolor=color, alpha=shade, linewidth=0))
        axes.set_xlim(first - 0.5, first + len(rows) - 0.5)
        axes.set_ylim(len(rows[0]) - 0.5, -0.5)
        axes.set_xlabel("layer")
        axes.set_ylabel("head")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        said = f"{title}: layer by head, the darkest is {largest:.2g}"
        drawing = svg.to_svg(figure, name, said)
    table: list[list[Any]] = [["layer", "head", "value"]]
    table += [[first + y, x, value] for y, row in enumerate(rows) for x, value in enumerate(row)]
    return Panel(title, drawing, csv_table(table))
