"""Alignment by layer against a slow reference.

Shape suffixes: L layers, B rows, D channels.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tgalign.diagnose.alignment import (
    alignment_by_layer,
    alignment_of_rows,
    cosine_to_others,
    linear_cka,
)

L, B, D = 3, 8, 5
KEYS = ["cosine", "centered_cosine", "caption_retrieval"]


def pairs(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images near their captions; captions 1 and 6 are one text."""
    generator = torch.Generator().manual_seed(seed)
    c_LBD = torch.randn(L, B, D, generator=generator, dtype=torch.float64)
    c_LBD[:, 6] = c_LBD[:, 1]
    noise_LBD = torch.randn(L, B, D, generator=generator, dtype=torch.float64)
    return c_LBD + 0.7 * noise_LBD, c_LBD


def reference(image: Tensor, caption: Tensor, center: Tensor | None) -> dict[str, list[float]]:
    def cos(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))

    result: dict[str, list[float]] = {key: [] for key in KEYS}
    for j in range(L):
        i, c = image[j].numpy(), caption[j].numpy()
        result["cosine"].append(sum(cos(i[b], c[b]) for b in range(B)) / B)
        i_center = i.mean(0) if center is None else center[j].numpy()
        c_center = c.mean(0) if center is None else center[j].numpy()
        i, c = i - i_center, c - c_center
        result["centered_cosine"].append(sum(cos(i[b], c[b]) for b in range(B)) / B)
        hits = 0
        for b in range(B):
            nearest = max(range(B), key=lambda k, b=b: cos(i[b], c[k]))
            hits += cos(c[nearest], c[b]) > 1 - 1e-6
        result["caption_retrieval"].append(hits / B)
    return result


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_matches_the_reference(seed, centered):
    center_LD = torch.full((L, D), 0.3, dtype=torch.float64) if centered else None
    got = alignment_by_layer(*pairs(seed), center_LD=center_LD)
    want = reference(*pairs(seed), center_LD)
    assert list(got) == KEYS
    for key in KEYS:
        assert got[key].tolist() == pytest.approx(want[key]), key
    assert 0 < got["caption_retrieval"].mean() < 1


def test_a_shared_component_raises_raw_cosine_and_nothing_else():
    images, captions = pairs()
    collapsed = alignment_by_layer(images.roll(1, 1) + 100.0, captions + 100.0)
    apart = alignment_by_layer(images.roll(1, 1), captions)
    assert (collapsed["cosine"] > 0.99).all()
    assert (apart["cosine"] < 0.9).all()
    for key in KEYS[1:]:
        torch.testing.assert_close(collapsed[key], apart[key])


def test_an_offset_between_images_and_captions_shows_only_with_one_center():
    _, captions = pairs()
    offset = torch.zeros(D, dtype=torch.float64)
    offset[0] = 50.0
    relative = alignment_by_layer(captions + offset, captions)
    absolute = alignment_by_layer(captions + offset, captions, center_LD=captions.mean(1))
    assert torch.equal(relative["caption_retrieval"], torch.ones(L, dtype=torch.float64))
    assert (relative["centered_cosine"] > 0.999).all()
    assert (absolute["centered_cosine"] < 0.5).all()
    assert (absolute["caption_retrieval"] < 0.5).all()


def test_an_identical_caption_is_as_good_as_the_own_one():
    _, captions = pairs()
    images = captions.clone()
    got = alignment_by_layer(images, captions)["caption_retrieval"]
    assert got.tolist() == [1.0] * L
    images[:, 1] = captions[:, 2]
    got = alignment_by_layer(images, captions, center_LD=captions.mean(1))["caption_retrieval"]
    assert got.tolist() == pytest.approx([(B - 1) / B] * L)


def test_a_tie_with_another_caption_is_a_miss():
    _, captions = pairs()
    center_LD = torch.zeros(L, D, dtype=torch.float64)
    got = alignment_by_layer(torch.zeros_like(captions), captions, center_LD=center_LD)
    assert all(value.tolist() == [0.0] * L for value in got.values())


@given(st.integers(0, 2**31 - 1), st.permutations(range(B)))
@settings(deadline=None, max_examples=25)
def test_the_order_of_the_rows_does_not_matter(seed, order):
    images, captions = pairs(seed)
    before = alignment_by_layer(images, captions)
    after = alignment_by_layer(images[:, order], captions[:, order])
    for key in KEYS:
        torch.testing.assert_close(after[key], before[key])


def test_half_precision_is_computed_in_float32():
    # Captions close enough together that bfloat16 similarities would tie.
    captions = (pairs()[1] * 0.1 + 1.0).to(torch.bfloat16)
    center_LD = torch.zeros(L, D)
    want = alignment_by_layer(captions.float(), captions.float(), center_LD=center_LD)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = alignment_by_layer(captions, captions, center_LD=center_LD)
    assert got["caption_retrieval"].tolist() == [1.0] * L
    assert all(torch.equal(got[key], want[key]) for key in KEYS)
    assert got["cosine"].dtype == torch.float32


@pytest.mark.parametrize(
    ("image", "caption", "center", "words"),
    [
        ((L, B, D), (L, B, D + 1), None, ["caption_LBD", "(3, 8, 6)", "(3, 8, 5)"]),
        ((B, D), (B, D), None, ["image_LBD", "(8, 5)", "(layers, rows, channels)"]),
        ((L, 0, D), (L, 0, D), None, ["image_LBD", "(3, 0, 5)", "at least one row"]),
        ((L, B, D), (L, B, D), (D,), ["center_LD", "(5,)", "(3, 5)"]),
    ],
)
def test_bad_tensors_are_named(image, caption, center, words):
    with pytest.raises(ValueError) as caught:
        alignment_by_layer(
            torch.zeros(image),
            torch.zeros(caption),
            center_LD=None if center is None else torch.zeros(center),
        )
    assert all(word in str(caught.value) for word in words)


def test_cosine_to_others_is_the_mean_over_all_other_rows():
    x_LBD, y_LBD = torch.randn(2, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    for other in (None, y_LBD):
        found_LB = cosine_to_others(x_LBD, other)
        against = x_LBD if other is None else other
        for layer in range(2):
            for row in range(5):
                expected = [
                    torch.cosine_similarity(x_LBD[layer, row], against[layer, it], dim=0)
                    for it in range(5)
                    if it != row
                ]
                torch.testing.assert_close(found_LB[layer, row], torch.stack(expected).mean())


def test_cka_sees_what_rows_share_and_neither_turn_nor_scale():
    generator = torch.Generator().manual_seed(0)
    x_LBD = torch.randn(2, 40, 12, generator=generator)
    turn_DD = torch.linalg.qr(torch.randn(12, 12, generator=generator)).Q
    torch.testing.assert_close(linear_cka(x_LBD, x_LBD @ turn_DD * 3 + 5), torch.ones(2))
    torch.testing.assert_close(linear_cka(x_LBD, x_LBD.flip(1)), linear_cka(x_LBD.flip(1), x_LBD))
    # Few rows in many channels: the usual, biased estimate is 0.9 for states with nothing alike.
    alone, apart = torch.randn(2, 1, 12, 200, generator=generator)
    assert linear_cka(alone, apart).abs().item() < 0.3
    assert linear_cka(torch.ones(1, 6, 3), x_LBD[:1, :6]).item() == 0
    with pytest.raises(ValueError, match="at least four"):
        linear_cka(x_LBD[:, :3], x_LBD[:, :3])


def test_rows_average_to_what_is_measured_of_all():
    x_LBD, y_LBD = torch.randn(2, 3, 6, 4, generator=torch.Generator().manual_seed(1))
    rows = alignment_of_rows(x_LBD, y_LBD)
    for name, value_L in alignment_by_layer(x_LBD, y_LBD).items():
        assert rows[name].shape == (3, 6)
        torch.testing.assert_close(rows[name].mean(-1), value_L)
