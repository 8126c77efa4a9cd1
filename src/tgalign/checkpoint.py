"""Stock LLaVA checkpoints: loading with clear errors, saving complete or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tgalign.data.records import IMAGE_TOKEN
from tgalign.errors import UserError
from tgalign.files import INCOMPLETE

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlavaForConditionalGeneration, ProcessorMixin


def load_llava(
    path: Path, *, dtype: Literal["float32", "auto"] = "float32"
) -> tuple[LlavaForConditionalGeneration, ProcessorMixin]:
    """Load a stock LLaVA checkpoint and its processor, offline, safetensors only.

    Args:
        path: Its folder.
        dtype: Of the weights; ``auto``: as they are stored.

    Raises:
        UserError: There is no checkpoint, or it is not a LLaVA.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoProcessor, LlavaForConditionalGeneration

    if not (path / "config.json").is_file():
        raise UserError(f"no checkpoint at {path}: expected a folder with config.json")
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True)
    except (ValueError, OSError) as fault:
        raise UserError(f"{path}/config.json cannot be read: {fault}") from None
    if config.model_type != "llava":
        raise UserError(
            f"{path} holds a {config.model_type!r} model; expected a 'llava' checkpoint "
            "(LlavaForConditionalGeneration), as compose makes from an LLM and a vision encoder"
        )
    try:
        loaded: Any = LlavaForConditionalGeneration.from_pretrained(
            path,
            local_files_only=True,
            use_safetensors=True,
            dtype=dtype,
            output_loading_info=True,
        )
        processor = AutoProcessor.from_pretrained(path, local_files_only=True)
    except (ValueError, OSError, RuntimeError, SafetensorError) as fault:
        raise UserError(f"the checkpoint at {path} cannot be loaded: {fault}") from None
    model, info = loaded
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise UserError(
            f"the checkpoint at {path} lacks {len(missing)} weight(s), which would be random: "
            f"{', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}"
        )
    if getattr(processor, "chat_template", None) is None:
        raise UserError(f"the processor at {path} has no chat template, so no prompt can be made")
    if processor.tokenizer.chat_template is None:  # older checkpoints keep it in the processor
        processor.tokenizer.chat_template = processor.chat_template
    image_id = processor.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    if image_id != model.config.image_token_id:
        raise UserError(
            f"the tokenizer at {path} gives {IMAGE_TOKEN} the id {image_id}, and config.json says "
            f"{model.config.image_token_id}: make them the same"
        )
    return model, processor


def save_checkpoint(model: Any, processor: Any, path: Path) -> None:
    """Save model and processor beside ``path`` and move them there in one step."""
    beside = path.with_name(path.name + INCOMPLETE)
    shutil.rmtree(beside, ignore_errors=True)
    model.save_pretrained(beside)
    processor.save_pretrained(beside)
    beside.replace(path)


def pixel_loader(processor: Any) -> Callable[[list[Path]], Tensor]:
    """A function that reads pictures and makes the tower's input of them, (B, 3, H, W)."""
    from PIL import Image

    def load(paths: list[Path]) -> Tensor:
        pictures = []
        for path in paths:
            with Image.open(path) as picture:
                pictures.append(picture.convert("RGB"))
        pixels: Tensor = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
        return pixels

    return load
