"""A local, batched model provider with pictures for inspect-ai: ``--model tgalign/CHECKPOINT``."""

from __future__ import annotations

import base64
from concurrent.futures import Future
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import TYPE_CHECKING

from inspect_ai.model import (
    ChatMessage,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    modelapi,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from tgalign.data.pictures import read_picture
from tgalign.errors import UserError
from tgalign.evaluate.conversation import Turn, to_prompt
from tgalign.evaluate.generate import Prompt, Said

if TYPE_CHECKING:
    from PIL.Image import Image

PAUSE = 0.1
"""Seconds without a new question after which a batch that is not full is asked."""

_Question = tuple[Prompt, int, "Future[Said]"]


@modelapi(name="tgalign")
def tgalign() -> type[ModelAPI]:
    """The provider's class."""
    return LocalAPI


class LocalAPI(ModelAPI):
    """A checkpoint on this machine, asked greedily in left-padded batches."""

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008  (inspect-ai's own signature)
        batch_size: int = 32,
        device: str = "auto",
        dtype: str = "auto",
        defence: str | None = None,
        calibration: str | None = None,
    ) -> None:
        """Load the checkpoint; ``-M batch_size=8 -M device=cuda -M dtype=bfloat16`` set the rest.

        Raises:
            UserError: There is no such checkpoint, or a defence that it cannot have.
        """
        from tgalign.evaluate.local_host import LocalModel

        super().__init__(model_name, base_url, api_key, [], config)
        self._host = LocalModel(
            Path(model_name), batch_size=int(batch_size), device=device, dtype=dtype,
            defence=defence, calibration=calibration,
        )  # fmt: skip
        self._questions: Queue[_Question] = Queue()
        Thread(target=self._work, daemon=True).start()

    def max_connections(self) -> int:
        """As many questions as fill a batch."""
        return self._host.batch_size

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        """Answer one conversation; it waits until its batch is done.

        Raises:
            UserError: Tools or sampling are asked for.
        """
        import anyio

        if tools:
            raise UserError("the tgalign provider calls no tools")
        if config.temperature:
            raise UserError("the tgalign provider is greedy: leave --temperature out, or at 0")
        future: Future[Said] = Future()
        length = config.max_tokens or self._host.max_new_tokens
        self._questions.put((to_prompt(turns_of(input)), length, future))
        while not future.done():
            await anyio.sleep(0.01)
        said = future.result()
        if said.text is None:
            return ModelOutput(model=self.model_name, error=f"{said.error}: {said.detail}")
        return ModelOutput.from_content(
            self.model_name, said.text, stop_reason="max_tokens" if said.cut else "stop"
        )

    def _work(self) -> None:
        while True:
            batch = [self._questions.get()]
            while len(batch) < self._host.batch_size:
                try:
                    batch.append(self._questions.get(timeout=PAUSE))
                except Empty:
                    break
            try:
                self._host.max_new_tokens = max(length for _, length, _ in batch)
                for index, said in self._host.answer([prompt for prompt, *_ in batch]):
                    batch[index][2].set_result(said)
            except BaseException as fault:
                for *_, future in batch:
                    if not future.done():
                        future.set_exception(fault)


def turns_of(messages: list[ChatMessage]) -> list[Turn]:
    """Messages of inspect-ai as turns; pictures must be data URLs.

    Raises:
        UserError: A picture is not one.
    """
    return [
        Turn(message.role, [message.content])
        if isinstance(message.content, str)
        else Turn(
            message.role,
            [part.text for part in message.content if part.type == "text"],
            [_decode(part.image) for part in message.content if part.type == "image"],
        )
        for message in messages
    ]


def _decode(url: str) -> Image:
    head, comma, encoded = url.partition(",")
    if not (comma and head.startswith("data:image/") and head.endswith(";base64")):
        raise UserError(f"expected a picture as a data URL, got {url[:40]!r}")
    try:
        return read_picture(base64.b64decode(encoded))
    except ValueError as fault:  # binascii.Error among them
        raise UserError(f"a data URL that holds no picture: {fault}") from None
