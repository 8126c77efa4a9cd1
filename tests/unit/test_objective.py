"""The guide loss against a slow reference, and the properties every form must keep.

Shape suffixes: L layers, B rows, D channels.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tgalign.objective import FORMS, PAIRS, SIMILARITIES, guide_loss, same_state, unit

TRAINED_FORMS = tuple(form for form in FORMS if form != "released_nograd")
COSINE_FORMS = tuple(form for form in TRAINED_FORMS if form != "gap")
L, B, D = 3, 5, 6
MASK = torch.tensor([True, True, False, True, True])
RETRIEVED_MASK = torch.tensor([True, False, True, True, True])
seeds = st.integers(0, 2**31 - 1)


def states(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Random image, caption and retrieved states; rows 0 and 3 share one caption."""
    generator = torch.Generator().manual_seed(seed)
    i_LBD, c_LBD, r_LBD = torch.randn(3, L, B, D, generator=generator, dtype=torch.float64)
    c_LBD = c_LBD + 0.5
    c_LBD[:, 3] = c_LBD[:, 0]
    return i_LBD.to(dtype), c_LBD.to(dtype), r_LBD.to(dtype)


def cos(a_D: np.ndarray, b_D: np.ndarray) -> float:
    dot = sum(float(x) * float(y) for x, y in zip(a_D, b_D, strict=True))
    length = math.sqrt(sum(float(x) ** 2 for x in a_D)) * math.sqrt(sum(float(y) ** 2 for y in b_D))
    return dot / length if length > 0 else 0.0


def reference(
    image: Tensor,
    caption: Tensor,
    retrieved: Tensor,
    *,
    form: str,
    similarity: str = "cosine",
    mask_B: Tensor | None = None,
    retrieved_mask_B: Tensor | None = None,
    center_LD: Tensor | None = None,
    pair: str = "caption",
    progress: float = 0.0,
    temperature: float = 0.1,
) -> dict[str, float]:
    """The equations of the docstring, one layer and one row at a time."""
    i, c, r = (x.double().numpy() for x in (image, caption, retrieved))
    layers, rows = i.shape[:2]
    kept = [b for b in range(rows) if mask_B is None or bool(mask_B[b])]
    align = rank = 0.0
    for j in range(layers):
        center = np.zeros(i.shape[2])
        if similarity == "centered_cosine" and center_LD is None:
            center = sum(c[j, b] for b in kept) / len(kept)
        elif similarity == "centered_cosine":
            center = center_LD[j].double().numpy()
        for b in kept:
            has_r = retrieved_mask_B is None or bool(retrieved_mask_B[b])
            ic = cos(i[j, b] - center, c[j, b] - center)
            ir = cos(i[j, b] - center, r[j, b] - center)
            rc = cos(r[j, b] - center, c[j, b] - center)
            other = rc if pair == "caption" else ir
            if form == "paper":
                align += -ic
                rank += math.log(1 + math.exp(-(ic - other))) if has_r else 0.0
            elif form == "gap":
                align += math.sqrt(sum(float(x) ** 2 for x in i[j, b] - c[j, b]))
            elif form.startswith("released"):
                align += (1 - progress) * 0.25 * math.exp(-ic) / layers
                rank += 0.1 * (1 - progress) ** 2 * math.exp(other - ic) / layers if has_r else 0.0
            else:
                z = math.exp(ic / temperature)
                for k in kept:
                    if k != b and cos(c[j, k] - center, c[j, b] - center) <= 1 - 1e-6:
                        z += math.exp(cos(i[j, b] - center, c[j, k] - center) / temperature)
                without_r = -math.log(math.exp(ic / temperature) / z)
                with_r = -math.log(math.exp(ic / temperature) / (z + math.exp(ir / temperature)))
                align += without_r
                rank += with_r - without_r if has_r else 0.0
    align, rank = align / len(kept), rank / len(kept)
    return {"guide": align + rank, "align": align, "rank": rank}


def assert_losses(got: dict[str, Tensor], want: dict[str, Any], tolerance: float = 1e-9) -> None:
    assert got.keys() == want.keys()
    for name, value in got.items():
        expected = float(torch.as_tensor(want[name], dtype=torch.float64).detach())
        assert value.item() == pytest.approx(expected, rel=tolerance, abs=tolerance), name


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("masked", [False, True])
def test_matches_the_reference(form, similarity, pair, masked):
    options: dict[str, Any] = {"form": form, "similarity": similarity, "pair": pair}
    options |= {"progress": 0.3, "temperature": 0.2}
    if masked:
        options |= {"mask_B": MASK, "retrieved_mask_B": RETRIEVED_MASK}
    got = guide_loss(*states(), **options)
    assert_losses(got, reference(*states(), **options))
    assert got["guide"] == got["align"] + got["rank"]


@pytest.mark.parametrize("form", FORMS)
def test_a_given_center_is_subtracted_from_all_three_states(form):
    center_LD = torch.randn(L, D, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    options: dict[str, Any] = {"form": form, "similarity": "centered_cosine"}
    options["center_LD"] = center_LD
    assert_losses(guide_loss(*states(), **options), reference(*states(), **options))


def test_centered_cosine_still_costs_for_an_offset_between_images_and_captions():
    _, c_LBD, r_LBD = states()
    together = guide_loss(c_LBD, c_LBD, r_LBD, similarity="centered_cosine")["align"]
    apart = guide_loss(c_LBD + 3.0, c_LBD, r_LBD, similarity="centered_cosine")["align"]
    assert float(together) == pytest.approx(-L)
    assert apart > together + 0.1


def test_pair_chooses_what_is_compared():
    by_pair = {pair: float(guide_loss(*states(), pair=pair)["rank"]) for pair in PAIRS}
    assert by_pair["caption"] != pytest.approx(by_pair["image_retrieved"])


@pytest.mark.parametrize("form", FORMS)
def test_without_retrieved_only_align_is_left(form):
    i_LBD, c_LBD, r_LBD = states()
    full = guide_loss(i_LBD, c_LBD, r_LBD, form=form)
    none = guide_loss(i_LBD, c_LBD, None, form=form)
    nowhere = guide_loss(
        i_LBD, c_LBD, r_LBD, form=form, retrieved_mask_B=torch.zeros(B, dtype=torch.bool)
    )
    assert_losses(none, {"guide": full["align"], "align": full["align"], "rank": 0.0})
    assert_losses(nowhere, none)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("form", TRAINED_FORMS)
def test_gradient_matches_finite_differences(form, similarity):
    inputs = [state_LBD.requires_grad_() for state_LBD in states()]
    # The default centre is a detached mean, which finite differences would see move.
    center_LD = torch.full((L, D), 0.2, dtype=torch.float64)

    def losses(*xs: Tensor) -> tuple[Tensor, Tensor]:
        parts = guide_loss(
            *xs,
            form=form,
            similarity=similarity,
            mask_B=MASK,
            retrieved_mask_B=RETRIEVED_MASK,
            center_LD=center_LD,
            progress=0.3,
        )
        return parts["align"], parts["rank"]

    assert torch.autograd.gradcheck(losses, inputs)
    losses(*inputs)[0].backward()
    assert inputs[0].grad is not None and inputs[0].grad.abs().sum() > 0


def test_the_batch_mean_is_a_constant_for_the_gradient():
    i_LBD, c_LBD, r_LBD = states()
    gradients = []
    for center_LD in (None, c_LBD.mean(1)):
        caption = c_LBD.clone().requires_grad_()
        guide_loss(i_LBD, caption, r_LBD, similarity="centered_cosine", center_LD=center_LD)[
            "guide"
        ].backward()
        gradients.append(caption.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_paper_moves_the_image_and_released_nograd_does_not():
    i_LBD, c_LBD, r_LBD = states()
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    guide_loss(weight * i_LBD + i_LBD.roll(1, 0), c_LBD, r_LBD)["guide"].backward()
    assert weight.grad is not None and weight.grad.abs() > 0

    weight.grad = None
    control = guide_loss(
        weight * i_LBD + i_LBD.roll(1, 0), c_LBD, r_LBD, form="released_nograd", progress=0.2
    )
    assert not any(value.requires_grad for value in control.values())
    (weight * 2 + control["guide"]).backward()
    assert weight.grad == 2.0  # the task's own gradient and nothing else


@given(seeds, st.floats(0, 1))
@settings(deadline=None, max_examples=25)
def test_released_nograd_has_the_values_of_released(seed, progress):
    with_gradient = guide_loss(*states(seed), form="released", progress=progress)
    without = guide_loss(*states(seed), form="released_nograd", progress=progress)
    assert_losses(without, with_gradient, tolerance=0.0)


def test_released_decays_to_zero_and_averages_over_layers():
    i_LBD, c_LBD, r_LBD = states()
    assert guide_loss(i_LBD, c_LBD, r_LBD, form="released", progress=1.0)["guide"] == 0
    once = guide_loss(i_LBD, c_LBD, r_LBD, form="released")
    twice = guide_loss(*(torch.cat([x, x]) for x in (i_LBD, c_LBD, r_LBD)), form="released")
    assert_losses(twice, once)
    summed = guide_loss(*(torch.cat([x, x]) for x in (i_LBD, c_LBD, r_LBD)), form="paper")
    assert float(summed["guide"]) == pytest.approx(
        2 * float(guide_loss(i_LBD, c_LBD, r_LBD)["guide"])
    )


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("form", COSINE_FORMS)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_zero_state_gives_no_nan_and_no_gradient_of_its_own(form, similarity, which):
    inputs = list(states())
    inputs[which][:, 1] = 0.0
    inputs = [state_LBD.requires_grad_() for state_LBD in inputs]
    center_LD = torch.zeros(L, D, dtype=torch.float64)
    options: dict[str, Any] = {"form": form, "similarity": similarity, "center_LD": center_LD}
    got = guide_loss(*inputs, **options)
    want = reference(*(x.detach() for x in inputs), **options)
    assert_losses(got, want)
    gradients = torch.autograd.grad(got["guide"], inputs)
    assert all(g.isfinite().all() for g in gradients)
    assert not gradients[which][:, 1].any()


def test_the_gap_is_closed_only_where_states_are_equal_and_asks_nothing_more_there():
    i_LBD, c_LBD, r_LBD = states()
    i_LBD[:, 1] = c_LBD[:, 1]
    i_LBD.requires_grad_()
    got = guide_loss(i_LBD, c_LBD, r_LBD, form="gap")
    assert_losses(got, reference(i_LBD.detach(), c_LBD, r_LBD, form="gap"))
    assert_losses(guide_loss(i_LBD, c_LBD, 0 * r_LBD, form="gap"), got)
    (gradient_LBD,) = torch.autograd.grad(got["guide"], i_LBD)
    assert not gradient_LBD[:, 1].any()
    lengths_LB = torch.linalg.vector_norm(gradient_LBD, dim=-1)[:, [0, 2, 3, 4]]
    torch.testing.assert_close(lengths_LB, torch.full_like(lengths_LB, 1 / B))
    twice = guide_loss(2 * i_LBD, 2 * c_LBD, r_LBD, form="gap", similarity="centered_cosine")
    assert float(twice["guide"].detach()) == pytest.approx(2 * float(got["guide"].detach()))


def test_equal_captions_are_no_negatives():
    i_LBD, c_LBD, _ = states()
    same = guide_loss(i_LBD, c_LBD[:, :1].expand(L, B, D), None, form="contrastive")
    assert float(same["guide"]) == pytest.approx(0.0, abs=1e-12)
    # Rows 0 and 3 share a caption: alone together they have no negative.
    pair_B = torch.tensor([True, False, False, True, False])
    assert guide_loss(i_LBD, c_LBD, None, form="contrastive", mask_B=pair_B)["guide"] == 0
    strangers_B = torch.tensor([True, True, False, False, False])
    assert guide_loss(i_LBD, c_LBD, None, form="contrastive", mask_B=strangers_B)["guide"] > 0.01


def test_a_retrieved_text_equal_to_the_caption_is_no_negative():
    i_LBD, c_LBD, _ = states()
    got = guide_loss(i_LBD, c_LBD, c_LBD.clone(), form="contrastive")
    assert got["rank"] == 0
    assert got["align"] > 0


def test_such_a_retrieved_text_leaves_the_other_rows_alone():
    i_LBD, c_LBD, r_LBD = states()
    r_LBD[:, 1] = c_LBD[:, 1]
    got = guide_loss(i_LBD, c_LBD, r_LBD, form="contrastive")
    others_B = torch.arange(B) != 1
    without = guide_loss(i_LBD, c_LBD, r_LBD, form="contrastive", retrieved_mask_B=others_B)
    assert_losses(got, without)
    assert got["rank"] > 0


def test_same_state_tells_near_from_equal():
    base_D = torch.randn(64, generator=torch.Generator().manual_seed(1))
    rows_BD = torch.stack([base_D, base_D * 7, base_D + 0.01 * base_D.roll(1), torch.zeros(64)])
    expected = torch.eye(4, dtype=torch.bool)
    expected[0, 1] = expected[1, 0] = True
    assert torch.equal(same_state(unit(rows_BD[None]))[0], expected)


def test_same_state_of_many_rows_is_not_rounded_by_a_matrix_product():
    """Pairs a hair nearer and a hair farther than cos = 1 - 1e-6, and more rows than torch's 25."""
    generator = torch.Generator().manual_seed(2)
    base_BD = unit(torch.randn(32, 64, generator=generator, dtype=torch.float64))
    across_BD = torch.randn(32, 64, generator=generator, dtype=torch.float64)
    across_BD = unit(across_BD - (across_BD * base_BD).sum(1, keepdim=True) * base_BD)
    near_B = torch.arange(32) % 2 == 0
    angle_B1 = torch.where(near_B, math.acos(1 - 0.98e-6), math.acos(1 - 1.02e-6))[:, None]
    turned_BD = base_BD * angle_B1.cos() + across_BD * angle_B1.sin()
    found_BB = same_state(torch.cat([base_BD, turned_BD]).float())
    assert torch.equal(found_BB[:32, 32:], torch.diag(near_B))


def test_a_state_of_the_least_norm_has_no_direction():
    x_BD = torch.tensor([[1e-8, 0.0], [0.0, -1.1e-8], [0.0, 0.0]], dtype=torch.float64)
    assert unit(x_BD).tolist() == [[0.0, 0.0], [0.0, -1.0], [0.0, 0.0]]


@pytest.mark.parametrize("form", FORMS)
def test_one_row_of_one_layer_and_one_channel(form):
    image, caption, retrieved = (torch.full((1, 1, 1), x) for x in (2.0, 3.0, -1.0))
    got = guide_loss(image, caption, retrieved, form=form)
    assert_losses(got, reference(image, caption, retrieved, form=form), tolerance=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_center_of_another_dtype_leaves_the_losses_in_float32(dtype):
    inputs = states(dtype=torch.float32)
    center_LD = torch.randn(L, D, generator=torch.Generator().manual_seed(9)).to(dtype)
    options: dict[str, Any] = {"similarity": "centered_cosine", "center_LD": center_LD}
    got = guide_loss(*inputs, **options)
    assert all(value.dtype == torch.float32 for value in got.values())
    assert_losses(got, reference(*inputs, form="paper", **options), tolerance=1e-5)
