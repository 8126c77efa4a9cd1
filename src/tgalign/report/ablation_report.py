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
    figures = []
    if not content["size"]:
        looks = {COLUMNS[key]: svg.arm_look(index) for index, key in enumerate(_SHOWN)}
        figures.append((svg.legend("ablation", looks.items()), [_by_variant(content, looks)]))
    if content["size"] or content["against"]:
        looks = {name: svg.arm_look(index) for index, name in enumerate(_families(content))}
        keys = svg.legend("families", looks.items()) if len(looks) > 1 else []
        figures.append((keys, [_by_family(content, key, looks) for key in _SHOWN]))
    return render_page(
        "ablation.html.jinja",
        content=content,
        columns=COLUMNS,
        similarity=SIMILARITY if content["against"] else {},
        figures=figures,
    )


def _by_variant(content: Mapping[str, Any], looks: Mapping[str, svg.Look]) -> Panel:
    rows = {row["label"]: {COLUMNS[key]: row[key] for key in _SHOWN} for row in content["variants"]}
    return draw_dots("variants", "By variant", rows, looks, 0.75 + 0.5 * len(rows))


def _by_family(content: Mapping[str, Any], key: str, looks: Mapping[str, svg.Look]) -> Panel:
    """A rate against the size or the measured similarity, a line for each family."""
    place = math.log2 if content["size"] else float
    at = [place(x) for points in _families(content).values() for x, _ in points if x is not None]
    ends = [min(at), max(at)]
    lines = []
    for family, points in _families(content).items():
        look, name = looks[family], family or COLUMNS[key]
        dotted = svg.Look(look.color, "", (0, (1, 1.6)))
        known = [(place(x), row[key]) for x, row in points if x is not None]
        if known:
            lines.append(
                Series(
                    name, look, [x for x, _ in known],
                    *([rate[end] for _, rate in known] for end in ("rate", "low", "high")),
                )
            )  # fmt: skip
        lines += [
            Series(name, dotted, ends, [row[key]["rate"]] * 2) for x, row in points if x is None
        ]
        fit = content.get("fit", {}).get(key)
        if fit:
            values = [fit["intercept"] + fit["per_doubling"] * end for end in ends]
            lines.append(Series(f"{name}, fitted", dotted, ends, values))
    name, measured = f"by-{key}".replace("_", "-"), _measure(content)
    title = f"{COLUMNS[key]} by {'size' if content['size'] else 'measured similarity'}"
    if content["size"]:
        measured = f"log2 of {measured}"
    return draw_lines(name, title, measured, lines, shares=True)


def _families(
    content: Mapping[str, Any],
) -> dict[str, list[tuple[float | None, Mapping[str, Any]]]]:
    """Size or similarity of the variants of each family, in order; a line joins what it varies."""
    against = content["against"]
    families: dict[str, list[tuple[float | None, Mapping[str, Any]]]] = {}
    for row in content["variants"]:
        at = row["similarity"][against] if against else row["size"]
        families.setdefault(row.get("family", ""), []).append((at, row))
    for points in families.values():
        points.sort(key=lambda it: (it[0] is None, it[0]))
    return families


def _measure(content: Mapping[str, Any]) -> str:
    return content["size"] or f"mean {SIMILARITY[content['against']]}"


def draw(content: Mapping[str, Any]) -> str:
    """DSR, over-refusal and naming against the size or the measured similarity, as an SVG.

    A line joins what varies one thing; points with bars are rates pooled over seeds with their
    intervals, faint ones single seeds; a variant without a similarity is a dotted line.
    """
    from matplotlib.figure import Figure

    title, families = _measure(content), _families(content)
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axes = figure.subplots(1, len(_SHOWN))
    for axis, key in zip(axes, _SHOWN, strict=True):
        for number, (family, points) in enumerate(families.items()):
            color, marker = f"C{number}", "osD^vPX<"[number % 8]
            known = [(at, row[key], row) for at, row in points if at is not None]
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
