"""Retrieve a related text R for every picture, exactly, with a CLIP's two towers.

A picture's own caption and its near-duplicates are never returned: R = C would make the ranking
term of the guide loss void.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tgalign.data.rendering import as_words

# Shape legend: Q queries, N corpus texts, D channels of the shared space.

NEAR_DUPLICATE = 0.95
"""A corpus text whose embedding is at least this close to the caption's counts as the caption."""

MAX_TOKENS = 512
"""A text model reads no more of a text, however many it could."""


_QUERIES = 1024
"""Whose scores with a block of texts are in memory at a time."""


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
    """Unit embeddings (N, D) of texts, as the image-text model was trained to read them.

    Tokenizers that add special tokens do so. The lab's adds none, so its texts are wrapped in BOS
    and EOS here. SigLIP reads texts padded to its full length. What is too long loses its end.
    """
    config = clip.config.text_config
    limit = min(config.max_position_embeddings, tokenizer.model_max_length)
    adds = len(tokenizer("a")["input_ids"]) > len(
        tokenizer("a", add_special_tokens=False)["input_ids"]
    )
    padding = "max_length" if clip.config.model_type.startswith("siglip") else True
    options = {"padding": padding, "truncation": True, "max_length": limit, "return_tensors": "pt"}
    parts = []
    for start in range(0, len(texts), batch_size):
        batch = [as_words(tokenizer, text) for text in texts[start : start + batch_size]]
        if adds or padding == "max_length":
            inputs = {**tokenizer(batch, **options)}
        else:
            inputs = text_inputs(tokenizer, batch, max_length=limit)
        inputs = {name: ids.to(clip.device) for name, ids in inputs.items()}
        if padding == "max_length":
            inputs.pop("attention_mask", None)  # SigLIP was trained without one
        parts.append(clip.get_text_features(**inputs).pooler_output.float().cpu())
    return torch.nn.functional.normalize(torch.cat(parts), dim=-1)


@torch.no_grad()
def mean_states(
    model: Any, tokenizer: Any, texts: Sequence[str], *, batch_size: int = 256
) -> Tensor:
    """Unit embeddings (N, D) of texts: the mean of a text model's last states, as in Sentence-BERT.

    Reimers and Gurevych, EMNLP 2019, section 3 (MEAN strategy). What is too long loses its end.
    """
    places = getattr(model.config, "max_position_embeddings", None)
    limit = min(tokenizer.model_max_length, places or tokenizer.model_max_length, MAX_TOKENS)
    parts = []
    for start in range(0, len(texts), batch_size):
        inputs = tokenizer(
            [as_words(tokenizer, text) for text in texts[start : start + batch_size]],
            padding=True,
            truncation=True,
            max_length=limit,
            return_tensors="pt",
        ).to(model.device)
        inputs.pop("token_type_ids", None)
        hidden_NTD = model(**inputs).last_hidden_state
        mask_NT1 = inputs["attention_mask"].unsqueeze(-1).to(hidden_NTD.dtype)
        mean_ND = (hidden_NTD * mask_NT1).sum(dim=1) / mask_NT1.sum(dim=1).clamp_min(1)
        parts.append(mean_ND.float().cpu())
    return torch.nn.functional.normalize(torch.cat(parts), dim=-1)


@torch.no_grad()
def search(query_QD: Tensor, blocks: Iterable[Tensor], k: int) -> tuple[Tensor, Tensor]:
    """The k best rows of a corpus that comes block by block, by inner product.

    Args:
        query_QD: The queries.
        blocks: The corpus, (N, D) each.
        k: How many to find; fewer if the corpus has no more.

    Returns:
        scores_QK and rows_QK, best first; rows are counted through all blocks.
    """
    score_QK = query_QD.new_zeros(len(query_QD), 0)
    row_QK = torch.zeros(len(query_QD), 0, dtype=torch.long)
    start = 0
    for block_ND in blocks:
        found = []
        for part_QD in query_QD.split(_QUERIES):
            best = (part_QD @ block_ND.T).topk(min(k, len(block_ND)), dim=1)
            found.append((best.values, best.indices + start))
        scores, rows = (torch.cat(parts) for parts in zip(*found, strict=True))
        score_QK, row_QK = torch.cat((score_QK, scores), dim=1), torch.cat((row_QK, rows), dim=1)
        best = score_QK.topk(min(k, score_QK.shape[1]), dim=1)
        score_QK, row_QK = best.values, row_QK.gather(1, best.indices)
        start += len(block_ND)
    return score_QK, row_QK


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
    for part_QD, own_QD in zip(query_QD.split(_QUERIES), caption_QD.split(_QUERIES), strict=True):
        scores_QN = part_QD @ corpus_ND.T
        own_QN = own_QD @ corpus_ND.T >= NEAR_DUPLICATE
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
