"""What the answer position attends to: toxic words of a caption, toxic patches of a picture.

Layer by layer through hooks: one layer's attention map exists at a time, and only its last line is
kept.

Shape suffixes: L decoder layers, H heads, B prompts, T tokens, P image tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from tgalign.diagnose.anatomy import Anatomy
from tgalign.diagnose.prompts import Prompts
from tgalign.errors import UserError

Box = tuple[float, float, float, float]
"""Left, top, right and bottom as shares of a picture's width and height."""

Grid = tuple[int, int]
"""Rows and columns of a picture's tokens."""


@torch.no_grad()
def answer_attention(model: Any, parts: Anatomy, prompts: Prompts) -> Tensor:
    """Attention of the answer position to every token, (L, H, B, T), float32.

    To be called within ``eager_attention``.

    Raises:
        UserError: A layer has no self-attention that shows its weights.
    """
    rows_B = torch.arange(len(prompts.last_B), device=prompts.last_B.device)
    lines: list[Tensor] = []

    def keep(_: Any, __: Any, output: Any) -> None:
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if not isinstance(weights, Tensor) or weights.ndim != 4:
            raise UserError(f"the attention of a {type(model).__name__} does not show its weights")
        lines.append(weights[rows_B, :, prompts.last_B].transpose(0, 1).float().cpu())

    with ExitStack() as hooks:
        for layer in parts.layers:
            attention = getattr(layer, "self_attn", None)
            if attention is None:
                raise UserError(f"a layer of a {type(model).__name__} has no self-attention")
            hooks.callback(attention.register_forward_hook(keep).remove)
        model.base_model(**prompts.inputs, use_cache=False)
    return torch.stack(lines)


@contextmanager
def eager_attention(model: Any) -> Iterator[None]:
    """Let the model compute its attention maps explicitly; afterwards as it was."""
    configs = {
        "": model.config,
        **{name: getattr(model.config, name) for name in model.config.sub_configs},
    }
    before = {name: config._attn_implementation for name, config in configs.items() if config}
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def token_grid(processor: Any, prompts: Prompts) -> list[Grid | None]:
    """How a picture's tokens lie on the picture, row by row of a batch; None where it is not known.

    Known are the grids of the Qwen family, which come with the inputs, and square ones of pictures
    that are read whole. A picture cut into tiles has no single grid.
    """
    counts = prompts.span_BT.sum(dim=1).tolist()
    thw = prompts.inputs.get("image_grid_thw")
    if thw is not None:
        merge = processor.image_processor.merge_size
        return [(h // merge, w // merge) if t == 1 else None for t, h, w in thw.tolist()]
    pixels = prompts.inputs["pixel_values"]
    whole = pixels.shape[0] == len(counts) and (pixels.ndim == 4 or pixels.shape[1] == 1)
    sides = [round(count**0.5) for count in counts]
    return [
        (side, side) if whole and side * side == count else None
        for side, count in zip(sides, counts, strict=True)
    ]


def patches_in(box: Box, grid: Grid) -> Tensor:
    """The tokens whose centre lies in a box, bool of shape (P,); at least the nearest one."""
    rows, columns = grid
    y_P = ((torch.arange(rows) + 0.5) / rows).repeat_interleave(columns)
    x_P = ((torch.arange(columns) + 0.5) / columns).repeat(rows)
    left, top, right, bottom = box
    inside_P = (x_P >= left) & (x_P <= right) & (y_P >= top) & (y_P <= bottom)
    if not inside_P.any():
        far_P = (x_P - (left + right) / 2) ** 2 + (y_P - (top + bottom) / 2) ** 2
        inside_P[far_P.argmin()] = True
    return inside_P


def centred(box: Box, size: tuple[int, int]) -> Box:
    """A box in the square that is cut from the middle of a picture, as CLIP's processor does."""
    width, height = size
    side = min(width, height)
    x0, y0 = (width - side) / 2, (height - side) / 2
    left, right = ((at * width - x0) / side for at in (box[0], box[2]))
    top, bottom = ((at * height - y0) / side for at in (box[1], box[3]))
    return (left, top, right, bottom)


def mass(line_LHBT: Tensor, target_BT: Tensor, span_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Attention to the target tokens, and its density against the rest of the span.

    Args:
        line_LHBT: Attention of the answer position.
        target_BT: Bool, the toxic tokens; within the span.
        span_BT: Bool, all tokens of the caption or the image.

    Returns:
        The share of all attention that goes to the target, (L, H, B); and that share over the
        span's, divided by the target's share of the span's tokens: 1 where nothing is preferred.
    """
    target_LHB = (line_LHBT * target_BT).sum(-1)
    span_LHB = (line_LHBT * span_BT).sum(-1)
    size_B = target_BT.sum(-1) / span_BT.sum(-1)
    return target_LHB, target_LHB / span_LHB.clamp_min(1e-9) / size_B
