"""Retrieval against brute force; a picture's own caption and its like never come back.

Shape suffixes: Q queries, N corpus texts, D channels.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn.functional import normalize

from tgalign.lab.base_clip import new_clip, to_pixels
from tgalign.retrieval.exact import (
    NEAR_DUPLICATE,
    Retrieved,
    encode_pictures,
    encode_texts,
    retrieve,
    text_inputs,
)


def unit(*shape, seed=0):
    return normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def by_hand(query_D, caption_D, corpus_ND):
    """Score by corpus row, without the rows that are the caption or like it."""
    return {
        n: float(query_D @ text_D)
        for n, text_D in enumerate(corpus_ND)
        if float(caption_D @ text_D) < NEAR_DUPLICATE
    }


@given(
    queries=st.integers(1, 5),
    corpus=st.integers(0, 12),
    copies=st.integers(0, 4),
    k=st.integers(1, 15),
    seed=st.integers(0, 10_000),
)
@settings(deadline=None, max_examples=100)
def test_equals_brute_force(queries, corpus, copies, k, seed):
    query_QD, caption_QD = unit(queries, 6, seed=seed), unit(queries, 6, seed=seed + 1)
    corpus_ND = unit(corpus, 6, seed=seed + 2)
    corpus_ND[: min(copies, corpus)] = caption_QD[0]
    texts = [f"text {n}" for n in range(corpus)]
    found = retrieve(query_QD, caption_QD, corpus_ND, texts, k=k)
    assert len(found) == queries
    for query_D, caption_D, row in zip(query_QD, caption_QD, found, strict=True):
        expected = by_hand(query_D, caption_D, corpus_ND)
        best = sorted(expected.values(), reverse=True)[:k]
        assert [r.score for r in row] == pytest.approx(best, abs=1e-6)
        assert [expected[r.id] for r in row] == pytest.approx(best, abs=1e-6)
        assert len({r.id for r in row}) == len(row)
        assert [r.text for r in row] == [texts[r.id] for r in row]


def turned(vector_D, cosine):
    """A unit vector of a given cosine with another."""
    other_D = unit(len(vector_D), seed=9)
    side_D = normalize(other_D - (other_D @ vector_D) * vector_D, dim=-1)
    return cosine * vector_D + (1 - cosine**2) ** 0.5 * side_D


def test_the_own_caption_and_near_duplicates_are_left_out_by_the_caption_s_likeness():
    caption_D = unit(8)
    corpus_ND = torch.stack(
        [caption_D, turned(caption_D, 0.96), turned(caption_D, 0.94), -caption_D]
    )
    texts = ["own", "near-duplicate", "like", "unlike"]
    found = retrieve(caption_D[None], caption_D[None], corpus_ND, texts, k=4)
    assert [r.text for r in found[0]] == ["like", "unlike"]
    # However near they are to the picture: it is likeness to the caption that counts.
    query_D = turned(caption_D, 0.96)
    found = retrieve(query_D[None], caption_D[None], corpus_ND, texts, k=4)
    assert [r.text for r in found[0]] == ["like", "unlike"]


def test_nothing_is_left_to_return():
    caption_QD = unit(2, 8)
    only_own = retrieve(caption_QD[:1], caption_QD[:1], caption_QD[:1], ["own"])
    assert only_own == [[]]
    assert retrieve(caption_QD, caption_QD, torch.zeros(0, 8), []) == [[], []]
    assert retrieve(torch.zeros(0, 8), torch.zeros(0, 8), caption_QD, ["a", "b"]) == []


def test_many_queries_are_all_answered():
    query_QD, corpus_ND = unit(2_500, 4), unit(3, 4, seed=1)
    found = retrieve(query_QD, -query_QD, corpus_ND, ["a", "b", "c"])
    assert [row[0].id for row in found] == (query_QD @ corpus_ND.T).argmax(1).tolist()
    assert isinstance(found[0][0], Retrieved)


def test_embeddings_do_not_depend_on_their_batch(tokenizer, rows):
    torch.manual_seed(0)
    clip = new_clip(tokenizer).eval()
    captions = [record.caption for record in rows.records if record.caption]
    whole_ND = encode_texts(clip, tokenizer, captions)
    parts_ND = encode_texts(clip, tokenizer, captions, batch_size=1)
    torch.testing.assert_close(whole_ND, parts_ND, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole_ND.norm(dim=1), torch.ones(len(captions)))
    assert (whole_ND[0] - whole_ND[1]).abs().max() > 1e-3
    pictures = []
    for record in [record for record in rows.records if record.image][:5]:
        with Image.open(record.image) as picture:
            pictures.append(picture.convert("RGB"))
    pixels = to_pixels(pictures)
    whole_QD = encode_pictures(clip, pixels)
    torch.testing.assert_close(whole_QD, encode_pictures(clip, pixels, batch_size=2))
    assert not whole_QD.requires_grad


def test_a_text_longer_than_clip_reads_loses_its_end_but_not_eos(tokenizer):
    long, short = "dog " * 100, "a dog ."
    batch = text_inputs(tokenizer, [long, short], max_length=20)
    assert batch["input_ids"].shape == (2, 20)
    assert batch["input_ids"][0, -1] == tokenizer.eos_token_id
    assert batch["attention_mask"].sum(1).tolist() == [20, 5]
    plain = text_inputs(tokenizer, [short])
    assert torch.equal(batch["input_ids"][1, :5], plain["input_ids"][0])
