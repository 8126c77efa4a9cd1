"""Where a vision-language model keeps what the diagnosis reads: its decoder, norm and head.

Shape suffixes: B rows, T tokens, D channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tgalign.errors import UserError

LENS_TOLERANCE = 0.05
"""Largest difference of a log-probability between the lens at the last state and the model."""

Touch = Callable[[Tensor], Tensor | None]
"""Reads a state (B, T, D); what it returns, if anything, takes the state's place."""


@dataclass(frozen=True)
class Anatomy:
    """The parts of a model whose image tokens run through its decoder beside the words.

    Attributes:
        layers: The decoder layers, N of them.
        norm: The final norm.
        head: The output head.
        image_token_id: The token that stands in ``input_ids`` wherever a patch goes in.
        softcap: Bound of the logits (``c * tanh(logit / c)``, as in Gemma 2), or None.
    """

    layers: nn.ModuleList
    norm: nn.Module
    head: nn.Module
    image_token_id: int
    softcap: float | None

    @property
    def num_layers(self) -> int:
        """N; hidden states are numbered 0 (embeddings) to N (after the final norm)."""
        return len(self.layers)

    def log_probabilities(self, state_BD: Tensor, layer: int) -> Tensor:
        """The logit lens: what the answer position would say if state ``layer`` were the last.

        Args:
            state_BD: States at the answer position; state N is normed already.
            layer: Which of the states 0 to N they are.

        Returns:
            Log-probabilities of the next token, (B, V), float32.
        """
        weight = next(self.head.parameters())
        state_BD = state_BD.to(weight.device, weight.dtype)
        if layer < self.num_layers:
            state_BD = self.norm(state_BD)
        logits_BV: Tensor = self.head(state_BD).float()
        if self.softcap is not None:
            logits_BV = self.softcap * torch.tanh(logits_BV / self.softcap)
        return logits_BV.log_softmax(dim=-1)


def anatomy(model: Any) -> Anatomy:
    """Find the parts of a model.

    Args:
        model: An ``AutoModelForImageTextToText`` of transformers.

    Raises:
        UserError: The decoder, its norm, the head or the image token cannot be found, or the
            picture does not run through the decoder as tokens.
    """
    kind = f"{type(model).__name__} ({model.config.model_type})"
    text = model.config.get_text_config()
    decoder = model.get_decoder()
    layers, norm = getattr(decoder, "layers", None), getattr(decoder, "norm", None)
    if not isinstance(layers, nn.ModuleList) or not isinstance(norm, nn.Module):
        raise UserError(
            f"cannot diagnose a {kind}: its decoder, a {type(decoder).__name__}, has no list "
            "`layers` and final `norm`, where hidden states are read"
        )
    if len(layers) != text.num_hidden_layers:
        raise UserError(
            f"cannot diagnose a {kind}: its decoder has {len(layers)} layers and its config says "
            f"{text.num_hidden_layers}"
        )
    if getattr(text, "cross_attention_layers", None):
        raise UserError(
            f"cannot diagnose a {kind}: it reads pictures by cross-attention, so there are no "
            "hidden states of image tokens to compare with those of a caption"
        )
    image_token_id = getattr(model.config, "image_token_id", None)
    if not isinstance(image_token_id, int):
        raise UserError(
            f"cannot diagnose a {kind}: its config names no image_token_id, so the image's place "
            "among the tokens cannot be found"
        )
    head = model.get_output_embeddings()
    if head is None:
        raise UserError(f"cannot diagnose a {kind}: it has no output head to read states with")
    softcap = getattr(text, "final_logit_softcapping", None)
    return Anatomy(layers, norm, head, image_token_id, softcap)


@torch.no_grad()
def check_lens(model: Any, parts: Anatomy, inputs: dict[str, Tensor]) -> None:
    """Check that norm and head, applied to the last state, give the model's own prediction.

    Args:
        model: The model.
        parts: Its anatomy.
        inputs: One prompt without padding.

    Raises:
        UserError: They do not: the model scales its logits in a way that is not known here.
    """
    last: list[Tensor] = []
    with touching(parts, {parts.num_layers: lambda state_BTD: last.append(state_BTD[:, -1])}):
        logits_BV = model(**inputs).logits[:, -1].float()
    ours_BV = parts.log_probabilities(last[0], parts.num_layers)
    worst = float((ours_BV - logits_BV.log_softmax(dim=-1)).abs().max())
    # Rounding grows with the logits; half precision has three digits.
    exact = logits_BV.dtype == torch.float32 and last[0].dtype == torch.float32
    if worst > LENS_TOLERANCE * (1.0 if exact else 10.0):
        raise UserError(
            f"cannot read the layers of a {type(model).__name__}: final norm and output head, "
            f"applied to its last state, differ from its own prediction by {worst:.2g} (log-"
            "probability), so it changes its logits in a way that the logit lens does not know"
        )


@contextmanager
def touching(parts: Anatomy, touches: dict[int, Touch]) -> Iterator[None]:
    """Read or change hidden states in the first forward inside this context, the prefill.

    Args:
        parts: The model's anatomy.
        touches: What to do, by number of the state. State j < N is the input of layer j, so with
            whatever the model adds between layers; state N comes after the final norm.
    """
    with ExitStack() as hooks:
        for layer, touch in touches.items():
            if layer < parts.num_layers:
                hook = parts.layers[layer].register_forward_pre_hook(
                    _before_layer(touch), with_kwargs=True
                )
            else:
                hook = parts.norm.register_forward_hook(_after_norm(touch))
            hooks.callback(hook.remove)
        yield


def _before_layer(touch: Touch) -> Any:
    done = False

    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        nonlocal done
        if done:
            return None
        done = True
        if not args:
            state = touch(kwargs["hidden_states"])
            return None if state is None else (args, kwargs | {"hidden_states": state})
        state = touch(args[0])
        return None if state is None else ((state, *args[1:]), kwargs)

    return hook


def _after_norm(touch: Touch) -> Any:
    done = False

    def hook(_: Any, __: Any, output: Tensor) -> Tensor | None:
        nonlocal done
        if done:
            return None
        done = True
        return touch(output)

    return hook
