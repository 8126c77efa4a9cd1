"""Keep a frozen vision tower's features, so that it runs once per picture and not once per step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration

# Shape legend: B pictures, T vision tokens, D vision channels.

BATCH = 256
"""Pictures in a forward pass of the tower."""


class _FeatureTower(nn.Module):
    """Stands where the vision tower stood and hands on features already computed."""

    def forward(self, pixel_values: Tensor, **_: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        return BaseModelOutputWithPooling(hidden_states=_EveryLayer((pixel_values,)))


class _EveryLayer(tuple[Tensor]):
    """A tuple that holds the one layer the features come from, whatever its index."""

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(0)


class VisionCache:
    """Features of pictures by path; called with paths, it gives what the model takes of them.

    Attributes:
        features_BTD: The features, in the order in which the pictures were added.
    """

    def __init__(self, paths: list[Path], features_BTD: Tensor) -> None:
        self._index: dict[Path, int] = {}
        self.features_BTD = features_BTD[:0]
        self.add(paths, features_BTD)

    def add(self, paths: list[Path], features_BTD: Tensor) -> None:
        """Add features under paths that need not be files."""
        self._index |= {path: len(self._index) + number for number, path in enumerate(paths)}
        self.features_BTD = torch.cat([self.features_BTD, features_BTD])

    def __call__(self, paths: list[Path]) -> Tensor:
        """Features (B, T, D) of pictures, to be passed as ``pixel_values``."""
        return self.features_BTD[[self._index[path] for path in paths]]


@contextmanager
def cached_vision(
    model: LlavaForConditionalGeneration,
    images: list[Path],
    load_pixels: Callable[[list[Path]], Tensor],
) -> Iterator[VisionCache]:
    """Run the vision tower over all pictures and replace it by the result while in the context.

    The root forward of the model stays the stock one; only what it is given as ``pixel_values``
    changes. The vision tower must be frozen.

    Args:
        model: The LLaVA.
        images: Every picture that will be asked for.
        load_pixels: Reads and processes pictures.

    Yields:
        The features of the pictures.
    """
    layer = model.config.vision_feature_layer
    assert isinstance(layer, int), "several vision feature layers cannot be cached"
    tower = model.model.vision_tower
    unique = list(dict.fromkeys(images))
    parts = []
    with torch.no_grad():
        for start in range(0, len(unique), BATCH):
            pixels = load_pixels(unique[start : start + BATCH]).to(model.device)
            parts.append(tower(pixels, output_hidden_states=True).hidden_states[layer].cpu())
    model.model.vision_tower = _FeatureTower()
    try:
        yield VisionCache(unique, torch.cat(parts) if parts else torch.empty(0))
    finally:
        model.model.vision_tower = tower
