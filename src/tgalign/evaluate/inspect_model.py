"""A chat model of any provider that inspect-ai knows (``openai/...``), asked in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from importlib.metadata import version
from typing import Any

from tgalign.errors import UserError
from tgalign.evaluate.chat_server import RETRIES
from tgalign.evaluate.generate import Prompt, Said


class InspectModel:
    """One model of a provider, asked at temperature 0."""

    def __init__(self, name: str, *, concurrency: int = 32, max_new_tokens: int = 256) -> None:
        """Find the provider; it reads its key from the environment, as inspect-ai documents.

        Args:
            name: ``PROVIDER/NAME``.
            concurrency: Questions under way at a time.
            max_new_tokens: Length at which an answer is cut.

        Raises:
            UserError: There is no such provider, or it lacks a package or a key.
        """
        from inspect_ai.model import GenerateConfig
        from rich.text import Text

        self.name = name
        self._config = GenerateConfig(
            temperature=0, seed=0, max_tokens=max_new_tokens, max_connections=concurrency,
            max_retries=RETRIES, attempt_timeout=120,
        )  # fmt: skip
        self._served_as: str | None = None
        try:
            self._model()
        except Exception as fault:  # each provider has its own
            said = " ".join(Text.from_markup(str(fault)).plain.split())
            raise UserError(
                f"the model {name!r} cannot be asked through inspect-ai ({said}): expected "
                "PROVIDER/NAME with the provider's package installed and its key in the environment"
            ) from None

    def _model(self) -> Any:
        from inspect_ai.model import get_model

        return get_model(self.name, config=self._config, memoize=False)

    def answer(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Said]]:
        """Answer prompts, in the order in which answers arrive.

        A prompt that fails after all retries ends in ``provider_error``. No picture is sent.
        """
        from anyio.from_thread import start_blocking_portal

        with (
            start_blocking_portal() as portal,
            portal.wrap_async_context_manager(self._model()) as model,
        ):
            sent = {
                portal.start_task_soon(self._ask, model, prompt.text): i
                for i, prompt in enumerate(prompts)
            }
            for done in as_completed(sent):
                yield sent[done], done.result()

    def describe(self) -> dict[str, Any]:
        """What is known of what answers depend on."""
        return {
            "host": f"inspect-ai {version('inspect-ai')}",
            "name": self.name,
            "served_as": self._served_as,
            "decoding": {"temperature": 0, "max_tokens": self._config.max_tokens, "seed": 0},
        }

    async def _ask(self, model: Any, text: str) -> Said:
        try:
            output = await model.generate(text)
        except Exception as fault:  # each provider has its own
            return Said(
                None, error="provider_error", detail=f"{type(fault).__name__}: {fault}"[:300]
            )
        if output.error:
            return Said(None, error="provider_error", detail=output.error)
        self._served_as = output.model
        return Said(output.completion.strip(), cut=output.stop_reason == "max_tokens")
