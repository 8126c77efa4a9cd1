"""The projector of a LLaVA before training: drawn from a seed, scaled to the word embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration

# Shape legend: V vocabulary.


def reset_projector(model: LlavaForConditionalGeneration, seed: int) -> None:
    """Draw a new projector; the state of torch's own generator stays as it was."""
    kind: Any = type(model.model.multi_modal_projector)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.model.multi_modal_projector = kind(model.config).to(model.dtype)


@torch.no_grad()
def scale_projector(model: LlavaForConditionalGeneration, seed: int, size: int) -> None:
    """Scale the projector's last layer so that its output has the RMS of the word embeddings.

    Args:
        model: The model, its vision tower loaded.
        seed: Seed of the noise pictures that are looked at.
        size: Their side in pixels.
    """
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(8, 3, size, size, generator=generator).to(model.dtype)
    images: Any = model.get_image_features(pixels)
    features = torch.stack(list(images.pooler_output)).float()
    assert features.shape[1] == model.config.image_seq_length
    embeddings: Any = model.get_input_embeddings()
    total = torch.zeros(())
    for ids_V in torch.arange(embeddings.num_embeddings).split(8192):
        total += embeddings(ids_V).float().pow(2).sum()  # as they enter: Gemma scales its own
    target = (total / embeddings.weight.numel()).sqrt()
    factor = target / features.pow(2).mean().sqrt()
    last: Any = model.model.multi_modal_projector.linear_2
    last.weight.mul_(factor)
    if last.bias is not None:
        last.bias.mul_(factor)
