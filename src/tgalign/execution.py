"""How a model computes: precisions, attention, compiled layers, checkpointed activations."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import shutil
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from tgalign.config import TrainConfig
from tgalign.errors import UserError


def set_up(model: Any, config: TrainConfig) -> None:
    """Make a LLaVA compute as a config says, but for ``compile_layers``, which comes last.

    Raises:
        UserError: It is not to be had here, or not of this model.
    """
    if config.workers and "fork" not in multiprocessing.get_all_start_methods():
        raise UserError("workers are forked, which this system cannot do: set workers to 0")
    if config.frozen_weights == "bf16":
        _set_precisions(model, config)
    if config.attention == "flex_attention" and not torch.accelerator.is_available():
        raise UserError("flex_attention has no gradient on CPUs: set attention to sdpa or eager")
    try:
        model.set_attn_implementation(config.attention)
    except (ImportError, ValueError) as fault:
        raise UserError(f"attention {config.attention!r} is not to be had here: {fault}") from None
    if config.activation_checkpointing:
        model.model.language_model.activation_checkpointing_enable()
    if config.parallel == "fsdp2" or config.compile:
        layer_classes(model.model.language_model)
    if config.compile:
        _check_compiler()


def _set_precisions(model: Any, config: TrainConfig) -> None:
    """Keep what is trained in float32, and what is not, or has adapters, in bfloat16."""
    trained = {part for stage in config.stages for part in stage.train}
    if config.lora is not None:
        trained.discard("llm")
    whole = {"projector": ["multi_modal_projector"], "llm": ["language_model", "lm_head"]}
    names = {name for part in trained for name in whole[part]}
    for name, weight in model.named_parameters():  # no buffer: rotary frequencies stay float32
        kept_whole = not names.isdisjoint(name.split("."))
        weight.data = weight.data.to(torch.float32 if kept_whole else torch.bfloat16)


def layer_classes(decoder: nn.Module) -> list[str]:
    """Class names of a language model's layers, computed from the model itself.

    LLaVA's own list is of no use: it names ``CLIPTextEmbeddings``, which a vision tower lacks.

    Raises:
        UserError: The language model does not say what its layers are.
    """
    there = {type(module).__name__ for module in decoder.modules()}
    names = sorted(there & set(getattr(decoder, "_no_split_modules", None) or []))
    if not names:
        raise UserError(
            f"{type(decoder).__name__} does not name its layers (_no_split_modules), so they can "
            "be neither sharded nor compiled: set parallel to ddp and compile to false"
        )
    return names


def _check_compiler() -> None:
    """See that torch.compile has what it builds kernels with here.

    Raises:
        UserError: It has not.
    """
    if torch.accelerator.is_available():
        if importlib.util.find_spec("triton") is None:
            raise UserError("compile needs triton, which is not installed: set compile to false")
    elif shutil.which(os.environ.get("CXX", "g++")) is None:
        raise UserError(
            "compile needs a C++ compiler on CPUs, and there is no g++ (nor CXX): install one, or "
            "set compile to false"
        )


def compile_layers(model: Any) -> None:
    """Compile the LLM's layers, each by itself, for any length of text.

    Smaller and sooner compiled than the whole step, whose masks of rows would cut it into pieces.
    """
    decoder = model.model.language_model
    names = layer_classes(decoder)
    for module in decoder.modules():
        if type(module).__name__ in names:
            module.compile(dynamic=True)


def half_products(config: TrainConfig) -> AbstractContextManager[Any]:
    """Matrix products in bfloat16 for what is computed before training, on accelerators."""
    device = torch.accelerator.current_accelerator()
    if config.precision == "bf16" and device is not None:
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


@torch.no_grad()
def packs(decoder: Any) -> bool:
    """Whether a language model tells apart the texts of one row, whose positions begin anew.

    transformers' own models do; one that ignores positions would mix the texts up in silence.
    """
    device = next(decoder.parameters()).device
    ids_T = torch.arange(2, 12, device=device)
    texts = [ids_T[:4], ids_T[4:]]
    positions = torch.cat([torch.arange(len(text), device=device) for text in texts])
    training = decoder.training
    decoder.eval()
    with torch.autocast(device.type, enabled=False):  # whose rounding would pass for a mixture
        together = decoder(
            input_ids=ids_T[None], position_ids=positions[None], use_cache=False
        ).last_hidden_state[0]
        alone = torch.cat(
            [decoder(input_ids=text[None], use_cache=False).last_hidden_state[0] for text in texts]
        )
    decoder.train(training)
    tolerance = 1e-3 if together.dtype == torch.float32 else 3e-2
    return bool((together - alone).norm() < tolerance * alone.norm())
