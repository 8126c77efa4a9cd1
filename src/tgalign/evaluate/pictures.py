"""Open the pictures of a suite, whatever they are, and draw those that conditions need."""

from __future__ import annotations

import base64
import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING

from tgalign.data.pictures import read_picture

if TYPE_CHECKING:
    from PIL import ImageDraw, ImageFont
    from PIL.Image import Image

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff"))
"""Endings of files that a folder's reader takes for pictures."""


def open_picture(source: Path | Image) -> Image:
    """A picture as RGB, from its file or from memory.

    Raises:
        PictureError: As ``read_picture``.
    """
    return read_picture(source) if isinstance(source, Path) else source.convert("RGB")


def picture_hash(picture: Image) -> str:
    """Hex digest (16 characters) of a picture's size and RGB values."""
    digest = hashlib.sha256(f"{picture.size}".encode())
    digest.update(picture.tobytes())
    return digest.hexdigest()[:16]


def data_url(picture: Image) -> str:
    """The picture as a data URL."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def blank_picture() -> Image:
    """A mid-grey picture: the control that shows nothing."""
    from PIL import Image

    return Image.new("RGB", (336, 336), (127, 127, 127))


def text_picture(text: str) -> Image:
    """A square white picture with a text in it, wrapped, as large as fits.

    After FigStep's typographic prompts (Gong et al., AAAI 2025); the font is the one that PIL
    ships, so that pictures are the same on every machine.
    """
    from PIL import Image, ImageDraw, ImageFont

    side = 760
    picture = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(picture)
    margin = side // 20
    for points in range(side // 9, 7, -2):
        font = ImageFont.load_default(points)
        lines = _wrapped(draw, text, font, side - 2 * margin)
        box = draw.multiline_textbbox((margin, margin), lines, font=font, spacing=points // 5)
        if box[2] <= side - margin and box[3] <= side - margin:
            break
    draw.multiline_text((margin, margin), lines, fill="black", font=font, spacing=points // 5)
    return picture


def _wrapped(
    draw: ImageDraw.ImageDraw,
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    width: int,
) -> str:
    done = []
    for paragraph in text.splitlines() or [""]:
        line = ""
        for word in paragraph.split(" "):
            longer = f"{line} {word}" if line else word
            if line and draw.textlength(longer, font=font) > width:
                done.append(line)
                line = word
            else:
                line = longer
        done.append(line)
    return "\n".join(done)
