"""One table and one plot of several demos: what the condition of the alignment data changes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tgalign.demo_results import SCHEMA_VERSION, show_pooled
from tgalign.errors import UserError
from tgalign.evaluate.seeds import noted
from tgalign.files import check_schema, read_json, write_json, write_text
from tgalign.outputs import files_at
from tgalign.report.svg import plain_svg
from tgalign.report.tables import markdown_table
from tgalign.report.wording import label

COLUMNS = {
    "dsr": "DSR",
    "over_refusal": "over-refusal",
    "named": "objects named",
    "held_out_dsr": "DSR, never tuned on",
    "text_dsr": "text DSR",
}
_SHOWN = ("dsr", "held_out_dsr", "over_refusal", "named")
_DROPPED = ("gallery", "curves")


def combine(paths: Sequence[Path], out: Path) -> str:
    """Write ``out``.json, ``out``.md and ``out``.svg of finished demos.

    Args:
        paths: Folders of demos or their results.json, or one file that an earlier call wrote.
        out: Where to, without an ending.

    Returns:
        The table in Markdown.

    Raises:
        UserError: A file is missing or holds no results of a demo, or two demos have the same
            condition, share of toxic pictures and style, or OUT is no place for these files.
    """
    places = files_at(out, ".json", ".md", ".svg", sign=r'\[.*"arms"')
    found: list[dict[str, Any]] = []
    for path in paths:
        file = path / "results.json" if path.is_dir() else path
        if not file.is_file():
            raise UserError(f"no results at {file}: expected the folder of a finished demo")
        content = read_json(file)
        several = content if isinstance(content, list) else [content]
        for results in several:
            check_schema(results, file, SCHEMA_VERSION, "the results of a demo")
        found += several
    names = [title(results) for results in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"two demos of {', '.join(twice)}: give each condition once")
    kept = [{k: v for k, v in results.items() if k not in _DROPPED} for results in found]
    table = markdown(kept)
    write_json(places[0], kept)
    write_text(places[1], table)
    write_text(places[2], draw(kept))
    return table


def title(results: dict[str, Any]) -> str:
    """The condition of a demo's data, with its share of toxic pictures and any style but emoji."""
    share = f" {100 * results['toxic_share']:g} %" if results["toxic_share"] else ""
    style = "" if results["style"] == "emoji" else f", {results['style']}"
    return f"{results['condition']}{share}{style}"


def markdown(found: Sequence[dict[str, Any]]) -> str:
    """A row per condition and arm: rate [95 % Wilson interval], its n in the last line."""
    header = ["condition", "arm", *COLUMNS.values()]
    lines = []
    for results in found:
        for arm, measured in results["arms"].items():
            cells = [show_pooled(measured, key, with_n=False) for key in COLUMNS]
            lines.append([title(results), arm, *cells])
    table = markdown_table(header, lines)
    smoke = "SMOKE RUN, figures mean nothing. " if any(it["smoke"] for it in found) else ""
    seeds = "; ".join(f"{title(it)}: {', '.join(map(str, it['seeds']))}" for it in found)
    counts = "; ".join(
        f"{title(it)}: " + ", ".join(f"{it['arms']['ce'][key]['n']}" for key in COLUMNS)
        for it in found
    )
    return noted(f"{table}\n{smoke}Seeds pooled: {seeds}. n of the columns: {counts}.\n")


def draw(found: Sequence[dict[str, Any]]) -> str:
    """DSR, over-refusal and naming by condition and arm, as an SVG."""
    from matplotlib.figure import Figure

    conditions = [title(results) for results in found]
    arms = list(dict.fromkeys(arm for results in found for arm in results["arms"]))
    figure = Figure(figsize=(9, 1.2 + 0.75 * len(conditions)), layout="constrained")
    axes = figure.subplots(1, len(_SHOWN), sharey=True)
    for axis, key in zip(axes, _SHOWN, strict=True):
        for number, arm in enumerate(arms):
            rows = [(i, it["arms"][arm][key]) for i, it in enumerate(found) if arm in it["arms"]]
            heights = [i + 0.16 * (number - (len(arms) - 1) / 2) for i, _ in rows]
            rates = [rate["rate"] for _, rate in rows]
            errors = [
                [rate["rate"] - rate["low"] for _, rate in rows],
                [rate["high"] - rate["rate"] for _, rate in rows],
            ]
            axis.errorbar(
                rates, heights, xerr=errors, fmt="osD^vPX<"[number % 8], ms=5, capsize=2,
                label=label(arm),
            )  # fmt: skip
        axis.set(title=COLUMNS[key], xlim=(-0.03, 1.03), ylim=(len(found) - 0.5, -0.5))
        axis.set_yticks(range(len(conditions)), conditions)
        axis.grid(axis="x", alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(arms), 4))
    return plain_svg(figure)
