"""A host's conversation as our prompt: earlier turns as texts, the last turn with its picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tgalign.errors import UserError
from tgalign.evaluate.generate import Prompt

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Turn:
    """What one message holds, whoever's classes it came in."""

    role: str
    texts: list[str]
    pictures: list[Image] = field(default_factory=list)


def to_prompt(turns: Sequence[Turn]) -> Prompt:
    """Make a prompt of a conversation that ends with the user's turn.

    A system message stands before the text of the first user turn, since many chat templates of
    LLaVA checkpoints know no system role. Of several texts in the last turn, all but the last stand
    in a caption's place.

    Raises:
        UserError: The conversation does not alternate, or holds more than one picture, or one
            before the last turn.
    """
    system = [text for turn in turns if turn.role == "system" for text in turn.texts]
    talk = [turn for turn in turns if turn.role != "system"]
    if any(turn.role != ("user", "assistant")[i % 2] for i, turn in enumerate(talk)):
        raise UserError("expected turns of user and assistant in alternation")
    if not talk or talk[-1].role != "user" or not talk[-1].texts:
        raise UserError("expected the user to have the last word, with a text")
    if any(turn.pictures for turn in talk[:-1]) or len(talk[-1].pictures) > 1:
        raise UserError("expected one picture at most, in the last turn")
    texts = [turn.texts for turn in talk]
    texts[0] = [*system, *texts[0]]
    lines = [" ".join(parts) for parts in texts]
    *caption, text = texts[-1]
    return Prompt(
        text,
        talk[-1].pictures[0] if talk[-1].pictures else None,
        " ".join(caption) or None,
        tuple(zip(lines[:-1:2], lines[1::2], strict=True)),
    )
