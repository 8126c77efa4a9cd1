"""Probes: span means by hand, and a logit lens whose last line is the model's own prediction.

Shape suffixes: L layers, B rows, T tokens, D channels, V vocabulary.
"""

import pytest
import torch
from PIL import Image

from tgalign.diagnose.probe import (
    next_tokens,
    probe_pictures,
    probe_texts,
    refusal_probability,
)

QUESTION = "what color is the background ?"
CAPTIONS = [
    "a cat on a red background .",
    "a dog",
    "a picture of a lion next to a tiger , all on blue .",
    "cat cat",
]


@pytest.fixture(scope="module")
def pictures(rows):
    shown = []
    for record in [record for record in rows.records if record.image][:3]:
        with Image.open(record.image) as picture:
            shown.append(picture.convert("RGB"))
    return shown


def ids(processor, text):
    return torch.tensor([processor.tokenizer.encode(text, add_special_tokens=False)])


@torch.no_grad()
def run_alone(model, **inputs):
    outputs = model(**inputs, output_hidden_states=True)
    return [state[0] for state in outputs.hidden_states], outputs.logits[0, -1].softmax(-1)


def test_captions_stand_where_a_picture_would(composed, processor):
    model = composed[0]
    probe = probe_texts(model, processor, CAPTIONS, QUESTION)
    for row, caption in enumerate(CAPTIONS):
        before = ids(processor, "<bos> <user>").shape[1]
        length = ids(processor, caption).shape[1]
        text = f"<bos> <user> {caption} {QUESTION} <assistant>"
        states, next_V = run_alone(model, input_ids=ids(processor, text))
        span_LD = torch.stack([state[before : before + length].mean(0) for state in states])
        torch.testing.assert_close(probe.span_LBD[:, row], span_LD, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            next_tokens(model, probe.last_LBD, -1)[row], next_V, rtol=1e-4, atol=1e-6
        )


def test_pictures_are_probed_at_their_own_tokens(composed, processor, pictures):
    model = composed[0]
    probe = probe_pictures(model, processor, pictures, QUESTION)
    patches = model.config.image_seq_length
    for row, picture in enumerate(pictures):
        text = "<bos> <user> " + "<image> " * patches + f"{QUESTION} <assistant>"
        pixels = processor.image_processor([picture], return_tensors="pt")["pixel_values"]
        states, next_V = run_alone(model, input_ids=ids(processor, text), pixel_values=pixels)
        span_LD = torch.stack([state[2 : 2 + patches].mean(0) for state in states])
        torch.testing.assert_close(probe.span_LBD[:, row], span_LD, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            next_tokens(model, probe.last_LBD, -1)[row], next_V, rtol=1e-4, atol=1e-6
        )


def test_the_lens_norms_every_state_but_the_last(composed, processor):
    model = composed[0]
    probe = probe_texts(model, processor, CAPTIONS[:1], QUESTION)
    text = f"<bos> <user> {CAPTIONS[0]} {QUESTION} <assistant>"
    states, _ = run_alone(model, input_ids=ids(processor, text))
    norm, head = model.model.language_model.norm, model.lm_head
    layers = model.config.text_config.num_hidden_layers
    assert len(probe.last_LBD) == layers + 1
    with torch.no_grad():
        for layer in range(layers):
            expected = head(norm(states[layer][-1])).softmax(-1)
            found_BV = next_tokens(model, probe.last_LBD, layer)
            torch.testing.assert_close(found_BV[0], expected, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(found_BV.sum(-1), torch.ones(1))


def test_the_whole_model_agrees_with_state_0_being_the_embeddings(composed, processor):
    model = composed[0]
    probe = probe_texts(model, processor, ["cat"], QUESTION)
    embedded = model.get_input_embeddings()(ids(processor, "cat"))[0, 0]
    torch.testing.assert_close(probe.span_LBD[0, 0], embedded)


def test_refusal_probability_is_that_of_the_openings(composed, processor):
    model = composed[0]
    last_LBD = probe_texts(model, processor, CAPTIONS, QUESTION).last_LBD
    found_LB = refusal_probability(model, last_LBD, [7, 9])
    for layer in range(len(last_LBD)):
        said_BV = next_tokens(model, last_LBD, layer)
        torch.testing.assert_close(found_LB[layer], said_BV[:, 7] + said_BV[:, 9])
