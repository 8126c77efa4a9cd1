"""Reading records: every fault is a problem with file and row, none is an exception."""

import io
import json
import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tgalign.data import records as module
from tgalign.data.pictures import MAX_PIXELS, read_picture
from tgalign.data.records import (
    DEFAULT_QUESTION,
    Problem,
    read_records,
    require_all_good,
)
from tgalign.errors import UserError

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO", "PCX")
USER = {"role": "user", "content": "what ?"}
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::RuntimeWarning:PIL")
ASSISTANT = {"role": "assistant", "content": "that ."}
GOOD = {"messages": [USER, ASSISTANT]}


@pytest.fixture(scope="module")
def root(tmp_path_factory, png_header):
    """An image root with good and bad pictures, and one more picture outside of it."""
    top = tmp_path_factory.mktemp("top")
    root = top / "root"
    (root / "folder").mkdir(parents=True)
    picture = Image.effect_noise((40, 30), 60).convert("RGB")
    picture.save(root / "good.png")
    picture.save(root / "folder" / "good.jpg")
    picture.save(top / "outside.png")
    for name in ("good.png", "folder/good.jpg"):
        whole = (root / name).read_bytes()
        (root / f"cut{Path(name).suffix}").write_bytes(whole[: len(whole) // 2])
    (root / "empty.png").write_bytes(b"")
    (root / "text.png").write_text("no picture at all")
    (root / "huge.png").write_bytes(png_header(100_000, 100_000))
    (root / "large.png").write_bytes(png_header(8_001, 8_000))
    (root / "link.png").symlink_to(top / "outside.png")
    (root / "outside").symlink_to(top)
    (root / "inside.png").symlink_to(root / "good.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    os.mkfifo(root / "pipe.png")
    return root


@pytest.fixture(scope="module")
def read(root, tmp_path_factory):
    """A function that reads lines (text, bytes or rows) as a file named ``data.jsonl``."""
    path = tmp_path_factory.mktemp("lines") / "data.jsonl"

    def read_lines(*lines, **options):
        parts = [line if isinstance(line, str | bytes) else json.dumps(line) for line in lines]
        path.write_bytes(
            b"\n".join(p if isinstance(p, bytes) else p.encode("utf-8", "replace") for p in parts)
        )
        return read_records(path, root, **options)

    return read_lines


BAD = {
    "cut JSON": ('{"image": "good.png"', "not valid JSON"),
    "no JSON": ("hello", "not valid JSON"),
    "bytes": (b"\xff\xfe\x00", "not UTF-8"),
    "deep JSON": ("[" * 100_000, "not valid JSON"),
    "a huge number": ('{"image": ' + "1" * 10_000 + "}", ""),
    "a list": ([GOOD], "expected a JSON object, got list"),
    "a string": ('"good.png"', "expected a JSON object, got str"),
    "null": ("null", "expected a JSON object, got NoneType"),
    "an empty object": ({}, "neither an image nor messages"),
    "an empty list of messages": ({"messages": []}, "neither an image nor messages"),
    "a caption alone": ({"caption": "a cat"}, "neither an image nor messages"),
    "no answer": ({"messages": [USER]}, "text-only row without an assistant turn"),
    "image missing": ({"image": "none.png"}, "does not exist"),
    "image a folder": ({"image": "folder"}, "does not exist"),
    "image the root": ({"image": "."}, "does not exist"),
    "image a pipe": ({"image": "pipe.png"}, "does not exist"),
    "image outside": ({"image": "../outside.png"}, "leads outside the image root"),
    "image outside after a detour": ({"image": "folder/../../outside.png"}, "leads outside"),
    "image by an absolute path": ({"image": "/etc/passwd"}, "leads outside"),
    "image outside by a link": ({"image": "link.png"}, "leads outside"),
    "image in a linked folder": ({"image": "outside/outside.png"}, "leads outside"),
    "image a loop of links": ({"image": "loop.png"}, "loop.png"),
    "image empty": ({"image": "empty.png"}, "no picture that PIL can read"),
    "image text": ({"image": "text.png"}, "no picture that PIL can read"),
    "image cut, PNG": ({"image": "cut.png"}, "cannot be read"),
    "image cut, JPEG": ({"image": "cut.jpg"}, "cannot be read"),
    "image large": ({"image": "large.png"}, "8001×8000 pixels, more than 64,000,000"),
    "image huge": ({"image": "huge.png"}, "pixels"),
    "image a number": ({"image": 3}, "image must be a relative path, got 3"),
    "image an empty name": ({"image": ""}, "image must be a relative path"),
    "image with NUL": ({"image": "a\0b"}, "image must be a relative path"),
    "image with half a character": ('{"image": "\\ud800.png"}', ""),
    "image with too long a name": ({"image": "x" * 5_000}, ""),
    "caption a number": ({"image": "good.png", "caption": 3}, "caption must be a string, got int"),
    "<image> in the caption": (
        {"image": "good.png", "caption": "a <image> cat"},
        "caption contains a literal '<image>'",
    ),
    "<image> in the user's text": (
        {"image": "good.png", "messages": [{"role": "user", "content": "<image>\nwhat ?"}]},
        "turn 1 contains a literal '<image>'",
    ),
    "<image> in the answer": (
        {"messages": [USER, {"role": "assistant", "content": "<image>"}]},
        "turn 2 contains a literal '<image>'",
    ),
    "<image> in the retrieved text": (
        {"image": "good.png", "retrieved": [{"text": "x <image>"}]},
        "retrieved text contains a literal '<image>'",
    ),
    "retrieved a number only": ({"image": "good.png", "retrieved": 1}, "retrieved must be a list"),
    "retrieved an object": ({"image": "good.png", "retrieved": {"a": 1}}, "must be a list"),
    "retrieved strings": ({"image": "good.png", "retrieved": ["x"]}, "must be a list"),
    "retrieved without text": ({"image": "good.png", "retrieved": [{"id": 1}]}, "must be a list"),
    "retrieved a number": ({"image": "good.png", "retrieved": [{"text": 1}]}, "must be a string"),
    "messages a string": ({"messages": "hello"}, "messages must be a list of turns, got str"),
    "a turn that is a string": ({"messages": ["hello"]}, "turn 1 must be the user's"),
    "the assistant first": (
        {"messages": [ASSISTANT]},
        "turn 1 must be the user's, got role 'assis",
    ),
    "the user twice": (
        {"messages": [USER, USER]},
        "turn 2 must be the assistant's, got role 'user",
    ),
    "a system turn": ({"messages": [{"role": "system", "content": "x"}]}, "got role 'system'"),
    "a role that is a list": ({"messages": [{"role": ["user"], "content": "x"}]}, "turn 1"),
    "no role": ({"messages": [{"content": "x"}]}, "got role None"),
    "LLaVA's own keys": ({"messages": [{"from": "human", "value": "x"}]}, "got role None"),
    "an empty turn": ({"messages": [USER, {"role": "assistant", "content": ""}]}, "turn 2 (assis"),
    "a blank turn": ({"messages": [{"role": "user", "content": " \n"}]}, "turn 1 (user) is empty"),
    "content missing": ({"messages": [{"role": "user"}]}, "turn 1 (user) is empty"),
    "content a number": ({"messages": [{"role": "user", "content": 1}]}, "turn 1 must be a string"),
    "half a character in a text": (
        '{"image": "good.png", "caption": "\\ud800 cat"}',
        "caption holds what is no character",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_a_problem_with_file_and_row_beside_good_ones(name, read):
    line, reason = BAD[name]
    records, problems = read(GOOD, line, {"image": "good.png"})
    assert [record.row for record in records] == [1, 3]
    assert [(problem.file, problem.row) for problem in problems] == [("data.jsonl", 2)]
    assert reason in problems[0].reason
    assert problems[0].reason.strip()
    assert str(problems[0]).startswith("data.jsonl:2: ")
    str(problems[0]).encode()  # can be printed


def test_good_rows_are_read_as_they_are(read, root):
    long = [USER, ASSISTANT, {"role": "user", "content": " why ? "}, ASSISTANT]
    retrieved = [{"text": " first ", "score": 0.9, "id": 4}, {"text": "second"}]
    records, problems = read(
        {"image": "good.png", "caption": " a cat ", "retrieved": retrieved, "messages": long},
        {"image": "folder/good.jpg"},
        {"image": "inside.png", "caption": "", "retrieved": [], "messages": [USER]},
        {"image": "folder/../good.png", "caption": None, "retrieved": None, "messages": None},
        "",
        "  \t",
        {**GOOD, "id": {"is": "ignored"}, "retrieved": [{"text": None}]},
        {**GOOD, "retrieved": " a bare text "},
    )
    assert not problems
    assert [record.row for record in records] == [1, 2, 3, 4, 7, 8]
    first, second, third, fourth, text, bare = records
    assert (first.image, first.caption, first.retrieved) == (root / "good.png", "a cat", "first")
    assert first.messages[2:] == (("user", "why ?"), ("assistant", "that ."))
    assert second.image == root / "folder" / "good.jpg"
    assert second.messages == (("user", DEFAULT_QUESTION),)
    assert (second.caption, second.retrieved) == (None, None)
    assert third.image == root / "good.png"
    assert (third.caption, third.retrieved, third.messages) == (None, None, (("user", "what ?"),))
    assert (fourth.image, fourth.caption, fourth.retrieved) == (root / "good.png", None, None)
    assert (text.image, text.retrieved) == (None, None)
    assert bare.retrieved == "a bare text"


def test_a_misspelt_or_foreign_key_is_a_problem(read):
    records, problems = read(
        {"image": "good.png", "captoin": "a cat"},
        {"image": "good.png", "conversation": [{"from": "human", "value": "what ?"}]},
        {"id": 7, "image": "good.png"},
    )
    assert [record.row for record in records] == [3]
    assert [problem.row for problem in problems] == [1, 2]
    assert "captoin" in problems[0].reason
    assert "conversation" in problems[1].reason
    assert "caption" in problems[0].reason


def test_a_row_that_is_not_utf8_is_a_problem(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"messages": [{"role": "user", "content": "caf\xe9 ?"}]}\n')
    records, problems = module.read_records(path, tmp_path)
    assert records == []
    assert "UTF-8" in problems[0].reason


def test_a_picture_at_the_limit_of_pixels_is_opened(tmp_path, png_header):
    (tmp_path / "limit.png").write_bytes(png_header(8_000, MAX_PIXELS // 8_000))
    with pytest.raises(ValueError, match="cannot be read"):  # too large would be said first
        read_picture(tmp_path / "limit.png")


def test_a_missing_file_root_or_content_is_the_users_mistake(tmp_path):
    path = tmp_path / "data.jsonl"
    with pytest.raises(UserError, match=r"no records at .*data.jsonl: expected a file of JSON"):
        read_records(path, tmp_path)
    path.write_text("\n\n")
    with pytest.raises(UserError, match="holds no record"):
        read_records(path, tmp_path)
    with pytest.raises(UserError, match=r"no image root at .*nowhere"):
        read_records(path, tmp_path / "nowhere")


def test_all_problems_are_counted_and_the_first_shown():
    require_all_good([])
    with pytest.raises(UserError) as caught:
        require_all_good([Problem("data.jsonl", row, "bad") for row in range(1, 9)])
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("8 bad row(s)")
    assert lines[1:] == [*(f"  data.jsonl:{row}: bad" for row in range(1, 6)), "  … and 3 more"]


def read_or_refuse(read, *lines):
    """Read; a file without any row is the one thing that may be refused."""
    try:
        return read(*lines)
    except UserError as fault:
        assert "holds no record" in str(fault)
        return [], []


@given(lines=st.lists(st.text(max_size=60) | st.binary(max_size=60), max_size=6))
@settings(deadline=None, max_examples=150)
def test_arbitrary_lines_never_raise(read, lines):
    records, problems = read_or_refuse(read, *lines, GOOD)
    assert len(records) >= 1
    assert all(problem.file == "data.jsonl" and problem.reason for problem in problems)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["good.png", "folder", "user", "assistant", "<image>", "..", "cut.png", "~"])
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["image", "caption", "retrieved", "messages", "role", "content", "text"]
            )
            | st.text(max_size=4),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(values=st.lists(JSON, min_size=1, max_size=4))
@settings(deadline=None, max_examples=200)
def test_arbitrary_json_never_raises(read, values):
    records, problems = read(*(json.dumps(value) for value in values))
    assert len(records) + len(problems) == len(values)


@given(
    data=st.fixed_dictionaries(
        {},
        optional={
            "image": JSON,
            "caption": JSON,
            "retrieved": JSON | st.lists(st.fixed_dictionaries({"text": JSON}), max_size=2),
            "messages": st.lists(
                st.fixed_dictionaries(
                    {"role": st.sampled_from(["user", "assistant"]), "content": st.text(max_size=5)}
                )
                | JSON,
                max_size=4,
            ),
        },
    )
)
@settings(deadline=None, max_examples=200)
def test_what_is_accepted_keeps_every_promise(read, root, data):
    records, problems = read(json.dumps(data))
    assert len(records) + len(problems) == 1
    for record in records:
        assert record.image is not None or any(role == "assistant" for role, _ in record.messages)
        assert record.image is None or record.image.is_relative_to(root)
        roles = [role for role, _ in record.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"] * (len(roles) % 2)
        texts = [content for _, content in record.messages] + [record.caption, record.retrieved]
        for text in texts:
            assert text is None or (text.strip() == text and text and "<image>" not in text)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_damaged_picture_is_a_problem_or_decodes(kind, tmp_path):
    buffer = io.BytesIO()
    mode = "P" if kind in ("GIF", "PCX") else "RGB"
    Image.effect_noise((16, 16), 90).convert(mode).save(buffer, kind)
    whole = buffer.getvalue()
    path = tmp_path / "damaged"
    rng = random.Random(kind)
    refused = 0
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(min(len(data), rng.choice((40, 10_000))))] = rng.randrange(256)
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        path.write_bytes(data)
        try:
            read_picture(path)
        except ValueError as fault:
            refused += 1
            assert str(path) in str(fault)
    assert refused > 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_picture_that_may_not_be_read_is_a_problem(read, root):
    folder = root / "closed"
    folder.mkdir()
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    folder.chmod(0)
    try:
        records, problems = read({"image": "closed/a.png"})
    finally:
        folder.chmod(0o700)
    assert not records
    assert "a.png" in problems[0].reason
