"""Hidden states of pictures and of their captions, by layer, from one forward each.

Each state is reduced as it passes by, to the mean over the image's or the caption's tokens and to
the answer position: what is kept does not grow with the length of a prompt.

Shape suffixes: L the N+1 hidden states, B rows, T tokens, D channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tgalign.diagnose.anatomy import Anatomy, anatomy, touching
from tgalign.diagnose.prompts import Prompts, caption_prompts, picture_prompts
from tgalign.pooling import span_mean


@dataclass(frozen=True)
class LayerProbe:
    """What a model holds of prompts, by layer; state 0 is the embeddings, state N after the norm.

    Attributes:
        span_LBD: Mean hidden state over the image's or the caption's tokens, float32.
        last_LBD: Hidden state at the answer position, float32.
    """

    span_LBD: Tensor
    last_LBD: Tensor

    @classmethod
    def joined(cls, parts: Sequence[LayerProbe]) -> LayerProbe:
        """The rows of several batches as one."""
        return cls(
            torch.cat([part.span_LBD for part in parts], dim=1),
            torch.cat([part.last_LBD for part in parts], dim=1),
        )


@contextmanager
def probing(parts: Anatomy, prompts: Prompts) -> Iterator[Callable[[], LayerProbe]]:
    """Take the states of these prompts in the first forward inside this context.

    Yields:
        A function that returns them once that forward has run.
    """
    spans: dict[int, Tensor] = {}
    lasts: dict[int, Tensor] = {}
    rows_B = torch.arange(len(prompts.last_B), device=prompts.last_B.device)

    def reader(layer: int) -> Callable[[Tensor], None]:
        def read(state_BTD: Tensor) -> None:
            spans[layer] = span_mean(state_BTD, prompts.span_BT)[0].cpu()
            lasts[layer] = state_BTD[rows_B, prompts.last_B].float().cpu()

        return read

    def found() -> LayerProbe:
        order = range(parts.num_layers + 1)
        return LayerProbe(
            torch.stack([spans[layer] for layer in order]),
            torch.stack([lasts[layer] for layer in order]),
        )

    with touching(parts, {layer: reader(layer) for layer in range(parts.num_layers + 1)}):
        yield found


@torch.no_grad()
def probe(model: Any, parts: Anatomy, prompts: Prompts) -> LayerProbe:
    """Run prompts through the model once, without its output head."""
    model.eval()
    with probing(parts, prompts) as found:
        model.base_model(**prompts.inputs, use_cache=False)
    return found()


@torch.no_grad()
def answer_and_probe(
    model: Any, processor: Any, parts: Anatomy, prompts: Prompts, max_new_tokens: int
) -> tuple[list[str], LayerProbe]:
    """Answer left-padded prompts greedily, and take the states of the very forward that read them.

    Returns:
        The answers without special tokens, and the states.
    """
    with probing(parts, prompts) as found:
        answers = generate(model, processor, prompts, max_new_tokens)
    return answers, found()


@torch.no_grad()
def generate(model: Any, processor: Any, prompts: Prompts, max_new_tokens: int) -> list[str]:
    """Answer left-padded prompts greedily; the answers come without special tokens."""
    model.eval()
    ids_BT = model.generate(
        **prompts.inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1
    )
    said = processor.tokenizer.batch_decode(ids_BT[:, prompts.length :], skip_special_tokens=True)
    return [text.strip() for text in said]


def probe_pictures(
    model: Any, processor: Any, pictures: Sequence[Any], question: str
) -> LayerProbe:
    """Probe pictures, each followed by a question."""
    prompts = picture_prompts(model, processor, pictures, question, "right")
    return probe(model, anatomy(model), prompts)


def probe_texts(model: Any, processor: Any, captions: Sequence[str], question: str) -> LayerProbe:
    """Probe captions that stand where a picture would, each followed by the same question."""
    prompts = caption_prompts(model, processor, captions, question, "right")
    return probe(model, anatomy(model), prompts)


@torch.no_grad()
def next_tokens(model: Any, last_LBD: Tensor, layer: int) -> Tensor:
    """Next-token probabilities (B, V) read off state ``layer`` at the answer position."""
    parts = anatomy(model)
    return parts.log_probabilities(last_LBD[layer], layer % len(last_LBD)).exp().cpu()


def refusal_probability(model: Any, last_LBD: Tensor, refusal_ids: Sequence[int]) -> Tensor:
    """Probability by layer and prompt (L, B) that the answer opens with a refusal's first token."""
    return torch.stack(
        [
            next_tokens(model, last_LBD, layer)[:, list(refusal_ids)].sum(dim=-1)
            for layer in range(len(last_LBD))
        ]
    )
