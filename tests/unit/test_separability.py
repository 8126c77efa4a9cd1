"""AUROC against all pairs; directions that are known; correlations.

Shape suffixes: L states, B prompts, D channels.
"""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from families import identity
from tgalign.diagnose.correlation import picture_association, scene_correlation
from tgalign.diagnose.separability import auroc, separability

SCORES = st.lists(st.integers(-3, 3), min_size=1, max_size=12)


@given(SCORES, SCORES)
@settings(max_examples=60, deadline=None)
def test_auroc_is_the_share_of_pairs_in_order(toxic, benign):
    pairs = list(itertools.product(toxic, benign))
    expected = sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)
    assert auroc(np.array(toxic), np.array(benign)) == pytest.approx(expected)
    assert auroc(np.array(benign), np.array(toxic)) == pytest.approx(1 - expected)


def states(pairs=24, channels=6):
    """Words part along channel 0; pictures along channel 1, which words do not use."""
    generator = torch.Generator().manual_seed(0)

    def noise():
        return torch.randn(2, pairs, channels, generator=generator) * 0.1

    found = {kind: noise() for kind in ("text_toxic", "text_benign", "image_toxic", "image_benign")}
    found["text_toxic"][1, :, 0] += 2
    found["image_toxic"][1, :, 1] += 2
    return found


def test_pictures_part_along_their_own_direction_and_not_along_that_of_words():
    rows = separability(identity(1, 6), states(), None)
    assert [row["layer"] for row in rows] == [0, 1]
    assert rows[1]["text"]["auroc"] == 1.0
    assert rows[1]["image_own"]["auroc"] == 1.0
    assert rows[1]["image"]["auroc"] < 0.9
    assert abs(rows[1]["cosine"]) < 0.3
    assert abs(rows[1]["reach"]) < 0.2
    assert rows[1]["tokens_text"] is None
    assert 0.2 < rows[0]["text"]["auroc"] < 0.8  # no signal at state 0
    assert rows[1]["text"]["n"] == 24  # the other half of the pairs, two prompts each


def test_pictures_that_hold_what_words_hold_reach_them():
    found = states()
    found["image_toxic"][1] = found["text_toxic"][1] + torch.randn(24, 6) * 0.01
    row = separability(identity(1, 6), found, None)[1]
    assert row["image"]["auroc"] == 1.0
    assert row["reach"] == pytest.approx(1, abs=0.1)
    assert row["reach_benign"] == pytest.approx(0, abs=0.1)


def test_the_refusal_tokens_score_what_the_lens_says():
    row = separability(identity(1, 6), states(), [0])[1]
    assert row["tokens_text"]["auroc"] == 1.0  # channel 0 is the token's logit
    assert row["tokens_image"]["auroc"] < 0.9
    assert row["tokens_text"]["low"] == 1.0


def test_states_that_are_all_alike_have_no_direction():
    same = {kind: torch.ones(1, 8, 4) for kind in states()}
    row = separability(identity(1, 4), same, [1])[0]
    assert row["text"]["auroc"] == row["tokens_text"]["auroc"] == 0.5
    assert row["reach"] is None


def test_scenes_in_order_correlate_and_equal_ones_tell_nothing():
    found = scene_correlation([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], [0, 0.1, 0.2, 0.3, 0.5, 0.6, 1])
    assert found["rho"] == pytest.approx(1)
    assert found["p"] == pytest.approx(2 / 5040, rel=0.01)
    assert found["low"] == pytest.approx(1)
    assert found["n"] == 7
    assert scene_correlation([0.1, 0.2, 0.3], [0.0, 0.0, 0.0])["rho"] is None
    assert scene_correlation([0.1, 0.2], [0.0, 1.0])["rho"] is None
    scipy = spearmanr([0.3, 0.1, 0.4, 0.1, 0.5], [0.9, 0.2, 0.6, 0.5, 0.3]).statistic
    shuffled = scene_correlation([0.3, 0.1, 0.4, 0.1, 0.5], [0.9, 0.2, 0.6, 0.5, 0.3])
    assert -1 <= shuffled["low"] <= shuffled["rho"] <= shuffled["high"] <= 1
    assert shuffled["rho"] == pytest.approx(scipy)
    assert shuffled["p"] > 0.05


def test_refused_pictures_against_the_others():
    found = picture_association([0.9, 0.8, 0.1, 0.2, 0.7], [True, True, False, False, True])
    assert (found["auroc"], found["refused"], found["others"]) == (1.0, 3, 2)
    none = picture_association([0.9, 0.8], [False, False])
    assert none["auroc"] is None
    assert none["others"] == 2
