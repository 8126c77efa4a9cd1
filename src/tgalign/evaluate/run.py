"""Ask all requests and judge the answers: every item ends in a verdict or an error; resumable."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import BaseModel, Field, ValidationError, model_validator
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from tgalign.data.pictures import PictureError
from tgalign.errors import UserError
from tgalign.evaluate.conditions import Request, shown
from tgalign.evaluate.generate import Prompt, Said, verdict_on
from tgalign.evaluate.pictures import picture_hash
from tgalign.evaluate.utility import score
from tgalign.files import (
    is_free,
    listed_differences,
    read_versioned,
    write_json,
    write_text,
)
from tgalign.terminal import bar_on_stderr

ITEMS, STATE = "items.jsonl", "run.json"
DIAGNOSIS = "diagnosis"
"""Folder that an audit's diagnosis has in that of its evaluation."""
SCHEMA_VERSION = 1
"""Of run.json and items.jsonl."""
CHUNK = 8
"""Batches whose pictures are open at a time."""


class _Row(BaseModel, strict=True):
    """What readers of an ``items.jsonl`` rely on (see ``_row``); other keys may stand beside it."""

    id: str = Field(pattern=r"^[^/]+/[^/]+/")
    suite: str
    condition: str
    scene: str | None
    kind: Literal["toxic", "benign"]
    prompt: str
    picture: str | None
    picture_sha256: str | None
    turns_sha256: str | None = None
    answer: str | None
    verdict: Literal["refused", "answered", "undetermined"] | None
    rule: str | None = None
    error: str | None = None
    cut: bool | None = None
    hits: int = Field(0, ge=0)
    targets: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> _Row:
        if (self.verdict is None) != (self.answer is None):
            raise ValueError("an answer has a verdict, and none has none")
        if self.verdict is not None and (self.rule is None or self.cut is None):
            raise ValueError("a verdict has a rule, and tells whether the answer was cut")
        if self.hits > self.targets:
            raise ValueError("more hits than targets")
        return self


class Host(Protocol):
    """What answers: ``LocalModel`` or ``ChatServer``."""

    def answer(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Said]]:
        """Index of a prompt and what was said to it, in any order."""
        ...

    def describe(self) -> dict[str, Any]:
        """What answers depend on."""
        ...


def run_requests(
    host: Host, requests: Sequence[Request], out: Path, *, chunk: int, progress: bool = True
) -> list[dict[str, Any]]:
    """Ask what has no verdict yet in ``out`` and judge it.

    Each answer is appended to ``out/items.jsonl`` as it comes, so a kill loses at most the batch
    under way; the same call goes on there. Items that ended in an error are asked again: the server
    may be back, or the picture there. When all are done the file holds one row per request, in
    their order, and every answer has the verdict of the rules as they are now.

    Args:
        host: What answers.
        requests: Their ids must be unique.
        out: Folder of this run.
        chunk: Requests whose pictures are open at a time.
        progress: Whether to draw a bar with the time that is left.

    Returns:
        One row per request, in their order.

    Raises:
        UserError: ``out`` holds a run of another model, other questions or other settings, or
            something else.
    """
    assert len({request.id for request in requests}) == len(requests), "ids are not unique"
    out.mkdir(parents=True, exist_ok=True)
    path = out / ITEMS
    _check_same_run(out, {"model": _lasting(host.describe()), "questions": fingerprint(requests)})
    done = read_items(path, partial=True)
    if path.is_file():  # without the half line that a kill may have left
        write_items(path, done.values())
    judged = {name for name, row in done.items() if row["verdict"] is not None}
    left = [request for request in requests if request.id not in judged]
    left.sort(key=lambda it: (it.picture is None and it.drawn is None, len(it.text), it.id))
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with path.open("a", encoding="utf-8") as file, bar_on_stderr(progress, *columns) as bar:
        task = bar.add_task("answers", total=len(requests), completed=len(requests) - len(left))
        for start in range(0, len(left), chunk):
            for row in _ask(host, left[start : start + chunk]):
                done[row["id"]] = row
                file.write(_line(row))
                file.flush()
                bar.advance(task)
            os.fsync(file.fileno())
    rows = [_judged_again(request, done[request.id]) for request in requests]
    write_items(path, rows)
    return rows


def write_items(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write an ``items.jsonl``, whole or not at all."""
    write_text(path, "".join(map(_line, rows)))


def read_items(
    path: Path, *, partial: bool = False, schema: type[BaseModel] = _Row
) -> dict[str, dict[str, Any]]:
    """The rows of an ``items.jsonl`` by id.

    Args:
        path: The file; a missing one has no rows if ``partial``.
        partial: Whether the last line may be half written, and is dropped then.
        schema: What a row has to hold, an ``id`` among it.

    Raises:
        UserError: There is no such file, or a line of it is damaged.
    """
    if not path.is_file():
        if partial:
            return {}
        raise UserError(f"no items at {path}: expected the items.jsonl of tgalign evaluate")
    rows: dict[str, dict[str, Any]] = {}
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            schema.model_validate(row)
        except (ValueError, RecursionError) as fault:
            if partial and number == len(lines):
                break
            if number == len(lines) and not isinstance(fault, ValidationError):
                raise UserError(  # no line break ends it: a run was stopped, or still writes
                    f"{path} ends in half a row: let its evaluation end first"
                ) from None
            said = (
                "; ".join(f"{'.'.join(map(str, it['loc']))}: {it['msg']}" for it in fault.errors())
                if isinstance(fault, ValidationError)
                else fault
            )
            raise UserError(f"{path}:{number} is damaged ({said}): remove the file") from None
        rows[row["id"]] = row
    return rows


def fingerprint(requests: Sequence[Request]) -> str:
    """Hex digest over all that is asked: ids, texts, earlier turns, captions, pictures.

    A picture in a file counts by its path, as one that was missing may come; one in memory, of
    which many requests may show the same, by what it holds.
    """
    held = {id(it.picture): it.picture for it in requests}
    names = {
        key: None if it is None else str(it) if isinstance(it, Path) else picture_hash(it)
        for key, it in held.items()
    }
    digest = hashlib.sha256()
    for request in sorted(requests, key=lambda it: it.id):
        asked = (
            request.id, request.item.kind, request.item.scene, request.text, request.drawn,
            request.caption, request.turns, request.item.targets, request.error,
            names[id(request.picture)],
        )  # fmt: skip
        digest.update(json.dumps(asked).encode())
    return digest.hexdigest()


def _ask(host: Host, requests: Sequence[Request]) -> Iterator[dict[str, Any]]:
    asked: list[tuple[Request, str | None]] = []
    prompts = []
    for request in requests:
        try:
            if request.error:
                yield _row(request, Said(None, error=request.error), None)
                continue
            picture = shown(request)
        except PictureError as fault:
            yield _row(request, Said(None, error=fault.name, detail=str(fault)), None)
            continue
        digest = None if picture is None else picture_hash(picture)
        asked.append((request, digest))
        prompts.append(Prompt(request.text, picture, request.caption, request.turns))
    for index, said in host.answer(prompts):
        yield _row(asked[index][0], said, asked[index][1])


def _row(request: Request, said: Said, picture: str | None) -> dict[str, Any]:
    item = request.item
    row: dict[str, Any] = {
        "id": request.id,
        "suite": request.suite,
        "condition": request.condition,
        "scene": item.scene,
        "kind": item.kind,
        "prompt": request.prompt,
        "picture": str(item.picture) if isinstance(item.picture, Path) else None,
        "picture_sha256": picture,
        "answer": said.text,
    }
    if request.turns:
        row["turns_sha256"] = request.turns_sha256
    if said.text is None:
        return row | {"verdict": None, "error": said.error, "detail": said.detail}
    verdict = verdict_on(said, item.question)
    hits, targets = score(item, said.text)
    row |= {"verdict": verdict.label, "rule": verdict.rule, "cut": said.cut}
    return row | ({"hits": hits, "targets": targets} if targets else {})


def _judged_again(request: Request, row: dict[str, Any]) -> dict[str, Any]:
    """The row with the verdict of today's rules, which an answer of an earlier day may lack."""
    if row["answer"] is None:
        return row
    said = Said(row["answer"], row["cut"], detail=row["rule"])
    return row | _row(request, said, row["picture_sha256"])


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row) + "\n"


def _lasting(host: dict[str, Any]) -> dict[str, Any]:
    """What a run may not change on the way; the rest of a host's description may be learnt late."""
    lasting = {key: host.get(key) for key in ("host", "name", "decoding", "chat_template_sha256")}
    if host["host"] == "local":
        lasting |= {key: host[key] for key in ("revision", "dtype")}
    if host.get("defence"):
        lasting["defence"] = [host["defence"][key] for key in ("name", "calibration_sha256")]
    return lasting


def check_place(out: Path) -> None:
    """See that ``out`` holds an evaluation or nothing but the diagnosis of an audit.

    Raises:
        UserError: Something else lies there.
    """
    if not (out / STATE).is_file() and not is_free(out, but=out / DIAGNOSIS):
        raise UserError(f"{out} is not empty and holds no evaluation: choose another --out")


def _check_same_run(out: Path, state: dict[str, Any]) -> None:
    path, state = out / STATE, {"schema_version": SCHEMA_VERSION, **state}
    if path.is_file():
        found = read_versioned(path, SCHEMA_VERSION, "an evaluation under way")
        if found != state:
            # Of the questions only a digest is kept, which says nothing to a reader.
            its, ours = ({**it, "questions": None} for it in (found, state))
            said = listed_differences(its, ours) or "other questions"
            if state["model"]["host"] == "local" and "dtype" not in found["model"]:
                said = "begun by an earlier version of tgalign"
            raise UserError(
                f"{out} holds another evaluation ({said}): give the "
                "same checkpoint, --dtype, --defence, --suite, --condition, --limit and --seed, "
                "choose another --out, or remove it"
            )
    else:
        check_place(out)
        write_json(path, state)
