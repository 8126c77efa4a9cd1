"""Tables in Markdown and CSV that stay tables, whatever stands in their cells."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

_MARKUP = re.compile(r"[\\|`<>]|(?<=\])\(|!(?=\[)")
_FORMULA = re.compile(r"\s*[=+\-@]|[\t\r\n]")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, a line for each row.

    Names of models and arms are not ours: nothing in a cell ends it or its row, or becomes HTML, a
    picture, code or a link that reads otherwise than where it leads (GitHub makes a link of a bare
    address).
    """
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(map(_markdown_cell, line)) + " |\n" for line in lines)


def _markdown_cell(text: str) -> str:
    lines = re.split(r"[\r\n\v\f\x85\u2028\u2029]+", text)
    return _MARKUP.sub(r"\\\g<0>", " ".join(lines))


def csv_table(rows: Iterable[Sequence[Any]]) -> str:
    """CSV with line feeds; no text in it is a formula to a spreadsheet.

    A text that begins as a formula does is led by an apostrophe, as OWASP advises on CSV injection;
    numbers stay numbers.
    """
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(
        [_csv_cell(cell) for cell in row] for row in rows
    )
    return out.getvalue()


def _csv_cell(cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    text = cell.replace("\r", " ")  # which the csv module would leave unquoted
    return f"'{text}" if _FORMULA.match(cell) else text
