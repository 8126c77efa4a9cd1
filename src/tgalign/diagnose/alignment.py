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
    check_states({"image_LBD": image_LBD, "caption_LBD": caption_LBD}, {}, center_LD)
    if image_LBD.shape[1] == 0:
        raise ValueError(f"image_LBD has shape {tuple(image_LBD.shape)}; expected at least one row")
    with torch.autocast(device_type=image_LBD.device.type, enabled=False):
        dtype = working_dtype(image_LBD, caption_LBD)
        i_LBD, c_LBD = image_LBD.to(dtype), caption_LBD.to(dtype)
        cosine_L = (unit(i_LBD) * unit(c_LBD)).sum(-1).mean(-1)
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
            "cosine": cosine_L,
            "centered_cosine": (i_LBD * c_LBD).sum(-1).mean(-1),
            "caption_retrieval": (best_own_LB > best_other_LB).to(dtype).mean(-1),
        }
