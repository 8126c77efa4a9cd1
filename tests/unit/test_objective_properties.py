"""What every form of the guide loss must keep: invariances, masks, precision, messages.

Shape suffixes: L layers, B rows, D channels.
"""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tgalign.errors import UserError
from tgalign.objective import FORMS, PAIRS, SIMILARITIES, guide_loss

TRAINED_FORMS = tuple(form for form in FORMS if form != "released_nograd")
L, B, D = 3, 5, 6
MASK = torch.tensor([True, True, False, True, True])
RETRIEVED_MASK = torch.tensor([True, False, True, True, True])
seeds = st.integers(0, 2**31 - 1)


def states(seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Random image, caption and retrieved states; rows 0 and 3 share one caption."""
    generator = torch.Generator().manual_seed(seed)
    i_LBD, c_LBD, r_LBD = torch.randn(3, L, B, D, generator=generator, dtype=torch.float64)
    c_LBD[:, 3] = c_LBD[:, 0]
    return [i_LBD.to(dtype), c_LBD.to(dtype), r_LBD.to(dtype)]


def assert_losses(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float = 1e-9) -> None:
    assert got.keys() == want.keys()
    for name, value in got.items():
        expected = want[name].item()
        assert value.item() == pytest.approx(expected, rel=tolerance, abs=tolerance), name


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("form", FORMS)
@given(seed=seeds, order=st.permutations(range(B)))
@settings(deadline=None, max_examples=15)
def test_the_order_of_the_rows_does_not_matter(form, similarity, seed, order):
    index = torch.tensor(order)
    before = guide_loss(
        *states(seed),
        form=form,
        similarity=similarity,
        mask_B=MASK,
        retrieved_mask_B=RETRIEVED_MASK,
    )
    after = guide_loss(
        *(state_LBD[:, index] for state_LBD in states(seed)),
        form=form,
        similarity=similarity,
        mask_B=MASK[index],
        retrieved_mask_B=RETRIEVED_MASK[index],
    )
    assert_losses(after, before)


@pytest.mark.parametrize("form", [form for form in FORMS if form != "gap"])
@given(seed=seeds, scales=st.lists(st.floats(1e-3, 1e3), min_size=B, max_size=B))
@settings(deadline=None, max_examples=15)
def test_the_length_of_a_state_does_not_matter_under_cosine(form, seed, scales):
    scale_B1 = torch.tensor(scales, dtype=torch.float64)[:, None]
    i_LBD, c_LBD, r_LBD = states(seed)
    scaled = guide_loss(i_LBD * scale_B1, c_LBD * scale_B1.flip(0), r_LBD / scale_B1, form=form)
    assert_losses(scaled, guide_loss(i_LBD, c_LBD, r_LBD, form=form))


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("form", FORMS)
@given(
    seed=seeds,
    junk=st.sampled_from([0.0, 1e30, math.nan, math.inf, -math.inf]),
    mask=st.lists(st.booleans(), min_size=B, max_size=B),
)
@settings(deadline=None, max_examples=15)
def test_rows_not_kept_change_nothing_whatever_they_hold(form, similarity, seed, junk, mask):
    mask_B = torch.tensor(mask)
    options: dict[str, Any] = {"form": form, "similarity": similarity, "mask_B": mask_B}
    options["retrieved_mask_B"] = RETRIEVED_MASK
    clean = [state_LBD.requires_grad_() for state_LBD in states(seed)]
    dirty = [
        state_LBD.where(keep_B[:, None], junk).requires_grad_()
        for state_LBD, keep_B in zip(
            states(seed), (mask_B, mask_B, mask_B & RETRIEVED_MASK), strict=True
        )
    ]
    before, after = guide_loss(*clean, **options), guide_loss(*dirty, **options)
    assert_losses(after, before, tolerance=0.0)
    if form == "released_nograd":
        return
    before["guide"].backward()
    after["guide"].backward()
    for one, two in zip(clean, dirty, strict=True):
        assert torch.equal(one.grad, two.grad)
        assert not two.grad[:, ~mask_B].any()


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("form", TRAINED_FORMS)
@pytest.mark.parametrize("rows", [0, B])
def test_no_row_kept_gives_zero_with_a_zero_gradient(form, similarity, rows):
    inputs = [state_LBD[:, :rows].requires_grad_() for state_LBD in states()]
    got = guide_loss(
        *inputs, form=form, similarity=similarity, mask_B=torch.zeros(rows, dtype=torch.bool)
    )
    assert all(value == 0 and value.requires_grad for value in got.values())
    gradients = torch.autograd.grad(got["guide"], inputs)
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients)


@pytest.mark.parametrize("form", FORMS)
def test_kept_nan_is_not_hidden(form):
    i_LBD, c_LBD, r_LBD = states()
    i_LBD[0, 1, 0] = math.nan
    assert guide_loss(i_LBD, c_LBD, r_LBD, form=form)["guide"].isnan()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", FORMS)
def test_half_precision_is_computed_in_float32(form, dtype):
    half = states(dtype=dtype)
    want = guide_loss(*(state_LBD.float() for state_LBD in half), form=form)
    got = guide_loss(*half, form=form)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = guide_loss(*half, form=form)
    for name, value in want.items():
        assert got[name].dtype == torch.float32
        assert torch.equal(got[name], value) and torch.equal(under_autocast[name], value)


def test_half_precision_gradient_comes_back_in_its_own_dtype():
    i_LBD, c_LBD, r_LBD = states(dtype=torch.bfloat16)
    guide_loss(i_LBD.requires_grad_(), c_LBD, r_LBD)["guide"].backward()
    assert i_LBD.grad.dtype == torch.bfloat16 and i_LBD.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"form": "papre"}, ["form 'papre'", *FORMS]),
        ({"similarity": "dot"}, ["similarity 'dot'", *SIMILARITIES]),
        ({"pair": "image"}, ["pair 'image'", *PAIRS]),
        ({"progress": 1.5}, ["progress is 1.5", "[0, 1]"]),
        ({"progress": math.nan}, ["progress is nan"]),
        ({"progress": -0.1}, ["progress is -0.1"]),
        ({"temperature": 0.0}, ["temperature is 0.0", "greater than 0"]),
    ],
)
def test_bad_options_are_named(options, words):
    with pytest.raises(UserError) as caught:
        guide_loss(*states(), **options)
    assert all(word in str(caught.value) for word in words)


def test_an_unknown_form_is_answered_with_the_list():
    with pytest.raises(UserError) as caught:
        guide_loss(*states(), form="papre")
    assert str(caught.value) == (
        "unknown form 'papre'; expected one of: paper, released, released_nograd, contrastive, gap"
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"caption_LBD": torch.zeros(L, B, D + 1)}, ["caption_LBD", "(3, 5, 7)", "(3, 5, 6)"]),
        ({"retrieved_LBD": torch.zeros(L, 1, D)}, ["retrieved_LBD", "(3, 1, 6)", "(3, 5, 6)"]),
        ({"image_LBD": torch.zeros(B, D)}, ["image_LBD", "(5, 6)", "(layers, rows, channels)"]),
        ({"image_LBD": torch.zeros(0, B, D)}, ["image_LBD", "(0, 5, 6)", "at least one layer"]),
        ({"image_LBD": torch.zeros(L, B, D).long()}, ["image_LBD", "int64", "floating-point"]),
        (
            {"image_LBD": torch.zeros(L, B, 0)},
            ["(3, 5, 0)", "channels) with at least one layer and one channel"],
        ),
        ({"mask_B": torch.ones(B)}, ["mask_B", "float32", "torch.bool", "(5,)"]),
        ({"retrieved_mask_B": torch.ones(2, dtype=torch.bool)}, ["retrieved_mask_B", "(2,)"]),
        ({"center_LD": torch.zeros(D)}, ["center_LD", "(6,)", "(3, 6), one centre per layer"]),
    ],
)
def test_bad_tensors_are_named(changes, words):
    arguments: dict[str, Any] = dict(
        zip(("image_LBD", "caption_LBD", "retrieved_LBD"), states(), strict=True)
    )
    with pytest.raises(ValueError) as caught:
        guide_loss(**{**arguments, **changes})
    assert str(caught.value).startswith(f"{next(iter(changes))} ")
    assert all(word in str(caught.value) for word in words)
