"""Synthetic picture features from texts, so that what no picture shows can be aligned too.

A CLIP's text tower and its vision tower meet in one space. A linear map, fitted on the pictures
and captions of the alignment data, leads from a text's embedding to the mean patch feature that a
picture of it would have; put in the place of a real picture's mean, it makes that picture show the
text. Texts of the retrieval corpus so become pictures for the guide loss, with the text itself as
their caption. No answer about them is trained, and nothing tells toxic texts from others.

Shape suffixes: B pictures, N texts, T vision tokens (CLS first), D vision channels, E channels of
the joint space.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tgalign.config import SyntheticConfig
from tgalign.data.encode import EncodedRecord, Encoder
from tgalign.data.records import IMAGE_TOKEN, Record
from tgalign.errors import UserError
from tgalign.vision_cache import VisionCache


def fit_bridge(text_BE: Tensor, mean_BD: Tensor, *, ridge: float = 1.0) -> tuple[Tensor, Tensor]:
    """Fit mean patch features by the embeddings of captions: ridge regression in closed form.

    Args:
        text_BE: Unit text embeddings of the captions.
        mean_BD: Mean patch features of their pictures.
        ridge: L2 penalty on the weights, not on the offset.

    Returns:
        weight_ED and offset_D: ``text @ weight_ED + offset_D`` estimates the mean patch feature.
    """
    x_BE, y_BD = text_BE.double(), mean_BD.double()
    x_E, y_D = x_BE.mean(dim=0), y_BD.mean(dim=0)
    x_BE = x_BE - x_E
    gram_EE = x_BE.T @ x_BE + ridge * torch.eye(x_BE.shape[1], dtype=x_BE.dtype)
    weight_ED = torch.linalg.solve(gram_EE, x_BE.T @ (y_BD - y_D))
    return weight_ED.float(), (y_D - x_E @ weight_ED).float()


class Bridge:
    """Linear maps from a text's embedding to the patches of a picture that shows it.

    A caption says nothing of where its things stand, so each picture's patches are first put in
    the order in which they show the caption: by their component along the mean patch that the
    caption lets expect. Then there is one map for the first patch, one for the second, and so on.

    Args:
        text_BE: Unit text embeddings of the captions.
        features_BTD: Features of their pictures, CLS first.
        ridge: L2 penalty of the maps.
    """

    def __init__(self, text_BE: Tensor, features_BTD: Tensor, *, ridge: float) -> None:
        patches_BPD = features_BTD[:, 1:]
        weight_ED, offset_D = fit_bridge(text_BE, patches_BPD.mean(dim=1), ridge=ridge)
        expected_BD = (text_BE - text_BE.mean(dim=0)) @ weight_ED
        center_D = offset_D + text_BE.mean(dim=0) @ weight_ED
        shows_BP = ((patches_BPD - center_D) * expected_BD.unsqueeze(1)).sum(dim=-1)
        self.order_BP = shows_BP.argsort(dim=1, descending=True)
        ordered_BPD = patches_BPD.gather(1, _indices(self.order_BP, patches_BPD))
        self._maps = fit_bridge(text_BE, ordered_BPD.flatten(1), ridge=ridge)

    def features(self, text_NE: Tensor, donor_NTD: Tensor, order_NP: Tensor) -> Tensor:
        """Features of pictures that show texts, each laid out as a real picture is.

        Args:
            text_NE: Unit text embeddings.
            donor_NTD: Features of one real picture for each, whose CLS token is kept.
            order_NP: The order of that picture's patches.

        Returns:
            Features of the shape of ``donor_NTD``.
        """
        weight, offset = self._maps
        patches_NPD = (text_NE @ weight + offset).view(donor_NTD[:, 1:].shape)
        made_NTD = donor_NTD.clone()
        made_NTD[:, 1:] = torch.zeros_like(patches_NPD).scatter(
            1, _indices(order_NP, patches_NPD), patches_NPD
        )
        return made_NTD


def _indices(order_BP: Tensor, like_BPD: Tensor) -> Tensor:
    return order_BP.unsqueeze(-1).expand_as(like_BPD)


def synthetic_rows(
    config: SyntheticConfig, records: list[Record], cache: VisionCache, encoder: Encoder, seed: int
) -> list[EncodedRecord]:
    """Make a row of every text of a corpus, and add its features to the cache of the pictures'.

    Args:
        config: The CLIP, the corpus and the map's penalty.
        records: The alignment data; its pictures and captions fit the map, its pictures are donors.
        cache: Features of all its pictures.
        encoder: Encodes the rows: the picture alone, with the text as its caption.
        seed: Chooses the donors.

    Raises:
        UserError: The CLIP or the corpus cannot be read, or no record has a picture and a caption.
    """
    from tgalign.retrieval.exact import encode_texts

    clip, tokenizer = _load_clip(config.clip)
    texts = _read_texts(config.texts)
    pairs = [(it.image, it.caption) for it in records if it.image is not None and it.caption]
    if not pairs:
        raise UserError(
            "synthetic pictures need records with an image and a caption: there is none"
        )
    images, captions = map(list, zip(*pairs, strict=True))
    features_BTD = cache(images)
    theirs, ours = clip.config.vision_config.hidden_size, features_BTD.shape[-1]
    if theirs != ours:
        raise UserError(
            f"the CLIP at {config.clip} has vision states of {theirs} channels, the LLaVA's vision "
            f"tower {ours}: give the CLIP that the tower was taken from"
        )
    bridge = Bridge(encode_texts(clip, tokenizer, captions), features_BTD, ridge=config.ridge)
    generator = torch.Generator().manual_seed(seed)
    donors_N = torch.randint(len(features_BTD), (len(texts),), generator=generator)
    made_NTD = bridge.features(
        encode_texts(clip, tokenizer, texts), features_BTD[donors_N], bridge.order_BP[donors_N]
    )
    paths = [Path(f"{config.texts}:{number}") for number in range(len(texts))]
    cache.add(paths, made_NTD)
    return [
        encoder.encode(Record(number, path, text, None, (("user", "?"),)))
        for number, (path, text) in enumerate(zip(paths, texts, strict=True))
    ]


def with_companions(
    rows: list[EncodedRecord], synthetic: list[EncodedRecord], share: float
) -> list[EncodedRecord]:
    """Give a share of the rows a synthetic one that goes into the same batch, always the same.

    So every arm sees the same records at the same step, with or without synthetic pictures.
    """

    def draw(number: int) -> tuple[float, int]:
        digest = hashlib.sha256(f"companion-{number}".encode()).digest()
        return int.from_bytes(digest[:4]) / 2**32, int.from_bytes(digest[4:12])

    paired = []
    for number, row in enumerate(rows):
        drawn, which = draw(number)
        companion = synthetic[which % len(synthetic)] if drawn < share else None
        paired.append(replace(row, companion=companion))
    return paired


def _read_texts(path: Path) -> list[str]:
    if not path.is_file():
        raise UserError(f'no texts at {path}: expected a JSONL file with a "text" in every line')
    texts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            text = json.loads(line)["text"]
            if not isinstance(text, str) or not text.strip() or IMAGE_TOKEN in text:
                raise ValueError("the text is no string, empty, or holds an image token")
        except (ValueError, KeyError, TypeError) as fault:
            raise UserError(f'{path.name}:{number}: expected {{"text": "..."}} ({fault})') from None
        texts.append(text.strip())
    if not texts:
        raise UserError(f"{path} holds no text")
    return texts


def _load_clip(path: Path) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    options: Any = {"local_files_only": True}
    try:
        config = AutoConfig.from_pretrained(path, **options)
        if not hasattr(config, "text_config") or not hasattr(config, "vision_config"):
            raise ValueError(f"a {config.model_type!r} model has no text and vision tower")
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
        clip = AutoModel.from_pretrained(
            path, use_safetensors=True, dtype=torch.float32, **options
        ).eval()
    except (OSError, ValueError) as fault:
        raise UserError(f"the CLIP at {path} cannot be loaded: {fault}") from None
    return clip, tokenizer
