"""Stock LLaVA checkpoints: loading with clear errors, saving complete or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tgalign.data.pictures import read_picture
from tgalign.data.records import IMAGE_TOKEN
from tgalign.errors import UserError
from tgalign.files import folder_at_once

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlavaConfig, LlavaForConditionalGeneration, ProcessorMixin


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
    import torch
    from transformers import LlavaForConditionalGeneration

    processor, _ = load_processor(path)
    kind = torch.float32 if dtype == "float32" else dtype
    return _load_model(path, LlavaForConditionalGeneration, kind), processor


def load_processor(path: Path) -> tuple[ProcessorMixin, LlavaConfig]:
    """Load all of a stock LLaVA checkpoint but its weights, offline.

    Raises:
        UserError: There is no checkpoint, or it is not a LLaVA.
    """
    config = load_config(path)
    processor: Any = _load_any_processor(path)
    if getattr(processor, "chat_template", None) is None:
        raise UserError(f"the processor at {path} has no chat template, so no prompt can be made")
    if processor.tokenizer.chat_template is None:  # older checkpoints keep it in the processor
        processor.tokenizer.chat_template = processor.chat_template
    image_id = processor.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    if image_id != config.image_token_id:
        raise UserError(
            f"the tokenizer at {path} gives {IMAGE_TOKEN} the id {image_id}, and config.json says "
            f"{config.image_token_id}: make them the same"
        )
    return processor, config


def load_config(path: Path) -> LlavaConfig:
    """Read the config of a stock LLaVA checkpoint, offline.

    Raises:
        UserError: There is no checkpoint, or it is not a LLaVA.
    """
    config = load_any_config(path)
    if config.model_type != "llava":
        raise UserError(
            f"{path} holds a {config.model_type!r} model; expected a 'llava' checkpoint "
            "(LlavaForConditionalGeneration), as compose makes from an LLM and a vision encoder"
        )
    loaded: LlavaConfig = config
    return loaded


def load_lvlm(path: Path) -> tuple[Any, Any]:
    """Load any image-text-to-text checkpoint in its own dtype, and its processor, offline.

    It is moved to the accelerator, if there is one.

    Raises:
        UserError: There is no checkpoint, or it holds another kind of model.
    """
    import torch
    from transformers import AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    kind = load_any_config(path).model_type
    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise UserError(
            f"{path} holds a {kind!r} model; expected one that reads pictures and words, such as "
            "llava, qwen2_5_vl or gemma3 (AutoModelForImageTextToText)"
        )
    processor = _load_any_processor(path)
    model = _load_model(path, AutoModelForImageTextToText, "auto")
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    return model.eval(), processor


def load_any_config(path: Path) -> Any:
    """Read the config of any checkpoint in a stock format, offline.

    Raises:
        UserError: There is none, or transformers cannot read it, or it is that of a training run.
    """
    from transformers import AutoConfig

    if not (path / "config.json").is_file():
        raise UserError(f"no checkpoint at {path}: expected a folder with config.json")
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True)
    except (ValueError, OSError) as fault:
        if (path / "checkpoint/config.json").is_file():
            raise UserError(
                f"{path} is a training run: its checkpoint is {path / 'checkpoint'}"
            ) from None
        raise UserError(
            f"{path}/config.json cannot be read: {fault} "
            "(if this is a training run, it has no checkpoint yet)"
        ) from None


def _load_any_processor(path: Path) -> Any:
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(path, local_files_only=True)
    except (ValueError, OSError, ImportError) as fault:
        raise UserError(f"the processor at {path} cannot be loaded: {fault}") from None


def _load_model(path: Path, model_class: Any, dtype: Any) -> Any:
    """The weights, safetensors only; none may be missing."""
    from safetensors import SafetensorError

    try:
        model, info = model_class.from_pretrained(
            path,
            local_files_only=True,
            use_safetensors=True,
            dtype=dtype,
            output_loading_info=True,
        )
    except (ValueError, OSError, RuntimeError, ImportError, SafetensorError) as fault:
        # transformers adds the names of all model classes it knows
        reason = str(fault).split("Model type should be one of")[0].strip()
        raise UserError(f"the checkpoint at {path} cannot be loaded: {reason}") from None
    require_weights(f"the checkpoint at {path}", info["missing_keys"])
    return model


def require_weights(what: str, missing: Iterable[str]) -> None:
    """Refuse a model some of whose weights would be random.

    Raises:
        UserError: It lacks some.
    """
    names = sorted(missing)
    if names:
        raise UserError(
            f"{what} lacks {len(names)} weight(s), which would be random: "
            f"{', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
        )


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
