"""Draw the lab's pictures: one or two things, turned and scaled, on a coloured background."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from tgalign.lab.icons import GLYPH_COLORS, icon_mask, icon_names
from tgalign.lab.objects import Style, Thing, art_path

if TYPE_CHECKING:
    from PIL.Image import Image

SIZE = 72
"""Width and height of a picture in pixels (4 × 4 patches of 18)."""

BACKGROUNDS = {
    "white": (240, 240, 240), "black": (35, 35, 35), "red": (205, 60, 60),
    "green": (70, 160, 85), "blue": (70, 105, 205), "yellow": (235, 210, 90),
    "purple": (140, 85, 175), "orange": (235, 145, 60),
}  # fmt: skip
COLORS = tuple(BACKGROUNDS)


@dataclass(frozen=True)
class Scene:
    """What a picture shows: one or two things and the colour of the background."""

    things: tuple[Thing, ...]
    color: str


@cache
def _sprite(thing: Thing) -> Image:
    from PIL import Image as PILImage

    assert thing.emoji is not None, f"{thing.name} cannot be drawn"
    with PILImage.open(art_path(thing.emoji)) as art:
        return art.convert("RGBA")


def _glyph(thing: Thing, background: str, rng: random.Random) -> Image:
    from PIL import Image as PILImage

    mask = icon_mask(rng.choice(icon_names()[thing.name]))
    behind = _luminance(BACKGROUNDS[background])
    colors = [color for color in GLYPH_COLORS if abs(_luminance(color) - behind) >= 70]
    art = PILImage.new("RGBA", mask.size, rng.choice(colors))
    art.putalpha(mask)
    return art


def _luminance(color: tuple[int, int, int]) -> float:
    """Perceived brightness of an sRGB colour, 0 to 255 (ITU-R BT.601)."""
    red, green, blue = color
    return 0.299 * red + 0.587 * green + 0.114 * blue


def draw(
    scene: Scene, rng: random.Random, *, ordered: bool = True, style: Style = "emoji"
) -> Image:
    """Draw a scene; ``rng`` decides place, size (±), turn (±12°) and shade.

    Args:
        scene: One or two drawable things and a background colour.
        rng: The source of everything that is not in the scene.
        ordered: Whether the first of two things stands left or on top, so that an answer can name
            them in reading order; captions from the web keep no order.
        style: ``emoji``, or ``icons``: one of the thing's glyphs in one of the colours that stand
            out from the background.

    Returns:
        An RGB picture of ``SIZE`` × ``SIZE`` pixels.
    """
    return draw_with_boxes(scene, rng, ordered=ordered, style=style)[0]


def draw_with_boxes(
    scene: Scene, rng: random.Random, *, ordered: bool = True, style: Style = "emoji"
) -> tuple[Image, list[tuple[float, float, float, float]]]:
    """The same, and where each thing stands: left, top, right, bottom as shares of the picture."""
    from PIL import Image as PILImage

    shade = rng.uniform(0.85, 1.1)
    base = BACKGROUNDS[scene.color]
    canvas = PILImage.new("RGB", (SIZE, SIZE), tuple(min(255, int(c * shade)) for c in base))
    if len(scene.things) == 1:
        centers = [(SIZE / 2 + rng.uniform(-7, 7), SIZE / 2 + rng.uniform(-7, 7))]
        low, high = 38, 52
    else:
        # Two things stand side by side or one above the other.
        near, middle, far = SIZE * 0.26, SIZE * 0.5, SIZE * 0.74
        layouts = [[(near, middle), (far, middle)], [(middle, near), (middle, far)]]
        centers = [(x + rng.uniform(-3, 3), y + rng.uniform(-3, 3)) for x, y in rng.choice(layouts)]
        if not ordered and rng.random() < 0.5:
            centers.reverse()
        low, high = 30, 36
    boxes = []
    for thing, (x, y) in zip(scene.things, centers, strict=True):
        side = rng.randint(low, high)
        art = _sprite(thing) if style == "emoji" else _glyph(thing, scene.color, rng)
        art = art.resize((side, side), PILImage.Resampling.BILINEAR)
        art = art.rotate(rng.uniform(-12, 12), PILImage.Resampling.BILINEAR)
        canvas.paste(art, (round(x - side / 2), round(y - side / 2)), art)
        half = side / 2
        ends = (x - half, y - half, x + half, y + half)
        left, top, right, bottom = (min(max(end / SIZE, 0.0), 1.0) for end in ends)
        boxes.append((left, top, right, bottom))
    return canvas, boxes


def sample_scene(
    pool: Sequence[Thing], rng: random.Random, *, num_things: int | None = None
) -> Scene:
    """A random scene of one or two different things from ``pool``."""
    count = num_things or rng.randint(1, 2)
    return Scene(tuple(rng.sample(pool, count)), rng.choice(COLORS))
