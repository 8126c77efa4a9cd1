"""Odd pictures open as a viewer shows them, or end in a named error."""

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tgalign.data.pictures import PictureError, read_picture
from tgalign.evaluate.pictures import (
    blank_picture,
    data_url,
    open_picture,
    picture_hash,
    text_picture,
)

RED, BLUE = (200, 30, 30), (30, 30, 200)


def test_cmyk_grey_palette_and_transparent_pictures_become_rgb(tmp_path: Path) -> None:
    for mode, name in (("CMYK", "a.jpg"), ("L", "b.png"), ("P", "c.gif"), ("RGBA", "d.png"),
                       ("1", "e.png"), ("LA", "f.png"), ("I;16", "g.png")):  # fmt: skip
        Image.new(mode, (6, 5)).save(tmp_path / name)
        picture = open_picture(tmp_path / name)
        assert (picture.mode, picture.size) == ("RGB", (6, 5))


def test_grey_of_sixteen_bits_keeps_its_shades(tmp_path: Path) -> None:
    shades = np.arange(0, 65_536, 257, dtype=np.uint16).reshape(16, 16)
    for name in ("a.png", "a.tiff"):
        Image.fromarray(shades).save(tmp_path / name)
        assert (np.asarray(open_picture(tmp_path / name))[..., 0] == shades // 257).all()
    for kind in (np.int32, np.float32):
        Image.fromarray(shades.astype(kind)).save(tmp_path / "b.tiff")
        with pytest.raises(PictureError, match="save it with 8 or 16 bits"):
            open_picture(tmp_path / "b.tiff")


def test_an_animation_is_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in (RED, BLUE)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert open_picture(tmp_path / "a.webp").getpixel((0, 0)) == RED


def test_a_rotated_picture_is_shown_upright(tmp_path: Path) -> None:
    picture = Image.new("RGB", (6, 2), RED)
    picture.putpixel((0, 0), BLUE)
    exif = picture.getexif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    picture.save(tmp_path / "a.png", exif=exif)
    for upright in (open_picture(tmp_path / "a.png"), read_picture(tmp_path / "a.png")):
        assert upright.size == (2, 6)
        assert upright.getpixel((1, 0)) == BLUE


def test_odd_tags_beside_the_turn_do_no_harm(tmp_path: Path) -> None:
    picture = Image.new("RGB", (6, 2), RED)
    turned = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    resolution = struct.pack("<HHI4s", 0x011A, 2, 4, b"no!")  # a text, and not a fraction
    tags = b"II*\0" + struct.pack("<IH", 8, 2) + turned + resolution + bytes(4)
    picture.save(tmp_path / "a.jpg", exif=b"Exif\0\0" + tags)
    assert open_picture(tmp_path / "a.jpg").size == (2, 6)
    picture.save(tmp_path / "b.jpg", exif=b"Exif\0\0damaged")
    assert open_picture(tmp_path / "b.jpg").size == (6, 2)


def test_a_fault_is_told_by_another_process(tmp_path: Path) -> None:
    with pytest.raises(PictureError) as caught:
        read_picture(tmp_path / "nowhere.png")
    told = pickle.loads(pickle.dumps(caught.value))
    assert (told.name, str(told)) == (caught.value.name, str(caught.value))


def test_one_pixel_opens(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), RED).save(tmp_path / "a.png")
    assert open_picture(tmp_path / "a.png").size == (1, 1)


def huge(path: Path, side: int = 20_000) -> None:
    """A PNG that says it has ``side`` × ``side`` pixels; it is refused before they are read."""
    import zlib

    Image.new("RGB", (1, 1)).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", side, side)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("side", [9_000, 20_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_huge_picture_is_refused_unread(tmp_path: Path, side: int) -> None:
    huge(tmp_path / "a.png", side)
    with pytest.raises(PictureError, match="pixels") as caught:
        open_picture(tmp_path / "a.png")
    assert caught.value.name == "too_large_picture"


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello", encoding="utf-8")
    (tmp_path / "empty.png").write_bytes(b"")
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.png")
    cut = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(cut[: len(cut) // 2])
    (tmp_path / "folder.png").mkdir()
    names = {}
    for name in ("text.png", "empty.png", "cut.png", "folder.png", "nowhere.png"):
        with pytest.raises(PictureError) as caught:
            open_picture(tmp_path / name)
        names[name] = caught.value.name
        assert name in str(caught.value)
    assert names.pop("nowhere.png") == names.pop("folder.png") == "missing_picture"
    assert set(names.values()) == {"unreadable_picture"}


def test_the_hash_is_of_size_and_pixels() -> None:
    one, other = Image.new("RGB", (2, 8), RED), Image.new("RGB", (8, 2), RED)
    assert picture_hash(one) == picture_hash(one.copy()) != picture_hash(other)
    assert picture_hash(one) != picture_hash(Image.new("RGB", (2, 8), BLUE))


def test_a_data_url_holds_the_same_pixels() -> None:
    import base64
    import io

    picture = Image.effect_noise((9, 7), 60).convert("RGB")
    head, encoded = data_url(picture).split(",")
    assert head == "data:image/png;base64"
    assert picture_hash(Image.open(io.BytesIO(base64.b64decode(encoded)))) == picture_hash(picture)


def test_drawn_text_stays_inside_and_is_as_large_as_fits() -> None:
    long = "Steps to do something that takes very many words to say. " * 12
    ink = []
    for text in ("Stop", "1. \n2. \n3. ", long, "", "x" * 200):
        picture = text_picture(text)
        dark = np.argwhere(np.asarray(picture.convert("L")) < 128)
        assert picture.size == (760, 760)
        if text == "x" * 200:  # one word that cannot be wrapped is cut, not an endless search
            continue
        if text:
            assert dark.min() >= 30
            assert dark.max() <= 760 - 30
        ink.append(np.ptp(dark[:, 0]) if len(dark) else 0)
    assert ink[0] > 20
    assert ink[2] > 300
    assert ink[3] == 0
    assert picture_hash(text_picture("Stop")) == picture_hash(text_picture("Stop"))
    assert picture_hash(text_picture("Stop")) != picture_hash(text_picture("Go"))


def test_a_blank_picture_shows_nothing() -> None:
    assert len(set(blank_picture().resize((8, 8)).get_flattened_data())) == 1
