"""Stock LLaVA checkpoints: loading with clear errors, saving complete or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tgalign.data.pictures import read_picture
from tgalign.data.records import IMAGE_TOKEN
from tgalign.errors import UserError
from tgalign.files import folder_at_once
from tgalign.pretrained import read_config, read_model, read_part

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlavaConfig, LlavaForConditionalGeneration, ProcessorMixin


def load_llava(
    path: Path, *, dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
) -> tuple[LlavaForConditionalGeneration, ProcessorMixin]:
    """Load a stock LLaVA checkpoint and its processor, offline, safetensors only.

    Args:
        path: Its folder.
        dtype: Of the weights; ``auto``: as they are stored.

    Raises:
        UserError: There is no checkpoint, or it is not a LLaVA.
    """
    from transformers import LlavaForConditionalGeneration

    processor, _ = load_processor(path)
    return read_model(LlavaForConditionalGeneration, path, dtype=dtype), processor


def load_processor(path: Path) -> tuple[ProcessorMixin, LlavaConfig]:
    """Load all of a stock LLaVA checkpoint but its weights, offline.

    Raises:
        UserError: There is no checkpoint, or it is not a LLaVA.
    """
    config = load_config(path)
    processor = load_chat_processor(path)
    if processor.tokenizer.chat_template is None:  # older checkpoints keep it in the processor
        processor.tokenizer.chat_template = processor.chat_template
    image_id = processor.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    if image_id != config.image_token_id:
        raise UserError(
            f"the tokenizer at {path} gives {IMAGE_TOKEN} the id {image_id}, and config.json says "
            f"{config.image_token_id}: make them the same"
        )
    return processor, config


def load_chat_processor(path: Path) -> Any:
    """Load the processor of any image-text model, offline.

    Raises:
        UserError: There is none, or it makes no prompts.
    """
    from transformers import AutoProcessor

    processor = read_part(AutoProcessor, path, "processor")
    if getattr(processor, "chat_template", None) is None:
        raise UserError(f"the processor at {path} has no chat template, so no prompt can be made")
    return processor


def load_config(path: Path) -> LlavaConfig:
    """Read the config of a stock LLaVA checkpoint, offline.

    Raises:
        UserError: There is no checkpoint, or it is not a LLaVA.
    """
    config = read_config(path)
    if config.model_type != "llava":
        raise UserError(
            f"{path} holds a {config.model_type!r} model; expected a 'llava' checkpoint "
            "(LlavaForConditionalGeneration), as compose makes from an LLM and a vision encoder"
        )
    loaded: LlavaConfig = config
    return loaded


def lvlm_kind(path: Path) -> str:
    """The model type of an image-text-to-text checkpoint, as its config says it.

    Raises:
        UserError: There is no checkpoint, or it holds another kind of model.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    kind: str = read_config(path).model_type
    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise UserError(
            f"{path} holds a {kind!r} model; expected one that reads pictures and words, such as "
            "llava, qwen2_5_vl or gemma3 (AutoModelForImageTextToText)"
        )
    return kind


def load_lvlm(path: Path) -> tuple[Any, Any]:
    """Load any image-text-to-text checkpoint in its own dtype, and its processor, offline.

    It is moved to the accelerator, if there is one.

    Raises:
        UserError: There is no checkpoint, or it holds another kind of model.
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    lvlm_kind(path)
    processor = read_part(AutoProcessor, path, "processor")
    model = read_model(AutoModelForImageTextToText, path, dtype="auto")
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    return model, processor


def save_checkpoint(model: Any, processor: Any, path: Path) -> None:
    """Save model and processor beside ``path`` and move them there in one step."""
    with folder_at_once(path) as beside:
        model.save_pretrained(beside)
        processor.save_pretrained(beside)


def pixel_loader(processor: Any) -> Callable[[list[Path]], Tensor]:
    """A function that reads pictures and makes the tower's input of them, (B, 3, H, W)."""

    def load(paths: list[Path]) -> Tensor:
        pictures = [read_picture(path) for path in paths]
        pixels: Tensor = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
        return pixels

    return load
