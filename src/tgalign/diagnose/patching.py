"""Activation patching: put a caption's states where the picture's are, and see whether it refuses.

The states are changed at one layer of the prefill; the layers above compute with what they get, and
what is generated reads the keys and values made of it.

Shape suffixes: B rows, T tokens, S tokens of a span, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tgalign.diagnose.anatomy import Anatomy, Touch, touching
from tgalign.diagnose.prompts import Prompts
from tgalign.pooling import span_mean

Mode = Literal["tokens", "mean"]
"""``tokens`` replaces the span's states by the other's, resampled to the span's length; ``mean``
shifts each by the difference of the two span means, so that the means agree as TGA asks."""


@dataclass(frozen=True)
class Donors:
    """States that are put into other prompts, of one layer.

    Attributes:
        means_BD: Mean over each span, float32.
        tokens: Each span's states, (S, D).
    """

    means_BD: Tensor
    tokens: list[Tensor]


@torch.no_grad()
def donors(model: Any, parts: Anatomy, prompts: Prompts, lengths: Sequence[int]) -> list[Donors]:
    """The spans' states by state 0 to N - 1.

    Args:
        model: The model.
        parts: Its anatomy.
        prompts: Whose spans give the states.
        lengths: Tokens of the span that each is meant for: no more than these are kept.
    """
    found: dict[int, Donors] = {}

    def reader(layer: int) -> Touch:
        def read(state_BTD: Tensor) -> None:
            rows = zip(state_BTD, prompts.span_BT, lengths, strict=True)
            found[layer] = Donors(
                span_mean(state_BTD, prompts.span_BT)[0],
                [
                    resample(state_TD[span_T], min(int(span_T.sum()), length))
                    for state_TD, span_T, length in rows
                ],
            )

        return read

    with touching(parts, {layer: reader(layer) for layer in range(parts.num_layers)}):
        model.base_model(**prompts.inputs, use_cache=False)
    return [found[layer] for layer in range(parts.num_layers)]


def resample(tokens_SD: Tensor, length: int) -> Tensor:
    """Stretch or squeeze a span to ``length`` tokens, each the nearest of its place."""
    count = len(tokens_SD)
    at = ((torch.arange(length) + 0.5) * count / length).long().clamp(max=count - 1)
    return tokens_SD[at.to(tokens_SD.device)]


def replacing(span_BT: Tensor, other: Donors, mode: Mode) -> Touch:
    """Put another span's states in the place of this one's.

    Args:
        span_BT: The tokens that are changed.
        other: The other spans, row by row.
        mode: How.
    """

    def change(state_BTD: Tensor) -> Tensor:
        if mode == "mean":
            shift_BD = other.means_BD - span_mean(state_BTD, span_BT)[0]
            return _shifted(state_BTD, span_BT, shift_BD)
        changed_BTD = state_BTD.clone()
        for row, tokens_SD in enumerate(other.tokens):
            span_T = span_BT[row]
            changed_BTD[row, span_T] = resample(tokens_SD, int(span_T.sum()))
        return changed_BTD

    return change


def shoving(span_BT: Tensor, other: Donors, seeds: Sequence[int]) -> Touch:
    """Shift a span in a random direction, as far as ``replacing`` by ``mean`` would shift it.

    Args:
        span_BT: The span.
        other: What ``replacing`` would put there.
        seeds: Of the directions, one a row.
    """

    def change(state_BTD: Tensor) -> Tensor:
        shift_BD = other.means_BD - span_mean(state_BTD, span_BT)[0]
        ways = [
            torch.randn(shift_BD.shape[1], generator=torch.Generator().manual_seed(seed))
            for seed in seeds
        ]
        way_BD = torch.stack(ways).to(shift_BD)
        way_BD = way_BD / way_BD.norm(dim=-1, keepdim=True)
        return _shifted(state_BTD, span_BT, way_BD * shift_BD.norm(dim=-1, keepdim=True))

    return change


def _shifted(state_BTD: Tensor, span_BT: Tensor, shift_BD: Tensor) -> Tensor:
    return state_BTD + (shift_BD.unsqueeze(1) * span_BT.unsqueeze(-1)).to(state_BTD.dtype)
