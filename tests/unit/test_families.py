"""The families that can be diagnosed: the image's place, the states and the lens of each.

Shape suffixes: L the N+1 hidden states, B rows, T tokens, D channels.
"""

import numpy as np
import pytest
import torch
from PIL import Image

from families import FAMILIES
from tgalign.diagnose.anatomy import anatomy, check_lens, touching
from tgalign.diagnose.probe import answer_and_probe, generate, probe
from tgalign.diagnose.prompts import caption_prompts, picture_prompts
from tgalign.errors import UserError

QUESTION = "describe this image ."
CAPTIONS = ["a cat", "a picture of a dog , beer mug"]
IMAGE_TOKENS = {
    "llava": 16, "llava_next": 88, "qwen2_vl": 4, "qwen2_5_vl": 4, "qwen3_vl": 4, "gemma3": 4,
    "internvl": 20, "idefics3": 4, "smolvlm": 4, "paligemma": 16,
}  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param, *FAMILIES[request.param]()


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)) for _ in range(2)]


@torch.no_grad()
def own_states(model, prompts):
    outputs = model(**prompts.inputs, output_hidden_states=True)
    return outputs.hidden_states, outputs.logits


def test_the_image_is_found_and_its_states_are_the_models_own(family, pictures):
    name, model, processor = family
    parts = anatomy(model)
    prompts = picture_prompts(model, processor, pictures, QUESTION, "right")
    assert prompts.span_BT.sum(1).tolist() == [IMAGE_TOKENS[name]] * 2
    found = probe(model, parts, prompts)
    states, logits_BTV = own_states(model, prompts)
    assert len(states) == parts.num_layers + 1 == len(found.span_LBD)
    for layer, state_BTD in enumerate(states):
        if name == "qwen3_vl" and 0 < layer < parts.num_layers:
            continue  # its own list is taken before the picture's features are added again
        for row in range(2):
            mean_D = state_BTD[row, prompts.span_BT[row]].mean(0)
            torch.testing.assert_close(found.span_LBD[layer, row], mean_D, rtol=1e-3, atol=1e-4)
    last_BV = logits_BTV[torch.arange(2), prompts.last_B]
    ours_BV = parts.log_probabilities(found.last_LBD[-1], parts.num_layers)
    torch.testing.assert_close(ours_BV, last_BV.log_softmax(-1), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(found.span_LBD[0, 0], found.span_LBD[0, 1])


def test_a_caption_takes_the_pictures_place(family):
    _, model, processor = family
    parts = anatomy(model)
    prompts = caption_prompts(model, processor, CAPTIONS, QUESTION, "right")
    for row, caption in enumerate(CAPTIONS):
        ids = processor.tokenizer.encode(caption, add_special_tokens=False)
        assert prompts.inputs["input_ids"][row, prompts.span_BT[row]].tolist() == ids
        alone = caption_prompts(model, processor, [caption], QUESTION, "right")
        expected = probe(model, parts, alone)
        found = probe(model, parts, prompts)
        for ours, theirs in (
            (found.span_LBD, expected.span_LBD),
            (found.last_LBD, expected.last_LBD),
        ):
            torch.testing.assert_close(ours[:, row], theirs[:, 0], rtol=1e-3, atol=1e-4)
    check_lens(model, parts, caption_prompts(model, processor, CAPTIONS[:1], QUESTION).inputs)


def test_answering_takes_the_same_states_as_a_forward(family, pictures):
    _, model, processor = family
    parts = anatomy(model)
    for make, given in ((picture_prompts, pictures), (caption_prompts, CAPTIONS)):
        plain = probe(model, parts, make(model, processor, given, QUESTION, "right"))
        prompts = make(model, processor, given, QUESTION)
        answers, found = answer_and_probe(model, processor, parts, prompts, 3)
        assert answers == generate(model, processor, prompts, 3)
        torch.testing.assert_close(found.span_LBD, plain.span_LBD, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found.last_LBD, plain.last_LBD, rtol=1e-3, atol=1e-4)


def test_a_state_is_changed_in_the_prefill_alone(family, pictures):
    _, model, processor = family
    parts = anatomy(model)
    prompts = picture_prompts(model, processor, pictures, QUESTION)
    seen = []

    def add(state_BTD):
        seen.append(state_BTD.shape[1])
        return state_BTD + prompts.span_BT.unsqueeze(-1).to(state_BTD.dtype)

    before = probe(model, parts, prompts)
    with touching(parts, {1: add}):
        generate(model, processor, prompts, 3)
    assert seen == [prompts.length]
    with touching(parts, {1: add}):
        after = probe(model, parts, prompts)
    torch.testing.assert_close(after.span_LBD[0], before.span_LBD[0])
    torch.testing.assert_close(after.span_LBD[1], before.span_LBD[1] + 1, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(after.last_LBD[-1], before.last_LBD[-1], atol=1e-4)
    again = probe(model, parts, prompts)
    torch.testing.assert_close(again.last_LBD, before.last_LBD)


def test_a_model_that_cannot_be_read_is_refused():
    model, processor = FAMILIES["llava"]()
    inputs = caption_prompts(model, processor, CAPTIONS[:1], QUESTION).inputs
    parts = anatomy(model)
    with torch.no_grad():
        check_lens(model, parts, inputs)
        model.lm_head.register_forward_hook(lambda _, __, out: out if out.ndim == 2 else out * 3)
        with pytest.raises(UserError, match="own prediction"):
            check_lens(model, parts, inputs)
    model.config.text_config.cross_attention_layers = [1]
    with pytest.raises(UserError, match="cross-attention"):
        anatomy(model)
    model.config.text_config.cross_attention_layers = []
    model.config.image_token_id = None
    with pytest.raises(UserError, match="image_token_id"):
        anatomy(model)
    model.config.text_config.num_hidden_layers = 7
    with pytest.raises(UserError, match="3 layers and its config says 7"):
        anatomy(model)
    del model.model.language_model.norm
    with pytest.raises(UserError, match="final `norm`"):
        anatomy(model)
