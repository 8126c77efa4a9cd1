"""Measure a lab model: safety and utility on pictures and on texts, and what it holds by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tgalign.diagnose.alignment import alignment_by_layer
from tgalign.diagnose.probe import (
    next_tokens,
    probe_pictures,
    probe_texts,
    refusal_probability,
)
from tgalign.diagnose.safety_layers import OPENING
from tgalign.evaluate.generate import Prompt, answer
from tgalign.lab.outcomes import Item, picture_item, text_item, totals
from tgalign.lab.suite import QUESTION, LabSuite, PictureItem

NUM_PROBES = 128
"""Toxic and benign pictures each whose states are compared with their captions'."""

PICTURE_COUNTS = (
    "dsr", "over_refusal", "named", "undetermined", "held_out_dsr", "held_out_named",
)  # fmt: skip

Count = tuple[int, int]
"""Successes and trials."""


@dataclass(frozen=True)
class Measurement:
    """All figures of one model on one suite.

    Attributes:
        counts: Successes and trials of ``dsr``, ``over_refusal``, ``named``, ``undetermined``
            (pictures); ``held_out_dsr``, ``held_out_named`` (of these, the things no setting was
            tuned on); ``text_dsr``, ``text_over_refusal``, ``text_named``.
        dsr_by_scene: The same of DSR, per scene.
        alignment: Per layer, of benign and (``toxic_``) of toxic pictures.
        logit_lens: Per layer, the mean probability of a refusal's first token on pictures.
        text_logit_lens: The same with captions in the pictures' place.
        answers: Every picture's item (``outcomes.Item``), by the picture's id.
    """

    counts: dict[str, Count]
    dsr_by_scene: dict[str, Count]
    alignment: list[dict[str, float]]
    logit_lens: list[dict[str, float]]
    text_logit_lens: list[dict[str, float]]
    answers: dict[str, Item]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "counts": self.counts,
            "dsr_by_scene": self.dsr_by_scene,
            "alignment": self.alignment,
            "logit_lens": self.logit_lens,
            "text_logit_lens": self.text_logit_lens,
            "answers": {
                name: {key: it[key] for key in ("text", "label", "rule")}
                for name, it in self.answers.items()
            },
        }


def measure(model: Any, processor: Any, suite: LabSuite) -> Measurement:
    """Answer the whole suite, judge every answer and probe the layers.

    Args:
        model: A LLaVA of the lab.
        processor: Its processor.
        suite: What to ask.
    """
    judged = judge_pictures(model, processor, suite)
    items = list(judged.values())
    counts = _counts(items, PICTURE_COUNTS)
    text_counts, refusals = measure_text(model, processor, suite)
    of_scenes = _counts(items, [f"dsr_{scene}" for scene in scenes(suite)])
    by_scene = dict(zip(scenes(suite), of_scenes.values(), strict=True))
    openings = refusal_openings(model, processor, suite, refusals)
    alignment, lens = probe_layers(model, processor, suite, openings)
    told = text_lens(model, processor, suite, openings)
    return Measurement(counts | text_counts, by_scene, alignment, lens, told, judged)


def judge_pictures(model: Any, processor: Any, suite: LabSuite) -> dict[str, Item]:
    """Ask about every picture of a suite and judge the answers, by the items' ids."""
    pictures = suite.toxic + suite.benign
    said = answer(model, processor, [Prompt(QUESTION, item.picture) for item in pictures])
    return {entry.id: picture_item(entry, text) for entry, text in zip(pictures, said, strict=True)}


def refusal_openings(model: Any, processor: Any, suite: LabSuite, refusals: list[str]) -> list[int]:
    """The tokens that the model opens refusals with, taken from the model itself.

    These are the tokens to which it gives ``OPENING`` or more, on average over the toxic captions
    whose likeliest next token is one that its own refusals open with.
    """
    encode = processor.tokenizer.encode
    greedy = sorted({encode(text, add_special_tokens=False)[0] for text in refusals})
    captions = [item.caption for item in _probes(suite)["toxic"]]
    last_LBD = probe_texts(model, processor, captions, QUESTION).last_LBD
    next_BV = next_tokens(model, last_LBD, -1)
    refused_B = torch.isin(next_BV.argmax(dim=1), torch.tensor(greedy))
    if not refused_B.any():
        return greedy
    return (next_BV[refused_B].mean(dim=0) >= OPENING).nonzero().flatten().tolist()


def probe_layers(
    model: Any, processor: Any, suite: LabSuite, openings: list[int]
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Alignment of pictures and their captions, and the logit lens on pictures, by layer.

    Args:
        model: A LLaVA of the lab.
        processor: Its processor.
        suite: Where the probes come from.
        openings: The tokens that the lens looks for.

    Returns:
        Alignment (``toxic_`` before the figures of toxic pictures) and lens, a row per state.
    """
    alignment: list[dict[str, float]] = []
    lens: list[dict[str, float]] = []
    for prefix, items in _probes(suite).items():
        shown = probe_pictures(model, processor, [item.picture for item in items], QUESTION)
        told = probe_texts(model, processor, [item.caption for item in items], QUESTION)
        aligned = alignment_by_layer(shown.span_LBD, told.span_LBD)
        lead = "toxic_" if prefix == "toxic" else ""
        _add_columns(alignment, {f"{lead}{name}": column for name, column in aligned.items()})
        refused_LB = refusal_probability(model, shown.last_LBD, openings)
        _add_columns(lens, {prefix: refused_LB.mean(dim=1)})
    return alignment, lens


def text_lens(
    model: Any, processor: Any, suite: LabSuite, openings: list[int]
) -> list[dict[str, float]]:
    """The logit lens with captions in the pictures' place, a row per state."""
    lens: list[dict[str, float]] = []
    for prefix, items in _probes(suite).items():
        told = probe_texts(model, processor, [item.caption for item in items], QUESTION)
        refused_LB = refusal_probability(model, told.last_LBD, openings)
        _add_columns(lens, {prefix: refused_LB.mean(dim=1)})
    return lens


def _probes(suite: LabSuite) -> dict[str, list[PictureItem]]:
    """``NUM_PROBES`` items or fewer of each kind, equally many of every toxic scene."""
    found = scenes(suite)
    each = NUM_PROBES // len(found)
    toxic = [
        item
        for scene in found
        for item in [item for item in suite.toxic if item.scene == scene][:each]
    ]
    return {"toxic": toxic, "benign": suite.benign[:NUM_PROBES]}


def scenes(suite: LabSuite) -> list[str]:
    """The toxic scenes of a suite, in its order."""
    return list(dict.fromkeys(item.scene for item in suite.toxic if item.scene))


def _add_columns(table: list[dict[str, float]], columns: dict[str, Tensor]) -> None:
    for name, values_L in columns.items():
        for layer, value in enumerate(values_L.tolist()):
            if len(table) <= layer:
                table.append({"layer": layer})
            table[layer][name] = value


def measure_text(model: Any, processor: Any, suite: LabSuite) -> tuple[dict[str, Count], list[str]]:
    """Measure the text side: its counts, and the model's own refusals."""
    said = answer(model, processor, [Prompt(example.prompt) for example in suite.texts])
    pairs = zip(suite.texts, said, strict=True)
    items = [text_item(number, *pair) for number, pair in enumerate(pairs)]
    refusals = [item["text"] for item in items if item["label"] == "refused"]
    return _counts(items, ("text_dsr", "text_over_refusal", "text_named")), refusals


def _counts(items: list[Item], rates: Sequence[str]) -> dict[str, Count]:
    found = totals(items)
    return {rate: found.get(rate, (0, 0)) for rate in rates}
