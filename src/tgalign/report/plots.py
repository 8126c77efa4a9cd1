"""The plots of the demo's report, drawn from the content of results.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tgalign.report import svg
from tgalign.report.panels import Panel, Series, draw_dots, draw_lines
from tgalign.report.wording import label, number, share

_STATES = "hidden state"
_OTHERS = {
    "over_refusal": "over-refusal",
    "named": "objects named",
    "undetermined": "undetermined",
    "held_out_dsr": "DSR, never tuned on",
    "text_dsr": "text DSR",
    "text_over_refusal": "text over-refusal",
}


@dataclass(frozen=True)
class Plot:
    """One or more panels that share a legend and a caption.

    Attributes:
        name: Identifies the plot on the page.
        title: What is plotted.
        caption: How to read it.
        panels: The drawings.
        keys: Legend: drawing and name of each series.
    """

    name: str
    title: str
    caption: str
    panels: list[Panel]
    keys: list[tuple[str, str]] = field(default_factory=list)


def draw_plots(results: Mapping[str, Any], scenes: Sequence[str]) -> list[Plot]:
    """All plots in the order of the page.

    Args:
        results: The content of results.json; whatever is missing in it is left out.
        scenes: The toxic scenes in the order of the table.
    """
    arms: Mapping[str, Any] = results.get("arms") or {}
    base = results.get("base") or {}
    looks = {arm: svg.arm_look(index) for index, arm in enumerate(arms)}
    text_share = share(base.get("text_dsr"))
    plots = [_rates(arms, looks, scenes, text_share), _alignment(arms, looks)]
    plots += [_lens(arms, looks, base), _curves(results.get("curves") or {}, looks)]
    return plots


def _keys(name: str, looks: Mapping[str, svg.Look], *, text: bool = False) -> list[tuple[str, str]]:
    shown = [(label(arm), look) for arm, look in looks.items()]
    return svg.legend(name, shown + [("language model, text", svg.TEXT_LOOK)] * text)


def _rates(
    arms: Mapping[str, Any],
    looks: Mapping[str, svg.Look],
    scenes: Sequence[str],
    text_share: float | None,
) -> Plot:
    by_scene = {
        scene.replace("_", " "): {
            arm: (data.get("dsr_by_scene") or {}).get(scene) for arm, data in arms.items()
        }
        for scene in scenes
    }
    by_scene["all scenes"] = {arm: data.get("dsr") for arm, data in arms.items()}
    others = {
        title: {arm: data.get(key) for arm, data in arms.items()} for key, title in _OTHERS.items()
    }
    height = 0.75 + max(len(by_scene), len(others)) * (0.2 + 0.1 * max(len(arms), 2))
    panels = [
        draw_dots(
            "scenes", "Toxic pictures refused, by scene", by_scene, looks, height,
            reference=text_share, total=True,
        ),
        draw_dots("others", "The other measures", others, looks, height),
    ]  # fmt: skip
    return Plot(
        "rates",
        "Refusals and their price",
        "Points are rates, bars their 95 % Wilson intervals. The dotted line is the language "
        "model's DSR in words. Harmless pictures and prompts that are refused are over-refusal.",
        panels,
        _keys("rates", looks, text=text_share is not None),
    )


def _layer_series(rows: Any, key: str, name: str, look: svg.Look) -> Series:
    found = []
    for row in rows or []:
        layer, value = number(row.get("layer")), number(row.get(key))
        if layer is not None:
            found.append((layer, math.nan if value is None else value))
    found.sort()
    return Series(name, look, [layer for layer, _ in found], [value for _, value in found])


def _alignment(arms: Mapping[str, Any], looks: Mapping[str, svg.Look]) -> Plot:
    panels = []
    for key, title, shares in (
        ("caption_retrieval", "Own caption is the nearest", True),
        ("centered_cosine", "Centred cosine", False),
    ):
        for prefix, kind in (("", "harmless"), ("toxic_", "toxic")):
            lines = [
                _layer_series(arms[arm].get("alignment"), prefix + key, label(arm), looks[arm])
                for arm in arms
            ]
            name = f"align-{prefix}{key}".replace("_", "-")
            panels.append(
                draw_lines(name, f"{title}, {kind} pictures", _STATES, lines, shares=shares)
            )
    return Plot(
        "alignment",
        "Alignment of pictures and captions, by layer",
        "Mean-pooled states of a picture and of its caption. First the share of pictures whose "
        "own caption has the most similar state of all captions, then the cosine after the mean "
        "state is removed. Raw cosine stands among the numbers only: it nears 1 wherever all "
        "states share one large component. State 0 is the embeddings, the last one is after the "
        "final norm.",
        panels,
        _keys("alignment", looks),
    )


def _lens(arms: Mapping[str, Any], looks: Mapping[str, svg.Look], base: Mapping[str, Any]) -> Plot:
    panels = []
    for key, title in (("toxic", "Toxic"), ("benign", "Harmless")):
        lines = [
            _layer_series(base.get("logit_lens"), key, "language model, text", svg.TEXT_LOOK)
        ] + [
            _layer_series(arms[arm].get("logit_lens"), key, label(arm), looks[arm]) for arm in arms
        ]
        panels.append(draw_lines(f"lens-{key}", title, _STATES, lines, shares=True))
    return Plot(
        "lens",
        "Where a refusal arises: logit lens",
        "Mean probability of a refusal's first token at the answer's position, read from each "
        "state through the final norm and the output head. The dotted line is the language model "
        "with captions in the pictures' place; the others are the arms on pictures.",
        panels,
        _keys("lens", looks, text=True),
    )


def _curves(curves: Mapping[str, Any], looks: Mapping[str, svg.Look]) -> Plot:
    marks: dict[float, str] = {}
    parts: dict[str, list[Series]] = {"ce": [], "guide": [], "caption_retrieval": []}
    shown = {arm: looks[arm] for arm in looks if curves.get(arm)}
    for arm, look in shown.items():
        x, starts = _running_steps(curves[arm])
        marks |= starts
        for key, lines in parts.items():
            found = [_scalar(row.get(key)) for row in curves[arm]]
            kept = [(at, value) for at, value in zip(x, found, strict=True) if value is not None]
            lines.append(Series(label(arm), look, [at for at, _ in kept], [v for _, v in kept]))
    titles = {
        "ce": "Cross-entropy",
        "guide": "Guide loss",
        "caption_retrieval": "Own caption is the nearest, mean over aligned states",
    }
    panels = [
        draw_lines(
            f"curve-{key}".replace("_", "-"), titles[key], "step", lines,
            shares=key == "caption_retrieval", marks=marks,
        )
        for key, lines in parts.items()
    ]  # fmt: skip
    return Plot(
        "curves",
        "Training",
        "Losses as logged, one run per arm; vertical lines mark where a stage begins. Guide losses "
        "of different forms have different scales: compare their course, not their height. The "
        "share of nearest captions is among those of a training batch, over the states an arm "
        "aligns; an arm without a guide has none.",
        [panel for panel in panels if panel.svg is not None],
        _keys("curves", shown),
    )


def _scalar(value: Any) -> float | None:
    """A number, or the mean of a list of numbers."""
    if isinstance(value, list):
        found = [item for item in map(number, value) if item is not None]
        return math.fsum(found) / len(found) if found else None
    return number(value)


def _running_steps(rows: Sequence[Mapping[str, Any]]) -> tuple[list[float], dict[float, str]]:
    """Steps counted through all stages, and where each stage begins."""
    x: list[float] = []
    starts: dict[float, str] = {}
    offset = last = 0.0
    stage = None
    for row in rows:
        step = number(row.get("step"))
        step = last if step is None else step
        if row.get("stage") != stage:
            if x and step <= last:
                offset = x[-1]
            stage = row.get("stage")
            starts[x[-1] if x else 0.0] = str(stage)
        last = step
        x.append(offset + step)
    return x, starts
