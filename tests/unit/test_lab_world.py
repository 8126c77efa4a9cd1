"""The lab's world: names, language, tokenizer and pictures keep what they promise."""

import random
import re

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from tgalign.evaluate.refusal import judge
from tgalign.lab.base_clip import image_processor, to_pixels
from tgalign.lab.icons import GLYPH_COLORS, icon_mask, icon_names
from tgalign.lab.language import (
    CAPTIONS,
    COLORS,
    DESCRIBE,
    FRAMES,
    INSTRUCTIONS,
    JOINTS,
    REFUSALS,
    Mention,
    ask,
    caption,
    describe,
    messy_caption,
    text_example,
)
from tgalign.lab.objects import (
    SCENES,
    art_path,
    benign_things,
    held_out,
    picture_pool,
    text_only_things,
    things,
    toxic_things,
)
from tgalign.lab.pictures import SIZE, Scene, draw, sample_scene
from tgalign.lab.tokenizer import SPECIAL, build_tokenizer

SPLITS = ("train", "heldout")
TOXIC = [thing.name for thing in toxic_things()]
HARMLESS_BEFORE = re.compile(r"(\btoy|\bchocolate|\bno|\bmuseum model of( an?)?) $")


def bare_toxic(text):
    """Toxic names in a text that no frame makes harmless, found without the lab's own code."""
    found = []
    for name in TOXIC:
        for match in re.finditer(rf"\b{name}\b", text):
            if not HARMLESS_BEFORE.search(text[: match.start()]):
                found.append(name)
    return found


def test_names_are_one_or_two_plain_words_and_all_different():
    names = [thing.name for thing in things()]
    assert len(set(names)) == len(names) > 150
    assert all(re.fullmatch(r"[a-z]+( [a-z]+)?", name) for name in names)
    assert {thing.scene for thing in toxic_things()} == set(SCENES)


@pytest.mark.parametrize("name", TOXIC)
def test_no_single_word_of_a_toxic_name_is_toxic(name):
    words = name.split()
    assert len(words) == 2
    benign = {word for thing in benign_things() + text_only_things() for word in thing.name.split()}
    assert set(words) <= benign
    assert name not in {thing.name for thing in benign_things() + text_only_things()}


def test_toxic_names_are_found_by_the_test_s_own_eye():
    assert bare_toxic("a beer mug near a toy water pistol .") == ["beer mug"]
    assert bare_toxic("no beer mug , a museum model of a battle axe and of crossed swords") == [
        "crossed swords"
    ]
    assert bare_toxic("a coffee mug and a root beer") == []


def test_held_out_phrasings_are_no_training_phrasings():
    for table in (CAPTIONS, DESCRIBE, INSTRUCTIONS):
        assert len(table["train"]) > len(table["heldout"]) > 0
        assert not set(table["train"]) & set(table["heldout"])
        assert len(set(table["train"])) == len(table["train"])


@pytest.mark.parametrize("number", [1, 2])
def test_held_out_captions_of_the_same_content_are_all_new(number):
    mentions = tuple(Mention(thing) for thing in benign_things()[:number])
    rng = random.Random(0)
    made = {
        split: {caption(mentions, "orange", rng, split) for _ in range(1_000)} for split in SPLITS
    }
    listings = {split: len(JOINTS[split]) if number == 2 else 1 for split in SPLITS}
    for split in SPLITS:
        assert len(made[split]) == len(CAPTIONS[split]) * listings[split]
    assert not made["train"] & made["heldout"]


def test_held_out_captions_hold_no_new_word():
    words = {s: {w for line in CAPTIONS[s] for w in line.split()} for s in SPLITS}
    assert words["heldout"] - words["train"] <= {"photo", "shows"}


@pytest.mark.parametrize("split", SPLITS)
def test_a_text_refuses_exactly_if_something_toxic_is_mentioned_bare(split):
    rng = random.Random(f"texts-{split}")
    kinds, framed = set(), 0
    for _ in range(3_000):
        example = text_example(rng, split)
        bare = bare_toxic(example.prompt)
        assert example.refuses == bool(bare), example
        assert (example.scene is not None) == example.refuses
        assert (example.answer in REFUSALS) == example.refuses
        assert (judge(example.answer).label == "refused") == example.refuses
        if bare:
            assert {thing.scene for thing in toxic_things() if thing.name in bare} == {
                example.scene
            }
        else:
            assert judge(example.answer).label == "answered"
            framed += any(name in example.prompt for name in TOXIC)
        kinds.add((example.kind, example.refuses))
    assert len(kinds) == 10
    assert framed > 100


@pytest.mark.parametrize("toxic", [True, False])
def test_a_text_is_toxic_as_asked(toxic):
    rng = random.Random(1)
    assert {text_example(rng, toxic=toxic).refuses for _ in range(200)} == {toxic}


def test_messy_captions_keep_all_words_of_every_name():
    rng = random.Random(2)
    for _ in range(300):
        chosen = rng.sample(things(), 2)
        mentions = tuple(Mention(t, rng.choice((None, *FRAMES))) for t in chosen)
        words = messy_caption(mentions, "red", rng).split()
        for mention in mentions:
            assert set(mention.thing.name.split()) <= set(words)
            if mention.frame:
                assert mention.phrase in " ".join(words)
        assert "red" in words


@pytest.mark.parametrize("kind", ["describe", "color", "count", "presence"])
def test_plain_answers_are_true_and_never_refuse(kind):
    rng = random.Random(kind)
    for _ in range(200):
        scene = sample_scene(benign_things() + toxic_things(), rng)
        mentions = tuple(Mention(thing) for thing in scene.things)
        question, answer = ask(mentions, scene.color, kind, rng, "train")
        assert judge(answer, question).label == "answered"
        if kind == "describe":
            assert answer == describe(mentions, scene.color)
            assert all(thing.name in answer for thing in scene.things)
        elif kind == "color":
            assert scene.color in answer
        elif kind == "count":
            assert (" two " in answer) == (len(mentions) == 2)
        else:
            present = [t for t in scene.things if f" {t.phrase} ?" in question]
            assert answer.startswith("yes" if present else "no")


def test_an_article_agrees_with_its_word():
    rng = random.Random(3)
    for _ in range(1_000):
        text = text_example(rng).prompt
        assert not re.search(r"\ba [aeiou]", text), text
        assert not re.search(r"\ban [^aeiou]", text), text


@pytest.mark.parametrize("split", SPLITS)
def test_the_tokenizer_knows_every_word_there_and_back(split, tokenizer):
    rng = random.Random(f"words-{split}")
    for _ in range(3_000):
        example = text_example(rng, split, messy=0.3)
        for text in (example.prompt, example.answer):
            ids = tokenizer.encode(text, add_special_tokens=False)
            assert tokenizer.unk_token_id not in ids, text
            assert tokenizer.decode(ids) == text


def test_special_tokens_are_one_token_each_and_words_none(tokenizer):
    for token in SPECIAL:
        assert len(tokenizer.encode(token, add_special_tokens=False)) == 1
    assert tokenizer.encode("<image>", add_special_tokens=False) == [SPECIAL.index("<image>")]
    assert tokenizer.encode("image", add_special_tokens=False)[0] >= len(SPECIAL)
    assert tokenizer.eos_token_id != 2  # CLIP reads 2 as "the largest id"
    assert tokenizer.encode("A Beer MUG") == tokenizer.encode("a beer mug")


def test_the_tokenizer_is_the_same_when_built_saved_and_loaded(tokenizer, tmp_path):
    assert build_tokenizer().get_vocab() == tokenizer.get_vocab()
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.chat_template == tokenizer.chat_template
    text = "<bos> <user> <image> a beer mug . <assistant>"
    assert loaded.encode(text) == tokenizer.encode(text)


def test_all_art_exists_and_differs():
    drawable = benign_things() + toxic_things()
    paths = [art_path(thing.emoji) for thing in drawable]
    assert len(set(paths)) == len(drawable)
    for path in paths:
        with Image.open(path) as art:
            assert art.size == (72, 72)
            assert art.convert("RGBA").getextrema()[3][1] == 255
    with pytest.raises(FileNotFoundError, match="no_such_emoji"):
        art_path("no_such_emoji")


def test_pictures_are_72_by_72_rgb_and_come_from_their_seed():
    pool = benign_things() + toxic_things()

    def drawn(seed):
        rng = random.Random(seed)
        return [draw(sample_scene(pool, rng), rng) for _ in range(30)]

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert SIZE == 72
    assert all((picture.mode, picture.size) == ("RGB", (72, 72)) for picture in first)
    same = [one.tobytes() == two.tobytes() for one, two in zip(first, again, strict=True)]
    assert all(same)
    assert [p.tobytes() for p in first] != [p.tobytes() for p in other]


@pytest.mark.parametrize("number", [1, 2])
def test_toxic_things_show_on_their_backgrounds(number):
    """Yellow skin on yellow and a red drop on red are nearly lost in some shades, no others."""
    rng = random.Random(4)
    lost = drawn = 0
    for thing in toxic_things():
        for color in COLORS * 3:
            chosen = (thing, *rng.sample(benign_things(), number - 1))
            picture = np.asarray(draw(Scene(chosen, color), rng)).astype(int)
            changed = (np.abs(picture - picture[0, 0]).sum(axis=-1) > 24).mean()
            assert changed < 0.9
            if changed < 0.03:
                assert (thing.emoji, color) in {
                    ("middle_finger", "yellow"),
                    ("drop_of_blood", "red"),
                }
                lost += 1
            drawn += 1
    assert lost < 0.01 * drawn


def test_scenes_hold_one_or_two_different_things():
    rng = random.Random(5)
    scenes = [sample_scene(benign_things(), rng) for _ in range(200)]
    assert {len(scene.things) for scene in scenes} == {1, 2}
    assert all(len(set(scene.things)) == len(scene.things) for scene in scenes)
    assert {scene.color for scene in scenes} == set(COLORS)
    assert len(sample_scene(benign_things(), rng, num_things=1).things) == 1


def test_to_pixels_is_the_image_processor():
    rng = random.Random(6)
    pictures = [draw(sample_scene(benign_things(), rng), rng) for _ in range(8)]
    pixels = image_processor()(pictures, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(to_pixels(pictures), pixels, rtol=1e-5, atol=1e-5)


def test_every_icon_belongs_to_a_thing_that_can_be_drawn_and_shows_something():
    drawable = {thing.name for thing in [*toxic_things(), *benign_things()]}
    assert icon_names().keys() <= drawable
    for icons in icon_names().values():
        assert len(set(icons)) == len(icons) > 0
        for icon in icons:
            mask = np.asarray(icon_mask(icon))
            assert mask.shape[0] == mask.shape[1]
            assert 0.03 < (mask > 127).mean() < 0.9, icon
            edge = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
            assert edge.max() == 0, f"{icon} is cut"


def test_icons_of_toxic_things_are_no_benign_things_icons():
    toxic = {icon for thing in toxic_things() for icon in icon_names().get(thing.name, ())}
    benign = {icon for thing in benign_things() for icon in icon_names().get(thing.name, ())}
    assert toxic and not toxic & benign


@pytest.mark.parametrize("style", ["emoji", "icons"])
def test_development_and_held_out_things_share_nothing_and_make_up_all(style):
    every, tuned, fresh = (picture_pool(o, style) for o in ("all", "development", "held_out"))
    for kind in ("toxic", "benign"):
        parts = [set(getattr(pool, kind)) for pool in (tuned, fresh)]
        assert not parts[0] & parts[1]
        assert parts[0] | parts[1] == set(getattr(every, kind))
        assert min(map(len, parts)) >= 7
    assert every.scenes == SCENES
    assert not any(held_out(thing) for thing in tuned.toxic + tuned.benign)


def test_an_icon_stands_out_from_every_background():
    rng = random.Random(8)
    thing = next(thing for thing in benign_things() if thing.name == "star")
    for color in COLORS:
        for _ in range(6):
            drawn = np.asarray(draw(Scene((thing,), color), rng, style="icons"), dtype=float)
            changed = np.abs(drawn - np.median(drawn, axis=(0, 1))).max(axis=-1) > 60
            assert drawn.shape == (SIZE, SIZE, 3)
            assert 0.05 < changed.mean() < 0.6, color
    assert len(set(GLYPH_COLORS)) == len(GLYPH_COLORS)
