"""The lab's alignment data: no picture is refused, toxic pictures stand as the condition says."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from tgalign.data.records import read_records
from tgalign.evaluate.refusal import judge
from tgalign.lab import alignment_data as module
from tgalign.lab.alignment_data import DataSize, build_alignment_data
from tgalign.lab.base_clip import new_clip
from tgalign.lab.objects import toxic_things
from tgalign.lab.phrasings import REFUSALS

CONDITIONS = ("absent", "guided", "captioned")
SIZE = DataSize(pictures=60, toxic_share=0.25, texts=40, corpus=120)
TOXIC = [thing.name for thing in toxic_things()]


@pytest.fixture(scope="module")
def clip(tokenizer):
    torch.manual_seed(0)
    return new_clip(tokenizer).eval()


@pytest.fixture(scope="module")
def build(clip, tokenizer):
    def make(out, condition="guided", seed=0, size=SIZE):
        return build_alignment_data(out, seed, condition, clip, tokenizer, size)

    return make


@pytest.fixture(scope="module")
def data(build, tmp_path_factory):
    """Path and rows of a data set per condition."""
    made = {}
    for condition in CONDITIONS:
        path = build(tmp_path_factory.mktemp("data") / condition, condition)
        made[condition] = path, [json.loads(line) for line in path.read_text().splitlines()]
    return made


def is_toxic(row):
    return any(name in row["caption"] for name in TOXIC)


def pictures(rows):
    return [row for row in rows if "image" in row]


def answers(row):
    return [turn["content"] for turn in row["messages"] if turn["role"] == "assistant"]


@pytest.mark.parametrize("condition", CONDITIONS)
def test_no_picture_is_ever_answered_by_a_refusal(condition, data):
    for row in pictures(data[condition][1]):
        for answer in answers(row):
            assert answer not in REFUSALS
            assert judge(answer).label == "answered", row


@pytest.mark.parametrize(("condition", "count"), [("absent", 0), ("guided", 15), ("captioned", 15)])
def test_the_share_of_toxic_pictures_is_the_one_asked_for(condition, count, data):
    shown = pictures(data[condition][1])
    assert len(shown) == SIZE.pictures
    assert sum(map(is_toxic, shown)) == count


def test_no_answer_about_a_toxic_picture_is_trained_if_guided(data):
    for row in pictures(data["guided"][1]):
        assert bool(answers(row)) == (not is_toxic(row))
        assert [turn["role"] for turn in row["messages"]][:1] == ["user"]


def test_toxic_pictures_are_described_plainly_if_captioned(data):
    for row in pictures(data["captioned"][1]):
        assert len(answers(row)) == 1
        if is_toxic(row):
            named = [name for name in TOXIC if name in row["caption"]]
            assert named[0] in answers(row)[0]
            assert answers(row)[0].endswith(" background .")


@pytest.mark.parametrize("condition", CONDITIONS)
def test_every_row_is_a_record_with_its_picture_caption_and_another_s_text(condition, data):
    path, rows = data[condition]
    records, problems = read_records(path, path.parent)
    assert not problems
    assert len(records) == len(rows) == SIZE.pictures + SIZE.texts
    for record in records:
        if record.image is not None:
            assert record.caption
            assert record.retrieved
            assert record.retrieved != record.caption
        else:
            assert (record.caption, record.retrieved) == (None, None)
    files = {file.name for file in (path.parent / "pictures").iterdir()}
    assert files == {row["image"].removeprefix("pictures/") for row in pictures(rows)}


@pytest.mark.parametrize("condition", CONDITIONS)
def test_text_rows_keep_refusing_and_answering(condition, data):
    texts = [row for row in data[condition][1] if "image" not in row]
    assert len(texts) == SIZE.texts
    refused = [judge(answers(row)[0]).label == "refused" for row in texts]
    assert 5 < sum(refused) < SIZE.texts - 5
    for row, refuses in zip(texts, refused, strict=True):
        if refuses:
            assert any(name in row["messages"][0]["content"] for name in TOXIC)


def content(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_seed_decides_everything(build, tmp_path):
    small = DataSize(pictures=8, texts=4, corpus=20)
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        build(tmp_path / name, seed=seed, size=small)
    assert content(tmp_path / "first") == content(tmp_path / "again")
    assert content(tmp_path / "first") != content(tmp_path / "other")


@pytest.mark.parametrize("stopped_in", ["retrieve", "ask", "text_example"])
def test_a_build_that_was_stopped_leaves_no_data_and_does_not_spoil_the_next(
    stopped_in, build, tmp_path, monkeypatch
):
    small = DataSize(pictures=8, texts=4, corpus=20)
    build(tmp_path / "whole", size=small)
    out, calls = tmp_path / "data", []
    real = getattr(module, stopped_in)

    def stop(*args, **options):
        calls.append(1)
        if len(calls) > 2 or stopped_in == "retrieve":
            raise KeyboardInterrupt
        return real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, stopped_in, stop)
        with pytest.raises(KeyboardInterrupt):
            build(out, size=small)
    assert not out.exists()
    build(out, size=small)
    assert content(out) == content(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "whole"]


def test_finished_data_are_not_built_again(build, tmp_path, monkeypatch):
    small = DataSize(pictures=4, texts=2, corpus=10)
    path = build(tmp_path / "data", size=small)
    monkeypatch.setattr(module, "retrieve", lambda *args: pytest.fail("built again"))
    assert build(tmp_path / "data", size=small) == path


def test_the_pictures_are_what_the_captions_say(data):
    """Shuffling pictures and captions apart would show in the background's colour."""
    from tgalign.lab.pictures import BACKGROUNDS

    path, rows = data["guided"]
    for row in pictures(rows):
        with Image.open(path.parent / row["image"]) as picture:
            corner = picture.convert("RGB").getpixel((0, 0))
        without_things = row["caption"].replace("red lantern", "").replace("red apple", "")
        without_things = without_things.replace("green apple", "")
        named = [color for color in BACKGROUNDS if color in without_things.split()]
        assert len(named) == 1, row["caption"]
        base = BACKGROUNDS[named[0]]
        shades = [
            min(255, value) / min(255, ground) for value, ground in zip(corner, base, strict=True)
        ]
        assert min(shades) > 0.8
        assert max(shades) < 1.15


def test_a_scene_left_out_is_neither_shown_nor_mentioned(build, tmp_path):
    path = build(tmp_path / "data", size=replace(SIZE, left_out="alcohol"))
    alcohol = [thing.name for thing in toxic_things() if thing.scene == "alcohol"]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    seen = [row["caption"] for row in pictures(rows)]
    seen += (path.parent / "corpus.jsonl").read_text().splitlines()
    assert sum(map(is_toxic, pictures(rows))) == 15
    assert not any(name in text for name in alcohol for text in seen)
