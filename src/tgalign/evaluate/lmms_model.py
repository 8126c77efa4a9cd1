"""A chat model for lmms-eval: ``lmms_eval --model tgalign --model_args pretrained=CHECKPOINT``.

Unlike lmms-eval's own ``llava_hf`` it asks in batches and through the checkpoint's own chat
template. lmms-eval needs torchvision to be installed, which does not import beside a CPU build of
torch, so this is an extra of its own: ``pip install 'tgalign[lmms]'`` where both are of one build.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from lmms_eval.protocol import ChatMessages

from tgalign.errors import UserError
from tgalign.evaluate.conversation import Turn, to_prompt
from tgalign.evaluate.generate import Prompt
from tgalign.evaluate.local_host import LocalModel
from tgalign.evaluate.pictures import open_picture

MANIFEST = ModelManifest(
    model_id="tgalign", chat_class_path="tgalign.evaluate.lmms_model.ChatModel"
)
"""What lmms-eval finds through the entry point."""


class ChatModel(lmms):  # type: ignore[misc]  # lmms-eval has no types
    """A checkpoint on this machine, asked greedily in left-padded batches."""

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 8,
        device: str = "auto",
        dtype: str = "auto",
        **unknown: Any,
    ) -> None:
        """Load the checkpoint.

        Raises:
            UserError: There is none, or an unknown argument is given.
        """
        super().__init__()
        if unknown:
            raise UserError(f"unknown model_args {', '.join(sorted(unknown))}")
        self._host = LocalModel(
            Path(pretrained), batch_size=int(batch_size), device=device or "auto", dtype=dtype
        )

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers to chat requests, in their order, cut at the task's stop strings.

        Raises:
            UserError: A request samples, or cannot be asked.
        """
        by_length: dict[int, list[int]] = {}
        prompts: list[Prompt] = []
        stops: list[list[str]] = []
        for index, request in enumerate(requests):
            _, doc_to_messages, settings, doc_id, task, split = request.args
            if settings.get("temperature") or settings.get("do_sample"):
                raise UserError(f"task {task} samples; this model is greedy")
            until = settings.get("until") or []
            stops.append([until] if isinstance(until, str) else list(until))
            by_length.setdefault(int(settings.get("max_new_tokens", 256)), []).append(index)
            prompts.append(_prompt(doc_to_messages(self.task_dict[task][split][doc_id])))
        answers = [""] * len(prompts)
        for length, chosen in by_length.items():
            self._host.max_new_tokens = length
            for place, said in self._host.answer([prompts[i] for i in chosen]):
                if said.text is None:
                    raise UserError(f"request {chosen[place]}: {said.error}: {said.detail}")
                answers[chosen[place]] = said.text
        return [_cut(answer, until) for answer, until in zip(answers, stops, strict=True)]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not offered: these tasks are asked in chat."""
        raise UserError("the tgalign model answers generate_until tasks only")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not offered."""
        raise UserError("the tgalign model answers generate_until tasks only")


def _prompt(messages: Any) -> Prompt:
    turns = [
        Turn(
            message.role,
            [part.text for part in message.content if part.type == "text"],
            [open_picture(_source(part.url)) for part in message.content if part.type == "image"],
        )
        for message in ChatMessages(messages=messages).messages
    ]
    return to_prompt(turns)


def _source(url: Any) -> Any:
    return Path(url) if isinstance(url, str) else url


def _cut(answer: str, until: Sequence[str]) -> str:
    for stop in filter(None, until):
        answer = answer.split(stop, maxsplit=1)[0]
    return answer.strip()
