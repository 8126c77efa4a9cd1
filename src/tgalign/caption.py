"""Captions for pictures that lack one, by any image-text-to-text model; a killed run goes on.

What is done lies beside the output as ``OUT.progress``, a line per batch, and is read when the same
command is given again. Batches are those of a run that was never killed, and so are the captions.
"""

from __future__ import annotations

import json
import os
import re
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from tgalign.data.pictures import read_picture
from tgalign.data.records import Problem, read
from tgalign.data.shapes import as_ours
from tgalign.data.sources import Raw, Source, image_root_of, open_source, with_bar
from tgalign.errors import UserError
from tgalign.evaluate.refusal import judge, normalise
from tgalign.files import blamed_on, named, write_jsonl
from tgalign.locks import sole_writer
from tgalign.terminal import bar_on_stderr

_OWN_VOICE = re.compile(
    r"(?:i|we|my|our|sorry|unfortunately|apolog\w+|as an? (?:ai|language)|this (?:request|goes)"
    r"|it (?:is|would|goes)|let (?:us|me)|let's)\b"
)
"""How a refusal begins, in words that ``normalise`` has made plain."""

PROGRESS = ".progress"
"""Suffix of the file that keeps what is done."""
PROBLEMS = ".problems.jsonl"
"""Suffix of the file that names rows without a caption, one ``{"file", "row", "reason"}`` each."""
DATA_FILES = ("*.csv", "*.parquet", "state.json", "dataset_dict.json")
"""A folder with one of these holds rows; any other is a folder of pictures."""
PATIENCE = 16
"""Readable pictures that a model may fail on before its first caption."""


@dataclass(frozen=True)
class Captioned:
    """What came of it.

    Attributes:
        captioned: Rows that got a caption.
        kept: Rows that had one, or show no picture; written as they were.
        problems: Rows that were left out, and why; a refusal is no caption.
    """

    captioned: int
    kept: int
    problems: list[Problem]


@dataclass(frozen=True)
class _Row:
    file: str
    number: int
    content: dict[str, Any]
    image: Path | None  # of a row that wants a caption


def caption(
    source: Path,
    model: Path,
    out: Path,
    *,
    images: Path | None = None,
    prompt: str | None = None,
    batch_size: int = 16,
    max_new_tokens: int = 128,
    dtype: str = "auto",
    progress_bar: bool = True,
) -> Captioned:
    """Caption the pictures of a records file, or of a folder, that have no caption.

    Args:
        source: Records of any shape that ``train`` reads, or a folder of pictures.
        model: Folder of an image-text-to-text model, safetensors only.
        out: The records with captions; image paths stay relative to ``images``.
        images: The folder that image paths are relative to; by default that of the records.
        prompt: What is asked; by default "Describe this image.", or nothing of a model without a
            chat template.
        batch_size: Pictures at a time; halved where memory runs out.
        max_new_tokens: Length at which a caption is cut.
        dtype: Of the weights; ``"auto"``: as saved.
        progress_bar: Whether to draw one on stderr.

    Raises:
        UserError: No such source or model, ``out`` is there already or was begun with other
            settings, the model fails on every picture, or no row can be used.
    """
    from tgalign.captioner import Captioner
    from tgalign.source_models import captioner_config

    out = named(out)
    with sole_writer(out, beside=True):
        progress = out.with_name(out.name + PROGRESS)
        if out.exists() and not progress.is_file():  # else a kill came just before the end
            raise UserError(f"{out} exists: name another file as out, or remove it")
        captioner_config(model)  # even if there should be nothing to caption
        rows, problems = _read(source, images, "records" if progress_bar else None)
        wanted = list(dict.fromkeys(row.image for row in rows if row.image is not None))
        settings = {
            "model": str(model),
            "prompt": prompt,
            "max_new_tokens": max_new_tokens,
            "dtype": dtype,
        }
        done = _read_progress(progress, settings)
        batches = [
            wanted[start : start + batch_size] for start in range(0, len(wanted), batch_size)
        ]
        missing = [[path for path in batch if str(path) not in done] for batch in batches]
        failed: dict[Path, str] = {}
        if any(missing):
            captioner = Captioner(
                model, prompt, batch_size=batch_size, max_new_tokens=max_new_tokens, dtype=dtype
            )
            with progress.open("a", encoding="utf-8") as journal:
                if journal.tell() == 0:
                    _append(journal, settings)
                for said, faults in _captions(missing, captioner, bool(done), progress_bar):
                    done |= said
                    failed |= faults
                    if said:
                        _append(journal, said)
        for path in wanted:
            if path not in failed and _refuses(answer := done[str(path)], prompt):
                failed[path] = (
                    f"image {path}: what the model said reads as a refusal: {answer[:80]!r}"
                )
        lines, kept = [], 0
        for row in rows:
            if row.image is None:
                kept += 1
                lines.append(row.content)
            elif row.image in failed:
                problems.append(Problem(row.file, row.number, failed[row.image]))
            else:
                lines.append(row.content | {"caption": done[str(row.image)]})
        problems.sort(key=lambda problem: problem.row)
        left_out = out.with_name(out.name + PROBLEMS)
        if not lines:
            fault = (
                f"{source}: none of {len(problems)} row(s) can be used; the first: {problems[0]}"
            )
            if done:  # what the model said took long, and may be right of another prompt
                write_jsonl(left_out, map(vars, problems))
                raise UserError(f"{fault}. All of them are in {left_out}")
            progress.unlink(missing_ok=True)
            if any(it.reason.endswith("does not exist") for it in problems):
                root = images or image_root_of(source)
                fault += f". Pictures are looked for in {root} (--images)"
            raise UserError(f"{fault}. Nothing is written")
        if problems:
            write_jsonl(left_out, map(vars, problems))
        else:
            left_out.unlink(missing_ok=True)  # of an earlier run
        write_jsonl(out, lines)
        progress.unlink(missing_ok=True)
        return Captioned(len(lines) - kept, kept, problems)


def _refuses(said: str, prompt: str | None) -> bool:
    """Whether the model declines: a caption may hold such words, in a picture of a poster, say.

    Only what begins in the speaker's own voice, and in a language that the judge knows, counts.
    """
    verdict = judge(said, prompt)
    declines = verdict.label == "refused" or verdict.rule == "bare_apology"
    return declines and _OWN_VOICE.match(normalise(said)) is not None


def _captions(
    batches: list[list[Path]], captioner: Any, spoke: bool, progress_bar: bool
) -> Iterator[tuple[dict[str, str], dict[Path, str]]]:
    """Of each batch, captions by path and why pictures have none; ``spoke``: whether any has."""
    with bar_on_stderr(progress_bar) as bar:
        mute = 0
        task = bar.add_task("captions", total=sum(len(batch) for batch in batches))
        for batch in filter(None, batches):
            pictures, faults = {}, {}
            for path in batch:
                try:
                    pictures[path] = read_picture(path)
                except ValueError as fault:
                    faults[path] = str(fault)
            said = dict(zip(pictures, captioner(list(pictures.values())), strict=True))
            mute_ones = ((path, it) for path, it in said.items() if isinstance(it, ValueError))
            faults |= {path: f"image {path}: {it}" for path, it in mute_ones}
            spoke = spoke or any(isinstance(it, str) for it in said.values())
            mute += len(said)
            if not spoke and mute >= PATIENCE:
                raise UserError(
                    f"no caption for any of {mute} pictures: {next(iter(said.values()))}"
                )
            yield {str(path): it for path, it in said.items() if isinstance(it, str)}, faults
            bar.advance(task, len(batch))


def _read(source: Path, images: Path | None, title: str | None) -> tuple[list[_Row], list[Problem]]:
    """The rows of a source, and those that are no records."""
    if source.is_dir() and not any(any(source.glob(it)) for it in DATA_FILES):
        if images is not None:
            raise UserError("a folder of pictures is its own image root: leave images out")
        return _read_folder(source)
    if source.is_file() and source.suffix.lower() in _picture_endings():
        raise UserError(f"{source} is a picture: give its folder, or records that name it")
    opened = with_bar(open_source(source), title)
    raws: deque[Raw] = deque()  # read gives an item for each, in their order
    items = read(
        replace(opened, rows=_kept(opened, raws)), images or image_root_of(source), verify=False
    )
    rows: list[_Row] = []
    problems: list[Problem] = []
    for item in items:
        raw = raws.popleft()
        if isinstance(item, Problem):
            problems.append(item)
            continue
        content: Any = raw.content
        if isinstance(content, bytes):
            content = json.loads(content)
        row = as_ours(content, table=opened.table)
        if isinstance(row.get("image"), Mapping):
            reason = "the picture stands in the row itself: save it as a file first"
            problems.append(Problem(opened.name, raw.number, reason))
            continue
        if "id" in content:
            row = {"id": content["id"], **row}
        said = {key: value for key, value in row.items() if value is not None}
        wanting = item.image if item.caption is None else None
        rows.append(_Row(opened.name, raw.number, said, wanting))
    return rows, problems


def _kept(source: Source, raws: deque[Raw]) -> Iterator[Raw]:
    for raw in source.rows:
        raws.append(raw)
        yield raw


def _picture_endings() -> Collection[str]:
    from PIL import Image

    return Image.registered_extensions()


def _read_folder(folder: Path) -> tuple[list[_Row], list[Problem]]:
    endings = _picture_endings()
    rows: list[_Row] = []
    problems: list[Problem] = []
    for path in sorted(folder.rglob("*")):
        dead = path.is_symlink() and not path.exists()
        if path.suffix.lower() not in endings or not (dead or path.is_file()):
            continue
        name, number = path.relative_to(folder).as_posix(), len(rows) + len(problems) + 1
        if dead:
            problems.append(Problem(folder.name, number, f"image {name} is a link to nothing"))
        elif path.resolve().is_relative_to(folder.resolve()):
            rows.append(_Row(folder.name, number, {"image": name}, path.resolve()))
        else:
            problems.append(Problem(folder.name, number, f"image {name} leads outside the folder"))
    if not rows and not problems:
        raise UserError(f"no picture in {folder}: expected files such as .jpg and .png")
    return rows, problems


def _read_progress(path: Path, settings: dict[str, Any]) -> dict[str, str]:
    """Captions by path of the picture; what a kill left half written is cut off."""
    if not path.is_file():
        return {}
    whole = path.read_bytes()
    whole = whole[: whole.rfind(b"\n") + 1]
    with blamed_on(path, "remove it to begin anew"):
        lines = [dict(json.loads(line)) for line in whole.split(b"\n")[:-1]]
        done = {path: text for line in lines[1:] for path, text in line.items()}
        if not all(isinstance(text, str) for text in done.values()):
            raise ValueError("a caption that is no text")
    # A run of an earlier version may say less.
    if lines and lines[0] != {key: value for key, value in settings.items() if key in lines[0]}:
        raise UserError(
            f"{path} was begun with {json.dumps(lines[0])}, and now it is {json.dumps(settings)}: "
            "remove it to begin anew, or name another file as out"
        )
    os.truncate(path, len(whole))
    return done


def _append(journal: IO[str], line: dict[str, Any]) -> None:
    journal.write(json.dumps(line) + "\n")
    journal.flush()
    os.fsync(journal.fileno())
