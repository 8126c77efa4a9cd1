"""An image-text-to-text model that is asked one thing of pictures, whatever happens to some."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tgalign.data.records import DEFAULT_QUESTION, IMAGE_TOKEN
from tgalign.evaluate.generate import Prompt, Said, answer_each
from tgalign.source_models import load_captioner

if TYPE_CHECKING:
    from PIL.Image import Image


class Captioner:
    """Greedy captions.

    Args:
        path: Folder of the model.
        prompt: What is asked; None: ``DEFAULT_QUESTION``, or nothing of a model without a chat
            template.
        batch_size: Pictures at a time.
        max_new_tokens: Length at which a caption is cut.
        dtype: Of the weights; ``"auto"``: as saved.

    Attributes:
        batch_size: Halved where memory runs out, and not raised again.

    Raises:
        UserError: The model cannot be loaded.
    """

    def __init__(
        self, path: Path, prompt: str | None, *, batch_size: int, max_new_tokens: int, dtype: str
    ) -> None:
        self.model, self.processor = load_captioner(path, dtype)
        if torch.accelerator.is_available():
            self.model.to(torch.accelerator.current_accelerator())
        self.prompt = prompt
        self.batch_size = batch_size
        self.max_new_tokens = max_new_tokens

    def __call__(self, pictures: list[Image]) -> list[str | ValueError]:
        """Caption pictures.

        A batch that fails for another reason than memory is asked again one by one.

        Returns:
            For every picture its caption, or why there is none.
        """
        if getattr(self.processor, "chat_template", None) is None:
            return self._begun(pictures)
        said: dict[int, str | ValueError] = {}
        try:
            for index, it in self._answers(pictures):
                said[index] = _failed(it.detail) if it.text is None else _cleaned(it.text)
        except Exception as fault:  # chat templates fail in any way
            reason = _failed(f"{type(fault).__name__}: {fault}")
            said = {index: said.get(index, reason) for index in range(len(pictures))}
        return [said[index] for index in range(len(pictures))]

    def _answers(self, pictures: list[Image]) -> Iterator[tuple[int, Said]]:
        """What a model with a chat template says, by number of the picture."""
        prompts = [Prompt(self.prompt or DEFAULT_QUESTION, it) for it in pictures]
        size, longest = self.batch_size, self.max_new_tokens
        self.batch_size = yield from answer_each(
            self.model, self.processor, prompts, batch_size=size, max_new_tokens=longest
        )

    def _begun(self, pictures: list[Image]) -> list[str | ValueError]:
        """The same of a model without one, which goes on from the prompt."""
        from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

        said: list[str | ValueError] = []
        while len(said) < len(pictures):
            batch = pictures[len(said) : len(said) + self.batch_size]
            try:
                said += map(_cleaned, self._generate(batch))
                continue
            except Exception as fault:  # models and processors fail on odd pictures in any way
                memory = isinstance(fault, MemoryError) or should_reduce_batch_size(fault)
                reason = _failed(f"{type(fault).__name__}: {fault}")
            if len(batch) == 1:
                said.append(reason)
            elif memory:
                self.batch_size = len(batch) // 2
            else:
                said += [one for picture in batch for one in self._begun([picture])]
            clear_device_cache(garbage_collection=True)
        return said

    @torch.no_grad()
    def _generate(self, pictures: list[Image]) -> list[str]:
        text = [self.prompt] * len(pictures) if self.prompt else None
        inputs = self.processor(images=pictures, text=text, return_tensors="pt")
        inputs = inputs.to(self.model.device, dtype=self.model.dtype)  # integers stay what they are
        ids_BT = self.model.generate(
            **inputs, max_new_tokens=self.max_new_tokens, do_sample=False, num_beams=1
        )
        prompt_BT = inputs.get("input_ids")
        if prompt_BT is not None and ids_BT[:, : prompt_BT.shape[1]].equal(prompt_BT):
            ids_BT = ids_BT[:, prompt_BT.shape[1] :]
        texts: list[str] = self.processor.tokenizer.batch_decode(ids_BT, skip_special_tokens=True)
        return texts


def _failed(detail: str | None) -> ValueError:
    return ValueError(f"the model fails on it: {detail}")


def _cleaned(text: str) -> str | ValueError:
    """A caption that can stand in a record, where ``<image>`` means a picture."""
    text = text.replace(IMAGE_TOKEN, " ").strip()
    return text or ValueError("the model says nothing of it")
