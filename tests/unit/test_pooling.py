"""Span means and the choice of layers.

Shape suffixes: L layers, B rows, T tokens, D channels.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tgalign.errors import UserError
from tgalign.pooling import numbered_means, parse_layers, pool_layers, span_mean

JUNK = [0.0, 1e30, math.nan, math.inf, -math.inf]


def random_states(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_matches_a_loop_over_tokens():
    hidden_BTD = random_states(3, 7, 4)
    mask_BT = torch.arange(7) % torch.tensor([[2], [3], [4]]) == 1
    mean_BD, present_B = span_mean(hidden_BTD, mask_BT)
    for b in range(3):
        tokens = [hidden_BTD[b, t].numpy() for t in range(7) if mask_BT[b, t]]
        assert bool(present_B[b])
        assert mean_BD[b].numpy() == pytest.approx(sum(tokens) / len(tokens))


@given(
    spans=st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=4
    ),
    junk=st.sampled_from(JUNK),
    seed=st.integers(0, 2**31 - 1),
)
@settings(deadline=None, max_examples=60)
def test_padding_and_position_change_nothing(spans, junk, seed):
    """Each row holds a span of its own length, after and before junk of its own length."""
    widest = max(sum(span) for span in spans)
    hidden_BTD = torch.full((len(spans), widest, 3), junk, dtype=torch.float64)
    mask_BT = torch.zeros(len(spans), widest, dtype=torch.bool)
    for b, (length, before, _) in enumerate(spans):
        hidden_BTD[b, before : before + length] = random_states(length, 3, seed=seed % 1000 + b)
        mask_BT[b, before : before + length] = True
    mean_BD, present_B = span_mean(hidden_BTD, mask_BT)
    for b, (length, _, _) in enumerate(spans):
        assert bool(present_B[b]) == (length > 0)
        alone = random_states(length, 3, seed=seed % 1000 + b)
        expected = alone.mean(0) if length else torch.zeros(3, dtype=torch.float64)
        torch.testing.assert_close(mean_BD[b], expected)


@pytest.mark.parametrize("junk", JUNK)
def test_gradient_reaches_the_span_alone(junk):
    hidden_BTD = random_states(2, 4, 3)
    hidden_BTD[0, 2:] = junk
    hidden_BTD.requires_grad_()
    mask_BT = torch.tensor([[True, True, False, False], [False] * 4])
    mean_BD, present_B = span_mean(hidden_BTD, mask_BT)
    assert present_B.tolist() == [True, False]
    assert torch.equal(mean_BD[1], torch.zeros(3, dtype=torch.float64))
    mean_BD.sum().backward()
    expected = mask_BT[..., None].expand(2, 4, 3) * 0.5
    assert torch.equal(hidden_BTD.grad, expected.double())


def test_the_mean_of_a_single_token_is_that_token():
    hidden_BTD = random_states(3, 2, 4)
    mask_BT = torch.tensor([[True, False], [False, False], [False, True]])
    mean_BD, present_B = span_mean(hidden_BTD, mask_BT)
    nothing_D = torch.zeros(4, dtype=torch.float64)
    assert torch.equal(mean_BD, torch.stack([hidden_BTD[0, 0], nothing_D, hidden_BTD[2, 1]]))
    assert present_B.tolist() == [True, False, True]


def test_gradient_matches_finite_differences():
    hidden_BTD = random_states(2, 4, 3).requires_grad_()
    mask_BT = torch.tensor([[True, False, True, True], [False] * 4])
    assert torch.autograd.gradcheck(lambda x: span_mean(x, mask_BT)[0], hidden_BTD)


def test_half_precision_is_averaged_in_float32():
    hidden_BTD = random_states(1, 300, 2).to(torch.bfloat16)
    mean_BD, _ = span_mean(hidden_BTD, torch.ones(1, 300, dtype=torch.bool))
    torch.testing.assert_close(mean_BD, hidden_BTD.float().mean(1))


@pytest.mark.parametrize(
    ("hidden", "mask", "words"),
    [
        (
            torch.zeros(2, 3),
            torch.ones(2, 3) > 0,
            "hidden_BTD is torch.float32 of shape (2, 3); "
            "expected a floating-point tensor (rows, tokens, channels)",
        ),
        (torch.zeros(2, 3, 4).int(), torch.ones(2, 3) > 0, "hidden_BTD is torch.int32"),
        (torch.zeros(2, 3, 4), torch.ones(2, 3), "; expected torch.bool of shape (2, 3)"),
        (torch.zeros(2, 3, 4), torch.ones(3, 2) > 0, "mask_BT is torch.bool of shape (3, 2)"),
    ],
)
def test_bad_tensors_are_named(hidden, mask, words):
    with pytest.raises(ValueError) as caught:
        span_mean(hidden, mask)
    assert words in str(caught.value)


def test_spans_with_numbers_match_a_loop_over_tokens():
    hidden_BTD = random_states(2, 5, 3)
    number_BT = torch.tensor([[0, 0, -1, 2, 0], [-1, 2, 2, 4, 0]])
    mean_ND = numbered_means(hidden_BTD, number_BT, 5)
    assert mean_ND.shape == (5, 3) and mean_ND.dtype == torch.float64
    for number in range(5):
        tokens = hidden_BTD[number_BT == number]
        expected = tokens.mean(0) if len(tokens) else torch.zeros(3, dtype=torch.float64)
        torch.testing.assert_close(mean_ND[number], expected)


def test_spans_with_numbers_are_averaged_in_float32_also_under_autocast():
    hidden_BTD = random_states(2, 300, 2).to(torch.bfloat16)
    number_BT = torch.arange(300).expand(2, 300) % 2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mean_ND = numbered_means(hidden_BTD, number_BT, 2)
    assert mean_ND.dtype == torch.float32
    for number in (0, 1):
        expected = hidden_BTD.float()[number_BT == number].mean(0)
        torch.testing.assert_close(mean_ND[number], expected)


def test_pool_layers_keeps_the_order_asked_for():
    hidden_states = tuple(random_states(2, 4, 3, seed=j) for j in range(4))
    mask_BT = torch.tensor([[True, True, False, False], [False] * 4])
    states_LBD, present_B = pool_layers(hidden_states, [3, 0], mask_BT)
    assert states_LBD.shape == (2, 2, 3)
    for got, layer in zip(states_LBD, (3, 0), strict=True):
        assert torch.equal(got, span_mean(hidden_states[layer], mask_BT)[0])
    assert present_B.tolist() == [True, False]


def test_pool_layers_needs_only_the_layers_asked_for():
    hidden_states = (None, random_states(2, 4, 3), None)
    mask_BT = torch.ones(2, 4, dtype=torch.bool)
    assert pool_layers(hidden_states, [1], mask_BT)[0].shape == (1, 2, 3)
    said = r"layer 2 was not captured \(captured: \[1\]\); name it in output_hidden_states$"
    with pytest.raises(ValueError, match=said):
        pool_layers(hidden_states, [1, 2], mask_BT)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([], "^layers is empty; expected at least one index$"),
        ([3], "layer 3 is out of range 0 to 2"),
        ([-1], "layer -1 is out"),
    ],
)
def test_pool_layers_names_a_bad_layer(layers, words):
    with pytest.raises(ValueError, match=words):
        pool_layers([random_states(1, 2, 3)] * 3, layers, torch.ones(1, 2, dtype=torch.bool))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("all", [1, 2, 3, 4]),
        ("0-4", [0, 1, 2, 3, 4]),
        ("2-3", [2, 3]),
        (" 2 - 2 ", [2]),
        ([3, 0], [3, 0]),
        ((-1, -5), [4, 0]),
        (range(1, 3), [1, 2]),
    ],
)
def test_parse_layers(spec, expected):
    assert parse_layers(spec, 4) == expected


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("safe", "layers is 'safe'"),
        ("-1", "layers is '-1'"),
        ("1-2-3", "layers is '1-2-3'"),
        ("2-5", "where 5 is out of range"),
        ("3-2", "names no layer"),
        ([], "names no layer"),
        ([5], "where 5 is out of range"),
        ([0, -6], "where -6 is out of range"),
        ([4, -1], "names a layer twice"),
        ([1.0], "layers is [1.0]"),
        ([True], "layers is [True]"),
        (7, "layers is 7"),
    ],
)
def test_parse_layers_names_what_is_wrong_and_what_is_expected(spec, words):
    with pytest.raises(UserError) as caught:
        parse_layers(spec, 4)
    message = str(caught.value)
    assert words in message
    assert '"1-4"' in message and "from 0 (embeddings) to 4" in message


@given(st.integers(1, 60), st.data())
@settings(deadline=None, max_examples=30)
def test_parse_layers_agrees_with_python_indexing(num_layers, data):
    indices = st.integers(-num_layers - 1, num_layers)
    spec = data.draw(
        st.lists(indices, min_size=1, max_size=8, unique_by=lambda x: x % (num_layers + 1))
    )
    assert parse_layers(spec, num_layers) == [range(num_layers + 1)[layer] for layer in spec]
