"""One ablation as an offline page, and its rates against a size or a similarity as an SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tgalign.baselines.ablate import COLUMNS
from tgalign.baselines.ablations import SIMILARITY
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
    panels = [_by_size(content, looks) if content["size"] else _by_variant(content, looks)]
    if content["against"]:
        panels.append(_by_similarity(content, looks))
    return render_page(
        "ablation.html.jinja",
        content=content,
        columns=COLUMNS,
        similarity=SIMILARITY if content["against"] else {},
        panels=panels,
        keys=svg.legend("ablation", looks.items()),
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
    for key, fit in content.get("fit", {}).items():
        ends = [sizes[0], sizes[-1]]
        look = svg.Look(looks[COLUMNS[key]].color, "", (0, (1, 1.6)))
        values = [fit["intercept"] + fit["per_doubling"] * end for end in ends]
        lines.append(Series(f"{COLUMNS[key]}, fitted", look, ends, values))
    return draw_lines(
        "growth", "By size, with the fitted lines", f"log2 of {content['size']}", lines, shares=True
    )


def _by_similarity(content: Mapping[str, Any], looks: Mapping[str, svg.Look]) -> Panel:
    against = content["against"]
    rows = [row for row in content["variants"] if row["similarity"][against] is not None]
    rows.sort(key=lambda row: row["similarity"][against])
    lines = [
        Series(
            COLUMNS[key], looks[COLUMNS[key]], [row["similarity"][against] for row in rows],
            *([row[key][end] for row in rows] for end in ("rate", "low", "high")),
        )
        for key in _SHOWN
    ]  # fmt: skip
    title = "By measured similarity"
    return draw_lines("similarity", title, f"mean {SIMILARITY[against]}", lines, shares=True)


def draw(content: Mapping[str, Any]) -> str:
    """DSR, over-refusal and naming against the size or the measured similarity, as an SVG.

    A line joins what varies one thing; points with bars are rates pooled over seeds with their
    intervals, faint ones single seeds; a variant without a similarity is a dotted line.
    """
    from matplotlib.figure import Figure

    against = content["against"]
    title = f"mean {SIMILARITY[against]}" if against else content["size"]
    families: dict[str, list[tuple[float | None, Mapping[str, Any]]]] = {}
    for row in content["variants"]:
        at = row["similarity"][against] if against else row["size"]
        families.setdefault(row.get("family", ""), []).append((at, row))
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axes = figure.subplots(1, len(_SHOWN))
    for axis, key in zip(axes, _SHOWN, strict=True):
        for number, (family, points) in enumerate(families.items()):
            color, marker = f"C{number}", "osD^vPX<"[number % 8]
            known = sorted(
                ((at, row[key], row) for at, row in points if at is not None),
                key=lambda it: it[0],
            )
            for row in (row for at, row in points if at is None):
                axis.axhline(row[key]["rate"], color=color, linestyle=":", label=family)
            if not known:
                continue
            rates = [rate["rate"] for _, rate, _ in known]
            errors = [
                [abs(rate["rate"] - rate[end]) for _, rate, _ in known] for end in ("low", "high")
            ]
            axis.errorbar(
                [at for at, _, _ in known], rates, yerr=errors, color=color, marker=marker,
                ms=5, capsize=2, lw=0.8, label=family,
            )  # fmt: skip
            for at, _, row in known:
                by_seed = [seed[key]["rate"] for seed in row["seeds"]]
                axis.plot([at] * len(by_seed), by_seed, marker, color=color, alpha=0.3, ms=3)
        axis.set(title=COLUMNS[key], ylim=(-0.03, 1.03), xlabel=title)
        axis.grid(alpha=0.3)
        if content["size"]:
            axis.set_xscale("log", base=2)
    handles, labels = axes[0].get_legend_handles_labels()
    if len(families) > 1:
        figure.legend(handles, labels, loc="outside lower center", ncols=len(families))
    axes[0].set_ylabel(f"rate, {len(content['seeds'])} seed(s)")
    return svg.plain_svg(figure)
