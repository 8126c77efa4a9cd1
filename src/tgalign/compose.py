"""Compose a causal LM and a vision encoder into a stock LLaVA checkpoint.

The gate: with text alone, the composed model gives the logits of the language model it was made
from. What stock LLaVA cannot carry is refused, never composed wrongly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tgalign.data.records import IMAGE_TOKEN
from tgalign.errors import UserError

if TYPE_CHECKING:
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionModel,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedModel,
        PreTrainedTokenizerBase,
    )

# Shape legend: B rows, T tokens, V vocabulary, D channels.

LOGIT_TOLERANCE = 1e-4


def compose(
    llm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    vision: CLIPVisionModel,
    image_processor: CLIPImageProcessor,
    *,
    seed: int = 0,
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Compose a LLaVA whose language model behaves on text as before.

    The projector is fresh; its output is scaled to the RMS of the word embeddings, so that the
    first gradients are of a sane size. Features are the vision encoder's last layer but one
    without CLS, as in LLaVA-1.5.

    Args:
        llm: A causal language model (fp32).
        tokenizer: Its tokenizer, with a chat template that knows image items; ``<image>`` must be
            one special token.
        vision: A CLIP vision encoder.
        image_processor: Its image processor.
        seed: Seed of the projector.

    Returns:
        The model and its processor.

    Raises:
        UserError: ``<image>`` is not one token or has no embedding, there is no chat template, or
            the composed model's text-only logits differ from the language model's.
    """
    from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    image_ids = tokenizer.encode(IMAGE_TOKEN, add_special_tokens=False)
    if len(image_ids) != 1:
        raise UserError(
            f"the tokenizer splits {IMAGE_TOKEN} into {len(image_ids)} tokens; add it as a special "
            "token first"
        )
    embeddings: Any = llm.get_input_embeddings()
    if image_ids[0] >= embeddings.num_embeddings:
        raise UserError(
            f"{IMAGE_TOKEN} has id {image_ids[0]}, and the language model has only "
            f"{embeddings.num_embeddings} embeddings: grow them with resize_token_embeddings first"
        )
    if tokenizer.chat_template is None:
        raise UserError("the tokenizer has no chat template; refusals live behind one, so set it")
    encoder: Any = vision.config
    patch = encoder.patch_size
    image_seq_length = (encoder.image_size // patch) ** 2
    torch.manual_seed(seed)
    config = LlavaConfig(
        text_config=llm.config.to_dict(),
        vision_config=encoder.to_dict(),
        image_token_index=image_ids[0],
        image_seq_length=image_seq_length,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    model = LlavaForConditionalGeneration(config).eval()
    model.model.language_model.load_state_dict(llm.get_decoder().state_dict())
    model.lm_head.load_state_dict(llm.get_output_embeddings().state_dict(), strict=False)
    model.model.vision_tower.load_state_dict(vision.state_dict())
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    check_text_logits(model, llm)
    scale_projector(model, seed)
    processor = LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )
    return model, processor


@torch.no_grad()
def check_text_logits(model: LlavaForConditionalGeneration, llm: PreTrainedModel) -> float:
    """Compare the text-only logits of a LLaVA and of the language model it was made from.

    Returns:
        The largest absolute difference.

    Raises:
        UserError: It exceeds ``LOGIT_TOLERANCE``.
    """
    vocabulary = llm.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(vocabulary, (4, 16), generator=generator)
    ids_BT[ids_BT == model.config.image_token_id] = 0
    ours_BTV = model(input_ids=ids_BT).logits.float()
    theirs_BTV = llm.eval()(input_ids=ids_BT).logits.float()
    worst = float((ours_BTV - theirs_BTV).abs().max())
    if worst > LOGIT_TOLERANCE:
        raise UserError(
            f"the composed model's text-only logits differ from the language model's by {worst:.2g}"
            f" (allowed: {LOGIT_TOLERANCE:g}): stock LLaVA cannot carry this "
            f"{llm.config.model_type!r} model (a head bias, soft-capping or logit scaling is lost)"
        )
    return worst


@torch.no_grad()
def scale_projector(model: LlavaForConditionalGeneration, seed: int) -> None:
    """Scale the projector's last layer so that its output has the RMS of the word embeddings."""
    vision: Any = model.config.vision_config
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(8, 3, vision.image_size, vision.image_size, generator=generator)
    images: Any = model.get_image_features(pixels)
    features = torch.stack(list(images.pooler_output))
    embeddings: Any = model.get_input_embeddings()
    target = embeddings.weight.float().pow(2).mean().sqrt()
    factor = target / features.float().pow(2).mean().sqrt()
    last: Any = model.model.multi_modal_projector.linear_2
    last.weight.mul_(factor)
    if last.bias is not None:
        last.bias.mul_(factor)
