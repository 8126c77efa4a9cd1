"""How much the quality of R, and of the captions C, matters: one arm of the lab, cell by cell.

The paper's open question. A cell is the arm with R or C made worse (``tgalign.retrieval.quality``);
what is plotted is safety, over-refusal and naming against the similarity that was measured.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from tgalign.demo_results import show_rate
from tgalign.evaluate.statistics import wilson
from tgalign.files import write_json, write_text
from tgalign.lab.experiment import run_experiment
from tgalign.report.tables import markdown_table

Kind = Literal["retrieval", "captions"]

SHOWN = {
    "dsr": "DSR",
    "over_refusal": "over-refusal",
    "named": "objects named",
    "text_dsr": "text DSR",
}
_PLOTTED = ("dsr", "over_refusal", "named")
SIMILARITY = {
    "picture_retrieved": "cos(picture, R)",
    "caption_retrieved": "cos(caption, R)",
    "picture_caption": "cos(picture, C)",
}
"""Measured similarities, means over pictures by the lab's CLIP."""

_AGAINST = {"retrieval": "picture_retrieved", "captions": "picture_caption"}
"""The one that each ablation is drawn against."""

SHORT = ("stage1.steps=800", "stage2.steps=450")
"""Shorter than the demo, as all experiments of the lab log."""

_SMOKE = ("stage.steps=2", "data.pictures=80", "data.texts=20", "data.corpus=100")


@dataclass(frozen=True)
class Cell:
    """One condition.

    Attributes:
        family: What is varied; drawn as one line.
        name: Which of it.
        changes: As of ``run_experiment``.
    """

    family: str
    name: str
    changes: tuple[str, ...]


def cells(kind: Kind, *, smoke: bool = False) -> list[Cell]:
    """The cells of an ablation, that with nothing made worse first."""
    if kind == "captions":
        found = [Cell("clean", "clean", ("quality.noise=none",))]
        found += [
            Cell(noise, f"{noise} {percent} %", (f"quality.noise={noise}", _noise(percent)))
            for noise in ("drop", "swap", "replace")
            for percent in (5, 10, 25, 50)
        ]
    else:
        found = [Cell("rank", "nearest", ("quality.rank=1",))]
        found += [
            Cell("rank", f"rank {rank}", (f"quality.rank={rank}",)) for rank in (10, 100, 1000)
        ]
        found += [
            Cell("shuffled", f"shuffled {percent} %", (f"quality.shuffled={percent / 100}",))
            for percent in (25, 50, 100)
        ]
        found.append(Cell("random", "random", ("quality.random=true",)))
        found.append(Cell("text encoder", "by the caption", ("quality.encoder=text",)))
        found.append(Cell("no R", "no R", ("quality.floor=1",)))
    return [found[0], found[1], found[-1]] if smoke else found


def run(
    kind: Kind,
    out: Path,
    *,
    seeds: int,
    arm: str = "tga_plain",
    condition: str = "guided",
    changes: Sequence[str] = SHORT,
    smoke: bool = False,
) -> dict[str, Any]:
    """Train and measure every cell for every seed; a finished one is read, not repeated.

    Args:
        kind: ``retrieval``: R is made worse; ``captions``: C.
        out: Folder of experiments; receives ``KIND.json``, ``KIND.md`` and ``KIND.svg``, written
            anew after every seed.
        seeds: Seeds 0 to ``seeds`` - 1.
        arm: A key of ``ARMS``; by default one that has the guide and nothing to make up for bad R.
        condition: As of the demo.
        changes: What else is changed, in all cells alike.
        smoke: Three cells of a few steps, to see that all works.

    Returns:
        The content of ``KIND.json``.

    Raises:
        UserError: As of ``run_experiment``.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    wanted = cells(kind, smoke=smoke)
    content: dict[str, Any] = {}
    console = Console(stderr=True)
    for seed in range(seeds):
        for number, cell in enumerate(wanted, start=1):
            console.print(
                f"[bold]seed {seed} ({seed + 1} of {seeds}), {cell.name} ({number} of "
                f"{len(wanted)})"
            )
            result = run_experiment(
                out,
                arm,
                condition=condition,
                toxic_share=None,
                seed=seed,
                changes=[*(_SMOKE if smoke else changes), *cell.changes],
            )
            found.setdefault(cell.name, []).append(result)
        rows = [pooled(cell, found[cell.name]) for cell in wanted]
        content = {
            "kind": kind,
            "arm": arm,
            "condition": condition,
            "seeds": list(range(seed + 1)),
            "smoke": smoke,
            "similarity": _AGAINST[kind],
            "cells": rows,
        }
        write_json(out / f"{kind}.json", content)
        write_text(out / f"{kind}.md", markdown(content))
        write_text(out / f"{kind}.svg", draw(content))
    return content


def pooled(cell: Cell, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A cell over its seeds: rates pooled, with intervals; rates by seed; mean similarities."""
    row: dict[str, Any] = asdict(cell)
    row["rates"] = {}
    row["by_seed"] = {}
    for name in SHOWN:
        rates = [result["rates"][name] for result in results]
        hits = sum(round(rate["rate"] * rate["n"]) for rate in rates if rate["n"])
        row["rates"][name] = wilson(hits, sum(rate["n"] for rate in rates)).as_dict()
        row["by_seed"][name] = [rate["rate"] for rate in rates]
    row["similarity"] = {}
    for name in SIMILARITY:
        values = [result["similarity"][name] for result in results]
        known = [value for value in values if value is not None]
        row["similarity"][name] = sum(known) / len(known) if known else None
    return row


def markdown(content: Mapping[str, Any]) -> str:
    """A row per cell: similarity, rates with intervals, and DSR seed by seed."""
    header = ["cell", *SIMILARITY.values(), *SHOWN.values(), "DSR by seed"]
    lines = []
    for row in content["cells"]:
        cosines = ["" if it is None else f"{it:.3f}" for it in row["similarity"].values()]
        rates = [show_rate(row["rates"][name], with_n=False) for name in SHOWN]
        by_seed = " ".join(f"{rate:.2f}" for rate in row["by_seed"]["dsr"])
        lines.append([row["name"], *cosines, *rates, by_seed])
    table = markdown_table(header, lines)
    first = content["cells"][0]["rates"]
    counts = ", ".join(f"{title} {first[name]['n']}" for name, title in SHOWN.items())
    smoke = "SMOKE RUN, figures mean nothing. " if content["smoke"] else ""
    return (
        f"{smoke}Arm {content['arm']}, condition {content['condition']}, development split, seeds "
        f"{', '.join(map(str, content['seeds']))} pooled: rate [95 % Wilson interval]; n: {counts}"
        f"\n\n{table}"
    )


def draw(content: Mapping[str, Any]) -> str:
    """DSR, over-refusal and naming against the measured similarity, as an SVG.

    A line joins the cells of a family; points with bars are rates pooled over seeds with their
    intervals, faint ones are single seeds; a cell without R is a dotted line.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "tgalign"
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axes = figure.subplots(1, len(_PLOTTED))
    families = list(dict.fromkeys(row["family"] for row in content["cells"]))
    for axis, name in zip(axes, _PLOTTED, strict=True):
        for number, family in enumerate(families):
            color, marker = f"C{number}", "osD^vPX<"[number % 8]
            rows = [row for row in content["cells"] if row["family"] == family]
            points = [
                (row["similarity"][content["similarity"]], row["rates"][name], row["by_seed"][name])
                for row in rows
            ]
            known = sorted((it for it in points if it[0] is not None), key=lambda it: it[0])
            for _, rate, _ in (it for it in points if it[0] is None):
                axis.axhline(rate["rate"], color=color, linestyle=":", label=family)
            if not known:
                continue
            errors = [
                [rate["rate"] - rate["low"] for _, rate, _ in known],
                [rate["high"] - rate["rate"] for _, rate, _ in known],
            ]
            axis.errorbar(
                [x for x, _, _ in known], [rate["rate"] for _, rate, _ in known], yerr=errors,
                color=color, marker=marker, ms=5, capsize=2, lw=0.8, label=family,
            )  # fmt: skip
            for x, _, by_seed in known:
                axis.plot([x] * len(by_seed), by_seed, marker, color=color, alpha=0.3, ms=3)
        axis.set(
            title=SHOWN[name],
            ylim=(-0.03, 1.03),
            xlabel=f"mean {SIMILARITY[content['similarity']]}",
        )
        axis.grid(alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(families))
    axes[0].set_ylabel(f"rate, {len(content['seeds'])} seed(s)")
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def _noise(percent: int) -> str:
    return f"quality.noise_share={percent / 100}"
