"""Both rules for safety layers, by hand and against a slow reference; "never" is no number.

Shape suffixes: L states, B prompts, D channels, V vocabulary (D = V: the head is the identity).
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from families import identity
from tgalign.diagnose.safety_layers import (
    activation_layers,
    layer_range,
    refusal_tokens,
    summary,
)


def slow(logits_LBV, ids):
    exp = np.exp(logits_LBV - logits_LBV.max(-1, keepdims=True))
    p_LBV = exp / exp.sum(-1, keepdims=True)
    found = {"paper": [], "released": []}
    for row in range(p_LBV.shape[1]):
        paper, first, last = [], [], []
        for layer in range(1, len(p_LBV)):
            now, before = p_LBV[layer, row], p_LBV[layer - 1, row]
            if int(np.argmax(np.log(now / before))) in ids:
                paper.append(layer)
            if set(np.argsort(now - before)[::-1][:5].tolist()) & set(ids):
                first.append(layer)
            if int(np.argmax(now)) in ids:
                last.append(layer)
        found["paper"].append((paper[0], paper[-1]) if paper else (None, None))
        found["released"].append((first[0] if first else None, last[-1] if last else None))
    return found


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_both_rules_agree_with_a_slow_reference(seed):
    generator = torch.Generator().manual_seed(seed)
    last_LBD = torch.randn(5, 4, 12, generator=generator) * 3
    found = activation_layers(identity(4, 12), last_LBD, [2, 7])
    assert found == slow(last_LBD.double().numpy(), [2, 7])


def test_a_refusal_that_arises_at_state_2_is_found_there():
    logits_LBV = torch.zeros(4, 1, 8)
    logits_LBV[1, 0, 5] = 1.0
    logits_LBV[2, 0, 3] = 4.0
    logits_LBV[3, 0, 3] = 4.1
    found = activation_layers(identity(3, 8), logits_LBV, [3])
    assert found["paper"] == [(2, 3)]
    assert found["released"] == [(2, 3)]
    assert activation_layers(identity(3, 8), logits_LBV, [6])["paper"] == [(None, None)]


def test_never_is_not_averaged_as_a_number():
    summed = summary([(2, 4), (2, 5), (3, 5), (None, None)], 6)
    assert (summed["first"], summed["last"]) == (2, 5)
    assert summed["found"]["rate"] == 0.75
    assert layer_range(summed) == [2, 5]
    # -1 for "never", as the released code has it, would give (2 - 1 - 1) / 3 = 0 here.
    rare = summary([(2, 4), (None, None), (None, 5)], 6)
    assert rare["first"] is None
    assert rare["last"] is None
    assert layer_range(rare) is None
    assert rare["found"]["n"] == 3
    assert sum(row["first"] for row in rare["counts"]) == 1
    half = summary([(3, 3), (3, 3), (None, None), (None, None)], 6)
    assert half["first_interval"] == [3, None]  # a draw may hold more of "never"


def test_medians_that_cross_give_one_state():
    assert layer_range({"first": 4, "last": 3}) == [4, 4]


def test_refusal_tokens_come_from_the_models_own_refusals():
    class Tokenizer:
        def decode(self, ids):
            return f"<{ids[0]}>"

    refused_BV = torch.tensor([[0.6, 0.3, 0.1, 0.0], [0.8, 0.1, 0.06, 0.04]])
    answered_BV = torch.tensor([[0.0, 0.6, 0.03, 0.37]])
    kept, shared = refusal_tokens(refused_BV, answered_BV, Tokenizer())
    assert [(it.id, it.text) for it in kept] == [(0, "<0>"), (2, "<2>")]
    assert kept[0].refused == pytest.approx(0.7)
    assert [it.id for it in shared] == [1]  # opens answers as well
    kept, shared = refusal_tokens(refused_BV, answered_BV[:0], Tokenizer())
    assert ([it.id for it in kept], shared) == ([0, 1, 2], [])


def test_the_lens_caps_logits_as_the_model_does():
    state_BD = torch.tensor([[50.0, 0.0, -3.0]])
    capped = identity(1, 3, softcap=5.0).log_probabilities(state_BD, 1)
    expected = (5 * torch.tanh(state_BD / 5)).log_softmax(-1)
    torch.testing.assert_close(capped, expected)
