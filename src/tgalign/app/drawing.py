"""From answers and figures to what the page shows: HTML fragments, escaped, and SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from html import escape
from importlib import resources
from typing import TYPE_CHECKING, Any

from tgalign.app.answers import Answer
from tgalign.app.comparison import RATES, Asked, Comparison, front_rates
from tgalign.app.scenes import Shown
from tgalign.baselines.comparison import NEEDS
from tgalign.errors import UserError
from tgalign.evaluate.pictures import data_url
from tgalign.report import page, svg, wording
from tgalign.report.panels import Panel, Series, draw_lines
from tgalign.report.tradeoff import draw_tradeoff

if TYPE_CHECKING:
    from PIL.Image import Image

    from tgalign.app.audit import Audit
    from tgalign.app.layers import LayerFigures

PREVIEW = 384
THUMBNAIL = 128
"""Longest side, in pixels, of the pictures on the page."""


@cache
def _macros() -> Any:
    made = page.environment()
    made.filters["spaced"] = lambda text: text.replace("_", " ")
    source = resources.files("tgalign.app").joinpath("fragments.html.jinja")
    return made.from_string(source.read_text(encoding="utf-8")).module


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
    return data_url(small)


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
    shown = list(zip(names, looks, strict=True))
    shown += [(f"{name}, told the caption", look) for name, look in zip(names, told, strict=True)]
    notes = [_token_note(name, figures) for name, figures in zip(names, found, strict=True)]
    heading = [
        "model", "state", "refusal, picture", "refusal, caption", "cosine", "centred cosine",
        "nearer captions", "attention",
    ]  # fmt: skip
    table = [row for it in zip(names, found, strict=True) for row in _rows(*it)]
    return str(
        _macros().layers(
            [_panel(panel) for panel in panels],
            [(_safe(drawing), name) for drawing, name in svg.legend("layers", shown)],
            notes, table, heading,
        )
    )  # fmt: skip


def _series(name: str, look: svg.Look, values: Sequence[float] | None) -> Series:
    found = list(values or [])
    return Series(name, look, [float(layer) for layer in range(len(found))], found)


def _token_note(name: str, figures: LayerFigures) -> str:
    if not figures.tokens:
        return (
            f"{name} refused nothing that it was told in words, or opens refusals as it opens "
            "answers: no refusal token is known, so there is no refusal probability."
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
            share = f"{wording.percent(math.fsum(line))} %"
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
    measured = front_rates(comparison.methods)
    methods = [
        (name, index % svg.NUM_COLORS, found,
         "yes" if name in comparison.pareto else "no" if name in measured else "not measured",
         [said for key, said in NEEDS.items() if found.get(key)])
        for index, (name, found) in enumerate(comparison.methods.items())
    ]  # fmt: skip
    return str(_macros().rates(comparison.title, columns, methods, chosen))


def pareto_plots(comparison: Comparison) -> str:
    """DSR against over-refusal and against naming, a point for each method that can be chosen."""
    used = "named" if any("named" in found for found in comparison.methods.values()) else "utility"
    panels = [_pareto(comparison, key, f"p{i}") for i, key in enumerate(("over_refusal", used))]
    return str(_macros().plots([_panel(panel) for panel in panels]))


def _pareto(comparison: Comparison, key: str, name: str) -> Panel:
    panel = draw_tradeoff(name, comparison.methods, comparison.pareto, key, RATES[key])
    if panel.svg is None:
        return panel
    drawn = panel.svg.replace('role="img"', 'role="group"', 1)  # its points can be chosen
    for index, (method, found) in enumerate(comparison.methods.items()):
        y, x = (wording.percent(wording.share(found.get(rate))) for rate in ("dsr", key))
        said = escape(f"{wording.label(method)}: DSR {y} %, {RATES[key]} {x} %")
        button = (
            f'<g id="{name}-point-{index}" class="point" role="button" tabindex="0" '
            f'data-method="{escape(method)}" aria-label="{said}"><title>{said}</title>'
        )
        drawn = drawn.replace(f'<g id="{name}-point-{index}">', button, 1)
    return Panel(panel.title, drawn)


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
    left = None if seconds is None else wording.seconds(seconds)
    state = audit.state
    told = f"{audit.model} on {audit.data or 'the pictures of the lab'}"
    return str(
        _macros().progress(
            state, audit.answered, audit.total, left, told,
            audit.fault if state == "failed" else "", address, audit.out if audit.kept else None,
        )
    )  # fmt: skip
