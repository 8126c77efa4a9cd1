"""Synthetic picture features: the map from texts, the rows made of a corpus, their companions.

Shape suffixes: B pictures, N texts, T vision tokens, D vision channels, E joint channels.
"""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from transformers import CLIPModel

from tgalign.config import SyntheticConfig
from tgalign.data.companions import with_companions
from tgalign.data.encode import Encoder
from tgalign.errors import UserError
from tgalign.lab.base_clip import new_clip
from tgalign.retrieval.exact import encode_texts
from tgalign.synthetic import Corpus, fit_bridge, read_texts, synthetic_features
from tgalign.vision_cache import VisionCache

CHANNELS, TOKENS = 48, 17
TEXTS = ["a beer mug on a red background .", "a dog on a blue background .", "a cat ."]


def test_the_map_finds_a_linear_relation_and_its_offset():
    generator = torch.Generator().manual_seed(0)
    text_BE = torch.randn(400, 8, generator=generator)
    weight_ED = torch.randn(8, 5, generator=generator)
    offset_D = torch.randn(5, generator=generator)
    found_ED, found_D = fit_bridge(text_BE, text_BE @ weight_ED + offset_D, ridge=1e-6)
    torch.testing.assert_close(found_ED, weight_ED, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found_D, offset_D, atol=1e-4, rtol=1e-4)


def test_a_heavy_penalty_leaves_the_mean():
    generator = torch.Generator().manual_seed(1)
    text_BE = torch.randn(50, 8, generator=generator)
    mean_BD = torch.randn(50, 5, generator=generator)
    weight_ED, offset_D = fit_bridge(text_BE, mean_BD, ridge=1e12)
    torch.testing.assert_close(text_BE @ weight_ED + offset_D, mean_BD.mean(0).expand(50, 5))


def test_a_donor_keeps_its_cls_token_and_its_shape_and_moves_its_mean():
    generator = torch.Generator().manual_seed(2)
    donor_NTD = torch.randn(3, TOKENS, 5, generator=generator)
    text_NE, weight_ED = torch.randn(3, 8, generator=generator), torch.randn(8, 5)
    made_NTD = synthetic_features(text_NE, donor_NTD, weight_ED, torch.ones(5))
    torch.testing.assert_close(made_NTD[:, 0], donor_NTD[:, 0])
    torch.testing.assert_close(made_NTD[:, 1:].mean(1), text_NE @ weight_ED + 1)
    ours, theirs = made_NTD[:, 1:], donor_NTD[:, 1:]
    torch.testing.assert_close(ours - ours.mean(1, keepdim=True), theirs - theirs.mean(1, True))


@pytest.fixture(scope="module")
def clip(tokenizer, tmp_path_factory) -> Path:
    """The folder of a tiny random CLIP with vision states of ``CHANNELS`` channels."""
    config = new_clip(tokenizer).config
    config.vision_config.hidden_size = CHANNELS
    config.vision_config.intermediate_size = 2 * CHANNELS
    config.vision_config.num_attention_heads = 4
    torch.manual_seed(4)
    folder: Path = tmp_path_factory.mktemp("clip")
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def corpus(folder: Path, lines: list[str]) -> Path:
    path = folder / "corpus.jsonl"
    path.write_text("".join(line + "\n" for line in lines))
    return path


@pytest.fixture
def texts(tmp_path):
    return corpus(tmp_path, [json.dumps({"text": text}) for text in TEXTS])


@pytest.fixture
def encoder(processor, composed):
    return Encoder(
        processor.tokenizer,
        composed[0].config.image_seq_length,
        max_length=200,
        retrieved_in_prompt=0.0,
    )


@pytest.fixture
def cache(rows):
    paths = [record.image for record in rows.records if record.image is not None]
    features_BTD = torch.randn(
        len(paths), TOKENS, CHANNELS, generator=torch.Generator().manual_seed(5)
    )
    return VisionCache(paths, features_BTD)


@pytest.fixture
def load(clip, texts, rows, composed, encoder):
    """A function that loads the corpus, for other records, settings or another model."""

    def make(records=None, model=None, **options):
        config = SyntheticConfig(**({"clip": clip, "texts": texts} | options))
        records = rows.records if records is None else records
        return Corpus.load(config, records, model or composed[0], encoder)

    return make


def test_pictures_have_their_text_as_caption_and_features_that_show_it(
    clip, load, rows, cache, tokenizer
):
    corpus = load()
    assert corpus.texts == TEXTS
    before = len(cache.features_BTD)
    made = corpus.pictures([2, 0], rows.records, cache, seed=0)
    assert len(cache.features_BTD) == before + 2
    for row, text in zip(made, (TEXTS[2], TEXTS[0]), strict=True):
        assert row.retrieved is None
        assert set(row.labels) == {-100}, "nothing about a synthetic picture is learnt by CE"
        span = row.caption.input_ids[row.caption.start : row.caption.end]
        assert tokenizer.decode(span) == text
    made_NTD = cache([row.image for row in made])
    pairs = [(it.image, it.caption) for it in rows.records if it.image and it.caption]
    loaded = CLIPModel.from_pretrained(clip).eval()
    bridge = fit_bridge(
        encode_texts(loaded, tokenizer, [caption for _, caption in pairs]),
        cache([image for image, _ in pairs])[:, 1:].mean(1),
    )
    wanted_ND = encode_texts(loaded, tokenizer, [TEXTS[2], TEXTS[0]]) @ bridge[0] + bridge[1]
    torch.testing.assert_close(made_NTD[:, 1:].mean(1), wanted_ND, atol=1e-4, rtol=1e-4)


def test_pictures_keep_their_features_and_none_chosen_makes_none(load, rows, cache):
    paths = [record.image for record in rows.records if record.image is not None]
    before_BTD = cache(paths)
    assert load().pictures([], rows.records, cache, seed=0) == []
    assert len(cache.features_BTD) == len(paths)
    load().pictures([0, 1], rows.records, cache, seed=0)
    assert torch.equal(cache(paths), before_BTD)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"text": "a cat"}', '{"txt": "a dog"}'], r"corpus.jsonl:2: expected \{\"text\""),
        (["[1]"], "corpus.jsonl:1"),
        (["not json"], "corpus.jsonl:1"),
        (['{"text": " "}'], "corpus.jsonl:1"),
        (['{"text": 3}'], "corpus.jsonl:1"),
        (['{"text": "a <image> cat"}'], "corpus.jsonl:1"),
        ([], "holds no text"),
    ],
)
def test_a_bad_corpus_is_refused_by_file_and_row(lines, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read_texts(corpus(tmp_path, lines))


def test_a_good_corpus_is_read(texts):
    assert read_texts(texts) == TEXTS


def test_a_missing_corpus_and_a_clip_that_is_none_are_refused(load, tmp_path):
    with pytest.raises(UserError, match="no texts at"):
        load(texts=tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="no CLIP at"):
        load(clip=tmp_path)
    with pytest.raises(UserError, match="'llama' model, which has no text and vision tower"):
        load(clip=Path(__file__).parents[2] / "src/tgalign/lab/assets/llm")


def test_a_clip_of_another_tower_is_refused(load):
    wide = Path(__file__).parents[2] / "src/tgalign/lab/assets/clip"
    with pytest.raises(UserError, match="192 channels, the LLaVA's vision tower 48"):
        load(clip=wide)


def test_records_without_captions_are_refused(load, rows):
    bare = [dataclasses.replace(record, caption=None) for record in rows.records]
    with pytest.raises(UserError, match="need records with an image and a caption"):
        load(records=bare)


def test_a_text_too_long_for_a_row_is_named_by_its_line(load, tmp_path):
    path = corpus(tmp_path, [json.dumps({"text": text}) for text in ("a cat .", "dog " * 300)])
    with pytest.raises(UserError, match=r"corpus.jsonl:2: .* more than the limit"):
        load(texts=path)


def test_companions_are_the_wanted_share_the_same_each_time_and_of_all_texts(rows, encode):
    row = encode(rows.records)[0]
    synthetic = [dataclasses.replace(row, input_ids=[number]) for number in range(20)]
    many = [row] * 2000
    paired = list(with_companions(many, synthetic, 0.3))
    assert paired == list(with_companions(many, synthetic, 0.3))
    chosen = [it.companion for it in paired if it.companion is not None]
    assert 0.25 < len(chosen) / len(many) < 0.35
    assert {it.input_ids[0] for it in chosen} == set(range(20))
    assert [dataclasses.replace(it, companion=None) for it in paired] == many
    assert all(it.companion is not None for it in with_companions(many, synthetic, 1.0))
    assert with_companions(many, [], 1.0) == many


def test_a_batch_holds_its_rows_first_and_their_companions_last(rows, encode, collator):
    images = [row for row in encode(rows.records) if row.image is not None][:4]
    paired = [dataclasses.replace(images[0], companion=images[3]), *images[1:3]]
    together, apart = collator(paired), collator([*images[:3], images[3]])
    assert together.keys() == apart.keys()
    for name, tensor in apart.items():
        assert torch.equal(together[name], tensor), name
