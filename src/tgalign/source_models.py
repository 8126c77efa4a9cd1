"""Load other people's models from folders: safetensors only, with clear errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tgalign.errors import UserError
from tgalign.pretrained import read_config, read_model, read_part

LLM, ENCODER, CAPTIONER = "language model", "vision encoder", "image-text-to-text model"


def load_llm(path: Path, dtype: str, trust_remote_code: bool) -> tuple[Any, Any]:
    """Load a causal language model and its tokenizer.

    Args:
        path: Their folder.
        dtype: ``"auto"`` (as saved) or the name of one.
        trust_remote_code: Whether code in the folder may run.

    Raises:
        UserError: There is none, it is pickled, quantised or lacks weights, or it needs code of its
            own.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = _config(path, LLM, trust_remote_code)
    model = _weights(AutoModelForCausalLM, path, LLM, trust_remote_code, config=config, dtype=dtype)
    return model, read_part(AutoTokenizer, path, "tokenizer", trust_remote_code=trust_remote_code)


def load_vision(path: Path, dtype: torch.dtype, trust_remote_code: bool) -> tuple[Any, Any]:
    """Load a vision encoder, alone or out of a CLIP or SigLIP, and its image processor.

    Args:
        path: Their folder.
        dtype: Of the weights.
        trust_remote_code: Whether code in the folder may run.

    Raises:
        UserError: As ``load_llm``, or it takes patches of any number in place of pictures.
    """
    from accelerate import init_empty_weights
    from transformers import AutoImageProcessor, AutoModel

    config = _config(path, ENCODER, trust_remote_code)
    if config.model_type.startswith("siglip2"):
        raise UserError(
            f"{path} is a SigLIP 2 of variable resolution (NaFlex), whose patch grids stock LLaVA "
            "cannot hand on: give one of fixed resolution (config.json: model_type siglip)"
        )
    model = _weights(AutoModel, path, ENCODER, trust_remote_code, config=config, dtype=dtype)
    with init_empty_weights():
        expected = type(AutoModel.from_config(getattr(config, "vision_config", config)))
    parts = (model, getattr(model, "vision_model", None))
    tower = next((part for part in parts if type(part) is expected), None)
    if tower is None:
        raise UserError(f"{path} holds a {config.model_type!r} model with no vision encoder in it")
    return tower, read_part(
        AutoImageProcessor, path, "image processor", trust_remote_code=trust_remote_code
    )


def load_captioner(path: Path, dtype: str) -> tuple[Any, Any]:
    """Load any image-text-to-text model and its processor.

    Args:
        path: Their folder.
        dtype: ``"auto"`` (as saved) or the name of one.

    Raises:
        UserError: As ``load_llm``.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    config = captioner_config(path)
    model = _weights(AutoModelForImageTextToText, path, CAPTIONER, config=config, dtype=dtype)
    processor = read_part(AutoProcessor, path, "processor")
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None or getattr(processor, "image_processor", None) is None:
        raise UserError(f"{path} has a {type(processor).__name__}; expected pictures and texts")
    processor.chat_template = processor.chat_template or tokenizer.chat_template
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, processor


def captioner_config(path: Path) -> Any:
    """The config of an image-text-to-text model.

    Raises:
        UserError: There is none, or it cannot be read.
    """
    return _config(path, CAPTIONER)


def _config(path: Path, what: str, trust_remote_code: bool | None = None) -> Any:
    config = read_config(path, what, trust_remote_code=trust_remote_code)
    if getattr(config, "quantization_config", None):
        raise UserError(f"the {what} at {path} is quantised; give its unquantised checkpoint")
    return config


def _weights(
    auto: Any, path: Path, what: str, trust_remote_code: bool | None = None, **options: Any
) -> Any:
    """The model; poolers, which nothing here reads, may be missing."""
    return read_model(
        auto, path, what, may_lack=lambda _, name: "pooler" in name,
        trust_remote_code=trust_remote_code, **options,
    )  # fmt: skip
