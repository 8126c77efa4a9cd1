"""Suites that are tables with pictures beside them, as ``suites.yaml`` or a file like it says."""

from __future__ import annotations

import csv
import io
import json
import re
import string
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict

from tgalign.data.pictures import inside
from tgalign.errors import UserError
from tgalign.evaluate.items import Item, Scoring, Suite
from tgalign.files import is_unicode, read_jsonl
from tgalign.yaml_text import parse_yaml

LOST_SHARE = 0.1
"""Share of a suite's pictures that may be missing: then these items are errors, not all."""

_FIELD = re.compile(r"(?!\d+(?:\[|$))[^.\[\]]+(?:\[[^\[\]]+\])*")


def _template(text: str) -> str:
    for _, column, width, conversion in string.Formatter().parse(text):
        if column is None:
            continue
        if width or conversion or not _FIELD.fullmatch(column):
            raise ValueError(
                f"the template {text!r}: expected columns alone, as {{name}} or {{name[key]}}"
            )
    return text


Template = Annotated[str, AfterValidator(_template)]
"""``str.format`` without attributes, conversions and widths, which reach beyond the row."""


class ItemSpec(BaseModel):
    """What a row becomes; values are templates over its columns."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["toxic", "benign"]
    id: Template
    question: Template
    scene: Template | None = None
    picture: Template | None = None
    caption: Template | None = None
    target: Template | None = None
    scoring: Scoring | None = None
    when: dict[str, Any] = {}


class SuiteSpec(BaseModel):
    """Where a suite's rows and pictures lie (see ``suites.yaml``)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    about: str
    source: str
    licence: str
    tables: str
    items: list[ItemSpec]
    pictures: str | None = None
    expected: int | None = None


def shipped_specs() -> dict[str, SuiteSpec]:
    """The public suites."""
    source = resources.files("tgalign.evaluate.suites").joinpath("suites.yaml")
    return _specs(source.read_text(encoding="utf-8"), "suites.yaml")


def read_specs(path: Path) -> dict[str, SuiteSpec]:
    """The suites of a user's own file.

    Raises:
        UserError: It is missing or not of the form of ``suites.yaml``.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as fault:
        raise UserError(f"no suite file at {path}: {fault}") from None
    return _specs(text, str(path))


def _specs(text: str, where: str) -> dict[str, SuiteSpec]:
    try:
        specs = parse_yaml(text)
        if not isinstance(specs, dict):
            raise ValueError("expected a mapping of names to suites")
        return {str(name): SuiteSpec.model_validate(spec) for name, spec in specs.items()}
    except ValueError as fault:
        raise UserError(f"{where} does not describe suites as suites.yaml does: {fault}") from None


def table_suite(name: str, spec: SuiteSpec, data: Path) -> Suite:
    """Read a suite from the user's download and check it.

    Raises:
        UserError: A part or more than ``LOST_SHARE`` of the pictures is missing, or a row is not as
            the spec says.
    """
    got = f"get the suite from {spec.source}"
    if not data.is_dir():
        raise UserError(f"no folder at {data}: --data must be the download of {name}; {got}")
    root = data.resolve()
    try:
        tables = sorted(data.glob(spec.tables))
        folder = inside(root, spec.pictures) if spec.pictures else root
    except (OSError, ValueError, IndexError, NotImplementedError) as fault:
        raise UserError(f"{name} cannot be looked for in {data}: {fault}") from None
    if ".." in Path(spec.tables).parts:  # links may lead out, as those of the hub's cache do
        raise UserError(f"the tables {spec.tables!r} of {name} lead outside {data}")
    if not tables:
        raise UserError(f"{data} lacks {spec.tables}, the questions of {name}; {got}")
    if not folder.is_dir():
        raise UserError(f"{data} lacks the folder {spec.pictures}, the pictures of {name}; {got}")
    items: list[Item] = []
    seen: set[str] = set()
    unused: list[str] = []
    num_rows = 0
    for table in tables:
        if table.suffix == ".csv":
            _check_when(spec, table)
        for number, row in enumerate(_rows(table), start=1):
            where, before = f"{table}, row {number}", len(items)
            for item in _items(spec, row, folder, where):
                if item.id in seen:
                    raise UserError(f"{where}: a second item with the id {item.id!r}")
                seen.add(item.id)
                items.append(item)
            num_rows += 1
            if len(items) == before:
                unused.append(where)
    if not items:
        raise UserError(f"{', '.join(map(str, tables))} hold no question of {name}; {got}")
    pictured = [it for it in items if isinstance(it.picture, Path)]
    lost = [str(it.picture) for it in pictured if not _there(it)]
    notes = []
    if lost:
        said = f"{len(lost)} of {len(pictured)} pictures of {name} are missing, such as {lost[0]}"
        if len(lost) > LOST_SHARE * len(pictured):
            raise UserError(f"{said}; {got}")
        notes.append(said)
    if unused and spec.expected is None:  # else that number tells
        notes.append(f"{len(unused)} of {num_rows} rows are asked nowhere, such as {unused[0]}")
    if spec.expected and len(items) != spec.expected:
        notes.append(f"{len(items)} items; the complete {name} has {spec.expected}")
    return Suite(name, tuple(items), spec.licence, spec.source, tuple(notes))


def _check_when(spec: SuiteSpec, table: Path) -> None:
    """Refuse conditions that no cell of a CSV table can meet."""
    for form in spec.items:
        for column, value in form.when.items():
            if not isinstance(value, str):
                raise UserError(
                    f"{table} holds texts alone, and `when` asks for {column}: {value!r}, which is "
                    f'none: write {column}: "..." as it stands in the table'
                )


def _there(item: Item) -> bool:
    try:
        return isinstance(item.picture, Path) and item.picture.is_file()
    except OSError:  # a name that no file can have
        return False


def _rows(table: Path) -> Iterator[dict[str, Any]]:
    try:
        text = table.read_text(encoding="utf-8-sig")
        if table.suffix == ".csv":
            reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
            header = [it for it in reader.fieldnames or () if it]  # spreadsheets add empty ones
            if len(set(header)) < len(header):
                raise ValueError(f"a column stands twice in the header {', '.join(header)}")
            found: Any = list(reader)
        elif table.suffix == ".jsonl":
            found = _lines(table)
        else:
            try:
                found = json.loads(text)
            except ValueError:
                if not text.lstrip().startswith("{") or "\n{" not in text.strip():
                    raise
                found = _lines(table)  # JSON lines of another ending, as POPE's
    except UserError:
        raise
    except (OSError, ValueError, RecursionError, csv.Error) as fault:
        raise UserError(f"{table} cannot be read: {fault}") from None
    if isinstance(found, dict):
        found = [{"key": key, **row} for key, row in found.items() if isinstance(row, dict)]
    if not isinstance(found, list):
        raise UserError(f"{table}: expected rows, got {type(found).__name__}")
    for number, row in enumerate(found, start=1):
        if not isinstance(row, dict):
            raise UserError(f"{table}, row {number}: expected a row with columns, got {row!r:.60}")
        if table.suffix == ".csv" and (None in row or None in row.values()):
            raise UserError(f"{table}, row {number}: not as many cells as the header has")
        yield {"file": table.stem, **row} | _derived(row)


def _lines(table: Path) -> list[Any]:
    return [row for _, row in read_jsonl(table, "a row with columns")]


def _derived(row: Mapping[str, Any]) -> dict[str, str]:
    """What templates cannot make: the choices of a question with letters, and the right letter."""
    choices, answer = row.get("choices"), row.get("answer")
    if not isinstance(choices, list) or not isinstance(answer, int):
        return {}
    if not 0 <= answer < len(choices) <= 26:
        return {}  # what asks for the letters then misses their column
    letters = [chr(ord("A") + i) for i in range(len(choices))]
    lettered = "\n".join(
        f"({letter}) {choice}" for letter, choice in zip(letters, choices, strict=True)
    )
    return {"lettered_choices": lettered, "answer_letter": letters[answer]}


def _items(spec: SuiteSpec, row: dict[str, Any], folder: Path, where: str) -> Iterator[Item]:
    for form in spec.items:
        unknown = [column for column in form.when if column not in row]
        if unknown:
            raise _wrong_version(where, unknown[0], row)
        if any(row[column] != value for column, value in form.when.items()):
            continue

        def fill(template: str | None) -> str | None:
            if template is None:
                return None
            try:
                text = template.format_map(row).strip()
            except (LookupError, TypeError, ValueError) as fault:
                raise _wrong_version(where, str(fault).strip("'"), row) from None
            if not is_unicode(text):
                raise UserError(f"{where}: a column holds what is no character (not UTF-8)")
            return text

        name, question = fill(form.id), fill(form.question)
        if not name or not question:
            raise UserError(f"{where}: an empty id or question")
        shown, target = fill(form.picture), fill(form.target)
        try:
            picture = inside(folder, shown) if shown else None
        except ValueError as fault:
            raise UserError(f"{where}: {fault}") from None
        targets = tuple(part for part in (target or "").split("<AND>") if part.strip())
        yield Item(
            name, form.kind, question, fill(form.scene), picture, fill(form.caption), targets,
            form.scoring if targets else None,
        )  # fmt: skip


def _wrong_version(where: str, column: str, row: Mapping[str, Any]) -> UserError:
    return UserError(
        f"{where}: no column {column!r} (there is {', '.join(sorted(map(str, row)))}): is this "
        "another version of the suite?"
    )
