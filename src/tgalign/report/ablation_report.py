"""The offline page of one ablation: its table, and a plot of every rate by variant or size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tgalign.baselines.ablate import COLUMNS
from tgalign.report import svg
from tgalign.report.page import render_page
from tgalign.report.panels import Panel, Series, draw_dots, draw_lines

_SHOWN = ("dsr", "over_refusal", "named")


def render(content: Mapping[str, Any]) -> str:
    """The page as a string.

    Args:
        content: The content of ``ablation-NAME.json``.
    """
    looks = {COLUMNS[key]: svg.arm_look(index) for index, key in enumerate(_SHOWN)}
    return render_page(
        "ablation.html.jinja",
        content=content,
        columns=COLUMNS,
        panels=[_by_size(content, looks) if content["size"] else _by_variant(content, looks)],
        keys=[
            (svg.legend_key(look, f"key{i}"), key) for i, (key, look) in enumerate(looks.items())
        ],
    )


def _by_variant(content: Mapping[str, Any], looks: Mapping[str, svg.Look]) -> Panel:
    rows = {row["label"]: {COLUMNS[key]: row[key] for key in _SHOWN} for row in content["variants"]}
    return draw_dots("variants", "By variant", rows, looks, 0.75 + 0.5 * len(rows))


def _by_size(content: Mapping[str, Any], looks: Mapping[str, svg.Look]) -> Panel:
    sizes = [math.log2(row["size"]) for row in content["variants"]]
    lines = [
        Series(
            COLUMNS[key], looks[COLUMNS[key]], sizes, [r[key]["rate"] for r in content["variants"]]
        )
        for key in _SHOWN
    ]
    for key, fit in content["fit"].items():
        ends = [sizes[0], sizes[-1]]
        look = svg.Look(looks[COLUMNS[key]].color, "", (0, (1, 1.6)))
        values = [fit["intercept"] + fit["per_doubling"] * end for end in ends]
        lines.append(Series(f"{COLUMNS[key]}, fitted", look, ends, values))
    return draw_lines(
        "growth", "By size, with the fitted lines", f"log2 of {content['size']}", lines, shares=True
    )
