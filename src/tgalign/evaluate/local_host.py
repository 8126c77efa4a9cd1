"""A checkpoint on this machine as a host of evaluations."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

from tgalign.errors import UserError
from tgalign.evaluate.generate import Prompt, Said, answer_each
from tgalign.files import sha256


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
        defence: str | None = None,
        calibration: str | None = None,
    ) -> None:
        """Load the checkpoint, and set the defence around it.

        Args:
            path: Its folder.
            batch_size: Prompts per batch; halved when memory runs out.
            max_new_tokens: Length at which an answer is cut.
            device: ``cpu``, ``cuda``, ``cuda:1``; ``auto``: a GPU if there is one.
            dtype: ``float32``, ``bfloat16``, ``float16``; ``auto``: float32 on a CPU,
                else bfloat16.
            defence: A key of ``baselines.methods.DEFENCES`` that stands around the model as long as
                this object lives, or None.
            calibration: What the defence is calibrated on: ``lab`` or a folder.

        Raises:
            UserError: There is no such checkpoint, device, dtype or defence, or the calibration is
                missing or lacks what the defence needs.
        """
        self.path, self.batch_size, self.max_new_tokens = path, batch_size, max_new_tokens
        device, dtype = chosen_place(device, dtype)
        self.model, self.processor = load_on(path, device, dtype)
        self.defence: dict[str, Any] | None = None
        if defence is not None:
            self.defence = self._defend(defence, calibration)
        elif calibration is not None:
            raise UserError("a calibration is for a defence: give one (--defence), or neither")

    def _defend(self, name: str, source: str | None) -> dict[str, Any]:
        from tgalign.baselines.calibration_folder import find_calibration
        from tgalign.baselines.methods import defend

        if source is None:
            raise UserError(
                f"the defence {name} needs --calibration: lab, or a folder of your own (see "
                "docs/results.md)"
            )
        if self.model.config.model_type != "llava":
            raise UserError(
                f"the model at {self.path} is a {self.model.config.model_type}: defences stand "
                "around a llava only"
            )
        calibration = find_calibration(source)
        self._around = ExitStack()  # kept: the defence ends when its context is closed
        self._around.enter_context(
            defend(self.model, self.processor, name, calibration=calibration)
        )
        return {"name": name, "calibration": source, "calibration_sha256": calibration.sha256}

    def answer(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Said]]:
        """Answer prompts, see ``generate.answer_each``."""
        yield from answer_each(
            self.model,
            self.processor,
            prompts,
            batch_size=self.batch_size,
            max_new_tokens=self.max_new_tokens,
        )

    @cached_property
    def _revision(self) -> str:
        return saved_weights_sha256(self.path)

    def describe(self) -> dict[str, Any]:
        """What answers depend on: weights, chat template, decoding, device, defence."""
        template = self.processor.chat_template or self.processor.tokenizer.chat_template
        return {
            "host": "local",
            "name": str(self.path),
            "revision": self._revision,
            "architecture": type(self.model).__name__,
            "chat_template_sha256": hashlib.sha256(str(template).encode()).hexdigest(),
            "chat_template": str(template),
            "decoding": {"do_sample": False, "num_beams": 1, "max_new_tokens": self.max_new_tokens},
            "device": str(self.model.device),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "defence": self.defence,
        }


def chosen_place(device: str, dtype: str) -> tuple[str, str]:
    """Where ``auto`` puts a model: on a GPU in bfloat16 if there is one, else a CPU in float32.

    Raises:
        UserError: There is no such dtype.
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    if dtype not in ("float32", "bfloat16", "float16"):
        raise UserError(f"unknown dtype {dtype!r}; expected float32, bfloat16, float16 or auto")
    return device, dtype


def load_on(path: Path, device: str, dtype: str) -> tuple[Any, Any]:
    """``load_image_text_model``, and put the model on a device.

    Raises:
        UserError: As there, or the device cannot hold it.
    """
    model, processor = load_image_text_model(path, dtype)
    try:
        return model.to(device), processor
    except (RuntimeError, AssertionError) as fault:
        raise UserError(f"device {device!r} cannot hold the model: {fault}") from None


def load_image_text_model(path: Path, dtype: Any = "float32") -> tuple[Any, Any]:
    """Load a LLaVA by ``load_llava``, and any other image-text model as transformers does.

    Args:
        path: Its folder.
        dtype: Name of that of the weights.

    Raises:
        UserError: It is not there, or transformers knows no image-text model of its type.
    """
    from transformers import AutoModelForImageTextToText

    from tgalign.checkpoint import load_chat_processor, load_llava, lvlm_kind
    from tgalign.pretrained import read_model

    if lvlm_kind(path) == "llava":
        return load_llava(path, dtype=dtype)
    model = read_model(AutoModelForImageTextToText, path, dtype=dtype)
    return model, load_chat_processor(path)


def saved_weights_sha256(path: Path) -> str:
    """Hex digest over all safetensors files of a checkpoint, by name and content."""
    digest = hashlib.sha256()
    for file in sorted(path.glob("*.safetensors")):
        digest.update(file.name.encode())
        digest.update(bytes.fromhex(sha256(file)))
    return digest.hexdigest()
