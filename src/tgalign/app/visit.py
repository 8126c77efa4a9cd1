"""What one session looks at and has asked about it; answers do not outlive their picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from tgalign.app import drawing
from tgalign.app.answers import Answer, stream_answers
from tgalign.app.layers import LayerFigures
from tgalign.app.models import Loaded
from tgalign.app.scenes import Shown

NOTHING_HEARD = ("", "<p class='none'>Ask first.</p>", "")
"""The panels of answers, layers and patched states before anything is asked."""


@dataclass(eq=False)
class Seen:
    """What one session looks at.

    Attributes:
        shown: The picture.
        draws: How often the session has had objects drawn.
        gone: Whether another picture has taken its place.
    """

    shown: Shown
    draws: int
    gone: bool = False


@dataclass(frozen=True)
class Heard:
    """What was asked about a picture; nothing of it counts beside another one.

    Attributes:
        seen: The picture.
        models: Who was asked.
        question: What was asked.
        caption: The caption at that time.
        figures: Of each model, once its layers are read.
    """

    seen: Seen
    models: tuple[Loaded, ...]
    question: str
    caption: str
    figures: tuple[LayerFigures, ...] = ()


def taken(old: Seen | None, new: Seen, caption: str) -> tuple[Any, ...]:
    """What the page shows once a picture has taken another's place."""
    if old is not None:
        old.gone = True
    return new, None, drawing.shown_picture(new.shown), caption, *NOTHING_HEARD


def heard_answers(heard: Heard, names: Sequence[str]) -> Iterator[tuple[Any, str]]:
    """Answers word by word, to the picture and then to its caption; in the end what was heard."""
    answers: list[Any] = [Answer("")] * len(heard.models)
    told: list[Any] = [Answer("") if heard.caption else None] * len(heard.models)
    for answers in stream_answers(heard.models, heard.question, picture=heard.seen.shown.picture):
        yield gr.skip(), drawing.answer_cards(names, answers, told)
    if heard.caption:
        for told in stream_answers(heard.models, heard.question, caption=heard.caption):
            yield gr.skip(), drawing.answer_cards(names, answers, told)
    yield heard, drawing.answer_cards(names, answers, told)
