"""Render conversations by the checkpoint's chat template, and tell what of them is learnt."""

from __future__ import annotations

import functools
import re
import unicodedata
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turns: TypeAlias = "list[dict[str, Any]]"
Range: TypeAlias = "tuple[int, int]"
_SEATS = re.compile("\0(\\d+)\0")


def as_words(tokenizer: Any, text: str) -> str:
    """A text in which nothing is a special token to a tokenizer: ``</s>`` becomes ``< /s>``.

    A chat template and the texts in it are tokenized as one string, so a text that imitates the
    template's tokens would end its own turn, begin another's, or stand for a picture. What a
    template writes in ordinary tokens (``[INST]`` of Llama 2) cannot be told from its imitation.

    Args:
        tokenizer: The tokenizer.
        text: A text that is not ours: of data, suites and users.
    """
    special = _special(tokenizer, len(tokenizer))
    if special is None:
        return text
    if not text.isascii() and special.search(unicodedata.normalize("NFKC", text)):
        text = unicodedata.normalize("NFKC", text)  # normalizers make < of its wide form
    while special.search(text):
        text = special.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)
    return text


@functools.lru_cache(maxsize=16)
def _special(tokenizer: Any, size: int) -> re.Pattern[str] | None:
    """What a tokenizer matches before it looks at words; ``size`` tells when that has grown."""
    added = tokenizer.added_tokens_decoder.values()
    # Added tokens that are not special may be ordinary words, or blanks in a row.
    marks = {it.content.strip() for it in added if it.special or it.content.startswith(("<", "["))}
    marks = {it for it in marks if len(it) > 1}
    ordered = sorted(marks, key=lambda it: (-len(it), it))
    # Some normalizers write in lower case what is then compared.
    return re.compile("|".join(map(re.escape, ordered)), re.IGNORECASE) if ordered else None


class ChatTemplate:
    """A tokenizer's chat template.

    Where an assistant's turn begins and ends in the text is found by rendering the conversation up
    to there, which is slow, and so it is done once for every sequence of roles and items: with
    numbers in place of the texts. Where the texts put into that give what the template makes of
    the whole conversation, its ranges hold; a template that looks into texts is rendered each time.

    Args:
        tokenizer: A tokenizer with a chat template that knows image items.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._patterns: dict[Any, _Pattern | None] = {}

    def render(self, turns: Turns, *, add_generation_prompt: bool = False) -> str:
        """The text of a conversation, which may have no turn yet."""
        if not turns:
            return ""
        return str(
            self._tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )

    def render_learnt(self, turns: Turns) -> tuple[str, list[Range]]:
        """The text of a conversation, and the ranges of it that the assistant says.

        Raises:
            ValueError: The template changes what came before as a conversation goes on.
        """
        text = self.render(turns)
        kinds = tuple((it["role"], tuple(i["type"] for i in it["content"])) for it in turns)
        if kinds not in self._patterns:
            self._patterns[kinds] = self._pattern(turns)
        pattern = self._patterns[kinds]
        texts = [i["text"] for it in turns for i in it["content"] if i["type"] == "text"]
        if pattern is not None and pattern.filled(texts) == text:
            return text, pattern.ranges(texts)
        return text, self._learnt(turns, text)

    def _learnt(self, turns: Turns, text: str) -> list[Range]:
        learnt = []
        for number, turn in enumerate(turns):
            if turn["role"] == "assistant":
                before = self.render(turns[:number], add_generation_prompt=True)
                until = self.render(turns[: number + 1])
                if not (until.startswith(before) and text.startswith(until)):
                    raise ValueError(
                        "the chat template rewrites earlier turns, so what is learnt cannot be told"
                    )
                learnt.append((len(before), len(until)))
        return learnt

    def _pattern(self, turns: Turns) -> _Pattern | None:
        numbers = iter(range(10**9))
        seats = [
            it
            | {
                "content": [
                    {"type": "text", "text": f"\0{next(numbers)}\0"} if i["type"] == "text" else i
                    for i in it["content"]
                ]
            }
            for it in turns
        ]
        text = self.render(seats)
        found = [int(number) for number in _SEATS.findall(text)]
        if found != list(range(next(numbers))):
            return None  # texts are left out, repeated, or out of order
        try:
            return _Pattern(text, self._learnt(seats, text))
        except ValueError:
            return None


class _Pattern:
    """A rendered conversation with numbers in place of its texts.

    Args:
        text: The rendered conversation.
        learnt: Its ranges.
    """

    def __init__(self, text: str, learnt: list[Range]) -> None:
        self._literals = _SEATS.split(text)[::2]
        # Every boundary as the texts before it, and the literal characters before it.
        self._learnt = [tuple(self._split(text[:at]) for at in pair) for pair in learnt]

    @staticmethod
    def _split(before: str) -> Range:
        return len(_SEATS.findall(before)), len(_SEATS.sub("", before))

    def filled(self, texts: list[str]) -> str:
        parts = [self._literals[0]]
        for text, literal in zip(texts, self._literals[1:], strict=True):
            parts += [text, literal]
        return "".join(parts)

    def ranges(self, texts: list[str]) -> list[Range]:
        lengths = [0]
        for text in texts:
            lengths.append(lengths[-1] + len(text))
        return [
            (lengths[first] + before, lengths[last] + until)
            for (first, before), (last, until) in self._learnt
        ]
