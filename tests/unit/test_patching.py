"""Patching puts exactly the other's states in the span, in the prefill, and nothing else.

Shape suffixes: B rows, T tokens, S tokens of a span, D channels.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from families import FAMILIES
from tgalign.diagnose.anatomy import anatomy, touching
from tgalign.diagnose.patching import donors, replacing, resample, shoving
from tgalign.diagnose.probe import generate, probe
from tgalign.diagnose.prompts import caption_prompts, picture_prompts

QUESTION = "describe this image ."
CAPTIONS = ["a cat", "a picture of a dog , beer mug"]


@pytest.fixture(scope="module", params=FAMILIES)
def asked(request):
    model, processor = FAMILIES[request.param]()
    rng = np.random.default_rng(0)
    shown = [Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)) for _ in "ab"]
    pictures = picture_prompts(model, processor, shown, QUESTION)
    captions = caption_prompts(model, processor, CAPTIONS, QUESTION)
    return model, processor, anatomy(model), pictures, captions


def lengths(prompts):
    return prompts.span_BT.sum(1).tolist()


def test_the_picture_has_the_captions_states(asked):
    model, _, parts, pictures, captions = asked
    given_states = donors(model, parts, captions, lengths(pictures))
    plain, told = (probe(model, parts, it) for it in (pictures, captions))
    for layer in range(parts.num_layers):
        torch.testing.assert_close(
            given_states[layer].means_BD, told.span_LBD[layer], rtol=1e-4, atol=1e-4
        )
        for mode in ("mean", "tokens"):
            seen = []
            touch = replacing(pictures.span_BT, given_states[layer], mode)

            def look(state_BTD, touch=touch, seen=seen):
                seen.append((state_BTD.clone(), touch(state_BTD)))
                return seen[0][1]

            with touching(parts, {layer: look}):
                found = probe(model, parts, pictures)
            before_BTD, after_BTD = seen[0]
            outside_BT = ~pictures.span_BT
            torch.testing.assert_close(before_BTD[outside_BT], after_BTD[outside_BT])
            if mode == "mean":
                torch.testing.assert_close(
                    after_BTD[pictures.span_BT].reshape(2, -1, after_BTD.shape[-1]).mean(1),
                    told.span_LBD[layer], rtol=1e-3, atol=1e-3,
                )  # fmt: skip
            else:
                for row in range(2):
                    expected = resample(given_states[layer].tokens[row], lengths(pictures)[row])
                    torch.testing.assert_close(after_BTD[row, pictures.span_BT[row]], expected)
            # What lies above has changed, what lies below has not.
            torch.testing.assert_close(found.span_LBD[:layer], plain.span_LBD[:layer])
            assert not torch.allclose(found.last_LBD[-1], plain.last_LBD[-1], atol=1e-5)


def test_its_own_states_change_nothing(asked):
    model, processor, parts, pictures, captions = asked
    for prompts in (pictures, captions):
        own = donors(model, parts, prompts, lengths(prompts))
        plain, said = probe(model, parts, prompts), generate(model, processor, prompts, 3)
        for mode in ("mean", "tokens"):
            touch = replacing(prompts.span_BT, own[1], mode)
            with touching(parts, {1: touch}):
                found = probe(model, parts, prompts)
            torch.testing.assert_close(found.last_LBD, plain.last_LBD, rtol=1e-3, atol=1e-4)
            with touching(parts, {1: touch}):
                assert generate(model, processor, prompts, 3) == said


def test_a_random_shift_goes_as_far(asked):
    model, _, parts, pictures, captions = asked
    other = donors(model, parts, captions, lengths(pictures))[2]
    plain, rows = probe(model, parts, pictures), len(pictures.span_BT)
    found = []
    for touch in (
        shoving(pictures.span_BT, other, range(rows)),
        shoving(pictures.span_BT, other, range(rows, 2 * rows)),
        replacing(pictures.span_BT, other, "mean"),
    ):
        with touching(parts, {2: touch}):
            shifted = probe(model, parts, pictures)
        found.append(shifted.span_LBD[2] - plain.span_LBD[2])
    torch.testing.assert_close(found[0].norm(dim=-1), found[2].norm(dim=-1), rtol=1e-3, atol=1e-3)
    cosine = torch.nn.functional.cosine_similarity(found[0], found[1], dim=-1)
    assert cosine.abs().max() < 0.9
    cosine = torch.nn.functional.cosine_similarity(found[0][:1], found[0][1:], dim=-1)
    assert cosine.abs().max() < 0.9  # a direction of its own for each row


def test_donors_keep_no_more_than_they_are_meant_for(asked):
    model, _, parts, pictures, captions = asked
    kept = donors(model, parts, pictures, lengths(captions))
    for layer in kept:
        for tokens_SD, ours, theirs in zip(
            layer.tokens, lengths(pictures), lengths(captions), strict=True
        ):
            assert len(tokens_SD) == min(ours, theirs)


@given(st.integers(1, 30), st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_resampling_keeps_order_and_reaches_both_ends(count, length):
    tokens_SD = torch.arange(count, dtype=torch.float32).unsqueeze(-1)
    found = resample(tokens_SD, length).squeeze(-1)
    assert len(found) == length
    assert (found[1:] >= found[:-1]).all()
    if length == count:
        assert found.tolist() == tokens_SD.squeeze(-1).tolist()
    if length >= count:
        assert set(found.tolist()) == set(range(count))
