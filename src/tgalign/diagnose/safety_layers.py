"""At which hidden states a model decides to refuse, by the paper's rule and by its released code's.

Shape suffixes: L the N+1 hidden states, B prompts, D channels, V vocabulary, R refusal tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tgalign.diagnose.anatomy import Anatomy
from tgalign.evaluate.statistics import bootstrap, wilson

OPENING = 0.05
"""Mean probability from which a token counts as one that refusals open with."""

MARGIN = 2.0
"""How much likelier it has to be than where the model answers: else it opens answers as well."""

NUM_TOP = 5
"""Of the released rule."""

Layers = tuple[int | None, int | None]
"""First and last state that a rule finds in one prompt; None: never."""


@dataclass(frozen=True)
class RefusalToken:
    """A token that the model opens refusals with.

    Attributes:
        id: In the vocabulary.
        text: As it reads.
        refused: Its mean probability as the first token where the model refuses.
        answered: The same where it answers.
    """

    id: int
    text: str
    refused: float
    answered: float


def refusal_tokens(
    refused_BV: Tensor, answered_BV: Tensor, tokenizer: Any
) -> tuple[list[RefusalToken], list[RefusalToken]]:
    """Derive the refusal tokens from where the model itself refuses and answers.

    Args:
        refused_BV: First-token probabilities of prompts that it refuses, at least one.
        answered_BV: The same of prompts that it answers; may have no row.
        tokenizer: To show the tokens.

    Returns:
        The refusal tokens, likeliest first, and the tokens that open refusals but, being nearly as
        likely where it answers, are none.
    """
    refused_V = refused_BV.mean(dim=0)
    answered_V = answered_BV.mean(dim=0) if len(answered_BV) else torch.zeros_like(refused_V)
    kept: list[RefusalToken] = []
    dropped: list[RefusalToken] = []
    for index in (refused_V >= OPENING).nonzero().flatten().tolist():
        token = RefusalToken(
            index, tokenizer.decode([index]), float(refused_V[index]), float(answered_V[index])
        )
        (kept if token.refused >= MARGIN * token.answered else dropped).append(token)
    for part in (kept, dropped):
        part.sort(key=lambda token: -token.refused)
    return kept, dropped


@torch.no_grad()
def activation_layers(
    parts: Anatomy, last_LBD: Tensor, refusal_ids: Sequence[int]
) -> dict[str, list[Layers]]:
    """Apply both rules to every prompt.

    ``paper``: the states j >= 1 at which a refusal token has the largest log-ratio
    ``log(P_j / P_{j-1})`` of all tokens, where P_j is the logit lens of state j at the answer
    position. ``released`` (``read_analysis_llava.py``): from the first state at which a refusal
    token is among the five largest differences ``P_j - P_{j-1}``, to the last at which one is the
    likeliest token of P_j.

    Args:
        parts: The model's anatomy.
        last_LBD: States at the answer position.
        refusal_ids: The refusal tokens.

    Returns:
        By rule, the first and last state of every prompt.
    """
    ids_R = torch.tensor(refusal_ids)
    paper: list[Tensor] = []
    first: list[Tensor] = []
    last: list[Tensor] = []
    before_BV = parts.log_probabilities(last_LBD[0], 0).cpu()
    for layer in range(1, len(last_LBD)):
        now_BV = parts.log_probabilities(last_LBD[layer], layer).cpu()
        paper.append(torch.isin((now_BV - before_BV).argmax(dim=-1), ids_R))
        top_BK = (now_BV.exp() - before_BV.exp()).topk(min(NUM_TOP, now_BV.shape[-1])).indices
        first.append(torch.isin(top_BK, ids_R).any(dim=-1))
        last.append(torch.isin(now_BV.argmax(dim=-1), ids_R))
        before_BV = now_BV
    paper_BL, first_BL, last_BL = (torch.stack(hits, dim=1) for hits in (paper, first, last))
    return {
        "paper": [(_first(hit_L), _last(hit_L)) for hit_L in paper_BL],
        "released": [
            (_first(start_L), _last(end_L))
            for start_L, end_L in zip(first_BL, last_BL, strict=True)
        ],
    }


def _first(hit_L: Tensor) -> int | None:
    found = hit_L.nonzero().flatten().tolist()
    return found[0] + 1 if found else None


def _last(hit_L: Tensor) -> int | None:
    found = hit_L.nonzero().flatten().tolist()
    return found[-1] + 1 if found else None


def summary(found: Sequence[Layers], num_layers: int) -> dict[str, Any]:
    """Sum up the layers of many prompts.

    A prompt in which a rule finds nothing counts as later than every layer, never as a number: the
    median is None where half of the prompts have none.

    Args:
        found: First and last state of every prompt.
        num_layers: N.

    Returns:
        ``found``, the share of prompts with both ends; ``first`` and ``last``, medians, of the
        latter over the prompts that have both; ``first_interval`` and ``last_interval``, 95 %
        bootstrap intervals over prompts (None in place of "never"); ``counts``, by state, how many
        prompts begin and end there.
    """
    whole = [(a, b) for a, b in found if a is not None and b is not None]
    firsts = np.array([math.inf if a is None or b is None else a for a, b in found])
    lasts = np.array([b for _, b in whole], dtype=float)
    first, first_interval = _median(firsts)
    last, last_interval = _median(lasts) if first is not None else (None, [None, None])
    return {
        "found": wilson(len(whole), len(found)).as_dict(),
        "first": first,
        "first_interval": first_interval,
        "last": last,
        "last_interval": last_interval,
        "counts": [
            {
                "layer": layer,
                "first": sum(a == layer for a, _ in whole),
                "last": sum(b == layer for _, b in whole),
            }
            for layer in range(1, num_layers + 1)
        ],
    }


def _median(values: np.ndarray[Any, Any]) -> tuple[int | None, list[int | None]]:
    """The lower median and its interval; None stands for infinity and for no value."""
    if len(values) == 0:
        return None, [None, None]

    def lower_median(rows: Any) -> Any:
        return np.sort(rows, axis=-1)[..., (rows.shape[-1] - 1) // 2]

    low, high = bootstrap(values, lower_median)
    ends = [lower_median(values), low, high]
    shown = [int(end) if math.isfinite(end) else None for end in ends]
    return shown[0], shown[1:]


def layer_range(summed: dict[str, Any]) -> list[int] | None:
    """``[first, last]`` of a summary, or None where the rule finds no layer.

    The medians of the first and of the last states may cross; the range then is the one state.
    """
    if summed["first"] is None:
        return None
    return [summed["first"], max(summed["first"], summed["last"])]
