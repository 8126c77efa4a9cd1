"""The guide loss of Text-Guided Alignment (arXiv 2410.12662) and its variants.

Pure functions: pooled hidden states in, named losses out. Nothing here knows a model.

Shape suffixes: L layers, B rows of the batch, D channels. ``i``, ``c`` and ``r`` are the states
of the image, its caption and its retrieved text, already pooled over their tokens.
"""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import softplus

from tgalign.errors import UserError

Form = Literal["paper", "released", "released_nograd", "contrastive", "gap"]
Similarity = Literal["cosine", "centered_cosine"]
Pair = Literal["caption", "image_retrieved"]

FORMS: tuple[Form, ...] = get_args(Form)
"""What ``form`` may be."""
SIMILARITIES: tuple[Similarity, ...] = get_args(Similarity)
"""What ``similarity`` may be."""
PAIRS: tuple[Pair, ...] = get_args(Pair)
"""What ``pair`` may be."""

# States of a norm at or below this have no direction.
ZERO_NORM = 1e-8
# Two unit vectors this close count as one state: cos > 1 - 1e-6.
SAME_STATE_DISTANCE = (2e-6) ** 0.5


def guide_loss(
    image_LBD: Tensor,
    caption_LBD: Tensor,
    retrieved_LBD: Tensor | None,
    *,
    form: Form = "paper",
    similarity: Similarity = "cosine",
    mask_B: Tensor | None = None,
    retrieved_mask_B: Tensor | None = None,
    center_LD: Tensor | None = None,
    pair: Pair = "caption",
    progress: float = 0.0,
    temperature: float = 0.1,
) -> dict[str, Tensor]:
    """Compute the guide loss of one batch.

    With cos(x,y) the similarity of two states of layer j and of one row, the forms are:

    ``paper``
        ``sum_j [ -cos(I,C) + log(1 + exp(-(cos(I,C) - cos(R,C)))) ]``, the paper's L_guide.
    ``released``
        ``mean_j [ (1-r) 0.25 exp(-cos(I,C)) + (1-r)^2 0.1 exp(cos(R,C) - cos(I,C)) ]`` with
        r = ``progress``: the terms, weights and decay of the published code
        (``modeling_mistral_rag_mlp_fusion.py``), here with gradient. As in that code it is the
        mean over layers, which departs from the sum of the other forms. The code divides by the
        batch size and counts the rows it skips; this divides by the rows that ``mask_B`` keeps.
    ``released_nograd``
        The values of ``released`` without gradient. The published code calls ``math.exp`` on a
        tensor, which returns a Python float, so its guide loss moves no weight. This control
        shows what that code trains: the returned tensors do not require a gradient, so add them
        to a loss that does.
    ``contrastive``
        ``sum_j`` of the InfoNCE loss of image i against the captions of the kept rows, at
        ``temperature``, with the row's own R as one more negative. Ours, not the paper's. A
        caption whose state equals row i's caption (cos > 1 - 1e-6) is no negative of row i, nor
        is an R whose state equals it. R is compared with the image, so ``pair`` plays no part.
    ``gap``
        ``sum_j ||I - C||``, the Euclidean distance: the modality-gap regulariser of arXiv
        2505.24208 on mean states (``tgalign.baselines.modality_gap``), a rival and no form of TGA.
        It reads no R, and neither the centre nor the similarity changes it.

    A row without R has only the ``align`` term. Every term is averaged over all the kept rows,
    with R or without. What a row that is not kept holds, NaN included, changes nothing. With no
    row kept, every loss is 0 with a gradient of 0. A state of norm zero has cosine 0 with
    everything and gets no gradient. Half-precision states are computed with in float32, also
    under autocast. The gradient reaches all three states: detach those that are targets.

    Args:
        image_LBD: Floating-point image states.
        caption_LBD: Caption states, of the same shape.
        retrieved_LBD: Retrieved-text states, of the same shape. None: no row has an R.
        form: One of ``FORMS``.
        similarity: ``cosine``, as in the paper, or ``centered_cosine``, which first subtracts one
            centre from all three states, so a constant offset between images and captions still
            costs.
        mask_B: Bool, the rows that count. None: all.
        retrieved_mask_B: Bool, the rows that have an R. None: all, if ``retrieved_LBD`` is given.
        center_LD: The centre of ``centered_cosine``, taken as a constant. None: the mean of the
            kept caption states, detached; with a single kept row that is the caption itself, and
            the loss then has no gradient.
        pair: What cos(I,C) has to exceed: cos(R,C) (``caption``, the paper's formula) or cos(I,R)
            (``image_retrieved``, the other reading of its text).
        progress: ``global_step / max_steps`` in [0, 1]; used by the released forms.
        temperature: Greater than 0; used by ``contrastive``.

    Returns:
        Scalars in float32 (float64 if a state is): ``guide``, and its parts ``align`` (image
        against caption; for ``contrastive`` the InfoNCE loss without R) and ``rank`` (what R
        adds), which sum to it.

    Raises:
        UserError: An unknown form, similarity or pair, or ``progress`` or ``temperature`` out of
            range.
        ValueError: A tensor of the wrong shape or dtype.
    """
    _check_option("form", form, FORMS)
    _check_option("similarity", similarity, SIMILARITIES)
    _check_option("pair", pair, PAIRS)
    if not 0.0 <= progress <= 1.0:
        raise UserError(f"progress is {progress}; expected global_step / max_steps, in [0, 1]")
    if not temperature > 0.0:
        raise UserError(f"temperature is {temperature}; expected a number greater than 0")
    states = {"image_LBD": image_LBD, "caption_LBD": caption_LBD}
    if retrieved_LBD is not None:
        states["retrieved_LBD"] = retrieved_LBD
    check_states(states, {"mask_B": mask_B, "retrieved_mask_B": retrieved_mask_B}, center_LD)

    if form == "released_nograd":
        states = {name: state_LBD.detach() for name, state_LBD in states.items()}
    rows, device = image_LBD.shape[1], image_LBD.device
    if mask_B is None:
        mask_B = torch.ones(rows, dtype=torch.bool, device=device)
    if retrieved_LBD is None:
        ranked_B = torch.zeros_like(mask_B)
    else:
        ranked_B = mask_B if retrieved_mask_B is None else mask_B & retrieved_mask_B

    # Autocast would send the matrix product of `contrastive` back to half precision.
    with torch.autocast(device_type=device.type, enabled=False):
        dtype = working_dtype(*states.values())
        i_LBD = _keep_rows(states["image_LBD"].to(dtype), mask_B)
        c_LBD = _keep_rows(states["caption_LBD"].to(dtype), mask_B)
        r_LBD = _keep_rows(states.get("retrieved_LBD", c_LBD).to(dtype), ranked_B)
        kept = mask_B.sum().clamp_min(1)
        if similarity == "centered_cosine":
            center_LD = c_LBD.sum(1) / kept if center_LD is None else center_LD.to(dtype)
            center_L1D = center_LD.detach().unsqueeze(1)
            i_LBD, c_LBD, r_LBD = i_LBD - center_L1D, c_LBD - center_L1D, r_LBD - center_L1D
        apart_LBD = i_LBD - c_LBD
        i_LBD, c_LBD, r_LBD = unit(i_LBD), unit(c_LBD), unit(r_LBD)

        if form == "gap":
            align_LB = torch.linalg.vector_norm(apart_LBD, dim=-1)
            rank_LB = 0.0 * r_LBD.sum(-1)
        elif form == "contrastive":
            align_LB, rank_LB = _contrastive(i_LBD, c_LBD, r_LBD, mask_B, temperature)
        else:
            cos_ic_LB = (i_LBD * c_LBD).sum(-1)
            cos_r_LB = (r_LBD * (c_LBD if pair == "caption" else i_LBD)).sum(-1)
            if form == "paper":
                align_LB, rank_LB = -cos_ic_LB, softplus(cos_r_LB - cos_ic_LB)
            else:
                left = 1.0 - progress
                layers = image_LBD.shape[0]
                align_LB = left * 0.25 / layers * torch.exp(-cos_ic_LB)
                rank_LB = left**2 * 0.1 / layers * torch.exp(cos_r_LB - cos_ic_LB)
        align = align_LB.where(mask_B, 0.0).sum() / kept
        rank = rank_LB.where(ranked_B, 0.0).sum() / kept
    return {"guide": align + rank, "align": align, "rank": rank}


def unit(x_LBD: Tensor) -> Tensor:
    """Scale states to length 1 over the last axis.

    A state of norm at most ``ZERO_NORM`` becomes 0 and gets no gradient, where a clamped norm
    would multiply its gradient by 1 / ``ZERO_NORM``.

    Args:
        x_LBD: Float32 or float64 states; any leading axes.

    Returns:
        A tensor of the same shape and dtype.
    """
    norm_LB1: Tensor = torch.linalg.vector_norm(x_LBD, dim=-1, keepdim=True)
    some_LB1 = ~(norm_LB1 <= ZERO_NORM)  # so written, NaN stays NaN
    return (x_LBD / norm_LB1.where(some_LB1, 1.0)).where(some_LB1, 0.0)


def same_state(unit_LBD: Tensor) -> Tensor:
    """Tell which rows of a layer hold one and the same direction (cos > 1 - 1e-6).

    Distances are summed directly and not through a matrix product, whose rounding (TF32 above
    all) is coarser than the bound. Zero states equal each other.

    Args:
        unit_LBD: States of length 1 or 0, as ``unit`` returns them; any leading axes before B.

    Returns:
        Bool, (L, B, B), no gradient.
    """
    x_LBD = unit_LBD.detach()
    distance_LBB: Tensor = torch.cdist(x_LBD, x_LBD, compute_mode="donot_use_mm_for_euclid_dist")
    return distance_LBB < SAME_STATE_DISTANCE


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """Return float64 if any of the tensors is float64, else float32."""
    wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if wide else torch.float32


def check_states(
    states: dict[str, Tensor], masks: dict[str, Tensor | None], center_LD: Tensor | None
) -> None:
    """Check the shapes and dtypes of named states, all (L, B, D), and of what goes with them.

    Args:
        states: Floating-point states by name, the first of which sets the shape.
        masks: Bool row masks by name, each (B,) or None.
        center_LD: The centre, or None.

    Raises:
        ValueError: Naming the tensor, what it is and what was expected.
    """
    first, reference = next(iter(states.items()))
    for name, state_LBD in states.items():
        if not state_LBD.is_floating_point():
            raise ValueError(f"{name} is {state_LBD.dtype}; expected a floating-point tensor")
        if state_LBD.dim() != 3 or state_LBD.shape[0] == 0 or state_LBD.shape[2] == 0:
            raise ValueError(
                f"{name} has shape {tuple(state_LBD.shape)}; expected (layers, rows, channels) "
                "with at least one layer and one channel"
            )
        if state_LBD.shape != reference.shape:
            raise ValueError(
                f"{name} has shape {tuple(state_LBD.shape)}; expected that of {first}, "
                f"{tuple(reference.shape)}"
            )
    layers, rows, channels = reference.shape
    for name, mask in masks.items():
        if mask is not None and (mask.dtype != torch.bool or mask.shape != (rows,)):
            raise ValueError(
                f"{name} is {mask.dtype} of shape {tuple(mask.shape)}; "
                f"expected torch.bool of shape ({rows},), one entry per row"
            )
    if center_LD is not None and center_LD.shape != (layers, channels):
        raise ValueError(
            f"center_LD has shape {tuple(center_LD.shape)}; expected ({layers}, {channels}), "
            "one centre per layer"
        )


def _contrastive(
    i_LBD: Tensor, c_LBD: Tensor, r_LBD: Tensor, mask_B: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return the InfoNCE loss without R and what R adds to it, each (L, B), of unit states.

    With Z the sum over the captions, -log(e^pos / (Z + e^R)) splits exactly into
    -log(e^pos / Z) and log(1 + e^R / Z).
    """
    logits_LBB = i_LBD @ c_LBD.transpose(1, 2) / temperature
    own_BB = torch.eye(len(mask_B), dtype=torch.bool, device=mask_B.device)
    counted_LBB = own_BB | (mask_B & ~same_state(c_LBD))
    log_z_LB = logits_LBB.where(counted_LBB, -torch.inf).logsumexp(-1)
    positive_LB = logits_LBB.diagonal(dim1=1, dim2=2)
    hard_LB = (i_LBD * r_LBD).sum(-1) / temperature
    distinct_LB = torch.linalg.vector_norm((r_LBD - c_LBD).detach(), dim=-1) >= SAME_STATE_DISTANCE
    return log_z_LB - positive_LB, softplus(hard_LB - log_z_LB).where(distinct_LB, 0.0)


def _keep_rows(x_LBD: Tensor, mask_B: Tensor) -> Tensor:
    """Put 0 into the rows not kept, before any arithmetic sees what they hold."""
    return x_LBD.where(mask_B.unsqueeze(-1), 0.0)


def _check_option(name: str, given: str, allowed: tuple[str, ...]) -> None:
    if given not in allowed:
        raise UserError(f"unknown {name} {given!r}; expected one of: {', '.join(allowed)}")
