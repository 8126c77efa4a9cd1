"""Drift correction, only the part that safety reads (ShiftDC)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tgalign.baselines.defence import Calibration, Generate, Inputs, around_generate
from tgalign.baselines.method import Defence
from tgalign.baselines.states import edited_states, last_states, prompt_states
from tgalign.baselines.told import own_captions, told_inputs
from tgalign.evaluate.refusal import judge

# Shape suffixes: L decoder layers, B rows, T tokens, D channels.


@contextmanager
def around(model: Any, processor: Any, calibration: Calibration) -> Iterator[None]:
    """Give the last token the safety component that it has with the picture's caption instead.

    Args:
        model: A LLaVA.
        processor: Its processor.
        calibration: Its captions, toxic and harmless, give the direction of safety; no threshold
            is set.
    """
    toxic_LD = prompt_states(model, processor, calibration.told_toxic).mean(dim=1)
    harmless_LD = prompt_states(model, processor, calibration.told).mean(dim=1)
    safety_LD = torch.nn.functional.normalize(toxic_LD - harmless_LD, dim=-1)

    def wrap(generate: Generate, inputs: Inputs) -> Tensor:
        captions = own_captions(model, processor, calibration, generate, inputs)
        # A picture that the model refuses to caption needs no correction, and has no caption.
        said_B1 = torch.tensor([[judge(it).label != "refused"] for it in captions])
        said_B1 = said_B1.to(inputs["input_ids"].device)
        told_LBD = last_states(model, told_inputs(model, processor, inputs, captions))

        def edit(layer: int, hidden_BTD: Tensor) -> Tensor | None:
            if hidden_BTD.shape[1] == 1:  # the answer's own tokens are left alone
                return None
            shift_BD = hidden_BTD[:, -1].float() - told_LBD[layer]
            along_BD = (shift_BD @ safety_LD[layer])[:, None] * safety_LD[layer]
            hidden_BTD = hidden_BTD.clone()
            hidden_BTD[:, -1] -= (along_BD * said_B1).to(hidden_BTD.dtype)
            return hidden_BTD

        with edited_states(model, edit):
            return generate(**inputs)

    with around_generate(model, wrap):
        yield


METHOD = Defence(
    paper="Zou et al., NeurIPS 2025, arXiv 2502.13095 (ShiftDC)",
    what="Lets the model caption the picture, and takes from the last token's state at every layer "
    "that part of its shift against the caption's which lies along the direction of safety.",
    departure="All layers are corrected, each after those before it; the paper's choice of layers "
    "could not be read.",
    around=around,
)
