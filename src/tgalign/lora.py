"""Low-rank adapters on the LLM (peft), merged into its weights before anything is saved.

They are put on the language model alone: its layers and those of a CLIP tower share their names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from tgalign.config import LoraConfig
from tgalign.errors import UserError


def add_adapters(model: Any, config: LoraConfig) -> None:
    """Put fresh adapters on a LLaVA's language model, in place; they change nothing yet.

    Raises:
        UserError: peft is not installed, or the language model has no such layers.
    """
    decoder = model.model.language_model
    targets = adapted(decoder, config)
    try:
        import peft
    except ImportError:
        raise UserError("lora needs peft: pip install 'tgalign[lora]'") from None
    peft.tuners.lora.LoraModel(
        decoder,
        peft.LoraConfig(
            r=config.r,
            lora_alpha=config.alpha,  # type: ignore[arg-type]
            lora_dropout=config.dropout,
            target_modules=targets,
        ),
        "default",
    )
    for adapter in adapters_of(decoder):
        for part in (adapter.lora_A, adapter.lora_B):
            part.float()  # they are trained, whatever the weights beside them are kept in


def adapted(decoder: nn.Module, config: LoraConfig) -> list[str]:
    """The names of the layers that get adapters.

    Raises:
        UserError: The language model has no such layers.
    """
    known = sorted({name for name, _ in linear_layers(decoder)})
    targets = config.target_modules or known
    unknown = sorted(set(targets) - set(known))
    if unknown:
        raise UserError(
            f"lora.target_modules names {', '.join(unknown)}; the linear layers of this "
            f"{type(decoder).__name__} are {', '.join(known)}"
        )
    return targets


def linear_layers(decoder: nn.Module) -> list[tuple[str, Any]]:
    """The linear layers of a language model, each by the last part of its name."""
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer

    return [
        (name.rsplit(".", 1)[-1], module)
        for name, module in decoder.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    ]


def adapters_of(decoder: nn.Module) -> list[Any]:
    """The adapted layers of a language model."""
    return [module for module in decoder.modules() if hasattr(module, "lora_A")]


def merge_adapters(model: Any) -> None:
    """Add the adapters to the weights they stand beside, and put the plain layers back."""
    decoder = model.model.language_model
    for name, module in list(decoder.named_modules()):
        if hasattr(module, "lora_A"):
            module.merge(safe_merge=True)
            decoder.set_submodule(name, module.get_base_layer())


@contextmanager
def without(adapters: list[Any]) -> Iterator[None]:
    """Compute without adapters while in the context.

    Not by peft's ``enable_adapters``, which would also switch what requires a gradient.
    """
    for adapter in adapters:
        adapter._disable_adapters = True
    try:
        yield
    finally:
        for adapter in adapters:
            adapter._disable_adapters = False
