"""A refusal detector on hidden states (HiddenDetect): what the model almost says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tgalign.baselines.defence import Calibration, Inputs, model_inputs, refusing
from tgalign.baselines.method import Defence
from tgalign.baselines.states import last_states, prompt_states
from tgalign.errors import UserError
from tgalign.evaluate.generate import answer
from tgalign.evaluate.refusal import judge

# Shape suffixes: L decoder layers, B rows, D channels, V vocabulary.


@contextmanager
def around(model: Any, processor: Any, calibration: Calibration) -> Iterator[None]:
    """Refuse where the states of the safety-aware layers point at refusal tokens.

    Layers and refusal tokens come from the model's behaviour in words, the threshold from the
    harmless calibration pictures.

    Args:
        model: A LLaVA.
        processor: Its processor.
        calibration: Its pictures, captions and toxic captions are used.

    Raises:
        UserError: The model refuses none of the toxic captions, so that there is no refusal to
            look for.
    """
    openings = refusal_openings(model, processor, calibration)
    toxic_L = refusal_scores(
        model, prompt_states(model, processor, calibration.told_toxic), openings
    ).mean(dim=1)
    harmless_L = refusal_scores(
        model, prompt_states(model, processor, calibration.told), openings
    ).mean(dim=1)
    apart_L = toxic_L - harmless_L
    aware_L = apart_L >= 0.5 * apart_L.max()
    shown_LN = refusal_scores(model, prompt_states(model, processor, calibration.shown), openings)
    threshold = calibration.threshold(shown_LN[aware_L].mean(dim=0))

    def flag(inputs: Inputs) -> Tensor:
        states_LBD = last_states(model, model_inputs(inputs))
        return refusal_scores(model, states_LBD, openings)[aware_L].mean(dim=0) > threshold

    with refusing(model, processor, calibration.refusal, flag):
        yield


def refusal_openings(model: Any, processor: Any, calibration: Calibration) -> list[int]:
    """The tokens that the model's own refusals of the toxic captions begin with.

    Raises:
        UserError: It refuses none of them.
    """
    said = answer(model, processor, calibration.told_toxic)
    refused = [text for text in said if judge(text, calibration.question).label == "refused"]
    if not refused:
        raise UserError(
            f"the model refuses none of {len(said)} toxic captions in words, so hidden states hold "
            "no refusal to detect"
        )
    encode = processor.tokenizer.encode
    return sorted({encode(text, add_special_tokens=False)[0] for text in refused})


@torch.no_grad()
def refusal_scores(model: Any, states_LBD: Tensor, openings: list[int]) -> Tensor:
    """Cosine of each state's logits with the vector that is 1 at the refusal tokens, (L, B)."""
    norm, head = model.model.language_model.norm, model.lm_head
    states_LBD = states_LBD.to(head.weight.dtype)
    logits_LBV = torch.stack([head(norm(states_BD)) for states_BD in states_LBD]).float()
    refusal_V = torch.zeros(logits_LBV.shape[-1], device=logits_LBV.device)
    refusal_V[openings] = 1.0
    return torch.nn.functional.cosine_similarity(logits_LBV, refusal_V, dim=-1)


METHOD = Defence(
    paper="Jiang et al., ACL 2025, arXiv 2502.14744 (HiddenDetect), code leigest519/HiddenDetect",
    what="Reads each layer's last-token state through the output head, and refuses where those of "
    "the safety-aware layers point at the tokens that refusals begin with.",
    departure="The tokens are those of the model's own refusals in words, not a fixed list; the "
    "layers are those that tell toxic from harmless captions at least half as well as the best; "
    "scores are averaged over layers, not integrated. The paper reports AUROC and leaves the "
    "threshold open: here it costs 2 % of harmless calibration pictures.",
    around=around,
)
