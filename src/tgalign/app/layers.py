"""What a model holds of one picture, layer by layer, and what it says with a caption's states.

All that the page takes from the diagnosis is called here.

Shape suffixes: L the N+1 hidden states, B rows, D channels, S tokens of a span, P image tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tgalign.app.answers import MAX_NEW_TOKENS, Answer
from tgalign.app.models import Loaded
from tgalign.diagnose.anatomy import touching
from tgalign.diagnose.attention import (
    Grid,
    answer_attention,
    eager_attention,
    token_grid,
)
from tgalign.diagnose.patching import donors, replacing
from tgalign.diagnose.probe import (
    LayerProbe,
    answer_and_probe,
    generate,
    next_tokens,
    probe,
    refusal_probability,
)
from tgalign.diagnose.prompts import caption_prompts, picture_prompts
from tgalign.diagnose.safety_layers import RefusalToken, refusal_tokens
from tgalign.evaluate.refusal import judge
from tgalign.lab.suite import PictureItem, lab_suite
from tgalign.objective import unit

if TYPE_CHECKING:
    from PIL.Image import Image

REFERENCES_PER_SCENE = 3
NUM_BENIGN = 21
"""Pictures of the lab with captions, toxic and harmless, that one picture is compared with."""

REFERENCE_TOKENS = 24
"""Length at which their answers are cut: whether it refuses stands at the beginning."""


@dataclass(frozen=True)
class References:
    """What a model holds of the lab's pictures and captions, asked one question.

    Attributes:
        picture_LD: Mean over the pictures of their mean states.
        caption_LBD: Mean states of the captions.
        refused_BV: First-token probabilities where it refuses a caption; may have no row.
        answered_BV: The same where it answers.
    """

    picture_LD: Tensor
    caption_LBD: Tensor
    refused_BV: Tensor
    answered_BV: Tensor


@dataclass(frozen=True)
class LayerFigures:
    """One picture in one model, by layer; a list per hidden state 0 to N unless it says otherwise.

    Attributes:
        picture_refusal: Probability that the answer opens with a refusal token, read by the logit
            lens; None if no token is known: the model refuses nothing it was told, or opens
            refusals as it opens answers.
        caption_refusal: The same with the caption in the picture's place.
        tokens: The refusal tokens, as they read.
        cosine: Of the picture's mean state with its caption's.
        centered_cosine: The same after the mean picture and the mean caption of the references are
            taken away.
        nearest: How many of the references' captions are nearer to the picture, centred, than its
            own.
        attention: Per decoder layer 0 to N - 1, the share of the answer position's attention that
            goes to each image token, mean over heads.
        grid: Rows and columns of the image tokens, if they lie on a grid.
    """

    picture_refusal: list[float] | None
    caption_refusal: list[float] | None
    tokens: list[str]
    cosine: list[float] | None
    centered_cosine: list[float] | None
    nearest: list[int] | None
    attention: list[list[float]]
    grid: Grid | None


@lru_cache(maxsize=1)
def reference_items() -> tuple[list[PictureItem], list[PictureItem]]:
    """Toxic and harmless pictures of the lab with captions."""
    suite = lab_suite(0, per_scene=REFERENCES_PER_SCENE, num_benign=NUM_BENIGN, num_texts=0)
    return suite.toxic, suite.benign


@lru_cache(maxsize=16)
@torch.no_grad()
def references(loaded: Loaded, question: str) -> References:
    """Read the references, once per model and question; the caller holds the model's lock."""
    model, processor, parts = loaded.model, loaded.processor, loaded.parts
    toxic, benign = reference_items()
    items = toxic + benign
    pictures = [item.picture for item in items]
    shown = probe(model, parts, picture_prompts(model, processor, pictures, question, "right"))
    prompts = caption_prompts(model, processor, [item.caption for item in items], question)
    said, told = answer_and_probe(model, processor, parts, prompts, REFERENCE_TOKENS)
    next_BV = next_tokens(model, told.last_LBD, -1)
    labels = [judge(text, question).label for text in said]
    return References(
        picture_LD=shown.span_LBD.mean(dim=1),
        caption_LBD=told.span_LBD,
        refused_BV=next_BV[[label == "refused" for label in labels]],
        answered_BV=next_BV[[label == "answered" for label in labels]],
    )


@torch.no_grad()
def layer_figures(loaded: Loaded, picture: Image, caption: str, question: str) -> LayerFigures:
    """Read one picture, and its caption if there is one, in one model.

    Raises:
        UserError: The model's attention cannot be shown, or its template changes the caption.
    """
    model, processor, parts = loaded.model, loaded.processor, loaded.parts
    with loaded.lock:
        known = references(loaded, question)
        shown_prompts = picture_prompts(model, processor, [picture], question, "right")
        shown = probe(model, parts, shown_prompts)
        with eager_attention(model):
            line_LHBT = answer_attention(model, parts, shown_prompts)
        attention_LP = line_LHBT.mean(dim=1)[:, 0, shown_prompts.span_BT[0].cpu()]
        told = None
        refused_BV = known.refused_BV
        if caption:
            prompts = caption_prompts(model, processor, [caption], question)
            said, told = answer_and_probe(model, processor, parts, prompts, MAX_NEW_TOKENS)
            if judge(said[0], question).label == "refused":
                refused_BV = torch.cat([refused_BV, next_tokens(model, told.last_LBD, -1)])
        tokens: list[RefusalToken] = []
        if len(refused_BV):
            tokens, _ = refusal_tokens(refused_BV, known.answered_BV, processor.tokenizer)
        ids = [token.id for token in tokens]

        def lens(read: LayerProbe) -> list[float]:
            found_L: list[float] = refusal_probability(model, read.last_LBD, ids)[:, 0].tolist()
            return found_L

        return LayerFigures(
            picture_refusal=lens(shown) if ids else None,
            caption_refusal=lens(told) if ids and told else None,
            tokens=[token.text for token in tokens],
            **_alignment(shown.span_LBD[:, 0], told.span_LBD[:, 0] if told else None, known),
            attention=attention_LP.tolist(),
            grid=token_grid(processor, shown_prompts)[0],
        )


def _alignment(picture_LD: Tensor, caption_LD: Tensor | None, known: References) -> dict[str, Any]:
    if caption_LD is None:
        return {"cosine": None, "centered_cosine": None, "nearest": None}
    center_LD = known.caption_LBD.mean(dim=1)
    i_LD = unit(picture_LD - known.picture_LD)
    own_L = (i_LD * unit(caption_LD - center_LD)).sum(-1)
    others_LBD = unit(known.caption_LBD - center_LD.unsqueeze(1))
    others_LB = (i_LD.unsqueeze(1) * others_LBD).sum(-1)
    return {
        "cosine": (unit(picture_LD) * unit(caption_LD)).sum(-1).tolist(),
        "centered_cosine": own_L.tolist(),
        "nearest": (others_LB > own_L.unsqueeze(1) + 1e-6).sum(dim=1).tolist(),
    }


@torch.no_grad()
def patched_answer(
    loaded: Loaded, picture: Image, caption: str, question: str, layer: int
) -> Answer:
    """Ask about a picture with a caption's states put in its place at one layer.

    Args:
        loaded: Whom to ask.
        picture: What it is shown.
        caption: Whose states are put in.
        question: What is asked.
        layer: Number of the hidden state that is replaced, 0 (embeddings) to N - 1; it is the
            input of decoder layer ``layer``.
    """
    model, processor, parts = loaded.model, loaded.processor, loaded.parts
    with loaded.lock:
        told = caption_prompts(model, processor, [caption], question)
        shown = picture_prompts(model, processor, [picture], question)
        lengths = shown.span_BT.sum(dim=1).tolist()
        given = donors(model, parts, told, lengths)[layer]
        with touching(parts, {layer: replacing(shown.span_BT, given, "tokens")}):
            text = generate(model, processor, shown, MAX_NEW_TOKENS)[0]
    return Answer(text, judge(text, question))


def control_caption(caption: str) -> str:
    """A harmless caption of the lab that differs from this one, to patch in as a control."""
    return next(item.caption for item in reference_items()[1] if item.caption != caption)
