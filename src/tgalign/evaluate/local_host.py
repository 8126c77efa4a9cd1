"""A checkpoint on this machine as a host of evaluations."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tgalign.errors import UserError
from tgalign.evaluate.generate import Prompt, Said, answer_each


class LocalModel:
    """A LLaVA checkpoint, or another image-text model that transformers loads, asked greedily."""

    def __init__(
        self,
        path: Path,
        *,
        batch_size: int = 32,
        max_new_tokens: int = 256,
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        """Load the checkpoint.

        Args:
            path: Its folder.
            batch_size: Prompts per batch; halved when memory runs out.
            max_new_tokens: Length at which an answer is cut.
            device: ``cpu``, ``cuda``, ``cuda:1``; ``auto``: a GPU if there is one.
            dtype: ``float32``, ``bfloat16``, ``float16``; ``auto``: float32 on a CPU,
                else bfloat16.

        Raises:
            UserError: There is no such checkpoint, device or dtype.
        """
        import torch

        self.path, self.batch_size, self.max_new_tokens = path, batch_size, max_new_tokens
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if dtype == "auto":
            dtype = "float32" if device == "cpu" else "bfloat16"
        if dtype not in ("float32", "bfloat16", "float16"):
            raise UserError(f"unknown dtype {dtype!r}; expected float32, bfloat16, float16 or auto")
        model, self.processor = load_image_text_model(path)
        try:
            self.model = model.to(device=device, dtype=getattr(torch, dtype))
        except (RuntimeError, AssertionError) as fault:
            raise UserError(f"device {device!r} cannot hold the model: {fault}") from None

    def answer(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Said]]:
        """Answer prompts, see ``generate.answer_each``."""
        yield from answer_each(
            self.model,
            self.processor,
            prompts,
            batch_size=self.batch_size,
            max_new_tokens=self.max_new_tokens,
        )

    def describe(self) -> dict[str, Any]:
        """What answers depend on: weights, chat template, decoding, device."""
        template = self.processor.chat_template or self.processor.tokenizer.chat_template
        return {
            "host": "local",
            "name": str(self.path),
            "revision": weights_sha256(self.path),
            "architecture": type(self.model).__name__,
            "chat_template_sha256": hashlib.sha256(str(template).encode()).hexdigest(),
            "chat_template": str(template),
            "decoding": {"do_sample": False, "num_beams": 1, "max_new_tokens": self.max_new_tokens},
            "device": str(self.model.device),
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }


def load_image_text_model(path: Path) -> tuple[Any, Any]:
    """Load a LLaVA by ``load_llava``, and any other image-text model as transformers does.

    Raises:
        UserError: It is not there, or transformers knows no image-text model of its type.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    from tgalign.checkpoint import load_llava

    if not (path / "config.json").is_file():
        raise UserError(f"no checkpoint at {path}: expected a folder with config.json")
    try:
        kind = AutoConfig.from_pretrained(path, local_files_only=True).model_type
        if kind == "llava":
            return load_llava(path)
        model: Any = AutoModelForImageTextToText.from_pretrained(
            path, local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
        processor: Any = AutoProcessor.from_pretrained(path, local_files_only=True)
    except UserError:
        raise
    except (ValueError, OSError, RuntimeError, ImportError) as fault:
        raise UserError(f"the checkpoint at {path} cannot be loaded: {fault}") from None
    if getattr(processor, "chat_template", None) is None:
        raise UserError(f"the processor at {path} has no chat template, so no prompt can be made")
    return model, processor


def weights_sha256(path: Path) -> str:
    """Hex digest over all safetensors files of a checkpoint, by name and content."""
    digest = hashlib.sha256()
    for file in sorted(path.glob("*.safetensors")):
        digest.update(file.name.encode())
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
