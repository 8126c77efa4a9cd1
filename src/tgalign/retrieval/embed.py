"""Embed pictures and texts with any image-text model of transformers, or texts alone.

An image-text model (CLIP, SigLIP and their like) puts pictures and texts into one space. A text
model (the ``sentence-transformers`` family, or any language model) is read as that family reads it,
by the mean of its last states; it embeds no picture, so captions stand for them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel
from torch import Tensor

from tgalign.errors import UserError
from tgalign.files import read_json, sha256
from tgalign.pretrained import read_config, read_model, read_part
from tgalign.retrieval.exact import encode_pictures, encode_texts, mean_states

if TYPE_CHECKING:
    from PIL.Image import Image

# Shape legend: N texts or pictures, T tokens, D channels.

LAB = "lab"
"""Stands for the path of the encoder that comes with tgalign."""

_READ = (".json", ".jinja", ".model", ".safetensors", ".txt")
"""Endings of the files that decide what an encoder gives."""


class Identity(BaseModel, extra="forbid"):
    """Which encoder made an index.

    Attributes:
        path: Where it was; ``lab`` is the one that comes with tgalign.
        kind: Whether it embeds pictures too.
        model_type: As transformers calls it.
        revision: SHA-256 over all its files.
    """

    path: str
    kind: Literal["image-text", "text"]
    model_type: str
    revision: str


@dataclass(frozen=True)
class Embedder:
    """An encoder ready for use.

    Attributes:
        model: The model, in float32 and eval mode.
        tokenizer: Its tokenizer.
        image_processor: Its image processor; None for a text model.
        identity: Which one it is.
    """

    model: Any
    tokenizer: Any
    image_processor: Any
    identity: Identity

    @staticmethod
    def load(path: str | Path = LAB) -> Embedder:
        """Load an encoder, offline and from safetensors only.

        Args:
            path: A folder as ``save_pretrained`` writes it, or ``lab``.

        Raises:
            UserError: It is missing, cannot be read, or is neither an image-text nor a text model.
        """
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        folder = _folder(path)
        config = read_config(folder, "encoder")
        # A text model's pooler is not read, and often was never trained.
        model = read_model(
            AutoModel, folder, "encoder", dtype="float32",
            may_lack=lambda it, name: not _reads_both(it) and name.startswith("pooler."),
        )  # fmt: skip
        both, processor = _reads_both(model), None
        if both:
            processor = read_part(AutoImageProcessor, folder, "encoder's image processor")
        else:
            _check_text_model(folder, config)
        tokenizer = read_part(AutoTokenizer, folder, "encoder's tokenizer")
        if not both:
            tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        kind: Literal["image-text", "text"] = "image-text" if both else "text"
        identity = Identity(
            path=LAB if str(path) == LAB else str(folder.resolve()),
            kind=kind,
            model_type=config.model_type,
            revision=revision(folder),
        )
        if torch.accelerator.is_available():
            model = model.to(torch.accelerator.current_accelerator())
        return Embedder(model, tokenizer, processor, identity)

    def texts(self, texts: Sequence[str], *, batch_size: int = 256) -> Tensor:
        """Unit embeddings (N, D) of texts, float32 on the CPU; what is too long loses its end."""
        encode = encode_texts if self.identity.kind == "image-text" else mean_states
        return encode(self.model, self.tokenizer, texts, batch_size=batch_size)

    def pictures(self, pictures: Sequence[Image], *, batch_size: int = 64) -> Tensor:
        """Unit embeddings (N, D) of pictures in RGB, float32 on the CPU.

        Raises:
            UserError: The encoder is a text model.
        """
        if self.image_processor is None:
            raise UserError(
                f"the encoder at {self.identity.path} is a text model ({self.identity.model_type})"
                " and embeds no picture: build the index with an image-text encoder such as CLIP"
            )
        parts = []
        for start in range(0, len(pictures), batch_size):
            batch = list(pictures[start : start + batch_size])
            pixels = self.image_processor(batch, return_tensors="pt")["pixel_values"]
            parts.append(encode_pictures(self.model, pixels.to(self.model.device)).cpu())
        return torch.cat(parts)


def revision(path: str | Path) -> str:
    """SHA-256 over all files that decide what an encoder gives.

    Raises:
        UserError: There is no encoder.
    """
    folder = _folder(path)
    files = sorted(
        file
        for part in (folder, folder / "1_Pooling")
        for file in part.glob("*")
        if file.suffix in _READ and file.is_file()
    )
    found = [f"{file.relative_to(folder)} {sha256(file)}" for file in files]
    return hashlib.sha256("\n".join(found).encode()).hexdigest()


def _folder(path: str | Path) -> Path:
    from tgalign.lab.assets import ASSETS, CLIP

    folder = ASSETS / CLIP if str(path) == LAB else Path(path)
    if not (folder / "config.json").is_file():
        raise UserError(f"no encoder at {folder}: expected a folder with config.json (--encoder)")
    return folder


def _reads_both(model: Any) -> bool:
    """Whether a model embeds texts and pictures."""
    return hasattr(model, "get_text_features") and hasattr(model, "get_image_features")


def _check_text_model(folder: Path, config: Any) -> None:
    """Refuse what is no text model, or one that is not read by the mean of its states.

    Raises:
        UserError: It is one of these.
    """
    if not hasattr(config, "vocab_size"):
        raise UserError(
            f"the encoder at {folder} is a {config.model_type!r} model: expected an image-text "
            "model with two towers (CLIP, SigLIP) or a text model"
        )
    pooling = folder / "1_Pooling" / "config.json"
    if pooling.is_file() and not read_json(pooling).get("pooling_mode_mean_tokens"):
        raise UserError(f"{pooling} asks for another pooling than the mean, which is all we do")
