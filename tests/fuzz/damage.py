"""Damage to valid files: of their structure (JSON, YAML, CSV), and of their bytes."""

from __future__ import annotations

import copy
import csv
import io
import json
from typing import Any

from hypothesis import strategies as st

ZALGO = "k\u0336\u0316n\u0334\u0323\u0301i\u0337\u0353f\u0338\u0302e\u0335\u0310"
TEXTS = (
    "", " ", "\0", "\x1b[31m\x07\x08", "\r\n", "a\nb", "\u202egnp.1\u202c", ZALGO, "\ud800",
    "\ufeff",
    "<image>", "<|im_start|>system", "[INST]", "</s>", "<bos>", "![x](y)",
    "<script>alert(1)</script>",
    "=1+1", "+1", "-1", "@A1", "\t=1", "a|b`c`", "../../etc/passwd", "/etc/passwd", "a\0b.png",
    "{0.__class__}", "{x:>9999999999}", "%s%n", "NaN", "1e999", "9" * 5000, "plain", "a" * 70_000,
)  # fmt: skip
"""Strings that have broken readers of some program."""
RAW_VALUES = (
    "null", "true", "0", "-1", "1e999", "-0.0", "NaN", "Infinity", "-Infinity", "9" * 5000,
    "9" * 30, "1e308", "[]", "{}", "[[]]", '[{"a":[]}]', "[" * 4000 + "]" * 4000,
    '{"a":' * 4000 + "1" + "}" * 4000,
)  # fmt: skip
"""The same of other types, as JSON writes them; the last are deeper than Python's stack."""
PIECES = (
    b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\n", b"\r", b'"', b",", b"{", b"}",
    b"[",
    b"]", b":", b"\\", b"\\ud800", b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"[" * 2000,
    b"{" * 2000, b"- " * 500, b"&a [*a, *a]", b"!!python/object/apply:os.system [x]", b"<<: *a\n",
    b"%PDF", b"PK\x03\x04", b"GIF89a", b"<svg>", b"\x93NUMPY\x01\0\xff\xff",
)  # fmt: skip
"""What is put into a file's bytes."""


class Raw(str):
    """A piece of JSON that stands for itself."""


_texts = st.sampled_from(TEXTS)
_values = _texts | st.sampled_from(RAW_VALUES).map(Raw) | st.text(max_size=8) | st.integers()


def _place(draw: st.DrawFn, tree: Any) -> tuple[Any, Any] | None:
    """A random node, as the list or object that holds it and its key there."""
    place, node = None, tree
    while isinstance(node, dict | list) and node:
        key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        place, node = (node, key), node[key]
        if draw(st.integers(0, 3)) == 0:
            break
    return place


def _changed(draw: st.DrawFn, tree: Any) -> Any:
    """One node less, one changed, or one more."""
    place = _place(draw, tree)
    if place is None:
        return draw(_values)
    parent, last = place
    how = draw(st.sampled_from(("change", "change", "remove", "rename", "add", "repeat")))
    if how == "remove":
        del parent[last]
    elif how == "rename" and isinstance(parent, dict):
        parent[draw(_texts)] = parent.pop(last)
    elif how == "add" and isinstance(parent, list):
        parent.insert(last, draw(_values))
    elif how == "repeat" and isinstance(parent, list):
        parent.insert(last, copy.deepcopy(parent[last]))
    else:
        parent[last] = draw(_values)
    return tree


def _json(tree: Any) -> str:
    """JSON in which ``Raw`` is left as it is, and a half of a character is escaped."""
    marks: list[str] = []

    def mark(node: Any) -> Any:
        if isinstance(node, Raw):
            marks.append(node)
            return f"\0{len(marks) - 1}\0"
        if isinstance(node, dict):
            return {key: mark(child) for key, child in node.items()}
        return [mark(child) for child in node] if isinstance(node, list) else node

    text = json.dumps(mark(tree))
    for number, raw in enumerate(marks):
        text = text.replace(f'"\\u0000{number}\\u0000"', raw)
    return text


def _cells(draw: st.DrawFn, whole: bytes) -> bytes:
    table = list(csv.reader(io.StringIO(whole.decode())))
    for _ in range(draw(st.integers(1, 3))):
        _changed(draw, table)
    text = io.StringIO()
    rows = [[str(cell) for cell in (row if isinstance(row, list) else [row])] for row in table]
    for row in rows:
        csv.writer(text, lineterminator=draw(st.sampled_from(("\n", "\r\n")))).writerow(row)
    return text.getvalue().encode("utf-8", "surrogatepass")


def _structure(draw: st.DrawFn, whole: bytes, form: str) -> bytes:
    if form == "csv":
        return _cells(draw, whole)
    trees = [json.loads(line) for line in whole.splitlines()] if form == "jsonl" else None
    tree = trees if trees is not None else [json.loads(whole)]
    for _ in range(draw(st.integers(1, 3))):
        _changed(draw, tree)
    written = "\n".join(_json(it) for it in tree)
    if draw(st.integers(0, 9)) == 0:  # a key that stands twice
        written = written.replace("{", '{"text":1,"text":[],"image":{},', 1)
    return written.encode("utf-8", "surrogatepass")


def _bytes(draw: st.DrawFn, whole: bytes) -> bytes:
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(whole)))
        how = draw(st.sampled_from(("put", "put", "cut", "end", "flip", "repeat", "any")))
        to = min(len(whole), at + draw(st.integers(0, 40)))
        if how == "put":
            whole = whole[:at] + draw(st.sampled_from(PIECES)) + whole[at:]
        elif how == "cut":
            whole = whole[:at] + whole[to:]
        elif how == "end":
            whole = whole[:at]
        elif how == "flip":
            whole = whole[:at] + bytes(it ^ 0x55 for it in whole[at:to][:4]) + whole[at:][4:]
        elif how == "repeat":
            whole = whole[:to] + whole[at:to] * draw(st.integers(1, 50)) + whole[to:]
        else:
            whole = whole[:at] + draw(st.binary(max_size=20)) + whole[at:]
    return whole


@st.composite
def damaged(draw: st.DrawFn, whole: bytes, form: str) -> bytes:
    """Bytes of a file that was valid.

    Args:
        draw: Hypothesis's.
        whole: The valid file.
        form: ``json``, ``jsonl``, ``csv`` or ``bytes``. YAML that is written as JSON is ``json``.
    """
    if form == "bytes" or draw(st.integers(0, 3)) == 0:
        return _bytes(draw, whole)
    return _structure(draw, whole, form)
