"""The picture that is asked about: an upload, read and forgotten, or one of the lab's objects."""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tgalign.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

    from tgalign.lab.objects import Thing

MAX_BYTES = 20_000_000
"""Largest upload."""

MAX_SIDE = 2048
"""Longer pictures are scaled down as they are read, so that a session's memory stays small."""

NOTHING = "(nothing)"


@dataclass(frozen=True)
class Shown:
    """A picture of one session.

    Attributes:
        picture: In RGB.
        caption: What it shows, in words; empty where nobody said.
        title: What a screen reader says of it.
    """

    picture: Image
    caption: str
    title: str


def read_upload(path: Path) -> Shown:
    """Read an uploaded file into memory and delete it.

    Raises:
        UserError: It is too large, or no picture that can be read.
    """
    from tgalign.data.pictures import PictureError
    from tgalign.evaluate.pictures import open_picture

    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UserError(
                f"{path.name} has {size / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:.0f} MB: make it "
                "smaller"
            )
        picture = open_picture(path)
    except PictureError as fault:
        why = {
            "too_large_picture": "has too many pixels: make it smaller",
            "unreadable_picture": "cannot be read as a picture: is it a PNG, JPEG, WebP or GIF, "
            "and whole?",
        }.get(fault.name, "is not there any more: drop it again")
        raise UserError(f"{path.name} {why}") from None
    finally:
        path.unlink(missing_ok=True)
        with suppress(OSError):  # gradio names the folder of an upload after its content
            path.parent.rmdir()
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    return Shown(picture, "", f"your picture {path.name}")


def object_choices() -> list[tuple[str, str]]:
    """Label and name of the lab's objects that can be drawn, toxic stand-ins first."""
    from tgalign.lab.objects import benign_things, toxic_things

    toxic = [(f"{it.name} (stands in for {it.scene})".replace("_", " "), it.name)
             for it in toxic_things()]  # fmt: skip
    return toxic + sorted((it.name, it.name) for it in benign_things())


def compose_scene(first: str, second: str, color: str, seed: int) -> Shown:
    """Draw one or two of the lab's objects, with a caption in a phrasing held out of training.

    Args:
        first: Name of an object.
        second: Name of another, or ``NOTHING``.
        color: Of the background.
        seed: Decides place, size, turn and phrasing.

    Raises:
        UserError: An unknown object or colour, or the same object twice.
    """
    from tgalign.lab.language import Mention, describe, scene_caption
    from tgalign.lab.pictures import COLORS, Scene, draw

    if color not in COLORS:
        raise UserError(f"unknown background {color!r}; expected one of: {', '.join(COLORS)}")
    if first == second:
        raise UserError(f"two of the same ({first}): choose another object, or {NOTHING}")
    names = [first] if second == NOTHING else [first, second]
    scene = Scene(tuple(_thing(name) for name in names), color)
    rng = random.Random(seed)
    caption = scene_caption(scene, rng, "heldout")
    title = describe(tuple(Mention(thing) for thing in scene.things), color).removesuffix(" .")
    return Shown(draw(scene, rng), caption, title)


def _thing(name: str) -> Thing:
    from tgalign.lab.objects import benign_things, toxic_things

    for thing in (*toxic_things(), *benign_things()):
        if thing.name == name:
            return thing
    raise UserError(f"the lab has no object {name!r} that can be drawn")
