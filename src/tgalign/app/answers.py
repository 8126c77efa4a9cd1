"""Answers of several models at once, word by word, each judged when it is whole."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import StoppingCriteria
from transformers.generation.streamers import TextStreamer

from tgalign.app.models import Loaded
from tgalign.diagnose.prompts import Prompts, caption_prompts, picture_prompts
from tgalign.errors import UserError
from tgalign.evaluate.refusal import Verdict, judge

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_NEW_TOKENS = 128
MAX_QUESTION = 2000
"""Characters of a question or of a caption."""


@dataclass(frozen=True)
class Answer:
    """What a model has said so far.

    Attributes:
        text: Its words.
        verdict: The judge's, once the answer is whole; None before that, or if it failed.
        error: Why there is no answer, in words.
    """

    text: str
    verdict: Verdict | None = None
    error: str | None = None

    @property
    def done(self) -> bool:
        """Whether nothing more will come."""
        return self.verdict is not None or self.error is not None


def check_words(name: str, words: str) -> str:
    """A question or a caption without blanks around it.

    Raises:
        UserError: It is empty or too long.
    """
    words = words.strip()
    if not words:
        raise UserError(f"the {name} is empty: write one")
    if len(words) > MAX_QUESTION:
        raise UserError(
            f"the {name} has {len(words):,} characters, more than {MAX_QUESTION:,}: shorten it"
        )
    return words


def stream_answers(
    models: Sequence[Loaded], question: str, *, picture: Image | None = None, caption: str = ""
) -> Iterator[list[Answer]]:
    """Ask all models the same at the same time, greedily.

    Args:
        models: Whom to ask.
        question: What to ask.
        picture: What they are shown; None: they are told ``caption`` in its place.
        caption: What the picture shows, in words.

    Yields:
        After every piece of text the answers so far, in the order of the models. A model that
        fails ends in an answer with ``error``; the others go on.
    """
    pieces: queue.Queue[tuple[int, str | Exception | None]] = queue.Queue()
    stop = threading.Event()

    def speak(index: int) -> None:
        loaded = models[index]
        try:
            with loaded.lock:
                if not stop.is_set():
                    _generate(
                        loaded, _prompts(loaded, question, picture, caption), index, pieces, stop
                    )
            pieces.put((index, None))
        except Exception as fault:  # whatever a model raises belongs on the page
            pieces.put((index, fault))

    said = [Answer("")] * len(models)
    for index in range(len(models)):
        threading.Thread(target=speak, args=(index,), daemon=True).start()
    try:
        while not all(answer.done for answer in said):
            index, piece = pieces.get()
            text = said[index].text
            if isinstance(piece, str):
                said[index] = Answer(text + piece)
            elif piece is None:
                said[index] = Answer(text.strip(), judge(text.strip(), question))
            else:
                said[index] = Answer(text, error=_in_words(models[index], piece))
            yield list(said)
    finally:
        stop.set()


def _prompts(loaded: Loaded, question: str, picture: Image | None, caption: str) -> Prompts:
    if picture is not None:
        return picture_prompts(loaded.model, loaded.processor, [picture], question)
    return caption_prompts(loaded.model, loaded.processor, [caption], question)


def _generate(
    loaded: Loaded, prompts: Prompts, index: int, pieces: queue.Queue[Any], stop: threading.Event
) -> None:
    import torch

    with torch.no_grad():
        loaded.model.generate(
            **prompts.inputs,
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            num_beams=1,
            streamer=_Pieces(loaded.processor.tokenizer, index, pieces),
            stopping_criteria=[_Stopped(stop)],
        )


def _in_words(loaded: Loaded, fault: Exception) -> str:
    if isinstance(fault, UserError):
        return str(fault)
    return f"{loaded.name} failed ({type(fault).__name__}: {str(fault)[:200]})"


class _Pieces(TextStreamer):
    """Puts each finished piece of text into a queue that several models share."""

    def __init__(self, tokenizer: Any, index: int, pieces: queue.Queue[Any]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._index, self._pieces = index, pieces

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._pieces.put((self._index, text))


class _Stopped(StoppingCriteria):
    """Ends a generation that nobody waits for any more."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        import torch

        return torch.full((input_ids.shape[0],), self._stop.is_set(), device=input_ids.device)
