"""Whether toxic and harmless prompts part, in words and in pictures, and along which direction.

The refusal direction is the difference of means (Arditi et al., 2024) at the answer position; the
score by the refusal tokens is that of HiddenDetect (2502.14744); how much of the way to words a
picture goes along the direction is what drift correction (CMRM, ShiftDC, ReGap) acts on.

Shape suffixes: L the N+1 hidden states, B prompts, D channels, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tgalign.diagnose.anatomy import Anatomy
from tgalign.evaluate.statistics import bootstrap
from tgalign.objective import unit


def auroc(toxic: np.ndarray[Any, Any], benign: np.ndarray[Any, Any]) -> Any:
    """Probability that a toxic score exceeds a harmless one, ties counting half.

    Args:
        toxic: Scores along the last axis.
        benign: The other scores, with the same axes before the last.
    """
    from scipy.stats import rankdata

    count = toxic.shape[-1]
    ranks = rankdata(np.concatenate([toxic, benign], axis=-1), axis=-1)
    wins = ranks[..., :count].sum(axis=-1) - count * (count + 1) / 2
    return wins / (count * benign.shape[-1])


def auroc_with_interval(toxic: Tensor, benign: Tensor) -> dict[str, float]:
    """AUROC of matched scores with a 95 % bootstrap interval over the pairs.

    Args:
        toxic: Scores, (B,).
        benign: Those of the matched harmless prompts, (B,).
    """
    pairs = np.stack([toxic.numpy(), benign.numpy()]).astype(np.float32)
    low, high = bootstrap(pairs, lambda both: auroc(both[0], both[1]))
    value = auroc(pairs[0], pairs[1])
    return {"auroc": float(value), "low": float(low), "high": float(high), "n": 2 * len(toxic)}


def separability(
    parts: Anatomy,
    states: dict[str, Tensor],
    refusal_ids: list[int] | None,
) -> list[dict[str, Any]]:
    """How well toxic and harmless prompts part at the answer position, by state.

    The direction is taken from one half of the matched pairs and measured on the other.

    Args:
        parts: The model's anatomy.
        states: (L, B, D) under ``text_toxic``, ``text_benign``, ``image_toxic`` and
            ``image_benign``, where row i of each belongs to the same pair; at least four pairs.
        refusal_ids: The model's refusal tokens, or None.

    Returns:
        A row per state. ``text``: AUROC of captions along the captions' direction. ``image``: of
        pictures along the *captions'* direction, what a safety mechanism that words have formed
        would read. ``image_own``: of pictures along their own, whether they can be told apart at
        all. ``tokens_text`` and ``tokens_image``: of the cosine between the lens' logits and the
        refusal tokens. ``cosine``: of the two directions. ``reach``: how far toxic pictures go from
        harmless captions (0) to toxic ones (1) along the captions' direction; ``reach_benign``: the
        same of harmless pictures.
    """
    count = states["text_toxic"].shape[1]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    fit, held = order[: count // 2], order[count // 2 :]
    score = _token_scores(parts, states, refusal_ids) if refusal_ids else {}
    rows = []
    for layer in range(len(states["text_toxic"])):
        at = {name: state_LBD[layer].double() for name, state_LBD in states.items()}
        text_D, image_D = (
            at[f"{kind}_toxic"][fit].mean(0) - at[f"{kind}_benign"][fit].mean(0)
            for kind in ("text", "image")
        )

        def along(kind: str, direction_D: Tensor, at: dict[str, Tensor] = at) -> dict[str, float]:
            return auroc_with_interval(
                at[f"{kind}_toxic"][held] @ direction_D, at[f"{kind}_benign"][held] @ direction_D
            )

        row: dict[str, Any] = {
            "layer": layer,
            "text": along("text", text_D),
            "image": along("image", text_D),
            "image_own": along("image", image_D),
            "cosine": float((unit(text_D) * unit(image_D)).sum()),
        }
        for kind in ("text", "image"):
            row[f"tokens_{kind}"] = (
                auroc_with_interval(score[f"{kind}_toxic"][layer], score[f"{kind}_benign"][layer])
                if score
                else None
            )
        length = float(text_D @ text_D)
        start = at["text_benign"][fit].mean(0) @ text_D
        for name, kind in (("reach", "image_toxic"), ("reach_benign", "image_benign")):
            gone = float(at[kind][held].mean(0) @ text_D - start)
            row[name] = gone / length if length > 0 else None
        rows.append(row)
    return rows


@torch.no_grad()
def _token_scores(
    parts: Anatomy, states: dict[str, Tensor], refusal_ids: list[int]
) -> dict[str, list[Tensor]]:
    """Cosine of the lens' logits with the refusal tokens' indicator, by kind and state."""
    scores: dict[str, list[Tensor]] = {}
    for kind, state_LBD in states.items():
        scores[kind] = []
        for layer, state_BD in enumerate(state_LBD):
            logits_BV = parts.log_probabilities(state_BD, layer).cpu()
            logits_BV = logits_BV - logits_BV.mean(dim=-1, keepdim=True)
            refusal_B = logits_BV[:, refusal_ids].sum(-1) / len(refusal_ids) ** 0.5
            scores[kind].append(refusal_B / logits_BV.norm(dim=-1).clamp_min(1e-8))
    return scores
