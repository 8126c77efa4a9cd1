"""The table of methods: what each is, what a name asks for, and what each learns from."""

import copy
import json
import random
from dataclasses import replace

import pytest
import torch

from tgalign.baselines import refusal_on_benign, textual_unlearning, vlguard
from tgalign.baselines.comparison import facts
from tgalign.baselines.method import Drawing
from tgalign.baselines.methods import DEFAULT_METHODS, DEFENCES, TRAININGS, plan
from tgalign.baselines.training import Setting, prepare, training_config, write_records
from tgalign.errors import UserError
from tgalign.evaluate.refusal import judge
from tgalign.lab.alignment_data import DataSize, build_alignment_data
from tgalign.lab.arms import ARMS
from tgalign.lab.base_clip import new_clip
from tgalign.lab.language import things_named
from tgalign.lab.objects import picture_pool, toxic_things

TOXIC = {thing.name for thing in toxic_things()}
SETTING = Setting("guided", 0.1, "emoji", smoke=True)


@pytest.fixture(scope="module", params=["guided", "captioned"])
def rows(request, tokenizer, tmp_path_factory):
    """Alignment data of 400 pictures, as rows."""
    torch.manual_seed(0)
    path = build_alignment_data(
        tmp_path_factory.mktemp("data") / "data",
        0,
        request.param,
        new_clip(tokenizer).eval(),
        tokenizer,
        DataSize(pictures=400, toxic_share=0.25, texts=50, corpus=100),
    )
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def drawing(tmp_path):
    return Drawing(tmp_path, random.Random(1), picture_pool(), "emoji")


def refused(row):
    answers = [turn["content"] for turn in row["messages"] if turn["role"] == "assistant"]
    return any(judge(text).label == "refused" for text in answers)


def test_every_method_says_where_it_comes_from_and_how_it_departs():
    for method in (*TRAININGS.values(), *DEFENCES.values()):
        assert method.paper and method.what and method.departure
    assert set(TRAININGS).isdisjoint(DEFENCES)
    for training in TRAININGS.values():
        assert training.start is None or TRAININGS[training.start].start is None


def test_what_a_name_asks_for():
    asked = [plan(name) for name in ("tga", "ecso", "tga+ecso")]
    assert [(it.training, it.defence) for it in asked] == [
        ("tga", None), ("ce", "ecso"), ("tga", "ecso"),
    ]  # fmt: skip
    assert plan("mine+ecso", ["mine"]).training == "mine"
    assert plan("ce+ecso") == plan("ecso")
    for name in ("tgaa", "ecso+tga", "tga+", "+ecso", "mine", "tga+tga", "ecso+ecso"):
        with pytest.raises(UserError, match="unknown method"):
            plan(name)


def test_what_each_method_needs():
    found = {name: facts(plan(name)) for name in DEFAULT_METHODS}
    assert [n for n, it in found.items() if it["uses_image_safety_data"]] == ["vlguard"]
    assert [n for n, it in found.items() if it["uses_second_model"]] == ["safeclip"]
    assert [n for n, it in found.items() if it["at_inference"]] == list(DEFENCES)
    both = facts(plan("tga+ecso"))
    assert TRAININGS["tga"].paper in both["paper"] and DEFENCES["ecso"].paper in both["paper"]
    assert facts(plan("mine", ["mine"]))["uses_image_safety_data"] is None


def test_the_control_refuses_harmless_pictures_alone(rows, drawing):
    before = copy.deepcopy(rows)
    kept, added = refusal_on_benign.records(rows, drawing)
    assert rows == before and not added and len(kept) == len(rows)
    changed = [new for old, new in zip(rows, kept, strict=True) if new != old]
    answered = [row for row in rows if "image" in row and len(row["messages"]) > 1]
    harmless = [row for row in answered if not TOXIC & things_named(row["caption"])]
    assert all(refused(row) and row["image"] for row in changed)
    assert not any(TOXIC & things_named(row["caption"]) for row in changed)
    assert 0.05 < len(changed) / len(harmless) < 0.16
    assert not list(drawing.folder.iterdir())


def test_image_safety_tuning_refuses_toxic_pictures_of_its_own(rows, drawing):
    before = copy.deepcopy(rows)
    kept, added = vlguard.records(rows, drawing)
    assert rows == before == kept
    assert len(added) == 2 * 40
    assert [refused(row) for row in added] == [True] * 40 + [False] * 40
    assert all((drawing.folder / row["image"]).is_file() for row in added)
    answers = [row["messages"][1]["content"] for row in added[40:]]
    assert not any(TOXIC & things_named(text) for text in answers)


def test_textual_unlearning_sees_no_picture(rows, drawing):
    kept, added = textual_unlearning.records(rows, drawing)
    assert not added and not any("image" in row for row in kept)
    assert [refused(row) for row in kept[:6]] == [True, False] * 3
    (stage,) = TRAININGS["textual_unlearning"].stages
    assert stage.train == ["llm"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of a smoke comparison in which all methods have written their records."""
    out = tmp_path_factory.mktemp("compare")
    prepare(out, 0, SETTING)
    data = training_config(out, 0, SETTING, "ce").records
    before = data.read_bytes()
    for name in TRAININGS:
        write_records(out, 0, SETTING, name)
    assert data.read_bytes() == before
    return out


def test_no_refusal_to_a_toxic_picture_leaks_into_other_data(written):
    safety = training_config(written, 0, SETTING, "vlguard").records
    pictures = {str(path.resolve()) for path in safety.parent.rglob("*.png")}
    assert len(pictures) == 12
    for name in TRAININGS:
        config = training_config(written, 0, SETTING, name)
        assert (config.records == safety) == (name == "vlguard")
        if name == "vlguard":
            continue
        root = config.image_root or config.records.parent
        for line in config.records.read_text().splitlines():
            row = json.loads(line)
            if "image" in row:
                assert str((root / row["image"]).resolve()) not in pictures
                assert not (refused(row) and TOXIC & things_named(row["caption"]))


def test_a_run_is_named_by_all_that_decides_its_weights(tmp_path):
    def key(name, out=tmp_path, seed=0, **changes):
        setting = Setting(**{"condition": "guided", "toxic_share": 0.1, "style": "emoji"} | changes)
        return training_config(out, seed, setting, name).out.name

    assert key("ce") == key("ce", tmp_path / "elsewhere")
    others = [
        key("ce"), key("paper"), key("ce", seed=1), key("ce", scale=0.5), key("ce", smoke=True),
        key("ce", condition="captioned"), key("ce", toxic_share=0.2), key("ce", style="icons"),
    ]  # fmt: skip
    assert len(set(others)) == len(others)
    assert key("textual_unlearning") != key("textual_unlearning", scale=0.5)


def test_a_run_with_other_companions_is_another(tmp_path, monkeypatch):
    named = []
    for synthetic in (True, False):
        monkeypatch.setitem(ARMS, "tga", replace(ARMS["tga"], synthetic=synthetic))
        named.append(training_config(tmp_path, 0, SETTING, "tga").out.name)
    assert named[0] != named[1]


def test_what_starts_from_another_method_starts_from_its_checkpoint(tmp_path):
    start = training_config(tmp_path, 0, SETTING, "ce")
    config = training_config(tmp_path, 0, SETTING, "textual_unlearning")
    assert config.model == start.out / "checkpoint"
    assert config.image_root == tmp_path / "seed0"


def test_scale_shortens_every_stage_and_the_data(tmp_path):
    full, tenth = (Setting("guided", 0.1, "emoji", scale=it) for it in (1.0, 0.1))
    for name in TRAININGS:
        stages = [training_config(tmp_path, 0, it, name).stages for it in (full, tenth)]
        for long, short in zip(*stages, strict=True):
            assert short.steps == round(0.1 * long.steps)
    assert (tenth.size.pictures, tenth.size.texts) == (2_000, 200)
    assert Setting("guided", 0.1, "emoji", scale=1e-6).size.pictures == 60
