"""How well images and their captions are aligned, layer by layer.

Shape suffixes: L layers, B rows (image-caption pairs), D channels.
"""

import torch
from torch import Tensor

from tgalign.objective import check_states, same_state, unit, working_dtype


def alignment_by_layer(
    image_LBD: Tensor, caption_LBD: Tensor, *, center_LD: Tensor | None = None
) -> dict[str, Tensor]:
    """Measure the alignment of pooled image and caption states.

    Raw cosine, the paper's measure, comes near 1 when all states share one large component, so
    it stands beside two measures that a shared component does not move.

    Args:
        image_LBD: Floating-point image states.
        caption_LBD: Caption states, of the same shape.
        center_LD: One centre, subtracted from both. None: images are centred by the images' mean
            and captions by the captions' mean; retrieval then measures relative position, and a
            constant offset between the two does not show.

    Returns:
        Tensors of shape (L,), in float32 (float64 if a state is). ``cosine``: the mean cosine of
        each image with its caption. ``centered_cosine``: the same after centring.
        ``caption_retrieval``: the share of images whose own caption, or one with an identical
        state, has the highest centred cosine of all captions of the batch; a tie with
        a different caption is a miss. Chance is 1/B where all captions differ.

    Raises:
        ValueError: A tensor of the wrong shape or dtype, or no row.
    """
    rows = alignment_of_rows(image_LBD, caption_LBD, center_LD=center_LD)
    return {name: value_LB.mean(dim=-1) for name, value_LB in rows.items()}


def alignment_of_rows(
    image_LBD: Tensor, caption_LBD: Tensor, *, center_LD: Tensor | None = None
) -> dict[str, Tensor]:
    """The same of every image by itself: tensors of shape (L, B)."""
    check_states({"image_LBD": image_LBD, "caption_LBD": caption_LBD}, {}, center_LD)
    if image_LBD.shape[1] == 0:
        raise ValueError(f"image_LBD has shape {tuple(image_LBD.shape)}; expected at least one row")
    with torch.autocast(device_type=image_LBD.device.type, enabled=False):
        dtype = working_dtype(image_LBD, caption_LBD)
        i_LBD, c_LBD = image_LBD.to(dtype), caption_LBD.to(dtype)
        cosine_LB = (unit(i_LBD) * unit(c_LBD)).sum(-1)
        if center_LD is None:
            i_LBD, c_LBD = i_LBD - i_LBD.mean(1, True), c_LBD - c_LBD.mean(1, True)
        else:
            center_L1D = center_LD.to(dtype).unsqueeze(1)
            i_LBD, c_LBD = i_LBD - center_L1D, c_LBD - center_L1D
        i_LBD, c_LBD = unit(i_LBD), unit(c_LBD)
        similarity_LBB = i_LBD @ c_LBD.transpose(1, 2)
        own_LBB = same_state(c_LBD)
        best_own_LB = similarity_LBB.where(own_LBB, -torch.inf).amax(-1)
        best_other_LB = similarity_LBB.where(~own_LBB, -torch.inf).amax(-1)
        return {
            "cosine": cosine_LB,
            "centered_cosine": (i_LBD * c_LBD).sum(-1),
            "caption_retrieval": (best_own_LB > best_other_LB).to(dtype),
        }


def cosine_to_others(x_LBD: Tensor, y_LBD: Tensor | None = None) -> Tensor:
    """Mean cosine of each row of x with all *other* rows of y, (L, B); at least two rows.

    Args:
        x_LBD: States.
        y_LBD: States of the same rows; by default x itself.
    """
    x_LBD = unit(x_LBD)
    y_LBD = x_LBD if y_LBD is None else unit(y_LBD)
    count = x_LBD.shape[1]
    own_LB = (x_LBD * y_LBD).sum(-1)
    all_LB = (x_LBD * y_LBD.sum(1, keepdim=True)).sum(-1)
    return (all_LB - own_LB) / (count - 1)


def linear_cka(x_LBD: Tensor, y_LBD: Tensor) -> Tensor:
    """Linear CKA of two sets of states of the same rows (Kornblith et al., ICML 2019), (L,).

    With the unbiased estimate of HSIC (Song et al., JMLR 2012), as few rows in many channels would
    otherwise come out alike whatever they hold; so it may fall below 0.

    Args:
        x_LBD: States, at least four rows.
        y_LBD: The other states.

    Raises:
        ValueError: Fewer than four rows.
    """
    if x_LBD.shape[1] < 4:
        raise ValueError(f"x_LBD has {x_LBD.shape[1]} rows; unbiased CKA needs at least four")
    x_LBD, y_LBD = x_LBD.double(), y_LBD.double()
    x_LBB, y_LBB = x_LBD @ x_LBD.transpose(1, 2), y_LBD @ y_LBD.transpose(1, 2)
    scale_L = (_hsic(x_LBB, x_LBB) * _hsic(y_LBB, y_LBB)).clamp_min(0).sqrt()
    return (_hsic(x_LBB, y_LBB) / scale_L).where(scale_L > 0, 0.0).float()


def _hsic(k_LBB: Tensor, l_LBB: Tensor) -> Tensor:
    """Unbiased HSIC of two Gram matrices, up to a factor that CKA cancels."""
    count = k_LBB.shape[-1]
    off_BB = 1 - torch.eye(count, dtype=k_LBB.dtype, device=k_LBB.device)
    k_LBB, l_LBB = k_LBB * off_BB, l_LBB * off_BB
    trace_L = (k_LBB * l_LBB).sum((-1, -2))
    sums_L = k_LBB.sum((-1, -2)) * l_LBB.sum((-1, -2)) / ((count - 1) * (count - 2))
    cross_L = (k_LBB.sum(-1) * l_LBB.sum(-1)).sum(-1) * 2 / (count - 2)
    return trace_L + sums_L - cross_L
