"""What a row means: every shape of row is turned into our own (``tgalign.data.records``).

- LLaVA's: ``{"image": path, "conversations": [{"from": "human" | "gpt", "value": str}]}``, with one
  ``<image>`` in the first human turn of a row that has a picture. As in LLaVA's own code
  (``preprocess_multimodal``, ``preprocess``), the picture is put first wherever it stood in that
  turn, and answers before the first human turn are left out.
- TRL's: ``{"images": [picture], "messages": [{"role", "content"}]}``, content being a string or a
  list of ``{"type": "image"}`` and ``{"type": "text", "text": str}``.
- A table's: columns ``image`` or ``file_name``, ``caption`` or ``text``, ``question``, ``answer``
  and ``retrieved``, of which only the first is needed.

``caption`` and ``retrieved`` may stand beside any of them; ``image_caption`` and
``retrieved_caption`` are what the paper's released code calls them. A picture is a path, or, as
``datasets`` gives it, ``{"bytes", "path"}``. Keys of other use are passed over, but not one that
looks like a misspelt key of ours.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping
from typing import Any

IMAGE_TOKEN = "<image>"
DEFAULT_QUESTION = "Describe this image."
PICTURE_COLUMNS = ("image", "file_name")
KEYS = frozenset(("id", "image", "caption", "retrieved", "messages"))
_FOREIGN = KEYS | {"conversations", "images", "image_caption", "retrieved_caption", "file_name"}
_TEXTS = frozenset(("text", "question", "answer"))
_OF_TABLES = _FOREIGN | _TEXTS
_ROLES = {"human": "user", "gpt": "assistant"}


def as_ours(row: Any, *, table: bool) -> dict[str, Any]:
    """A row in our own shape, with its texts and picture unchecked.

    Args:
        row: The row as decoded.
        table: Whether it comes from a table, which may have columns of other use.

    Raises:
        ValueError: It is no object, has a key that we do not know or a misspelt one, or its
            placeholders do not fit its pictures.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"expected a JSON object, got {type(row).__name__}")
    messages = row.get("messages")
    if row.get("conversations") is not None:
        made = _from_llava(row)
    elif row.get("images") is not None or _has_items(messages):
        made = _from_trl(row)
    elif table:
        messages = messages or _asked(_cell(row, "question"), _cell(row, "answer"))
        made = {"image": _cell(row, *PICTURE_COLUMNS), "messages": messages}
    else:
        unknown = sorted(row.keys() - KEYS)
        if unknown:
            raise ValueError(
                f"unknown key(s) {', '.join(unknown)}; known: {', '.join(sorted(KEYS))}"
            )
        return dict(row)
    for key in row:
        meant = _misspelt(str(key), table)
        # A table may have `answers` or `questionId` beside the column that is read.
        if meant and not (meant in _TEXTS and _cell(row, meant) is not None):
            raise ValueError(f"the key {key!r} looks like {meant!r}: rename or remove it")
    made["caption"] = _cell(row, "caption", "image_caption", *(["text"] if table else []))
    made["retrieved"] = _cell(row, "retrieved", "retrieved_caption")
    if made["image"] is not None and _is_blank(made["messages"]):
        made["messages"] = [{"role": "user", "content": DEFAULT_QUESTION}, *made["messages"][1:]]
    return made


def _cell(row: Mapping[str, Any], *columns: str) -> Any:
    """The first of these that a row has."""
    return next((row[name] for name in columns if row.get(name) not in (None, "")), None)


def _is_blank(messages: Any) -> bool:
    """Whether the first user turn held nothing but the picture."""
    first = messages[0] if isinstance(messages, list) and messages else {}
    return isinstance(first, Mapping) and first.get("role") == "user" and first.get("content") == ""


@functools.lru_cache(maxsize=1024)
def _misspelt(key: str, table: bool) -> str | None:
    """The key of ours that another one looks like."""
    known = _OF_TABLES if table else _FOREIGN
    if key in known:
        return None
    return next(iter(difflib.get_close_matches(key.lower(), sorted(known), 1, 0.85)), None)


def _has_items(messages: Any) -> bool:
    return isinstance(messages, list) and any(
        isinstance(turn, Mapping) and isinstance(turn.get("content"), list) for turn in messages
    )


def _from_llava(row: Mapping[str, Any]) -> dict[str, Any]:
    turns = row["conversations"]
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise ValueError('conversations must be a list of {"from", "value"}')
    while turns and turns[0].get("from") == "gpt":
        turns = turns[1:]
    if not turns:
        raise ValueError("no human turn")
    messages, seats = [], []
    for number, turn in enumerate(turns):
        text = turn.get("value")
        if isinstance(text, str):
            seats += [number] * text.count(IMAGE_TOKEN)
            text = text.replace(IMAGE_TOKEN, "").strip()
        role = turn.get("from")
        role = _ROLES.get(role, role) if isinstance(role, str) else role
        messages.append({"role": role, "content": text})
    return {"image": _only_image(row.get("image"), seats), "messages": messages}


def _from_trl(row: Mapping[str, Any]) -> dict[str, Any]:
    images = row.get("images")
    if images is None:
        images = row.get("image")
    turns = row.get("messages")
    if not _has_items(turns):  # as in TRL, pictures then stand before the first user turn
        seats = [0] * (len(images) if isinstance(images, list) else images is not None)
        return {"image": _only_image(images, seats), "messages": turns}
    assert isinstance(turns, list)
    messages: list[Any] = []
    seats = []
    for number, turn in enumerate(turns):
        items = turn.get("content") if isinstance(turn, Mapping) else None
        if not isinstance(items, list):
            messages.append(turn)
            continue
        texts = []
        for item in items:
            kind = item.get("type") if isinstance(item, Mapping) else None
            if kind == "image":
                seats.append(number)
            elif kind == "text" and isinstance(item.get("text"), str):
                texts.append(item["text"])
            else:
                raise ValueError(
                    f'turn {number + 1}: expected items {{"type": "image"}} and {{"type": "text", '
                    f'"text": "..."}}, got {item!r:.60}'
                )
        messages.append({"role": turn.get("role"), "content": "\n".join(texts).strip()})
    return {"image": _only_image(images, seats), "messages": messages}


def _only_image(images: Any, seats: list[int]) -> Any:
    """The one picture of a row, which has its one placeholder in the first turn.

    Args:
        images: One picture, a list, or None.
        seats: The turns, from 0, in which a placeholder stands, each as often as it does.
    """
    found = images if isinstance(images, list) else [images] if images is not None else []
    if len(found) != len(seats):
        raise ValueError(f"{len(seats)} image placeholder(s) for {len(found)} image(s)")
    if len(found) > 1:
        raise ValueError(f"{len(found)} images: a row may have one")
    if any(seats):
        raise ValueError(f"the image stands in turn {seats[0] + 1}, not in the first")
    return found[0] if found else None


def _asked(question: Any, answer: Any) -> list[dict[str, Any]] | None:
    if question is None and answer is None:
        return None
    turns = [{"role": "user", "content": DEFAULT_QUESTION if question is None else question}]
    return turns if answer is None else [*turns, {"role": "assistant", "content": answer}]
