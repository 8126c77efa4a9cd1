"""The page's first part without a browser: pictures, answers side by side, layers, patching."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from app_world import QUESTION, save_models
from tgalign.app import scenes
from tgalign.app.answers import MAX_QUESTION, check_words, stream_answers
from tgalign.app.layers import (
    control_caption,
    layer_figures,
    patched_answer,
    reference_items,
    references,
)
from tgalign.app.models import Loaded, demo_models, load_models, short_names
from tgalign.app.scenes import NOTHING, compose_scene, object_choices, read_upload
from tgalign.errors import UserError
from tgalign.evaluate.generate import Prompt, answer


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Loaded]:
    return load_models(save_models(tmp_path_factory.mktemp("models")))


@pytest.fixture
def knife() -> scenes.Shown:
    return compose_scene("kitchen knife", NOTHING, "blue", 0)


def test_names_are_the_shortest_ends_that_differ(tmp_path: Path) -> None:
    assert short_names([Path("/a/ce/checkpoint"), Path("/a/tga/checkpoint")]) == ["ce", "tga"]
    assert short_names([Path("/a/ce/checkpoint"), Path("/b/ce/checkpoint")]) == ["a/ce", "b/ce"]
    assert short_names([Path("/llava")]) == ["llava"]
    with pytest.raises(UserError, match="given twice"):
        short_names([tmp_path / "x", tmp_path / "x"])


def test_without_a_demo_the_page_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no checkpoint at .*ce.*tgalign demo --out"):
        demo_models(tmp_path / "demo")


def test_a_missing_model_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint at"):
        load_models([tmp_path])


def test_uploads_are_read_and_their_files_deleted(tmp_path: Path) -> None:
    path = tmp_path / "hash" / "mine.png"
    path.parent.mkdir()
    Image.new("RGBA", (4000, 1000), (255, 0, 0, 0)).save(path)
    shown = read_upload(path)
    assert shown.picture.mode == "RGB"
    assert shown.picture.size == (scenes.MAX_SIDE, scenes.MAX_SIDE // 4)
    assert shown.caption == ""
    assert not path.parent.exists()


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_a_broken_upload_is_said_in_words_and_deleted(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "up" / "broken.png"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.png cannot be read as a picture"):
        read_upload(path)
    assert not path.exists()


def test_an_upload_too_large_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scenes, "MAX_BYTES", 100)
    path = tmp_path / "big.png"
    Image.new("RGB", (300, 300)).save(path)
    with pytest.raises(UserError, match=r"big\.png has 0\.0 MB, more than"):
        read_upload(path)
    assert not path.exists()


@pytest.mark.filterwarnings("ignore:Image size")
def test_a_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "up" / "bomb.png"
    path.parent.mkdir()
    Image.new("1", (12_000, 12_000)).save(path)
    with pytest.raises(UserError, match="too many pixels"):
        read_upload(path)


def test_scenes_are_drawn_with_a_caption_that_names_them() -> None:
    one = compose_scene("beer mug", "banana", "red", 3)
    assert "beer mug" in one.caption and "banana" in one.caption and "red" in one.caption
    again, anew = (compose_scene("beer mug", "banana", "red", seed) for seed in (3, 4))
    assert again.picture.tobytes() == one.picture.tobytes() != anew.picture.tobytes()
    names = [name for _, name in object_choices()]
    assert len(names) == len(set(names)) == 165
    assert ("kitchen knife (stands in for knife)", "kitchen knife") in object_choices()


@pytest.mark.parametrize(
    ("first", "second", "color", "said"),
    [
        ("banana", "banana", "red", "two of the same"),
        ("banana", NOTHING, "pink", "unknown background"),
        ("a thing", NOTHING, "red", "no object 'a thing'"),
    ],
)
def test_scenes_that_cannot_be_drawn(first: str, second: str, color: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        compose_scene(first, second, color, 0)


@given(st.text(max_size=MAX_QUESTION + 50))
def test_words_are_kept_or_refused(words: str) -> None:
    inner = words.strip()
    if inner and len(inner) <= MAX_QUESTION:
        assert check_words("question", words) == inner
    else:
        with pytest.raises(UserError, match="the question"):
            check_words("question", words)


def test_answers_come_word_by_word_and_end_as_the_batched_answers(
    models: list[Loaded], knife: scenes.Shown
) -> None:
    stages = list(stream_answers(models, QUESTION, picture=knife.picture))
    assert len(stages) > 2
    for before, after in pairwise(stages):
        for old, new in zip(before, after, strict=True):
            assert new.text.startswith(old.text.strip())
            assert not old.done or new == old
    for loaded, last in zip(models, stages[-1], strict=True):
        whole = answer(
            loaded.model, loaded.processor, [Prompt(QUESTION, knife.picture)], max_new_tokens=128
        )
        assert last.text == whole[0]
        assert last.verdict is not None


def test_told_in_words_the_lab_model_refuses(models: list[Loaded], knife: scenes.Shown) -> None:
    *_, last = stream_answers(models, QUESTION, caption=knife.caption)
    assert [it.verdict.label for it in last if it.verdict] == ["refused", "refused"]


def test_one_model_fails_and_the_other_goes_on(
    models: list[Loaded], knife: scenes.Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: Any) -> None:
        raise RuntimeError("<b>out of paper</b>")

    monkeypatch.setattr(models[0].model, "generate", fail)
    *_, last = stream_answers(models, QUESTION, picture=knife.picture)
    assert last[0].error is not None and "out of paper" in last[0].error
    assert last[0].done and last[0].verdict is None
    assert last[1].verdict is not None
    assert models[0].lock.acquire(timeout=5)
    models[0].lock.release()


def test_who_walks_away_frees_the_model(models: list[Loaded], knife: scenes.Shown) -> None:
    stream: Iterator[Any] = stream_answers(models[:1], QUESTION, picture=knife.picture)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert models[0].lock.acquire(timeout=20)
    models[0].lock.release()


def test_layers_of_one_picture(models: list[Loaded], knife: scenes.Shown) -> None:
    loaded = models[0]
    found = layer_figures(loaded, knife.picture, knife.caption, QUESTION)
    states = loaded.parts.num_layers + 1
    columns = [found.picture_refusal, found.caption_refusal, found.cosine, found.centered_cosine]
    for column in columns:
        assert column is not None and len(column) == states
    assert found.caption_refusal is not None and found.picture_refusal is not None
    assert found.caption_refusal[-1] > 0.9
    assert found.picture_refusal[-1] < 0.5
    assert "sorry" in found.tokens
    assert found.nearest is not None
    assert all(0 <= near <= sum(map(len, reference_items())) for near in found.nearest)
    assert found.grid == (4, 4)
    assert len(found.attention) == states - 1
    for line in found.attention:
        assert len(line) == 16
        assert 0 < sum(line) < 1


def test_the_lens_at_the_last_state_is_the_models_own_prediction(
    models: list[Loaded], knife: scenes.Shown
) -> None:
    loaded = models[0]
    found = layer_figures(loaded, knife.picture, knife.caption, QUESTION)
    turn = [{"role": "user", "content": [{"type": "text", "text": f"{knife.caption}\n{QUESTION}"}]}]
    tokenizer = loaded.processor.tokenizer
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        next_V = loaded.model(input_ids=ids).logits[0, -1].softmax(-1)
    wanted = sum(float(next_V[tokenizer.convert_tokens_to_ids(it.strip())]) for it in found.tokens)
    assert found.caption_refusal is not None
    assert found.caption_refusal[-1] == pytest.approx(wanted, abs=1e-4)


def test_without_a_caption_there_is_no_alignment(models: list[Loaded], knife: scenes.Shown) -> None:
    found = layer_figures(models[0], knife.picture, "", QUESTION)
    assert found.caption_refusal is found.cosine is found.centered_cosine is found.nearest is None
    assert found.picture_refusal is not None  # the references' refusals tell the tokens


def test_a_model_that_refuses_nothing_has_no_refusal_probability(
    checkpoint: Path, knife: scenes.Shown
) -> None:
    loaded = load_models([checkpoint])[0]  # random weights
    assert len(references(loaded, QUESTION).refused_BV) == 0
    found = layer_figures(loaded, knife.picture, knife.caption, QUESTION)
    assert found.picture_refusal is found.caption_refusal is None
    assert found.tokens == []
    assert found.cosine is not None


def test_the_captions_states_bring_the_refusal_back(
    models: list[Loaded], knife: scenes.Shown
) -> None:
    loaded = models[0]
    plain = answer(loaded.model, loaded.processor, [Prompt(QUESTION, knife.picture)])[0]
    patched = patched_answer(loaded, knife.picture, knife.caption, QUESTION, 0)
    control = patched_answer(loaded, knife.picture, control_caption(knife.caption), QUESTION, 0)
    assert patched.verdict is not None and patched.verdict.label == "refused"
    assert control.verdict is not None and control.verdict.label == "answered"
    after = answer(loaded.model, loaded.processor, [Prompt(QUESTION, knife.picture)])[0]
    assert after == plain  # no hook is left behind


def test_control_captions_are_harmless_and_another() -> None:
    first = control_caption("")
    assert control_caption(first) != first
