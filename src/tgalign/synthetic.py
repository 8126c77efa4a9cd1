"""Synthetic picture features from texts, so that what no picture shows can be aligned too.

A CLIP's text tower and its vision tower meet in one space. A linear map, fitted on the pictures
and captions of the alignment data, leads from a text's embedding to the mean patch feature that a
picture of it would have; put in the place of a real picture's mean, it makes that picture show the
text. Texts of the retrieval corpus that the language model refuses (``tgalign.text_gate``) so
become pictures for the guide loss, with the text itself as their caption. No answer about them is
trained.

Shape suffixes: B pictures, N texts, T vision tokens (CLS first), D vision channels, E channels of
the joint space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tgalign.config import SyntheticConfig
from tgalign.data.encode import EncodedRecord, Encoder
from tgalign.data.records import IMAGE_TOKEN, Record, require_all_good
from tgalign.errors import UserError
from tgalign.files import is_unicode, read_jsonl
from tgalign.pretrained import read_config, read_model, read_part
from tgalign.text_gate import usual_question
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


def synthetic_features(
    text_NE: Tensor, donor_NTD: Tensor, weight_ED: Tensor, offset_D: Tensor
) -> Tensor:
    """Make each donor picture's features show a text: its mean patch is moved to the text's.

    Args:
        text_NE: Unit text embeddings.
        donor_NTD: Features of one real picture for each; their CLS tokens stay as they are.
        weight_ED: The bridge's weight.
        offset_D: The bridge's offset.

    Returns:
        Features of the shape of ``donor_NTD``.
    """
    wanted_ND = text_NE @ weight_ED + offset_D
    features_NTD = donor_NTD.clone()
    patches_NPD = features_NTD[:, 1:]
    patches_NPD += (wanted_ND - patches_NPD.mean(dim=1)).unsqueeze(1)
    return features_NTD


@dataclass(frozen=True)
class Corpus:
    """Texts that can be made pictures of, checked against a model before any is trained.

    Attributes:
        texts: The texts.
        rows: Each as a row: a picture alone, with the text as its caption.
        clip: The CLIP, and its tokenizer.
        ridge: L2 penalty of the map.
    """

    texts: list[str]
    rows: list[EncodedRecord]
    clip: tuple[Any, Any]
    ridge: float

    @staticmethod
    def load(
        config: SyntheticConfig, records: Sequence[Record], model: Any, encoder: Encoder
    ) -> Corpus:
        """Read and check all that synthetic pictures need.

        Raises:
            UserError: The CLIP or the texts cannot be read, the CLIP is not the one that the
                model's tower was taken from, no record has a picture and a caption, or a text is
                too long for a row.
        """
        check_clip(config.clip, model.config)
        clip = load_clip(config.clip)
        if not any(it.image is not None and it.caption for it in records):
            raise UserError(
                "synthetic pictures need records with an image and a caption: there is none"
            )
        texts = read_texts(config.texts)
        name = config.texts.name
        question = usual_question(
            it.messages[0][1] for it in records if it.image is not None and it.caption is not None
        )
        made = [
            Record(number, Path(f"{name}:{number}"), text, None, (("user", question),))
            for number, text in enumerate(texts, start=1)
        ]
        rows, problems = encoder.encode_all(made, name)
        require_all_good(problems)
        return Corpus(texts, rows, clip, config.ridge)

    def pictures(
        self, chosen: list[int], records: Sequence[Record], cache: VisionCache, seed: int
    ) -> list[EncodedRecord]:
        """Make features of some of the texts, add them to the pictures', and give their rows.

        Args:
            chosen: Positions of the texts.
            records: The alignment data; its pictures and captions fit the map, and its pictures are
                donors.
            cache: Features of all its pictures.
            seed: Chooses the donors.
        """
        from tgalign.retrieval.exact import encode_texts

        if not chosen:
            return []
        pairs = [(it.image, it.caption) for it in records if it.image is not None and it.caption]
        images, captions = map(list, zip(*pairs, strict=True))
        features_BTD = cache(images)
        weight_ED, offset_D = fit_bridge(
            encode_texts(*self.clip, captions), features_BTD[:, 1:].mean(dim=1), ridge=self.ridge
        )
        generator = torch.Generator().manual_seed(seed)
        donors_N = torch.randint(len(features_BTD), (len(chosen),), generator=generator)
        text_NE = encode_texts(*self.clip, [self.texts[number] for number in chosen])
        made_NTD = synthetic_features(text_NE, features_BTD[donors_N], weight_ED, offset_D)
        rows = [self.rows[number] for number in chosen]
        cache.add([row.image for row in rows if row.image is not None], made_NTD)
        return rows


def read_texts(path: Path) -> list[str]:
    """Read a corpus: JSONL with a ``text`` in every line.

    Raises:
        UserError: The file is missing or empty, or naming the first bad line.
    """
    if not path.is_file():
        raise UserError(f'no texts at {path}: expected a JSONL file with a "text" in every line')
    texts = []
    expected = '{"text": "..."}'
    for number, row in read_jsonl(path, expected):
        text = row.get("text") if isinstance(row, dict) else None
        if not isinstance(text, str) or not text.strip() or IMAGE_TOKEN in text:
            raise UserError(
                f"{path}:{number}: expected {expected} with a text that is not empty and holds no "
                "image token"
            )
        if not is_unicode(text):
            raise UserError(f"{path}:{number}: the text holds what is no character (not UTF-8)")
        texts.append(text.strip())
    if not texts:
        raise UserError(f"{path} holds no text")
    return texts


def check_clip(path: Path, llava: Any) -> None:
    """Check by configs alone that a LLaVA's tower can be that of a CLIP.

    Raises:
        UserError: The CLIP is missing, cannot be read, has no text tower, or another vision tower.
    """
    theirs = _clip_config(path).vision_config.hidden_size
    ours = llava.vision_config.hidden_size
    if theirs != ours:
        raise UserError(
            f"the CLIP at {path} has vision states of {theirs} channels, the LLaVA's "
            f"vision tower {ours}: give the CLIP that the tower was taken from"
        )


def load_clip(path: Path) -> tuple[Any, Any]:
    """Load a CLIP with both towers, and its tokenizer.

    Raises:
        UserError: It is missing, cannot be read, or has no text tower.
    """
    from transformers import AutoModel, AutoTokenizer

    _clip_config(path)
    tokenizer = read_part(AutoTokenizer, path, "CLIP's tokenizer")
    return read_model(AutoModel, path, "CLIP", dtype="float32"), tokenizer


def _clip_config(path: Path) -> Any:
    config = read_config(path, "CLIP")
    if not hasattr(config, "text_config") or not hasattr(config, "vision_config"):
        raise UserError(
            f"{path} holds a {config.model_type!r} model, which has no text and vision tower"
        )
    return config
