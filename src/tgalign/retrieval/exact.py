"""Retrieve a related text R for every picture, exactly, with a CLIP's two towers.

A picture's own caption and its near-duplicates are never returned: R = C would make the ranking
term of the guide loss void.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Shape legend: Q queries, N corpus texts, D channels of the shared space.

NEAR_DUPLICATE = 0.95
"""A corpus text whose embedding is at least this close to the caption's counts as the caption."""


@dataclass(frozen=True)
class Retrieved:
    """One retrieved text: its row in the corpus, and its cosine to the picture."""

    text: str
    score: float
    id: int


@torch.no_grad()
def encode_pictures(clip: Any, pixels: Tensor, *, batch_size: int = 256) -> Tensor:
    """Unit embeddings (Q, D) of pictures (Q, 3, H, W)."""
    parts = [clip.get_image_features(part).pooler_output for part in pixels.split(batch_size)]
    return torch.nn.functional.normalize(torch.cat(parts).float(), dim=-1)


def text_inputs(
    tokenizer: Any, texts: Sequence[str], *, max_length: int | None = None
) -> dict[str, Tensor]:
    """Texts as a CLIP text tower reads them: BOS … EOS, padded; ids and attention mask.

    Args:
        tokenizer: The CLIP's tokenizer.
        texts: The texts.
        max_length: What the tower reads at most; longer texts lose their end, but not EOS.
    """
    wrapped = tokenizer(
        [f"{tokenizer.bos_token} {text}" for text in texts], add_special_tokens=False
    )
    kept = None if max_length is None else max_length - 1
    ids = [[*row[:kept], tokenizer.eos_token_id] for row in wrapped["input_ids"]]
    batch = tokenizer.pad({"input_ids": ids}, padding_side="right", return_tensors="pt")
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}


@torch.no_grad()
def encode_texts(
    clip: Any, tokenizer: Any, texts: Sequence[str], *, batch_size: int = 512
) -> Tensor:
    """Unit embeddings (N, D) of texts, each wrapped in BOS and EOS and cut to what CLIP reads."""
    parts = []
    for start in range(0, len(texts), batch_size):
        limit = clip.config.text_config.max_position_embeddings
        inputs = text_inputs(tokenizer, texts[start : start + batch_size], max_length=limit)
        parts.append(clip.get_text_features(**inputs).pooler_output)
    return torch.nn.functional.normalize(torch.cat(parts).float(), dim=-1)


def retrieve(
    query_QD: Tensor, caption_QD: Tensor, corpus_ND: Tensor, texts: Sequence[str], *, k: int = 1
) -> list[list[Retrieved]]:
    """The k corpus texts nearest to each picture, own caption and near-duplicates left out.

    Args:
        query_QD: Unit embeddings of the pictures.
        caption_QD: Unit embeddings of their captions.
        corpus_ND: Unit embeddings of the corpus.
        texts: The corpus.
        k: How many to return; fewer come back if the corpus has no more.

    Returns:
        Per picture the texts, best first.
    """
    results = []
    for start in range(0, len(query_QD), 1024):
        scores_QN = query_QD[start : start + 1024] @ corpus_ND.T
        own_QN = caption_QD[start : start + 1024] @ corpus_ND.T >= NEAR_DUPLICATE
        scores_QN = scores_QN.masked_fill(own_QN, -torch.inf)
        best = scores_QN.topk(min(k, len(texts)), dim=1)
        for values, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            results.append(
                [
                    Retrieved(texts[index], value, index)
                    for value, index in zip(values, indices, strict=True)
                    if value > -torch.inf
                ]
            )
    return results
