"""The plots of a diagnosis, or of several beside each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tgalign.report import svg
from tgalign.report.diagnosis_lines import PANELS, TEXTS, Line, attention_of
from tgalign.report.panels import Panel, Series, draw_dots, draw_heads, draw_lines
from tgalign.report.plots import Plot
from tgalign.report.wording import number

Diagnoses = Mapping[str, Mapping[str, Any]]
"""By name the content of a diagnosis.json."""


_COMPARED = {
    "image_refusal": "toxic pictures refused",
    "text_refusal": "toxic words refused",
    "image_over_refusal": "harmless pictures refused",
    "text_over_refusal": "harmless words refused",
    "image_named": "objects named in pictures",
}


def draw_plots(diagnoses: Diagnoses) -> list[Plot]:
    """All plots: of one diagnosis a line per kind of prompt, of several a line per diagnosis."""
    plots = [_refusals(diagnoses)]
    plots += [_plot(name, diagnoses) for name in PANELS]
    return plots


def _plot(name: str, diagnoses: Diagnoses) -> Plot:
    panels: list[Panel] = []
    looks = {it: svg.arm_look(at) for at, it in enumerate(diagnoses)}
    marks = _marks(next(iter(diagnoses.values()))) if len(diagnoses) == 1 else {}
    for title, x_label, shares, lines in PANELS[name]:
        if len(diagnoses) == 1:
            diagnosis = next(iter(diagnoses.values()))
            series = [
                _series(it, it.name, svg.arm_look(n), diagnosis) for n, it in enumerate(lines)
            ]
            panels.append(_lines(name, len(panels), title, x_label, shares, series, marks))
            continue
        for line in lines:
            if line.alone:
                series = [_series(line, it, looks[it], diagnoses[it]) for it in diagnoses]
                whole = f"{title} {line.name}" if name == "patching" else f"{title}: {line.name}"
                panels.append(_lines(name, len(panels), whole, x_label, shares, series, marks))
    if name == "attention":
        panels += _heads(diagnoses)
    title, caption = TEXTS[name]
    keys = svg.legend(name, looks.items()) if len(diagnoses) > 1 else []
    return Plot(name, title, caption, panels, keys)


def _lines(
    plot: str,
    place: int,
    title: str,
    x_label: str,
    shares: bool,
    series: Sequence[Series],
    marks: Mapping[float, str],
) -> Panel:
    name = f"{plot}-{place}"
    panel = draw_lines(name, title, x_label, series, shares=shares, marks=marks)
    shown = [it for it in series if any(map(math.isfinite, it.y))]
    keys = svg.legend(name, ((it.name, it.look) for it in shown))
    return Panel(title, panel.svg, panel.csv, keys)


def _series(line: Line, name: str, look: svg.Look, diagnosis: Mapping[str, Any]) -> Series:
    x, y, low, high = [], [], [], []
    for row in line.rows(diagnosis) or []:
        found = row.get(line.key)
        if isinstance(found, Mapping):
            values = [found.get(k) for k in ("rate" if "rate" in found else "auroc", "low", "high")]
        else:
            values = [found, row.get(f"{line.key}_low"), row.get(f"{line.key}_high")]
        numbers = [math.nan if it is None else it for it in map(number, values)]
        x.append(float(row["layer"]))
        y.append(numbers[0])
        low.append(numbers[1])
        high.append(numbers[2])
    bare = all(map(math.isnan, low))
    return Series(name, look, x, y, [] if bare else low, [] if bare else high)


def _marks(diagnosis: Mapping[str, Any]) -> dict[float, str]:
    """Where the safety layers begin."""
    layers = diagnosis.get("safety_layers") or {}
    found: dict[float, str] = {}
    for rule in ("paper", "released"):
        if layers.get(rule):
            at = float(layers[rule][0])
            found[at] = f"{found[at]}, {rule}" if at in found else f"refusal: {rule}"
    return found


def _refusals(diagnoses: Diagnoses) -> Plot:
    if len(diagnoses) == 1:
        diagnosis = next(iter(diagnoses.values()))
        looks = {"words": svg.arm_look(0), "pictures": svg.arm_look(1)}
        sides = {"words": "text", "pictures": "image"}
        rows = {
            scene.replace("_", " "): {
                name: diagnosis[f"{side}_refusal_by_scene"].get(scene)
                for name, side in sides.items()
            }
            for scene in diagnosis["scenes"]
        }
        for title, key in (("all scenes", "refusal"), ("harmless", "over_refusal")):
            rows[title] = {name: diagnosis[f"{side}_{key}"] for name, side in sides.items()}
        panels = [draw_dots("refusals-0", "Refused", rows, looks, _height(rows, looks))]
    else:
        looks = {name: svg.arm_look(at) for at, name in enumerate(diagnoses)}
        rows = {
            title: {name: it.get(key) for name, it in diagnoses.items()}
            for key, title in _COMPARED.items()
        }
        scenes = dict.fromkeys(s for it in diagnoses.values() for s in it["scenes"])
        by_scene = {
            scene.replace("_", " "): {
                name: it["image_refusal_by_scene"].get(scene) for name, it in diagnoses.items()
            }
            for scene in scenes
        }
        panels = [
            draw_dots("refusals-0", "Rates", rows, looks, _height(rows, looks)),
            draw_dots(
                "refusals-1", "Toxic pictures refused", by_scene, looks, _height(by_scene, looks)
            ),
        ]
    return Plot(
        "refusals",
        "Refusals in words and in pictures",
        "The same things in words and in pictures. Points are rates, bars their 95 % Wilson "
        "intervals; harmless ones that are refused are over-refusal.",
        panels,
        svg.legend("refusals", looks.items()),
    )


def _height(rows: Mapping[str, Any], looks: Mapping[str, Any]) -> float:
    return 0.75 + len(rows) * (0.2 + 0.1 * max(len(looks), 2))


def _heads(diagnoses: Diagnoses) -> list[Panel]:
    panels = []
    for at, (name, diagnosis) in enumerate(diagnoses.items()):
        for side, title in (("text", "words"), ("image", "patches")):
            rows = attention_of(side)(diagnosis) or []
            whole = f"Density on toxic {title}, by head"
            if len(diagnoses) > 1:
                whole += f": {name}"
            panels.append(
                draw_heads(f"heads-{side}-{at}", whole, [row["head_lifts"] for row in rows], 1)
            )
    return panels
