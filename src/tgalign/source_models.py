"""Load other people's models from folders: safetensors only, with clear errors."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from tgalign.checkpoint import require_weights
from tgalign.errors import UserError

PICKLED = (".bin", ".pt", ".pth", ".ckpt")


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

    config = _config(path, "language model", trust_remote_code)
    model = _load(
        AutoModelForCausalLM,
        path,
        config=config,
        dtype=_dtype(dtype),
        trust_remote_code=trust_remote_code,
    )
    return model, _processor(AutoTokenizer, path, "tokenizer", trust_remote_code)


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

    config = _config(path, "vision encoder", trust_remote_code)
    if config.model_type.startswith("siglip2"):
        raise UserError(
            f"{path} is a SigLIP 2 of variable resolution (NaFlex), whose patch grids stock LLaVA "
            "cannot hand on: give one of fixed resolution (config.json: model_type siglip)"
        )
    model = _load(AutoModel, path, config=config, dtype=dtype, trust_remote_code=trust_remote_code)
    with init_empty_weights():
        expected = type(AutoModel.from_config(getattr(config, "vision_config", config)))
    parts = (model, getattr(model, "vision_model", None))
    tower = next((part for part in parts if type(part) is expected), None)
    if tower is None:
        raise UserError(f"{path} holds a {config.model_type!r} model with no vision encoder in it")
    return tower, _processor(AutoImageProcessor, path, "image processor", trust_remote_code)


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
    model = _load(AutoModelForImageTextToText, path, config=config, dtype=_dtype(dtype))
    processor = _processor(AutoProcessor, path, "processor", trust_remote_code=False)
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
    return _config(path, "image-text-to-text model", trust_remote_code=False)


def _dtype(name: str) -> Any:
    return name if name == "auto" else getattr(torch, name)


def _config(path: Path, what: str, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    if not (path / "config.json").is_file():
        raise UserError(
            f"no {what} at {path}: expected a folder with config.json (nothing is downloaded)"
        )
    if not any(path.glob("*.safetensors")):
        pickled = sorted(it.name for it in path.iterdir() if it.suffix in PICKLED)
        found = (
            f"only {pickled[0]}, a pickle, which runs code when read" if pickled else "no weights"
        )
        raise UserError(
            f"the {what} at {path} has {found}; expected safetensors: where you trust it, load it "
            "with transformers and save_pretrained it to another folder"
        )
    if trust_remote_code:
        named = ", ".join(sorted(it.name for it in path.glob("*.py"))) or "none is there"
        logging.getLogger(__name__).warning(
            "--trust-remote-code: code in %s may run with all your rights (%s)", path, named
        )
    config = _call(AutoConfig, path, trust_remote_code=trust_remote_code)
    if getattr(config, "quantization_config", None):
        raise UserError(f"the {what} at {path} is quantised; give its unquantised checkpoint")
    return config


def _load(auto: Any, path: Path, **options: Any) -> Any:
    model, info = _call(auto, path, use_safetensors=True, output_loading_info=True, **options)
    missing = (name for name in info["missing_keys"] if "pooler" not in name)
    require_weights(f"the checkpoint at {path}", missing)
    return model.eval()


def _processor(auto: Any, path: Path, what: str, trust_remote_code: bool) -> Any:
    try:
        return _call(auto, path, trust_remote_code=trust_remote_code)
    except UserError as fault:
        raise UserError(f"no {what} beside the model: {fault}") from None


def _call(auto: Any, path: Path, **options: Any) -> Any:
    try:
        return auto.from_pretrained(path, local_files_only=True, **options)
    except Exception as fault:  # what others' files make of transformers is past listing
        if "Unrecognized configuration class" in str(fault) and "config" in options:
            kind = options["config"].model_type
            raise UserError(
                f"{path} holds a {kind!r} model, which {auto.__name__} does not load: is this the "
                "folder that was meant?"
            ) from fault
        hint = "; --trust-remote-code runs it" if "trust_remote_code" in str(fault) else ""
        raise UserError(f"{path} cannot be loaded: {fault}{hint}") from fault
