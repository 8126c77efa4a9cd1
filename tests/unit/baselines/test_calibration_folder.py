"""A calibration read from a folder, and what is said of one that lacks something."""

import json
from dataclasses import fields, replace

import pytest
from PIL import Image

from tgalign.baselines import Calibration, defend
from tgalign.baselines.calibration_folder import read_calibration
from tgalign.errors import UserError


@pytest.fixture
def folder(tmp_path):
    rows = [{"image": f"{number}.png", "caption": f"a fox {number}"} for number in range(3)]
    for row in rows:
        Image.new("L", (9, 9)).save(tmp_path / row["image"])
    (tmp_path / "harmless.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "toxic.jsonl").write_text('{"text": "a beer mug"}\n')
    return tmp_path


def test_a_folder_is_a_calibration(folder, llava, processor):
    found = read_calibration(folder, question="what is this ?", budget=0.5)
    assert [picture.mode for picture in found.pictures] == ["RGB"] * 3
    assert found.captions == ["a fox 0", "a fox 1", "a fox 2"]
    assert (found.toxic_captions, found.descriptors) == (["a beer mug"], ())
    assert (found.question, found.budget) == ("what is this ?", 0.5)
    (folder / "descriptors.jsonl").write_text('{"text": "beer"}\n')
    assert read_calibration(folder).descriptors == ["beer"]
    with defend(llava, processor, "cmrm", calibration=found):
        pass


def test_a_folder_may_hold_settings_and_the_clip(folder):
    (folder / "settings.yaml").write_text("question: what is this ?\nbudget: 0.1\n")
    (folder / "clip").mkdir()
    found = read_calibration(folder)
    assert (found.question, found.budget) == ("what is this ?", 0.1)
    assert found.caption_question == "Describe this image."
    assert found.clip == folder / "clip"
    assert read_calibration(folder, budget=0.5).budget == 0.5


def test_the_hash_covers_all_that_a_defence_looks_at(folder):
    found = read_calibration(folder)
    other = Image.new("RGB", (9, 9), "red")
    (folder / "clip").mkdir()
    (folder / "clip" / "model.safetensors").write_bytes(b"weights")
    changes = (
        {"pictures": [other, *found.pictures[1:]]}, {"captions": ["x", "y", "z"]},
        {"toxic_captions": ["gin"]}, {"descriptors": ["gin"]}, {"question": "q"},
        {"caption_question": "q"}, {"refusal": "no"}, {"safety_prompt": "no"}, {"budget": 0.3},
        {"clip": folder / "clip"},
    )  # fmt: skip
    hashes = [found.sha256, *(replace(found, **change).sha256 for change in changes)]
    assert len(set(hashes)) == len(hashes) == len(fields(Calibration)) + 1
    assert read_calibration(folder, clip=None).sha256 == found.sha256


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("harmless.jsonl", None, "no records at"),
        ("toxic.jsonl", None, "no texts at"),
        ("harmless.jsonl", '{"image": "0.png"}\n', r"harmless.jsonl:1: .*an image and a caption"),
        ("toxic.jsonl", '{"txt": 1}\n', r"toxic.jsonl:1"),
        ("settings.yaml", "budget: 2\n", r"settings.yaml sets no calibration"),
        ("settings.yaml", "pictures: []\n", r"settings.yaml sets no calibration"),
        ("settings.yaml", "[", r"settings.yaml sets no calibration"),
    ],
)
def test_what_a_folder_lacks_is_named(file, text, message, folder):
    if text is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(text)
    with pytest.raises(UserError, match=message):
        read_calibration(folder)
