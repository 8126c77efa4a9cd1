"""Last-token states of every decoder layer: read them, change them while the model runs.

States here are what each decoder layer hands on, the last one before the final norm.

Shape suffixes: L decoder layers, B rows, N prompts, T tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tgalign.evaluate.generate import Prompt, answer


@contextmanager
def edited_states(model: Any, edit: Callable[[int, Tensor], Tensor | None]) -> Iterator[None]:
    """Pass what each decoder layer hands on through ``edit`` while in the context.

    Args:
        model: A LLaVA.
        edit: Given the layer's number from 0 and its output (B, T, D), returns another output, or
            None to leave it.
    """

    def hook(layer: int) -> Callable[[Any, Any, Any], Any]:
        def run(_module: Any, _arguments: Any, output: Any) -> Any:
            whole = isinstance(output, Tensor)
            changed = edit(layer, output if whole else output[0])
            if changed is None:
                return None
            return changed if whole else (changed, *output[1:])

        return run

    layers = model.model.language_model.layers
    handles = [layer.register_forward_hook(hook(number)) for number, layer in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def last_states(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """States (L, B, D) in float32 at the last token of left-padded prompts.

    Args:
        model: A LLaVA.
        inputs: What its forward takes.
    """
    found: list[Tensor] = []
    with edited_states(model, lambda _, hidden_BTD: found.append(hidden_BTD[:, -1].float())):
        model(**inputs, use_cache=False, logits_to_keep=1)
    return torch.stack(found)


def prompt_states(model: Any, processor: Any, prompts: Sequence[Prompt]) -> Tensor:
    """States (L, N, D) in float32 at the last token of prompts, in no order to rely on."""
    parts: list[list[Tensor]] = []

    def keep(layer: int, hidden_BTD: Tensor) -> None:
        if layer == 0:
            parts.append([])
        parts[-1].append(hidden_BTD[:, -1].float())

    with edited_states(model, keep):
        answer(model, processor, prompts, max_new_tokens=1)
    return torch.cat([torch.stack(part) for part in parts], dim=1)
