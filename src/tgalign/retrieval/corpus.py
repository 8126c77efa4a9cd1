"""Stream the texts to retrieve from, line by line, and mix toxic snippets in at their own share."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tgalign.data.records import IMAGE_TOKEN
from tgalign.errors import UserError
from tgalign.files import is_unicode, numbered

MAX_CHARACTERS = 10_000
"""A longer text is skipped: it is a document and no caption, and encoders read its first words."""

_SHOWN = 3
_TABLES = (".csv", ".tsv", ".json", ".parquet")
"""Endings of what is no text a line, and would be read as such."""


@dataclass(frozen=True)
class Text:
    """One text of a corpus: the text, its line from 1, and whether it comes from the toxic one."""

    text: str
    line: int
    toxic: bool


@dataclass
class Source:
    """A corpus file, and what reading it met.

    Attributes:
        path: A file of texts: JSONL (ending ``.jsonl``) whose lines have a ``text`` or else a
            ``caption``, or plain, one text a line.
        toxic: Whether it holds the toxic snippets.
        kept: Texts read so far.
        skipped: By reason, how many lines were left out.
        examples: By reason, the first line numbers.
    """

    path: Path
    toxic: bool = False
    kept: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[int]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Text]:
        """The texts, in the order of the file; what is none is skipped and counted.

        Raises:
            UserError: The file is missing.
        """
        if not self.path.is_file():
            raise UserError(f"no corpus at {self.path}: expected a file of texts, one a line")
        ending = self.path.suffix.lower()
        if ending in _TABLES:
            raise UserError(
                f"{self.path}: expected JSON lines (a name that ends in .jsonl) or plain text, "
                "one text a line"
            )
        with self.path.open("rb") as lines:
            for number, line in numbered(lines):
                try:
                    text = _parse(line, jsonl=ending == ".jsonl")
                except ValueError as fault:
                    reason = str(fault)
                    self.skipped[reason] += 1
                    shown = self.examples.setdefault(reason, [])
                    if len(shown) < _SHOWN:
                        shown.append(number)
                    continue
                self.kept += 1
                yield Text(text, number, self.toxic)

    def faults(self) -> list[str]:
        """What was skipped, a line for each reason."""
        return [
            f"{self.path.name}: {count:,} line(s) skipped, {reason} (line "
            f"{', '.join(map(str, self.examples[reason]))}{', …' if count > _SHOWN else ''})"
            for reason, count in self.skipped.items()
        ]


def mix(corpus: Source, toxic: Source | None, share: float | None) -> Iterator[Text]:
    """The texts of a corpus with toxic ones spread evenly among them.

    Args:
        corpus: The corpus.
        toxic: Toxic snippets, or None.
        share: Their share of all; None: all of them are taken, after the corpus.

    Raises:
        UserError: There are too few toxic texts for the share.
    """
    if toxic is None:
        yield from corpus
        return
    snippets, added = iter(toxic), 0
    for text in corpus:
        yield text
        while share is not None and added + 1 <= share * (corpus.kept + added + 1):
            snippet = next(snippets, None)
            if snippet is None:
                raise UserError(
                    f"{toxic.path} holds {added:,} texts, too few for a share of {share:g} after "
                    f"{corpus.kept:,} texts of {corpus.path}: give more, or a smaller share"
                )
            added += 1
            yield snippet
    if share is None:
        yield from snippets


def _parse(line: bytes, *, jsonl: bool) -> str:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    if jsonl and text.strip():
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):
            raise ValueError("not JSON") from None
        found = row.get("text", row.get("caption")) if isinstance(row, dict) else None
        if not isinstance(found, str):
            raise ValueError('no "text" or "caption" that is a string')
        text = found
    text = " ".join(text.split())
    if not text:
        raise ValueError("empty")
    if not is_unicode(text):
        raise ValueError("holds half a character (a lone surrogate)")
    if IMAGE_TOKEN in text:
        raise ValueError(f"holds {IMAGE_TOKEN}, which a model would take for an image")
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"longer than {MAX_CHARACTERS:,} characters")
    return text
