"""Models of random weights and rows of random tokens, in several sizes."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tgalign.data.collate import Collator
from tgalign.data.encode import IGNORE_INDEX, EncodedRecord, Span

# Shape legend: B pictures, H height, W width.


@dataclass(frozen=True)
class Shape:
    """A LLaVA and the rows it is trained on.

    Attributes:
        text: Of the LLM's config.
        vision: Of the CLIP vision tower's config.
        batch_size: Rows of a batch.
        question: Fewest and most tokens of a question.
        answer: Of an answer.
        caption: Of a caption.
        retrieved: Of a retrieved text.
        template: Tokens of the chat template before a question or text.
    """

    text: dict[str, Any]
    vision: dict[str, Any]
    batch_size: int
    question: tuple[int, int]
    answer: tuple[int, int]
    caption: tuple[int, int]
    retrieved: tuple[int, int]
    template: int = 4

    @property
    def image_tokens(self) -> int:
        """Tokens of one picture."""
        return int((self.vision["image_size"] // self.vision["patch_size"]) ** 2)


def _text(width: int, inner: int, layers: int, heads: int, kv_heads: int, words: int) -> Any:
    return {
        "model_type": "mistral",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": width // heads,
        "vocab_size": words,
        "sliding_window": None,
        "tie_word_embeddings": False,
    }


def _vision(width: int, layers: int, heads: int, image: int) -> Any:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "image_size": image,
        "patch_size": 14,
    }


_WORDS = (16, 48), (48, 200), (20, 60), (12, 36)
"""Tokens of questions, answers, captions and retrieved texts of web data."""

SHAPES = {
    # For the tests.
    "tiny": Shape(
        _text(32, 64, 2, 2, 1, 128), _vision(16, 2, 2, 56), 4, (2, 5), (4, 9), (3, 6), (2, 5)
    ),
    # The tokens of "7b" in a model that a CPU can train, wide enough that matrix products, and not
    # Python, take the time.
    "small": Shape(
        _text(256, 704, 4, 4, 2, 4096),
        _vision(64, 2, 2, 336),
        2,
        *_WORDS,
    ),
    # Mistral-7B-Instruct-v0.2 and CLIP ViT-L/14-336.
    "7b": Shape(
        _text(4096, 14336, 32, 32, 8, 32064),
        _vision(1024, 24, 16, 336),
        8,
        *_WORDS,
    ),
}


def build_model(shape: Shape, dtype: torch.dtype, device: torch.device) -> Any:
    """A LLaVA with random weights."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    config = LlavaConfig(
        text_config=shape.text,
        vision_config=shape.vision | {"model_type": "clip_vision_model"},
        image_token_index=shape.text["vocab_size"] - 1,
        image_seq_length=shape.image_tokens,
    )
    with device:
        model = LlavaForConditionalGeneration._from_config(config, dtype=dtype)
    return model.train()


def build_rows(shape: Shape, number: int, *, retrieved_in_prompt: bool) -> list[EncodedRecord]:
    """Rows of random tokens, every one with picture, answer, caption and retrieved text."""
    rng = random.Random(0)

    def words(low: int, high: int) -> list[int]:
        return [
            rng.randrange(10, shape.text["vocab_size"] - 1) for _ in range(rng.randint(low, high))
        ]

    template, image_id = list(range(1, shape.template + 1)), shape.text["vocab_size"] - 1
    rows = []
    for index in range(number):
        retrieved = words(*shape.retrieved)
        prompt = template + (retrieved if retrieved_in_prompt else [])
        prompt = prompt + [image_id] * shape.image_tokens + words(*shape.question)
        answer = words(*shape.answer)
        texts = [template + words(*shape.caption), template + retrieved]
        caption, other = (Span(text, shape.template, len(text)) for text in texts)
        rows.append(
            EncodedRecord(
                prompt + answer,
                [IGNORE_INDEX] * len(prompt) + answer,
                Path(f"{index}.png"),
                caption,
                other,
            )
        )
    return rows


def build_collator(shape: Shape, *, pack: bool) -> Collator:
    """A collator whose pictures are noise, made once; texts share rows, if asked for."""
    size = shape.vision["image_size"]
    generator = torch.Generator().manual_seed(0)
    noise_BCHW = torch.randn(shape.batch_size, 3, size, size, generator=generator)

    def pixels(paths: list[Path]) -> Tensor:
        return noise_BCHW[: len(paths)]

    return Collator(0, pixels, pack=pack)
