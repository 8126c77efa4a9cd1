"""Train the lab's vision encoder: a small stock CLIP on pictures and their captions.

The vision tower goes into the LLaVA; both towers together are the retriever.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor

from tgalign.lab.language import scene_caption
from tgalign.lab.objects import Style, Thing, picture_pool
from tgalign.lab.pictures import SIZE, draw, sample_scene
from tgalign.lab.precision import fast_products
from tgalign.retrieval.exact import text_inputs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL.Image import Image
    from transformers import CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast

# Shape legend: B rows, T tokens, P patches, D channels, K things.

PATCH = 18
STEPS = 4_500
BATCH_SIZE = 192
LEARNING_RATE = 1.5e-3
ICON_SHARE = 0.35
"""Share of the pictures drawn as icons: a CLIP has seen more styles than alignment data has."""


def new_clip(tokenizer: PreTrainedTokenizerFast) -> CLIPModel:
    """A fresh CLIP of the lab's size: 4 × 4 patches, five vision and two text layers."""
    from transformers import CLIPConfig, CLIPModel

    model: CLIPModel = CLIPModel._from_config(
        CLIPConfig(
            vision_config={
                "hidden_size": 192,
                "intermediate_size": 576,
                "num_hidden_layers": 5,
                "num_attention_heads": 6,
                "image_size": SIZE,
                "patch_size": PATCH,
            },
            text_config={
                "vocab_size": len(tokenizer),
                "hidden_size": 128,
                "intermediate_size": 384,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "max_position_embeddings": 64,
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
            },
            projection_dim=128,
        ),
        attn_implementation="eager",
    )
    return model


def image_processor() -> CLIPImageProcessor:
    """The lab's image processor: pictures are already square, so only scaled and normalised."""
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.25, 0.25, 0.25],
    )


def to_pixels(pictures: list[Image]) -> Tensor:
    """What ``image_processor`` makes of pictures that have the lab's size already, only faster.

    Returns:
        Float tensor (B, 3, ``SIZE``, ``SIZE``).
    """
    import numpy as np

    stacked = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
    return (stacked.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25


def train_clip(
    tokenizer: PreTrainedTokenizerFast, seed: int
) -> Iterator[tuple[int, float, CLIPModel]]:
    """Train the CLIP with its contrastive loss plus a linear naming head on the patches.

    The head (dropped afterwards) names a thing from each patch state that the LLaVA will read (the
    last layer but one); what counts is the share of patches that name a thing shown. So these
    states, and not only the CLS token, carry what the picture shows.

    Args:
        tokenizer: The lab's tokenizer.
        seed: Seed of weights and pictures.

    Yields:
        The number of finished steps, the loss of the last one, and the model itself.
    """
    torch.manual_seed(seed)
    rng = random.Random(f"base-clip-{seed}")
    pools: dict[Style, list[Thing]] = {}
    for style in get_args(Style):
        pool = picture_pool("all", style)
        pools[style] = [*pool.benign, *pool.toxic]
    index = {thing: number for number, thing in enumerate(pools["emoji"])}
    model = new_clip(tokenizer)
    head = torch.nn.Linear(model.vision_embed_dim, len(index))
    weights = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(weights, LEARNING_RATE, (0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, STEPS, pct_start=0.1, cycle_momentum=False
    )
    for step in range(STEPS):
        styles: list[Style] = [
            "icons" if rng.random() < ICON_SHARE else "emoji" for _ in range(BATCH_SIZE)
        ]
        scenes = [sample_scene(pools[style], rng) for style in styles]
        pixels = to_pixels(
            [
                draw(scene, rng, ordered=False, style=style)
                for scene, style in zip(scenes, styles, strict=True)
            ]
        )
        texts = text_inputs(tokenizer, [scene_caption(scene, rng) for scene in scenes])
        shown_BK = torch.zeros(BATCH_SIZE, len(index))
        for row, scene in enumerate(scenes):
            shown_BK[row, [index[thing] for thing in scene.things]] = 1
        with fast_products():
            vision = model.vision_model(pixel_values=pixels, output_hidden_states=True)
            image_BD = model.visual_projection(vision.pooler_output)
            text_BD = model.get_text_features(**texts).pooler_output
            named_BPK = head(vision.hidden_states[-2][:, 1:])
        image_BD = torch.nn.functional.normalize(image_BD.float(), dim=-1)
        text_BD = torch.nn.functional.normalize(text_BD.float(), dim=-1)
        logits_BB = model.logit_scale.exp() * image_BD @ text_BD.T
        target_B = torch.arange(BATCH_SIZE)
        contrastive = 0.5 * (
            torch.nn.functional.cross_entropy(logits_BB, target_B)
            + torch.nn.functional.cross_entropy(logits_BB.T, target_B)
        )
        share_BK = torch.softmax(named_BPK.float(), dim=-1).mean(dim=1).clamp_min(1e-6)
        naming = -(shown_BK * share_BK.log()).sum(dim=-1) / shown_BK.sum(dim=-1)
        loss = contrastive + naming.mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        with torch.no_grad():
            model.logit_scale.clamp_(max=4.6)
        yield step + 1, loss.item(), model
