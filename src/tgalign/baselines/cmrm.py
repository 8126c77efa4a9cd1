"""Drift correction (CMRM): move picture prompts back to where prompts in words lie."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from tgalign.baselines.defence import Calibration, Generate, Inputs, around_generate
from tgalign.baselines.method import Defence
from tgalign.baselines.states import edited_states, prompt_states
from tgalign.evaluate.generate import answer
from tgalign.evaluate.refusal import judge

# Shape suffixes: L decoder layers, D channels.

STRENGTHS = (1.5, 1.0, 0.5, 0.25, 0.1)
"""Factors of the drift that are tried on the calibration pictures, the strongest first."""

KEPT_WORDS = 0.95
"""Share of the words of undefended answers to harmless pictures that have to stay."""


@contextmanager
def around(model: Any, processor: Any, calibration: Calibration) -> Iterator[None]:
    """Add the mean drift from pictures to their captions to the last token's state at every layer.

    Its factor is the largest of ``STRENGTHS`` that refuses no more harmless calibration pictures
    than the budget allows and leaves ``KEPT_WORDS`` of the answers' words; 0 if none does.

    Args:
        model: A LLaVA.
        processor: Its processor.
        calibration: Its pictures and captions are used.
    """
    told_LD = prompt_states(model, processor, calibration.told).mean(dim=1)
    drift_LD = told_LD - prompt_states(model, processor, calibration.shown).mean(dim=1)
    before = answer(model, processor, calibration.shown)
    for strength in STRENGTHS:
        with _shifted(model, strength * drift_LD):
            after = answer(model, processor, calibration.shown)
        refused = [judge(text, calibration.question).label == "refused" for text in after]
        if sum(refused) <= calibration.budget * len(after) and kept_words(before, after) >= (
            KEPT_WORDS
        ):
            break
    else:
        strength = 0.0
        logging.getLogger(__name__).warning(
            "cmrm: even the weakest correction spoils answers to harmless pictures; none is made"
        )
    with _shifted(model, strength * drift_LD):
        yield


@contextmanager
def _shifted(model: Any, shift_LD: Tensor) -> Iterator[None]:
    def edit(layer: int, hidden_BTD: Tensor) -> Tensor:
        hidden_BTD = hidden_BTD.clone()
        hidden_BTD[:, -1] += shift_LD[layer].to(hidden_BTD.dtype)
        return hidden_BTD

    def wrap(generate: Generate, inputs: Inputs) -> Tensor:
        with edited_states(model, edit):
            return generate(**inputs)

    with around_generate(model, wrap):
        yield


def kept_words(before: list[str], after: list[str]) -> float:
    """Mean share of the distinct words of answers that stay; an empty answer keeps all."""
    shares = []
    for old, new in zip(before, after, strict=True):
        words = set(old.split())
        shares.append(len(words & set(new.split())) / len(words) if words else 1.0)
    return sum(shares) / len(shares)


METHOD = Defence(
    paper="Liu et al., Findings of ACL 2025, arXiv 2410.09047 (CMRM)",
    what="Adds the mean difference of states with captions and with pictures to the last token's "
    "state at every layer.",
    departure="Anchors are harmless pictures and their captions, where the paper takes harmful "
    "queries with and without a picture; the factor is set on them, where the paper sets one by "
    "hand.",
    around=around,
)
