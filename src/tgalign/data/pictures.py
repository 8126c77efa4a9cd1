"""Pictures named by data: they stay inside their root, exist, decode, and are no bombs."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 64_000_000
"""A larger picture is refused unread, as a decompression bomb."""

ORIENTATION = 0x0112
"""The EXIF tag that says how a picture is to be turned."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What pictures may be, whatever their name ends in. Of the others that PIL knows, some start
programs (EPS: Ghostscript) and most are decoded by code that nobody looks after."""


def inside(root: Path, name: Any) -> Path:
    """The absolute path of a picture, links followed.

    Args:
        root: The image root, resolved.
        name: What the data calls the picture: a path relative to the root.

    Raises:
        ValueError: It is no path, or leads outside the root.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(f"image must be a relative path, got {name!r}")
    try:
        path = (root / name).resolve()
    except (OSError, RuntimeError) as fault:  # a loop of links
        raise ValueError(f"image {name!r} cannot be found: {fault}") from None
    if not path.is_relative_to(root):
        raise ValueError(f"image {name!r} leads outside the image root {root}")
    return path


class PictureError(ValueError):
    """A picture that cannot be read; ``name`` is the error that an item about it ends in."""

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(detail)
        self.name = name

    def __reduce__(self) -> tuple[Any, ...]:
        """What another process needs to raise it again."""
        return type(self), (self.name, str(self))


def read_picture(picture: Path | bytes) -> Image:
    """Read a picture as RGB, upright as a viewer shows it (EXIF), the first frame of an animation.

    Args:
        picture: Its path, or the bytes of its file.

    Raises:
        PictureError: ``missing_picture``, ``unreadable_picture``, or ``too_large_picture`` for one
            of more than ``MAX_PIXELS``, which is refused unread as a decompression bomb.
    """
    from PIL import Image, UnidentifiedImageError

    name = "in the row" if isinstance(picture, bytes) else str(picture)
    try:
        if isinstance(picture, Path) and not picture.is_file():
            raise FileNotFoundError
        with Image.open(
            BytesIO(picture) if isinstance(picture, bytes) else picture, formats=FORMATS
        ) as opened:
            width, height = opened.size
            if width * height <= MAX_PIXELS:
                return _rgb(_upright(opened))
    except FileNotFoundError:
        raise PictureError("missing_picture", f"image {name} does not exist") from None
    except Image.DecompressionBombError as fault:
        raise PictureError("too_large_picture", f"image {name} is too large: {fault}") from None
    except UnidentifiedImageError:
        raise PictureError(
            "unreadable_picture",
            f"image {name} is no picture that PIL can read as one of {', '.join(FORMATS)}",
        ) from None
    except Exception as fault:  # decoders fail on damaged files in any way
        raise PictureError("unreadable_picture", f"image {name} cannot be read: {fault}") from None
    raise PictureError(
        "too_large_picture",
        f"image {name} has {width}×{height} pixels, more than {MAX_PIXELS:,}",
    )


def _upright(picture: Image) -> Image:
    """The picture turned as its EXIF data say; of data that cannot be read, as it lies.

    ``ImageOps.exif_transpose`` copies what is upright, and writes all tags anew, which fails on odd
    ones that have nothing to do with it.
    """
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE, 6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }  # fmt: skip
    try:
        turn = turns.get(picture.getexif().get(ORIENTATION, 1))
    except Exception:  # its reader fails on damaged data in any way
        return picture
    return picture if turn is None else picture.transpose(turn)


def _rgb(picture: Image) -> Image:
    """The picture in RGB; 16 bits of grey keep their upper 8, where PIL makes all but 255 white."""
    if picture.mode.startswith("I;16"):
        from PIL import Image

        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if picture.mode in ("I", "F"):
        raise ValueError("grey values of 32 bits have no known white: save it with 8 or 16 bits")
    return picture.convert("RGB")
