"""Span means of hidden states, and the choice of layers.

Shape suffixes: L layers, B rows of the batch, T tokens, D channels. Hidden states are numbered
as transformers numbers them: state 0 is the embeddings, state j the output of layer j, and state
N, the last, is taken after the final norm.
"""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from tgalign.errors import UserError


def span_mean(hidden_BTD: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Average hidden states over the tokens of a span.

    Only the positions where the mask is True are read: what padding holds, NaN included, changes
    nothing. The published code averages over padding too, and gives NaN on an empty span.

    Args:
        hidden_BTD: Floating-point hidden states.
        mask_BT: Bool, True at the tokens of the span.

    Returns:
        mean_BD, in float32 (float64 if the input is), zero where the span is empty; and
        present_B, bool, False where the span is empty. The gradient flows to the span alone.

    Raises:
        ValueError: A tensor of the wrong shape or dtype.
    """
    if hidden_BTD.dim() != 3 or not hidden_BTD.is_floating_point():
        raise ValueError(
            f"hidden_BTD is {hidden_BTD.dtype} of shape {tuple(hidden_BTD.shape)}; "
            "expected a floating-point tensor (rows, tokens, channels)"
        )
    if mask_BT.dtype != torch.bool or mask_BT.shape != hidden_BTD.shape[:2]:
        raise ValueError(
            f"mask_BT is {mask_BT.dtype} of shape {tuple(mask_BT.shape)}; "
            f"expected torch.bool of shape {tuple(hidden_BTD.shape[:2])}"
        )
    dtype = torch.promote_types(hidden_BTD.dtype, torch.float32)
    count_B1 = mask_BT.sum(1, keepdim=True)
    sum_BD = hidden_BTD.where(mask_BT.unsqueeze(-1), 0.0).sum(1, dtype=dtype)
    return sum_BD / count_B1.clamp_min(1), count_B1.squeeze(1) > 0


def numbered_means(hidden_BTD: Tensor, number_BT: Tensor, count: int) -> Tensor:
    """Average hidden states over the tokens of each of several spans, wherever they lie.

    Args:
        hidden_BTD: Floating-point hidden states, all of them finite.
        number_BT: The number of the span that a token belongs to, negative for none.
        count: How many spans there are, N.

    Returns:
        mean_ND, in float32 (float64 if the input is), zero where a span is empty.
    """
    dtype = torch.promote_types(hidden_BTD.dtype, torch.float32)
    numbers_N1 = torch.arange(count, device=number_BT.device).unsqueeze(1)
    member_NX = (number_BT.flatten() == numbers_N1).to(dtype)
    weight_NX = member_NX / member_NX.sum(1, keepdim=True).clamp_min(1)
    with torch.autocast(hidden_BTD.device.type, enabled=False):
        return weight_NX @ hidden_BTD.flatten(0, 1).to(dtype)


def pool_layers(
    hidden_states: Sequence[Tensor | None], layers: Sequence[int], mask_BT: Tensor
) -> tuple[Tensor, Tensor]:
    """Average the hidden states of several layers over one span.

    Args:
        hidden_states: The N+1 states of a transformers output, each (B, T, D), or None where
            a state was not captured.
        layers: The states to pool, as indices 0 (embeddings) to N (after the final norm), in
            the order wanted; at least one.
        mask_BT: Bool, True at the tokens of the span.

    Returns:
        states_LBD, in the order of ``layers``, and present_B, both as ``span_mean`` returns them.

    Raises:
        ValueError: No layer, a layer out of range or not captured, or what ``span_mean`` raises.
    """
    if len(layers) == 0:
        raise ValueError("layers is empty; expected at least one index")
    means = []
    for layer in layers:
        if not 0 <= layer < len(hidden_states):
            raise ValueError(f"layer {layer} is out of range 0 to {len(hidden_states) - 1}")
        hidden_BTD = hidden_states[layer]
        if hidden_BTD is None:
            captured = [j for j, state in enumerate(hidden_states) if state is not None]
            raise ValueError(
                f"the state of layer {layer} was not captured (captured: {captured}); "
                "name it in output_hidden_states"
            )
        mean_BD, present_B = span_mean(hidden_BTD, mask_BT)
        means.append(mean_BD)
    return torch.stack(means), present_B


def parse_layers(spec: str | Sequence[int], num_layers: int) -> list[int]:
    """Turn a choice of layers into indices of hidden states.

    Args:
        spec: ``"all"`` for 1..N, the layers the paper sums over; ``"a-b"`` for a range with both
            ends; or a list of indices, where -1 is the last of the N+1 states.
        num_layers: N, the decoder layers of the model.

    Returns:
        Indices from 0 (embeddings) to N (after the final norm), in the order given.

    Raises:
        UserError: Anything else, an index out of range, no index, or one given twice.
    """
    expected = (
        f'expected "all", a range such as "1-{num_layers}", or a list of indices '
        f"from 0 (embeddings) to {num_layers} (after the final norm), negative ones from the end"
    )
    if spec == "all":
        return list(range(1, num_layers + 1))
    if isinstance(spec, str):
        ends = re.fullmatch(r"\s*(\d+)\s*-\s*(\d+)\s*", spec)
        if ends is None:
            raise UserError(f"layers is {spec!r}; {expected}")
        if int(ends[2]) > num_layers:
            raise UserError(f"layers is {spec!r}, where {ends[2]} is out of range; {expected}")
        given = list(range(int(ends[1]), int(ends[2]) + 1))
    elif isinstance(spec, list | tuple | range) and all(type(layer) is int for layer in spec):
        given = list(spec)
    else:
        raise UserError(f"layers is {spec!r}; {expected}")
    layers = [layer + num_layers + 1 if layer < 0 else layer for layer in given]
    for asked, layer in zip(given, layers, strict=True):
        if not 0 <= layer <= num_layers:
            raise UserError(f"layers is {spec!r}, where {asked} is out of range; {expected}")
    if not layers:
        raise UserError(f"layers is {spec!r}, which names no layer; {expected}")
    if len(set(layers)) < len(layers):
        raise UserError(f"layers is {spec!r}, which names a layer twice; {expected}")
    return layers
