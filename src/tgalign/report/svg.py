"""Matplotlib figures as inline SVG whose colours and fonts follow the page.

Figures are drawn in placeholder colours, which are exchanged for CSS variables, so that one
drawing serves the light and the dark page and print.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 4.2
"""Width of a panel in inches: its 9-point text is legible on a phone and in two columns."""

INK, LINE, PAPER = "#f1b001", "#f1b002", "#f1b003"
NUM_COLORS = 7
_ARM_COLORS = tuple(f"#f1a00{index}" for index in range(NUM_COLORS))
_CSS = {
    INK: "currentColor",
    LINE: "var(--line)",
    PAPER: "var(--paper)",
    **{color: f"var(--arm-{index})" for index, color in enumerate(_ARM_COLORS)},
}
_MARKERS = "os^Dv<P>X"
_DASHES = ("-", (0, (3.5, 2.5)), (0, (8, 1.5)), (0, (6, 1.5, 1.5, 1.5)))


@dataclass(frozen=True)
class Look:
    """How a series is drawn: colour, marker and dashes, so that colour never stands alone.

    Every other arm has an open marker and a line with wide gaps: it stays apart from the filled
    marker and the line of the arm before it even where the two coincide.
    """

    color: str
    marker: str
    dashes: str | tuple[int, tuple[float, ...]]
    filled: bool = True

    @property
    def line(self) -> dict[str, Any]:
        """Matplotlib's properties of the line."""
        return {"color": self.color, "linestyle": self.dashes}

    @property
    def point(self) -> dict[str, Any]:
        """Matplotlib's properties of the marker."""
        return {
            "marker": self.marker or "None",
            "markersize": 6.0 if self.filled else 7.5,
            "markerfacecolor": self.color if self.filled else "none",
            "markeredgecolor": PAPER if self.filled else self.color,
            "markeredgewidth": 0.6 if self.filled else 1.3,
        }


def arm_look(index: int) -> Look:
    """The look of the arm at a position; looks repeat only after many arms."""
    return Look(
        _ARM_COLORS[index % NUM_COLORS],
        _MARKERS[index % len(_MARKERS)],
        _DASHES[index % len(_DASHES)],
        index % 2 == 0,
    )


TEXT_LOOK = Look(INK, "", (0, (1, 1.6)))
"""The language model on text, which is no arm."""


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib's settings for drawing and saving; no global state is left behind."""
    import matplotlib as mpl

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "tgalign",
        "text.parse_math": False,
        "font.family": "DejaVu Sans",
        "font.size": 9.0,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.labelsize": 9.0,
        "axes.edgecolor": LINE,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.axisbelow": True,
        "axes.unicode_minus": True,
        "xtick.color": INK,
        "ytick.color": INK,
        "xtick.major.size": 0.0,
        "ytick.major.size": 0.0,
        "xtick.major.pad": 5.0,
        "ytick.major.pad": 5.0,
        "grid.color": LINE,
        "grid.linewidth": 0.8,
        "lines.linewidth": 1.6,
        "lines.markersize": 5.0,
        "lines.solid_capstyle": "round",
    }
    with mpl.rc_context(settings):
        yield


def new_axes(height: float) -> tuple[Figure, Axes]:
    """An empty panel; ``height`` in inches. To be called within ``style``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def to_svg(figure: Figure, name: str, description: str) -> str:
    """Save a figure as an ``<svg>`` element for an HTML page. To be called within ``style``.

    Args:
        figure: The figure, drawn in the colours of this module.
        name: Prefix of all ids, unique on the page.
        description: What the picture shows, for those who do not see it; empty hides it from them.
    """
    buffer = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", text, flags=re.S)
    box = re.search(r'viewBox="([^"]+)"', text)
    assert box is not None, "matplotlib wrote an SVG without viewBox"
    said = f'role="img" aria-label="{escape(description)}"' if description else 'aria-hidden="true"'
    opening = f'<svg viewBox="{box[1]}" {said}>'
    text = re.sub(r"<svg[^>]*>", lambda _: opening, text, count=1)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(\bhref="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"\n\s*", "\n", text)
    for color, variable in _CSS.items():
        text = text.replace(color, variable)
    return text


def plain_svg(figure: Figure) -> str:
    """A figure in matplotlib's own colours as an SVG file; equal for equal figures."""
    import matplotlib as mpl

    text = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "tgalign"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def standalone(drawing: str) -> str:
    """An ``<svg>`` of a page as a file of its own: in the light page's colours, on its paper."""
    from tgalign.report.page import light_colors

    colors = light_colors()
    text = drawing.replace("currentColor", colors["ink"])
    text = re.sub(r"var\(--([\w-]+)\)", lambda found: colors[found[1]], text)
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    style = f'style="background: {colors["paper"]}" font-family="sans-serif"'
    return text.replace("<svg ", f"<svg {spaces} {style} ", 1)


def legend(name: str, series: Iterable[tuple[str, Look]]) -> list[tuple[str, str]]:
    """A legend: of every series a small drawing of its line and marker, and what it is called.

    Args:
        name: Prefix of the drawings' ids, unique on the page.
        series: What each is called and how it is drawn.
    """
    return [
        (_key(look).replace("key-of-a-look", f"{name}-key-{number}"), said)
        for number, (said, look) in enumerate(series)
    ]


@cache
def _key(look: Look) -> str:
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(0.42, 0.2))
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set_axis_off()
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.plot([0.06, 0.94], [0.5, 0.5], **look.line)
        axes.plot([0.5], [0.5], **look.point)
        return to_svg(figure, "key-of-a-look", "")
