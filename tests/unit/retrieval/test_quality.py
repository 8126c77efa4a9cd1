"""Worse R and worse captions are as bad as asked for, and are what a variant is trained on."""

import json
import random
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tgalign.baselines.ablate import run_variant
from tgalign.baselines.ablations import ABLATIONS
from tgalign.lab import suite
from tgalign.lab.assets import ASSETS, LLM
from tgalign.retrieval.quality import Quality, change_quality, noisy, similarity

WORDS = st.lists(st.sampled_from(["a", "red", "dog", "and", "two", "mugs"]), min_size=1)


@given(words=WORDS, share=st.floats(0, 1), seed=st.integers(0, 99))
@settings(deadline=None)
def test_noise_does_what_its_name_says(words, share, seed):
    caption = " ".join(words)
    made = {
        noise: noisy(caption, noise, share, ["X"], random.Random(seed)).split()
        for noise in ("none", "drop", "swap", "replace")
    }
    assert made["none"] == words
    assert sorted(made["swap"]) == sorted(words)
    replaced = [new == "X" for new in made["replace"]]
    assert len(replaced) == len(words)
    assert [old for old, new in zip(words, replaced, strict=True) if not new] == [
        new for new in made["replace"] if new != "X"
    ]
    # The same words are met, whatever is done to them.
    kept = [old for old, new in zip(words, replaced, strict=True) if not new]
    assert made["drop"] == kept or (not kept and len(made["drop"]) == 1)


def test_noise_meets_the_share_of_words_that_is_asked_for():
    rng, caption = random.Random(0), "word " * 2_000
    for share in (0.05, 0.25, 0.5):
        assert len(noisy(caption, "drop", share, [], rng).split()) == pytest.approx(
            2_000 * (1 - share), abs=80
        )


@pytest.fixture(scope="module")
def data(records, corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "data"
    shutil.copytree(records.parent, folder)
    shutil.copy(corpus, folder / "corpus.jsonl")
    return folder


@pytest.fixture
def changed(data):
    """A function that gives the rows of one quality, those with a picture, and its similarity."""

    def change(**options):
        out = data / f"records-{random.random()}.jsonl"
        change_quality(out, data, Quality(**options), text_encoder=ASSETS / LLM)
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        return [row for row in rows if "image" in row], similarity(out)

    return change


def test_r_and_c_are_as_bad_as_asked_for_and_that_is_measured(changed):
    good_rows, good = changed()
    for options in ({"rank": 100}, {"random": True}, {"shuffled": 1.0}):
        rows, found = changed(**options)
        assert found["picture_retrieved"] < good["picture_retrieved"] - 0.1
        assert found["caption_retrieved"] < good["caption_retrieved"] - 0.1
        assert found["picture_caption"] == pytest.approx(good["picture_caption"])
        assert all(a["retrieved"] != b["retrieved"] for a, b in zip(rows, good_rows, strict=True))
    rows, found = changed(floor=1)
    assert [row["retrieved"] for row in rows] == [[]] * len(rows)
    assert (found["picture_retrieved"], found["caption_retrieved"]) == (None, None)
    rows, found = changed(encoder="text")
    assert all(row["retrieved"][0]["text"] != row["caption"] for row in rows)
    assert rows != good_rows
    for noise in ("drop", "replace"):
        rows, found = changed(noise=noise, noise_share=0.5)
        assert found["picture_caption"] < good["picture_caption"] - 0.1
        for row, was in zip(rows, good_rows, strict=True):
            assert {**row, "caption": was["caption"]} == was
    first, again = (changed(noise="swap", noise_share=0.5) for _ in range(2))
    assert first == again
    assert first[0] != good_rows


def test_records_that_are_there_are_not_made_again(data):
    out = data / "records-mine.jsonl"
    out.write_text("mine")
    change_quality(out, data, Quality(), text_encoder=ASSETS / LLM)
    assert out.read_text() == "mine"


def read(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_a_variant_is_trained_on_its_own_records(tmp_path, monkeypatch):
    real = suite.lab_suite

    def small(seed, *, objects, **options):
        return real(seed, per_scene=1, num_benign=4, num_texts=4, objects=objects)

    monkeypatch.setattr(suite, "lab_suite", small)
    last = ABLATIONS["captions"].variants[-1]
    found = run_variant(tmp_path, 0, last, smoke=True)
    (result,) = tmp_path.glob("seed0/tga_plain-*/result.json")
    config = json.loads((result.parent / "run" / "config.json").read_text())
    (clean,) = tmp_path.glob("seed0/data-*/records.jsonl")
    pairs = [
        (row["caption"], other["caption"])
        for row, other in zip(read(config["records"]), read(clean), strict=True)
        if "image" in row
    ]
    assert sum(caption != other for caption, other in pairs) > len(pairs) / 2
    assert found["similarity"]["picture_caption"] < 0.7
    before = result.stat().st_mtime_ns
    assert run_variant(tmp_path, 0, last, smoke=True) == found
    assert result.stat().st_mtime_ns == before
