"""Patch layout: how a vision encoder's tokens lie, found by changing patches of a picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tgalign.errors import UserError

# Shape legend: B pictures, T vision tokens, D vision channels.


@dataclass(frozen=True)
class PatchLayout:
    """What LLaVA and its processor have to know of a vision encoder.

    Attributes:
        size: Side of the square pictures that the image processor makes, in pixels.
        patch: Side of a patch.
        extra: Tokens before those of the patches: CLS, registers.
        layer: Index of the hidden state that LLaVA takes as features, counted from the end.
    """

    size: int
    patch: int
    extra: int
    layer: int

    @property
    def strategy(self) -> Literal["default", "full"]:
        """LLaVA's feature selection: ``default`` drops the first token, ``full`` none."""
        return "default" if self.extra else "full"

    @property
    def image_seq_length(self) -> int:
        """Image tokens of a picture; registers, of which LLaVA drops none, are among them."""
        return (self.size // self.patch) ** 2 + max(self.extra - 1, 0)


@torch.no_grad()
def patch_layout(vision: Any, image_processor: Any, layer: int) -> PatchLayout:
    """Find how an encoder's tokens lie: extra tokens first, then the patches row by row.

    Args:
        vision: A vision encoder with ``hidden_states``.
        image_processor: Its image processor.
        layer: Index of the hidden state that LLaVA takes as features, from the end.

    Raises:
        UserError: The tokens do not lie so, the pictures are not square and of one size, or the
            encoder wants more than pixels.
    """
    kind = vision.config.model_type
    size = _picture_size(image_processor)
    patch: Any = getattr(vision.config, "patch_size", None)
    if isinstance(patch, (list, tuple)) and len(set(patch)) == 1:
        patch = patch[0]
    if not isinstance(patch, int) or not hasattr(vision.config, "hidden_size"):
        raise UserError(f"the {kind!r} encoder has no square patches: give a ViT, such as CLIP's")
    if layer > -1 or -layer > vision.config.num_hidden_layers + 1:
        raise UserError(
            f"vision_feature_layer is {layer}; expected -1 (the last of the encoder's "
            f"{vision.config.num_hidden_layers} layers), -2 (as LLaVA-1.5) or less"
        )
    pixels = torch.zeros(4, 3, size, size, dtype=vision.dtype)
    along = (size // patch - 1) * patch
    for number, (top, left) in enumerate(((0, 0), (0, patch), (along, along)), start=1):
        pixels[number, :, top : top + patch, left : left + patch] = 3
    try:
        states = vision.eval()(pixels, output_hidden_states=True, return_dict=True).hidden_states
    except Exception as fault:  # encoders refuse another size or input in any way
        raise UserError(
            f"the {kind!r} encoder cannot read {size}×{size} pixels alone, as its image processor "
            f"makes and stock LLaVA hands on: {fault}"
        ) from fault
    embedded_BTD: Tensor = states[0]
    tokens = embedded_BTD.shape[1]
    extra = tokens - (size // patch) ** 2
    changed = [_changed(embedded_BTD[0], state_TD) for state_TD in embedded_BTD[1:]]
    if changed != [[extra], [extra + 1], [tokens - 1]] or states[layer].shape[:2] != (4, tokens):
        raise UserError(
            f"the {kind!r} encoder does not give one token per patch, row by row after the extra "
            "ones: stock LLaVA cannot tell which token is which (give a CLIP, SigLIP or DINOv2)"
        )
    return PatchLayout(size, patch, extra, layer)


def _changed(before_TD: Tensor, after_TD: Tensor) -> list[int]:
    moved_T = (after_TD - before_TD).abs().amax(dim=-1)
    return moved_T.gt(1e-3 * moved_T.max()).nonzero().flatten().tolist()


def _picture_size(image_processor: Any) -> int:
    """The side of what an image processor makes of pictures of any shape."""
    from PIL import Image

    pictures = [Image.new("RGB", shape) for shape in ((64, 64), (96, 64), (64, 96))]
    shapes = {
        tuple(image_processor(picture, return_tensors="pt")["pixel_values"].shape)
        for picture in pictures
    }
    (_, *rest), *others = shapes
    if others or len(rest) != 3 or rest[0] != 3 or rest[1] != rest[2]:
        raise UserError(
            f"the image processor makes {sorted(shapes)} of pictures of three shapes; expected "
            "squares of one size: give an encoder of fixed resolution, or pad pictures to squares"
        )
    return int(rest[1])


def square_pad_processor(image_processor: Any) -> Any:
    """LLaVA's own image processor with another's size, mean and scale: it pads to a square first.

    Args:
        image_processor: The encoder's own.

    Raises:
        UserError: It does not say how it resizes and normalises.
    """
    from PIL import Image
    from transformers import LlavaImageProcessor

    pixels = image_processor(Image.new("RGB", (64, 64)), return_tensors="pt")["pixel_values"]
    size = pixels.shape[-1]
    try:
        kept = {
            name: getattr(image_processor, name)
            for name in (
                *("image_mean", "image_std", "resample", "rescale_factor"),
                *("do_rescale", "do_normalize"),
            )
        }
    except AttributeError as fault:
        raise UserError(
            f"{type(image_processor).__name__} cannot pad to a square ({fault}): compose without "
            "square_pad"
        ) from None
    return LlavaImageProcessor(
        do_pad=True,
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        **kept,
    )
