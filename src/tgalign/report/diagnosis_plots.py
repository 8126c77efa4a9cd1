"""The plots of a diagnosis, or of several beside each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tgalign.report import svg
from tgalign.report.panels import Panel, Series, draw_dots, draw_heads, draw_lines
from tgalign.report.plots import Plot
from tgalign.report.verdict import number

Diagnoses = Mapping[str, Mapping[str, Any]]
"""By name the content of a diagnosis.json."""


@dataclass(frozen=True)
class Line:
    """What one line of a panel shows.

    Attributes:
        name: Of the line.
        rows: Where its rows stand in a diagnosis.
        key: Its value in a row: a number, with ``_low`` and ``_high`` beside it, or a rate.
        alone: Whether it has a line of its own where several diagnoses are compared; the others
            are left out there.
    """

    name: str
    rows: Callable[[Mapping[str, Any]], Any]
    key: str
    alone: bool = True


def _of(name: str) -> Callable[[Mapping[str, Any]], Any]:
    return lambda diagnosis: diagnosis.get(name)


def _attention(side: str) -> Callable[[Mapping[str, Any]], Any]:
    return lambda diagnosis: ((diagnosis.get("attention") or {}).get(side) or {}).get("layers")


_WORDS, _PICTURES = _attention("text"), _attention("image")
_LENS, _ALIGN, _PATCH = _of("lens"), _of("alignment"), _of("patching")
_BACK, _SEPARATE = _of("patching_text"), _of("separability")
_STATE = "hidden state"
_PANELS: dict[str, list[tuple[str, str, bool, list[Line]]]] = {
    "lens": [
        ("Probability of a refusal token", _STATE, True, [
            Line("toxic words", _LENS, "text_toxic"),
            Line("toxic pictures", _LENS, "image_toxic"),
            Line("harmless words", _LENS, "text_benign", alone=False),
            Line("harmless pictures", _LENS, "image_benign", alone=False),
        ]),
    ],
    "patching": [
        ("Pictures that refuse: states replaced by", _STATE, True, [
            Line("own caption", _PATCH, "caption"),
            Line("any other caption", _PATCH, "random", alone=False),
            Line("matched harmless caption", _PATCH, "benign"),
        ]),
        ("Pictures that refuse: mean shifted to that of", _STATE, True, [
            Line("own caption", _PATCH, "mean_caption"),
            Line("any other caption", _PATCH, "mean_random", alone=False),
            Line("matched harmless caption", _PATCH, "mean_benign", alone=False),
            Line("nothing: random direction", _PATCH, "mean_noise", alone=False),
        ]),
        ("Captions that no longer refuse: states replaced by", _STATE, True, [
            Line("own picture", _BACK, "image"),
            Line("any other picture", _BACK, "random", alone=False),
            Line("matched harmless picture", _BACK, "benign", alone=False),
        ]),
        ("Captions that no longer refuse: mean shifted to that of", _STATE, True, [
            Line("own picture", _BACK, "mean_image"),
            Line("any other picture", _BACK, "mean_random", alone=False),
            Line("matched harmless picture", _BACK, "mean_benign", alone=False),
            Line("nothing: random direction", _BACK, "mean_noise", alone=False),
        ]),
    ],
    "alignment": [
        ("Own caption is the nearest", _STATE, True, [
            Line("toxic pictures", _ALIGN, "toxic_caption_retrieval"),
            Line("harmless pictures", _ALIGN, "benign_caption_retrieval"),
        ]),
        ("Centred cosine", _STATE, False, [
            Line("toxic pictures", _ALIGN, "toxic_centered_cosine"),
            Line("harmless pictures", _ALIGN, "benign_centered_cosine"),
            Line("caption and paraphrase", _ALIGN, "centered_ceiling", alone=False),
        ]),
        ("Cosine, all pictures", _STATE, False, [
            Line("picture and caption", _ALIGN, "cosine"),
            Line("picture and another's caption", _ALIGN, "mismatched"),
            Line("floor: two different pictures", _ALIGN, "floor", alone=False),
            Line("ceiling: caption and paraphrase", _ALIGN, "ceiling", alone=False),
        ]),
        ("Linear CKA", _STATE, False, [
            Line("toxic pictures", _ALIGN, "toxic_cka"),
            Line("harmless pictures", _ALIGN, "benign_cka"),
        ]),
    ],
    "direction": [
        ("Toxic told from harmless (AUROC)", _STATE, True, [
            Line("words, along their direction", _SEPARATE, "text", alone=False),
            Line("pictures, along the words' direction", _SEPARATE, "image"),
            Line("pictures, along their own", _SEPARATE, "image_own", alone=False),
        ]),
        ("By the refusal tokens (AUROC)", _STATE, True, [
            Line("words", _SEPARATE, "tokens_text", alone=False),
            Line("pictures", _SEPARATE, "tokens_image"),
        ]),
        ("Way along the words' direction (0 harmless, 1 toxic words)", _STATE, False, [
            Line("toxic pictures", _SEPARATE, "reach"),
            Line("harmless pictures", _SEPARATE, "reach_benign", alone=False),
        ]),
        ("Cosine of the pictures' and the words' direction", _STATE, False, [
            Line("cosine", _SEPARATE, "cosine"),
        ]),
    ],
    "attention": [
        ("Density on what is toxic (1: no preference)", "layer", False, [
            Line("toxic words of the caption", _WORDS, "lift", alone=False),
            Line("toxic patches of the picture", _PICTURES, "lift"),
        ]),
        ("Share of all attention", "layer", True, [
            Line("toxic words of the caption", _WORDS, "mass", alone=False),
            Line("toxic patches of the picture", _PICTURES, "mass"),
        ]),
    ],
}  # fmt: skip
_TEXTS = {
    "lens": (
        "Where a refusal arises: logit lens",
        "Mean probability of a refusal token at the answer's position, read from each state "
        "through the final norm and the output head.",
    ),
    "patching": (
        "Would it refuse if the states were the caption's? Activation patching",
        "At one hidden state of the prefill, the states of the image's tokens are replaced by "
        "those of a caption, or shifted until the means agree. Above: toxic pictures that the "
        "model does not refuse by itself, and how many it refuses then. Below, the reverse: "
        "toxic captions that it refuses, given a picture's states, and how many it refuses no "
        "longer. The controls say what any such change does.",
    ),
    "alignment": (
        "Alignment of pictures and captions",
        "Mean states of a picture and of its caption in its place. The share of pictures whose own "
        "caption has the nearest state is among those of the same kind. Raw cosine nears 1 where "
        "all states share one large component: read it between floor and ceiling.",
    ),
    "direction": (
        "Refusal direction, and what of it pictures have",
        "Difference of the mean states of toxic and harmless captions at the answer's position, "
        "from one half of the pairs and measured on the other. AUROC 0.5 is chance. By the refusal "
        "tokens: cosine of the lens' logits with them, as HiddenDetect scores.",
    ),
    "attention": (
        "What the answer attends to",
        "Attention of the answer's position to the toxic words of a caption and to the patches of "
        "a picture that show the toxic thing, mean over heads; then head by head.",
    ),
}
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
    plots += [_plot(name, diagnoses) for name in _PANELS]
    return plots


def _plot(name: str, diagnoses: Diagnoses) -> Plot:
    panels: list[Panel] = []
    keys: dict[str, str] = {}
    looks = {it: svg.arm_look(at) for at, it in enumerate(diagnoses)}
    marks = _marks(next(iter(diagnoses.values()))) if len(diagnoses) == 1 else {}
    for title, x_label, shares, lines in _PANELS[name]:
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
    if len(diagnoses) > 1:
        keys = {it: svg.legend_key(look, f"{name}-key-{at}")
                for at, (it, look) in enumerate(looks.items())}  # fmt: skip
    if name == "attention":
        panels += _heads(diagnoses)
    title, caption = _TEXTS[name]
    return Plot(name, title, caption, panels, [(drawing, it) for it, drawing in keys.items()])


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
    keys = [(svg.legend_key(it.look, f"{name}-key-{n}"), it.name) for n, it in enumerate(shown)]
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
    keys = [(svg.legend_key(look, f"refusals-key-{at}"), it) for at, (it, look) in
            enumerate(looks.items())]  # fmt: skip
    return Plot(
        "refusals",
        "Refusals in words and in pictures",
        "The same things in words and in pictures. Points are rates, bars their 95 % Wilson "
        "intervals; harmless ones that are refused are over-refusal.",
        panels,
        keys,
    )


def _height(rows: Mapping[str, Any], looks: Mapping[str, Any]) -> float:
    return 0.75 + len(rows) * (0.2 + 0.1 * max(len(looks), 2))


def _heads(diagnoses: Diagnoses) -> list[Panel]:
    panels = []
    for at, (name, diagnosis) in enumerate(diagnoses.items()):
        for side, title in (("text", "words"), ("image", "patches")):
            rows = _attention(side)(diagnosis) or []
            whole = f"Density on toxic {title}, by head"
            if len(diagnoses) > 1:
                whole += f": {name}"
            panels.append(
                draw_heads(f"heads-{side}-{at}", whole, [row["head_lifts"] for row in rows], 1)
            )
    return panels
