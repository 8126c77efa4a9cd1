"""From answers and figures to what the page shows: HTML fragments, escaped, and SVG."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Sequence
from functools import cache
from html import escape
from importlib import resources
from typing import TYPE_CHECKING, Any

from tgalign.app.answers import Answer
from tgalign.app.comparison import RATES, Asked, Comparison
from tgalign.app.scenes import Shown
from tgalign.errors import UserError
from tgalign.report import svg, verdict
from tgalign.report.panels import Panel, Series, draw_lines

if TYPE_CHECKING:
    from PIL.Image import Image

    from tgalign.app.audit import Audit
    from tgalign.app.layers import LayerFigures

PREVIEW = 384
THUMBNAIL = 128
"""Longest side, in pixels, of the pictures on the page."""

FACTS = {
    "uses_image_safety_data": "image safety data",
    "uses_second_model": "second model",
    "at_inference": "at inference",
}


@cache
def _macros() -> Any:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "label": verdict.label,
        "rate_text": verdict.rate_text,
        "whole": verdict.whole,
        "spaced": lambda text: text.replace("_", " "),
    }
    source = resources.files("tgalign.app").joinpath("fragments.html.jinja")
    return environment.from_string(source.read_text(encoding="utf-8")).module


def _safe(text: str | None) -> Any:
    """SVG of ours, which the template must not escape."""
    from markupsafe import Markup

    return None if text is None else Markup(text)


def _panel(panel: Panel) -> Panel:
    return Panel(panel.title, _safe(panel.svg))


def picture_url(picture: Image, side: int) -> str:
    """A picture as a data URL, no side of it longer than ``side``."""
    small = picture.copy()
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def notice(text: str) -> str:
    """An error in words; empty: none."""
    return str(_macros().notice(text))


def shown_picture(shown: Shown) -> str:
    """The picture that is asked about."""
    return str(_macros().shown(picture_url(shown.picture, PREVIEW), shown.title))


def answer_cards(
    names: Sequence[str], seen: Sequence[Answer | None], told: Sequence[Answer | None]
) -> str:
    """The models' answers side by side, to the picture and to its caption."""
    rows = [
        (name, 2 * i, *both) for i, (name, *both) in enumerate(zip(names, seen, told, strict=True))
    ]
    return str(_macros().answers(rows))


def layer_plots(names: Sequence[str], found: Sequence[LayerFigures]) -> str:
    """Refusal probability, alignment and attention by layer, a colour for each model."""
    looks = [svg.arm_look(2 * index) for index in range(len(names))]
    told = [svg.Look(look.color, "", (0, (1, 1.6))) for look in looks]

    def lines(key: str, chosen: Sequence[svg.Look], suffix: str = "") -> list[Series]:
        return [
            _series(name + suffix, look, getattr(figures, key))
            for name, look, figures in zip(names, chosen, found, strict=True)
        ]

    shares = [[math.fsum(row) for row in figures.attention] for figures in found]
    attention = [_series(*it) for it in zip(names, looks, shares, strict=True)]
    state, layer = "hidden state", "decoder layer"
    refusal = lines("picture_refusal", looks) + lines("caption_refusal", told, ", caption")
    panels = [
        draw_lines("lens", "Refusal probability (logit lens)", state, refusal, shares=True),
        draw_lines(
            "aligned", "Alignment with the caption (centred cosine)", state,
            lines("centered_cosine", looks),
        ),
        draw_lines("attention", "Attention on the picture", layer, attention, shares=True),
    ]  # fmt: skip
    keys = [
        (svg.legend_key(look, f"key{i}"), name)
        for i, (name, look) in enumerate(zip(names, looks, strict=True))
    ]
    keys += [
        (svg.legend_key(look, f"key-told{i}"), f"{name}, told the caption")
        for i, (name, look) in enumerate(zip(names, told, strict=True))
    ]
    notes = [_token_note(name, figures) for name, figures in zip(names, found, strict=True)]
    heading = [
        "model", "state", "refusal, picture", "refusal, caption", "cosine", "centred cosine",
        "nearer captions", "attention",
    ]  # fmt: skip
    table = [row for it in zip(names, found, strict=True) for row in _rows(*it)]
    return str(
        _macros().layers(
            [_panel(panel) for panel in panels],
            [(_safe(drawing), name) for drawing, name in keys],
            notes, table, heading,
        )
    )  # fmt: skip


def _series(name: str, look: svg.Look, values: Sequence[float] | None) -> Series:
    found = list(values or [])
    return Series(name, look, [float(layer) for layer in range(len(found))], found)


def _token_note(name: str, figures: LayerFigures) -> str:
    if not figures.tokens:
        return (
            f"{name} refused nothing that it was told in words, so the tokens that its refusals "
            "open with are not known and there is no refusal probability."
        )
    tokens = ", ".join(f"“{token.strip()}”" for token in figures.tokens)
    return f"{name} opens its own refusals in words with {tokens}: these are the refusal tokens."


def _rows(name: str, figures: LayerFigures) -> list[list[str]]:
    columns = (
        figures.picture_refusal, figures.caption_refusal, figures.cosine, figures.centered_cosine,
    )  # fmt: skip
    rows = []
    for layer in range(len(figures.attention) + 1):
        cells = ["" if column is None else f"{column[layer]:.3f}" for column in columns]
        near = "" if figures.nearest is None else str(figures.nearest[layer])
        last = layer == len(figures.attention)
        rows.append(
            [name, str(layer), *cells, near, "" if last else f"{sum(figures.attention[layer]):.3f}"]
        )
    return rows


def patch_cards(
    layer: int,
    names: Sequence[str],
    shown: Shown,
    found: Sequence[LayerFigures],
    patched: Sequence[Answer | None],
    controls: Sequence[Answer | None],
) -> str:
    """At one layer: the answers with patched states, and where the layer attends to."""
    rows = []
    for index, (name, figures) in enumerate(zip(names, found, strict=True)):
        heat, share = None, ""
        if layer < len(figures.attention):
            line = figures.attention[layer]
            share = f"{100 * math.fsum(line):.0f} %"
            heat = _heat(shown, line, figures.grid, f"{name}, layer {layer}: {share}")
        rows.append((name, 2 * index, heat, share, patched[index], controls[index]))
    return str(_macros().patching(layer, rows))


def _heat(shown: Shown, line: Sequence[float], grid: tuple[int, int] | None, said: str) -> Any:
    """The picture under its tokens' shares of attention, scaled to the largest."""
    if grid is None:
        return _safe("<p class='none'>This model cuts the picture into tiles: no single grid.</p>")
    rows, columns = grid
    top = max(line) or 1.0
    cells = [(at % columns, at // columns, 0.85 * value / top) for at, value in enumerate(line)]
    most = max(range(len(line)), key=line.__getitem__)
    where = f"most at row {most // columns + 1} of {rows}, column {most % columns + 1} of {columns}"
    url = picture_url(shown.picture, PREVIEW)
    return _macros().heat_map(
        url, columns, rows, cells, f"Attention of {said} on the picture, {where}"
    )


def comparison_table(comparison: Comparison, chosen: str) -> str:
    """The table of all methods."""
    columns = [
        (key, name)
        for key, name in RATES.items()
        if any(found.get(key) for found in comparison.methods.values())
    ]
    methods = [
        (name, index % svg.NUM_COLORS, found, name in comparison.pareto,
         [said for key, said in FACTS.items() if found.get(key)])
        for index, (name, found) in enumerate(comparison.methods.items())
    ]  # fmt: skip
    return str(_macros().rates(comparison.title, columns, methods, chosen))


def pareto_plots(comparison: Comparison) -> str:
    """DSR against over-refusal and against naming, a point for each method that can be chosen."""
    used = "named" if any("named" in found for found in comparison.methods.values()) else "utility"
    panels = [_pareto(comparison, key, f"p{i}") for i, key in enumerate(("over_refusal", used))]
    return str(_macros().plots([_panel(panel) for panel in panels]))


def _pareto(comparison: Comparison, key: str, name: str) -> Panel:
    title = f"DSR against {RATES[key]}"
    points = []
    for index, (method, found) in enumerate(comparison.methods.items()):
        x, y = verdict.share(found.get(key)), verdict.share(found.get("dsr"))
        if x is not None and y is not None:
            points.append((index, method, found, x, y))
    if not points:
        return Panel(title, None)
    with svg.style():
        figure, axes = svg.new_axes(3.0)
        for index, method, found, x, y in points:
            look = svg.arm_look(index)
            for rate, along in ((found[key], "x"), (found["dsr"], "y")):
                ends = [verdict.number(rate.get(end)) for end in ("low", "high")]
                if None not in ends:
                    line = (ends, [y, y]) if along == "x" else ([x, x], ends)
                    axes.plot(*line, color=look.color, linewidth=1.2, alpha=0.6)
            size = {"markersize": 11.0 if method in comparison.pareto else 8.0}
            axes.plot([x], [y], gid=f"point-{index}", **look.point | size)
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(-0.03, 1.03)
        ticks = [0, 0.25, 0.5, 0.75, 1]
        axes.set_xticks(ticks, [f"{100 * tick:.0f} %" for tick in ticks])
        axes.set_yticks(ticks, [f"{100 * tick:.0f} %" for tick in ticks])
        axes.set_xlabel(RATES[key])
        axes.set_ylabel("DSR")
        axes.grid()
        drawn = svg.to_svg(figure, name, f"{title}, larger on the Pareto front")
    drawn = drawn.replace('role="img"', 'role="group"', 1)  # its points can be chosen
    for index, method, _, x, y in points:
        said = escape(f"{verdict.label(method)}: DSR {100 * y:.0f} %, {RATES[key]} {100 * x:.0f} %")
        button = (
            f'<g id="{name}-point-{index}" class="point" role="button" tabindex="0" '
            f'data-method="{escape(method)}" aria-label="{said}"><title>{said}</title>'
        )
        drawn = re.sub(rf'<g id="{name}-point-{index}">', lambda _, it=button: it, drawn, count=1)  # type: ignore[misc]
    return Panel(title, drawn)


def item_cards(items: Sequence[Asked], first: int, count: int, hint: str = "") -> str:
    """Some of the pictures with every method's answer."""
    cards = []
    for item in items[first : first + count]:
        url, lost = None, None
        if item.picture is not None:
            try:
                url = picture_url(item.picture(), THUMBNAIL)
            except (UserError, ValueError, OSError, KeyError) as fault:
                lost = f"picture lost: {fault}"
        cards.append((item, url, lost))
    return str(_macros().items(len(items), first, cards, hint))


def audit_progress(audit: Audit, seconds: float | None, address: str | None) -> str:
    """How far an audit is, or how it ended."""
    left = None if seconds is None else verdict.seconds(seconds)
    state = audit.state
    told = f"{audit.model} on {audit.data or 'the pictures of the lab'}"
    return str(
        _macros().progress(
            state, audit.answered, audit.total, left, told,
            audit.fault if state == "failed" else "", address, audit.out if audit.kept else None,
        )
    )  # fmt: skip
