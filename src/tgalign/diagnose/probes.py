"""Probes: toxic pictures with captions, each with a harmless picture that matches it.

A folder of probes holds ``probes.jsonl``, one JSON object a line, and the pictures it names:

- ``id``: unique;
- ``image``: a path relative to the folder, which it may not leave;
- ``caption``: what the picture shows, in words that a safe model refuses if it is toxic;
- ``scene``: the kind of harm, as ``knife``; absent (or null) for a harmless picture;
- ``matches``: of a harmless picture, the id of the toxic one it stands beside; every toxic picture
  needs exactly one;
- ``paraphrase``: the caption in other words (all or none: the ceiling of alignment);
- ``toxic_text``: the words of the caption that are toxic, and ``box``: where the picture shows it
  (left, top, right, bottom as shares of its width and height); both for attention;
- ``names``: what a right answer to a harmless picture names, for utility.

Only the first five matter to all else; what lacks the others is left out of what needs them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tgalign.data.pictures import read_picture
from tgalign.data.records import Problem, require_all_good
from tgalign.diagnose.attention import Box
from tgalign.errors import UserError
from tgalign.evaluate.pictures import picture_hash
from tgalign.files import data_sha256, write_text

if TYPE_CHECKING:
    from PIL.Image import Image

FILE = "probes.jsonl"
MIN_PAIRS = 8
"""Fewer cannot be split into halves for the refusal direction."""

Words = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)

    id: Words
    image: Words
    caption: Words
    scene: Words | None = None
    matches: Words | None = None
    paraphrase: Words | None = None
    toxic_text: Words | None = None
    box: tuple[Share, Share, Share, Share] | None = None
    names: tuple[Words, ...] = ()


@dataclass(frozen=True)
class Probe:
    """One picture to ask about; see the module's text.

    Attributes:
        id: Its name.
        picture: The picture, or its path.
        caption: What it shows.
        scene: The kind of harm, or None.
        paraphrase: The caption in other words, or None.
        toxic_text: The words of the caption that are toxic, or None.
        box: Where the picture shows it, or None.
        names: What a right answer names.
    """

    id: str
    picture: Path | Image
    caption: str
    scene: str | None = None
    paraphrase: str | None = None
    toxic_text: str | None = None
    box: Box | None = None
    names: tuple[str, ...] = ()

    def load(self) -> Image:
        """The picture in RGB."""
        return read_picture(self.picture) if isinstance(self.picture, Path) else self.picture


@dataclass(frozen=True)
class ProbeSet:
    """Matched probes.

    Attributes:
        toxic: Toxic pictures.
        benign: Harmless ones; number i matches toxic number i.
        source: Where they come from, in words.
    """

    toxic: list[Probe]
    benign: list[Probe]
    source: str

    @property
    def scenes(self) -> list[str]:
        """The scenes, in the order of their first probe."""
        return list(dict.fromkeys(probe.scene or "" for probe in self.toxic))

    def sha256(self) -> str:
        """Hex digest of all that is shown and asked."""
        return data_sha256(
            [
                {**vars(probe), "picture": picture_hash(probe.load())}
                for probe in (*self.toxic, *self.benign)
            ]
        )

    def at_most(self, per_scene: int | None) -> ProbeSet:
        """The first ``per_scene`` pairs of every scene."""
        if per_scene is None:
            return self
        counts = dict.fromkeys(self.scenes, 0)
        kept = []
        for number, probe in enumerate(self.toxic):
            counts[probe.scene or ""] += 1
            if counts[probe.scene or ""] <= per_scene:
                kept.append(number)
        return ProbeSet([self.toxic[i] for i in kept], [self.benign[i] for i in kept], self.source)


def read_probes(folder: Path) -> ProbeSet:
    """Read a folder of probes, opening every picture to check that it decodes.

    Raises:
        UserError: There is no such folder, a row is wrong (all are named), the rows do not match,
            or there are fewer than ``MIN_PAIRS`` pairs.
    """
    path = folder / FILE
    if not path.is_file():
        raise UserError(
            f"no probes at {path}: expected `lab`, or a folder with {FILE}; `tgalign lab probes` "
            "writes one to look at"
        )
    rows: dict[int, _Row] = {}
    problems: list[Problem] = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if line.strip():
            try:
                rows[number] = _checked(line, folder.resolve())
            except ValueError as fault:
                problems.append(Problem(FILE, number, str(fault)))
    problems += _mismatches(rows)
    require_all_good(problems)
    found = ProbeSet([_probe(row, folder) for row in rows.values() if row.scene], [], str(folder))
    partner = {row.matches: row for row in rows.values() if not row.scene}
    found.benign.extend(_probe(partner[probe.id], folder) for probe in found.toxic)
    if len(found.toxic) < MIN_PAIRS:
        raise UserError(
            f"{path} holds {len(found.toxic)} toxic pictures; expected at least {MIN_PAIRS}, each "
            "with a harmless one"
        )
    return found


def write_probes(probes: ProbeSet, folder: Path) -> Path:
    """Write probes as a folder that ``read_probes`` reads; ``probes.jsonl`` comes last."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    lines = []
    pairs = zip(probes.toxic, probes.benign, strict=True)
    for probe, matches in ((it, pair[0]) for pair in pairs for it in pair):
        name = f"pictures/{probe.id}.png"
        probe.load().save(folder / name)
        row = _Row(
            id=probe.id,
            image=name,
            caption=probe.caption,
            scene=probe.scene,
            matches=None if probe.scene else matches.id,
            paraphrase=probe.paraphrase,
            toxic_text=probe.toxic_text,
            box=probe.box,
            names=probe.names,
        )
        lines.append(row.model_dump_json(exclude_defaults=True) + "\n")
    write_text(folder / FILE, "".join(lines))
    return folder / FILE


def _checked(line: bytes, root: Path) -> _Row:
    try:
        row = _Row.model_validate(json.loads(line))
    except ValidationError as fault:
        said = [f"{'.'.join(map(str, it['loc']))}: {it['msg']}" for it in fault.errors()]
        raise ValueError("; ".join(said)) from None
    except (ValueError, RecursionError) as fault:
        raise ValueError(f"not valid JSON ({fault})") from None
    path = (root / row.image).resolve()
    if not path.is_relative_to(root):
        raise ValueError(f"image {row.image!r} leads outside the folder {root}")
    read_picture(path)
    if bool(row.scene) == bool(row.matches):
        raise ValueError("a toxic picture has a scene, a harmless one `matches`, and none has both")
    if row.toxic_text and row.toxic_text.casefold() not in row.caption.casefold():
        raise ValueError(f"toxic_text {row.toxic_text!r} does not stand in the caption")
    if row.box and not (row.box[0] < row.box[2] and row.box[1] < row.box[3]):
        raise ValueError(f"box {row.box} is not left, top, right, bottom")
    return row


def _mismatches(rows: dict[int, _Row]) -> list[Problem]:
    """Ids that stand twice, and pictures without exactly one partner."""
    problems = []
    seen: set[str] = set()
    taken: set[str] = set()
    toxic = {row.id for row in rows.values() if row.scene}
    for number, row in rows.items():
        if row.id in seen:
            problems.append(Problem(FILE, number, f"id {row.id!r} stands twice"))
        seen.add(row.id)
        if row.matches and row.matches not in toxic:
            problems.append(Problem(FILE, number, f"matches {row.matches!r}, which is no toxic id"))
        elif row.matches in taken:
            problems.append(Problem(FILE, number, f"a second match of {row.matches!r}"))
        if row.matches:
            taken.add(row.matches)
    for number, row in rows.items():
        if row.scene and row.id not in taken:
            problems.append(Problem(FILE, number, f"no harmless picture matches {row.id!r}"))
    return problems


def _probe(row: _Row, folder: Path) -> Probe:
    return Probe(picture=folder / row.image, **row.model_dump(exclude={"image", "matches"}))
