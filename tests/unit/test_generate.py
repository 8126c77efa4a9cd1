"""Answers do not depend on what else is in the batch."""

import pytest
from PIL import Image

from tgalign.evaluate import generate as module
from tgalign.evaluate.generate import Prompt, answer, render

NEW = 8


@pytest.fixture(scope="module")
def prompts(rows):
    """Pictures and texts mixed, short and long."""
    pictures = []
    for record in [record for record in rows.records if record.image][:8]:
        with Image.open(record.image) as picture:
            pictures.append(picture.convert("RGB"))
    questions = [
        "what ?",
        "describe this image .",
        "is there a cat on a red background , or a dog near a lion on a blue background ?",
        "what color is the background ?",
    ]
    mixed = [Prompt(questions[i % 4], picture) for i, picture in enumerate(pictures)]
    texts = [record.messages[0][1] for record in rows.records if record.image is None]
    mixed += [Prompt(text) for text in [*questions, *texts]]
    return mixed[::2] + mixed[1::2]


@pytest.fixture(scope="module")
def one_by_one(composed, prompts):
    """The answers, each prompt in a call of its own."""
    return [answer(*composed, [prompt], max_new_tokens=NEW)[0] for prompt in prompts]


def test_the_random_model_listens(one_by_one, prompts):
    """Otherwise the tests below could not fail."""
    texts = {said for said, prompt in zip(one_by_one, prompts, strict=True) if not prompt.picture}
    shown = {said for said, prompt in zip(one_by_one, prompts, strict=True) if prompt.picture}
    assert len(texts) > 6
    assert len(shown) > 5


@pytest.mark.parametrize("batch_size", [2, 3, 64])
def test_batched_answers_are_those_given_one_by_one_in_order(
    batch_size, composed, prompts, one_by_one
):
    said = answer(*composed, prompts, batch_size=batch_size, max_new_tokens=NEW)
    assert said == one_by_one


def test_the_processor_s_own_padding_side_does_not_matter(composed, prompts, one_by_one):
    model, processor = composed
    side = processor.tokenizer.padding_side
    try:
        for processor.tokenizer.padding_side in ("left", "right"):
            assert answer(model, processor, prompts, max_new_tokens=NEW) == one_by_one
    finally:
        processor.tokenizer.padding_side = side


def test_the_answer_alone_comes_back(composed, prompts, one_by_one):
    for prompt, said in zip(prompts, one_by_one, strict=True):
        assert not said.startswith(prompt.text)
        assert said == said.strip()
        assert len(said.split()) <= NEW
        assert not any(token in said for token in ("<eos>", "<pad>", "<image>", "<assistant>"))


def test_an_answer_ends_at_eos(llava, processor, prompts, one_by_one):
    """Biased to its end token, the model says nothing."""
    ends = processor.tokenizer.eos_token_id

    def end_now(module, inputs, logits):
        logits[..., ends] = 1e4
        return logits

    llava.lm_head.register_forward_hook(end_now)
    assert answer(llava, processor, prompts, max_new_tokens=NEW) == [""] * len(prompts)


def test_no_prompt_no_answer(composed):
    assert answer(*composed, []) == []


def test_a_training_model_is_asked_in_evaluation_mode(llava, processor, prompts, one_by_one):
    llava.train()
    assert answer(llava, processor, prompts[:3], max_new_tokens=NEW) == one_by_one[:3]


def test_pictures_and_texts_are_never_batched_together(prompts):
    order = list(range(len(prompts)))
    for batch in module._batches(order, prompts, 5):
        assert len({prompts[i].picture is None for i in batch}) == 1


def test_a_template_without_blanks_glues_no_caption_to_the_question(processor, monkeypatch):
    """Qwen2-VL's, for one, writes the texts of a turn one after the other."""
    glueing = (
        "{% for turn in messages %}{% for item in turn['content'] %}"
        "{{ '<image>' if item['type'] == 'image' else item['text'] }}{% endfor %}{% endfor %}"
    )
    monkeypatch.setattr(processor, "chat_template", glueing)
    picture = Image.new("RGB", (2, 2))
    assert render(processor, Prompt("what ?", caption="a cat")) == "a cat\nwhat ?"
    assert render(processor, Prompt("what ?", picture, "a toy :")) == "a toy :<image>what ?"
