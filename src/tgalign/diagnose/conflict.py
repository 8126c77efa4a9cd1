"""Where cross-entropy and guide pull an image's hidden states apart.

Shape suffixes: L layers, B rows, T tokens, D channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tgalign.objective import unit

if TYPE_CHECKING:
    from tgalign.task import AlignmentTask


def gradient_conflict(task: AlignmentTask, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Compare the gradients of the two losses at the guided tokens, layer by layer.

    These are the image's, or those of the question where the guide pulls that. The gradient at
    state j is the total one: it counts what the state does to every later layer. The last state of
    the image is read by the guide alone, so the cross-entropy's gradient is 0 there.

    Args:
        task: The model and its objective, whose weight plays no part unless it is 0; at least the
            projector must be trainable.
        batch: What the collator makes of records; every row with an image, a caption and an answer.

    Returns:
        Means over rows, of shape (L,): ``cosine`` of the two gradients (negative: descending one
        loss ascends the other), ``ce_norm`` and ``guide_norm``, per row of the batch's mean loss.

    Raises:
        ValueError: The guide loss carries no gradient, or there is none: the objective has weight 0
            or the batch no caption.
    """
    inputs: dict[str, Any] = {**batch}
    # Not ``task(...)``, which accelerate makes return copies of half-precision states.
    losses = type(task).forward(task, **inputs, return_states=True)
    if "guide" not in losses or not losses["guide"].requires_grad:
        raise ValueError(
            "no guide loss to compare: the weight is 0, the form has no gradient, or no row has a "
            "caption"
        )
    guided_BT1 = task.guided_tokens(batch["input_ids"], batch.get("question_mask")).unsqueeze(-1)
    gradients = {}
    for name in ("ce", "guide"):
        found = torch.autograd.grad(
            losses[name],
            losses["hidden_states"],
            retain_graph=name == "ce",
            allow_unused=True,
        )
        unused = all(g_BTD is None for g_BTD in found)
        assert name == "ce" or not unused, "the states compared are not those the guide reads"
        gradients[name] = torch.stack(
            [
                torch.zeros_like(state_BTD, dtype=torch.float32).flatten(1)
                if g_BTD is None
                else g_BTD.float().where(guided_BT1, 0.0).flatten(1)
                for g_BTD, state_BTD in zip(found, losses["hidden_states"], strict=True)
            ]
        )
    ce_LBX, guide_LBX = gradients["ce"], gradients["guide"]
    return {
        "cosine": (unit(ce_LBX) * unit(guide_LBX)).sum(-1).mean(1),
        "ce_norm": ce_LBX.norm(dim=-1).mean(1),
        "guide_norm": guide_LBX.norm(dim=-1).mean(1),
    }
