"""Render conversations by the checkpoint's chat template, and tell what of them is learnt."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
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
    All but what the tokenizer itself takes for such a token stays letter for letter.

    Args:
        tokenizer: The tokenizer.
        text: A text that is not ours: of data, suites and users.
    """
    for _ in text:  # one that is parted may uncover another that overlaps with it
        places = _marks(tokenizer, len(tokenizer), str(tokenizer.chat_template)).parted_at(text)
        if not places:
            break
        for place in reversed(places):
            text = f"{text[:place]} {text[place:]}"
    return text


@dataclass(frozen=True)
class _Marks:
    """What a tokenizer takes for a special token.

    Attributes:
        tokenizer: The tokenizer.
        ids: The ids of special tokens.
        writings: How they are written, and what the tokenizer's normalizer makes of that.
        normalize: What the tokenizer makes of a text before it looks for words.
    """

    tokenizer: Any
    ids: frozenset[int]
    writings: re.Pattern[str]
    normalize: Callable[[str], str]

    def parted_at(self, text: str) -> list[int]:
        """Where a blank parts every special token in a text: after its first letter."""
        if not self._seen_in(text):
            return []
        if not self.tokenizer.is_fast:
            return [found.start() + 1 for found in self.writings.finditer(text)]
        batch = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        places = []
        for token, (start, end) in zip(batch["input_ids"], batch["offset_mapping"], strict=True):
            mark = text[start:end].lstrip()  # some take in the blanks around them
            # The token for unknown words is special, too, and harmless where it stands for one.
            if token in self.ids and len(mark) > 1 and self._seen_in(mark):
                places.append(end - len(mark) + 1)
        return places

    def _seen_in(self, text: str) -> bool:
        return bool(self.writings.search(text) or self.writings.search(self.normalize(text)))


@functools.lru_cache(maxsize=16)
def _marks(tokenizer: Any, size: int, template: str) -> _Marks:
    """The marks of a tokenizer, as long as it has so many tokens and this chat template."""
    # Of added tokens that are not special, such as <b>, those that the template writes.
    added = {
        number: it.content.strip()
        for number, it in tokenizer.added_tokens_decoder.items()
        if it.special or (it.content.startswith(("<", "[")) and it.content in template)
    }
    backend = getattr(tokenizer, "backend_tokenizer", None)
    normalizer = backend.normalizer if backend is not None else None
    normalize = normalizer.normalize_str if normalizer is not None else str
    written = set(added.values()) | {normalize(it).strip(" \u2581") for it in added.values()}
    ordered = sorted((it for it in written if len(it) > 1), key=lambda it: (-len(it), it))
    pattern = re.compile("|".join(map(re.escape, ordered)) if ordered else "(?!)")
    return _Marks(tokenizer, frozenset(added), pattern, normalize)


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
