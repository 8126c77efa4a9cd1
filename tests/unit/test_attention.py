"""Attention of the answer position: the model's own maps, the picture's grid, boxes.

Shape suffixes: L layers, H heads, B rows, T tokens, P image tokens.
"""

import numpy as np
import pytest
import torch
from PIL import Image

from families import FAMILIES
from tgalign.diagnose.anatomy import anatomy
from tgalign.diagnose.attention import (
    answer_attention,
    centred,
    eager_attention,
    mass,
    patches_in,
    token_grid,
)
from tgalign.diagnose.prompts import caption_prompts, picture_prompts
from tgalign.errors import UserError

QUESTION = "describe this image ."
GRIDS = {
    "llava": (4, 4), "llava_next": None, "qwen2_vl": (2, 2), "qwen2_5_vl": (2, 2),
    "qwen3_vl": (2, 2), "gemma3": (2, 2), "internvl": None, "idefics3": (2, 2),
    "smolvlm": (2, 2), "paligemma": (4, 4),
}  # fmt: skip


@pytest.fixture(scope="module")
def picture():
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", FAMILIES)
def test_it_is_the_last_line_of_the_models_own_maps(name, picture):
    model, processor = FAMILIES[name]()
    parts = anatomy(model)
    pictures = picture_prompts(model, processor, [picture], QUESTION)
    assert token_grid(processor, pictures) == [GRIDS[name]]
    for prompts in (pictures, caption_prompts(model, processor, ["a cat", "dog"], QUESTION)):
        with eager_attention(model), torch.no_grad():
            own = model(**prompts.inputs, output_attentions=True).attentions
            hooks = [len(layer.self_attn._forward_hooks) for layer in parts.layers]
            line_LHBT = answer_attention(model, parts, prompts)
        rows_B = torch.arange(len(prompts.last_B))
        for layer, maps_BHTT in enumerate(own[: parts.num_layers]):
            expected_HBT = maps_BHTT[rows_B, :, prompts.last_B].transpose(0, 1)
            torch.testing.assert_close(line_LHBT[layer], expected_HBT)
        padding_BT = prompts.inputs["attention_mask"].bool()
        torch.testing.assert_close(
            (line_LHBT * padding_BT).sum(-1), torch.ones(line_LHBT.shape[:3]), atol=1e-4, rtol=0
        )
    assert model.config.get_text_config()._attn_implementation == "sdpa"
    assert [len(layer.self_attn._forward_hooks) for layer in parts.layers] == hooks


def test_attention_that_does_not_show_its_weights_is_refused(picture):
    model, processor = FAMILIES["llava"]()
    prompts = picture_prompts(model, processor, [picture], QUESTION)
    with pytest.raises(UserError, match="does not show its weights"):
        answer_attention(model, anatomy(model), prompts)  # sdpa keeps no maps


def test_a_grid_that_follows_the_picture():
    model, processor = FAMILIES["qwen2_5_vl"]()
    wide = Image.new("RGB", (96, 48))
    prompts = picture_prompts(model, processor, [wide], QUESTION)
    rows, columns = token_grid(processor, prompts)[0]
    assert (rows, columns) == (3, 6)
    assert rows * columns == int(prompts.span_BT.sum())


def test_patches_in_a_box():
    inside = patches_in((0.0, 0.0, 0.5, 0.5), (4, 4)).reshape(4, 4)
    assert inside[:2, :2].all()
    assert int(inside.sum()) == 4
    tiny = patches_in((0.60, 0.10, 0.61, 0.11), (2, 3)).reshape(2, 3)
    assert tiny.nonzero().tolist() == [[0, 1]]  # none has its centre there: the nearest


def test_a_box_in_the_square_that_is_cut_from_the_middle():
    assert centred((0.25, 0.0, 0.75, 1.0), (200, 100)) == (0.0, 0.0, 1.0, 1.0)
    assert centred((0.1, 0.2, 0.3, 0.4), (50, 50)) == pytest.approx((0.1, 0.2, 0.3, 0.4))


def test_mass_and_density():
    line_LHBT = torch.tensor([[[[0.1, 0.4, 0.2, 0.3]]]])
    target_BT = torch.tensor([[False, True, False, False]])
    span_BT = torch.tensor([[False, True, True, False]])
    share, lift = mass(line_LHBT, target_BT, span_BT)
    assert share.item() == pytest.approx(0.4)
    assert lift.item() == pytest.approx((0.4 / 0.6) / 0.5)
