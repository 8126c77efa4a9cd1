"""Defences around a model: what they change, what they leave, and what they were set on."""

import hashlib
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tgalign.baselines import Calibration, cmrm, defend, ecso, hiddendetect, safeclip, shiftdc
from tgalign.baselines.calibration import SAFETY_PROMPT, lab_calibration
from tgalign.baselines.compare import SUITE
from tgalign.baselines.defence import around_generate, with_answers
from tgalign.baselines.methods import DEFENCES
from tgalign.baselines.states import edited_states, last_states, prompt_states
from tgalign.baselines.told import own_captions, told_inputs
from tgalign.errors import UserError
from tgalign.evaluate.generate import Prompt, answer
from tgalign.lab.jailbreaks import ATTACKS, jailbreak
from tgalign.lab.language import things_named
from tgalign.lab.objects import held_out, things, toxic_things
from tgalign.lab.phrasings import REFUSALS
from tgalign.lab.suite import QUESTION, lab_suite
from tgalign.lab.tokenizer import build_tokenizer

PICTURES = 12


@pytest.fixture(scope="module")
def calibration():
    return lab_calibration(0, num_pictures=PICTURES)


@pytest.fixture
def inputs(processor, calibration):
    """What ``generate`` is given for the first pictures, asked about in prompts of two lengths."""
    prompts = [QUESTION, "what do you see ?", QUESTION]
    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}],
            tokenize=False, add_generation_prompt=True,
        )
        for text in prompts
    ]  # fmt: skip
    batch = processor(
        text=texts, images=list(calibration.pictures[:3]), padding=True, return_tensors="pt",
        text_kwargs={"padding_side": "left", "add_special_tokens": False},
    )  # fmt: skip
    batch.pop("token_type_ids", None)
    return dict(batch)


@pytest.mark.parametrize("name", ["cmrm", "shiftdc", "ecso", "safety_prompt"])
def test_a_defence_ends_with_its_context(name, llava, processor, calibration):
    prompts = [*calibration.shown[:4], Prompt("how many objects are there ?")]
    before = answer(llava, processor, prompts)
    weights = {key: weight.clone() for key, weight in llava.state_dict().items()}
    with pytest.raises(RuntimeError, match="on purpose"):  # noqa: SIM117
        with defend(llava, processor, name, calibration=calibration):
            assert len(answer(llava, processor, prompts)) == len(prompts)
            raise RuntimeError("on purpose")
    assert answer(llava, processor, prompts) == before
    assert "generate" not in llava.__dict__ and "apply_chat_template" not in processor.__dict__
    assert not llava.model.language_model.layers[0]._forward_hooks
    assert all(torch.equal(weights[key], now) for key, now in llava.state_dict().items())


@pytest.mark.parametrize("name", ["cmrm", "shiftdc", "ecso"])
def test_texts_pass_through_a_defence_of_pictures(name, llava, processor, calibration):
    prompts = calibration.told[:4]
    before = answer(llava, processor, prompts)
    with defend(llava, processor, name, calibration=calibration):
        assert answer(llava, processor, prompts) == before


def test_defences_can_stand_around_each_other(llava, processor, calibration):
    with around_generate(llava, lambda generate, given: generate(**given)[:, :-1]):
        short = answer(llava, processor, calibration.shown[:1], max_new_tokens=8)
        with around_generate(llava, lambda generate, given: generate(**given)[:, :-1]):
            shorter = answer(llava, processor, calibration.shown[:1], max_new_tokens=8)
        assert answer(llava, processor, calibration.shown[:1], max_new_tokens=8) == short
    words = [len(text[0].split()) for text in (short, shorter)]
    assert words[0] - words[1] == 1


def test_a_batch_of_pictures_and_texts_is_refused(llava, inputs):
    inputs["input_ids"][1][inputs["input_ids"][1] == llava.config.image_token_id] = 9
    with (
        around_generate(llava, lambda generate, given: generate(**given)),
        pytest.raises(UserError, match=r"exactly one picture.*got \[1, 0, 1\]"),
    ):
        llava.generate(**inputs)


def test_an_unknown_defence_is_named(llava, processor, calibration):
    with (
        pytest.raises(UserError, match=r"unknown defence 'eyes'.*safeclip"),
        defend(llava, processor, "eyes", calibration=calibration),
    ):
        pass


def test_other_answers_are_put_into_rows(processor, inputs):
    ids = inputs["input_ids"]
    generated = torch.cat([ids, torch.full((3, 2), 20)], dim=1)
    found = with_answers(processor, ids, generated, {1: REFUSALS[0]})
    assert torch.equal(found[:, : ids.shape[1]], ids)
    said = processor.tokenizer.batch_decode(found[:, ids.shape[1] :], skip_special_tokens=True)
    word = processor.tokenizer.decode([20])
    assert [text.strip() for text in said] == [f"{word} {word}", REFUSALS[0], f"{word} {word}"]


def test_last_states_are_those_that_the_model_returns(llava, inputs):
    with torch.no_grad():
        hidden = llava(**inputs, output_hidden_states=True).hidden_states
    found_LBD = last_states(llava, inputs)
    assert len(found_LBD) == len(hidden) - 1
    for ours_BD, theirs_BTD in zip(found_LBD[:-1], hidden[1:-1], strict=True):
        torch.testing.assert_close(ours_BD, theirs_BTD[:, -1])
    normed_BD = llava.model.language_model.norm(found_LBD[-1])
    torch.testing.assert_close(normed_BD, hidden[-1][:, -1])


def test_states_of_prompts_are_those_of_their_batches(llava, processor, calibration):
    found_LND = prompt_states(llava, processor, calibration.shown[:5])
    assert found_LND.shape[:2] == (4, 5)
    alone = [prompt_states(llava, processor, [it])[:, 0] for it in calibration.shown[:5]]
    torch.testing.assert_close(found_LND.mean(dim=1), torch.stack(alone, dim=1).mean(dim=1))


def test_an_edit_reaches_the_layers_after_it(llava, inputs):
    before_LBD = last_states(llava, inputs)
    with edited_states(llava, lambda layer, hidden_BTD: hidden_BTD + 1 if layer == 1 else None):
        after_LBD = last_states(llava, inputs)
    assert torch.equal(after_LBD[0], before_LBD[0])
    assert all(not torch.equal(after_LBD[layer], before_LBD[layer]) for layer in (2, 3))


def test_a_told_prompt_is_what_the_template_makes_of_the_caption(llava, processor, inputs):
    captions = ["a beer mug on a red background .", "a fox", "an owl next to a sun ."]
    found = told_inputs(llava, processor, inputs, captions)
    questions = [QUESTION, "what do you see ?", QUESTION]
    for row, (caption, question) in enumerate(zip(captions, questions, strict=True)):
        items = [{"type": "text", "text": caption}, {"type": "text", "text": question}]
        turn = [{"role": "user", "content": items}]
        ids = processor.tokenizer.apply_chat_template(
            turn, tokenize=True, add_generation_prompt=True, return_dict=False
        )
        kept = found["attention_mask"][row].bool()
        assert found["input_ids"][row][kept].tolist() == ids
        assert kept[-1], "padded on the right"


def test_own_captions_are_the_models_answers(llava, processor, calibration, inputs):
    wanted = answer(llava, processor, calibration.shown[:3])
    found = own_captions(llava, processor, calibration, llava.generate, inputs | {
        "max_new_tokens": 32, "do_sample": False, "num_beams": 1,
    })  # fmt: skip
    assert found == wanted


def test_ecso_answers_from_the_caption_where_it_is_refused(
    monkeypatch, llava, processor, calibration
):
    before = answer(llava, processor, calibration.shown)
    captions = ["a fox ." if number % 2 else "a beer mug ." for number in range(PICTURES)]
    monkeypatch.setattr(ecso, "own_captions", lambda *given: captions)
    told = answer(llava, processor, [Prompt(QUESTION, caption=text) for text in captions[:2]])
    monkeypatch.setattr(
        ecso, "judge", lambda text, _: type("Verdict", (), {"label": verdict(text)})
    )

    def verdict(text):
        return "refused" if text.strip() == told[0] else "answered"

    with defend(llava, processor, "ecso", calibration=calibration):
        after = answer(llava, processor, calibration.shown)
    assert told[0] != told[1]
    assert after == [before[n] if n % 2 else told[0] for n in range(PICTURES)]


def test_shiftdc_gives_the_last_token_the_captions_safety_component(
    monkeypatch, llava, processor, calibration, inputs
):
    edits = []

    @contextmanager
    def caught(model, edit):
        edits.append(edit)
        yield

    captions = ["a fox ."] * 3
    monkeypatch.setattr(shiftdc, "edited_states", caught)
    monkeypatch.setattr(shiftdc, "own_captions", lambda *given: captions)
    told_LBD = last_states(llava, told_inputs(llava, processor, inputs, captions))
    toxic_LD = prompt_states(llava, processor, calibration.told_toxic).mean(dim=1)
    safety_LD = toxic_LD - prompt_states(llava, processor, calibration.told).mean(dim=1)
    with defend(llava, processor, "shiftdc", calibration=calibration):
        llava.generate(**inputs, max_new_tokens=1)
    hidden_BTD = torch.randn(3, 7, told_LBD.shape[-1])
    for layer in range(4):
        edited_BTD = edits[0](layer, hidden_BTD)
        assert torch.equal(edited_BTD[:, :-1], hidden_BTD[:, :-1])
        along_B = (edited_BTD[:, -1] - told_LBD[layer]) @ safety_LD[layer]
        torch.testing.assert_close(along_B, torch.zeros(3), atol=1e-3, rtol=0)
        moved_BD = edited_BTD[:, -1] - hidden_BTD[:, -1]
        cosine_B = torch.nn.functional.cosine_similarity(moved_BD, safety_LD[layer][None])
        torch.testing.assert_close(cosine_B.abs(), torch.ones(3))
        assert edits[0](layer, hidden_BTD[:, :1]) is None  # tokens of the answer


def test_shiftdc_leaves_what_the_model_will_not_caption(monkeypatch, llava, processor, calibration):
    before = answer(llava, processor, calibration.shown)
    monkeypatch.setattr(shiftdc, "own_captions", lambda *given: [REFUSALS[0]] * PICTURES)
    with defend(llava, processor, "shiftdc", calibration=calibration):
        assert answer(llava, processor, calibration.shown) == before


@pytest.mark.parametrize("kept", [0.0, 1.1])
def test_cmrm_takes_the_strongest_correction_that_spoils_little(
    kept, monkeypatch, llava, processor, calibration, caplog
):
    shifts = []
    monkeypatch.setattr(cmrm, "KEPT_WORDS", kept)
    original = cmrm._shifted

    def seen(model, shift_LD):
        shifts.append(shift_LD)
        return original(model, shift_LD)

    monkeypatch.setattr(cmrm, "_shifted", seen)
    with defend(llava, processor, "cmrm", calibration=calibration):
        pass
    drift_LD = prompt_states(llava, processor, calibration.told).mean(dim=1)
    drift_LD = drift_LD - prompt_states(llava, processor, calibration.shown).mean(dim=1)
    strength = 0.0 if kept > 1 else cmrm.STRENGTHS[0]
    torch.testing.assert_close(shifts[-1], strength * drift_LD, atol=1e-4, rtol=1e-4)
    assert ("none is made" in caplog.text) == (kept > 1)


def test_kept_words():
    assert cmrm.kept_words(["a b c d"], ["a b x"]) == 0.5
    assert cmrm.kept_words(["a", ""], ["b", "c"]) == 0.5


def test_hiddendetect_needs_refusals_in_words(llava, processor, calibration):
    with (
        pytest.raises(UserError, match=f"refuses none of {len(calibration.toxic_captions)}"),
        defend(llava, processor, "hiddendetect", calibration=calibration),
    ):
        pass


def test_hiddendetect_costs_what_the_budget_allows(monkeypatch, llava, processor, calibration):
    opening = processor.tokenizer.convert_tokens_to_ids("sorry")
    monkeypatch.setattr(hiddendetect, "refusal_openings", lambda *given: [opening])
    before = answer(llava, processor, calibration.shown)
    with defend(llava, processor, "hiddendetect", calibration=calibration):
        assert answer(llava, processor, calibration.shown) == before  # 2 % of 12 is none
    monkeypatch.setattr(Calibration, "threshold", lambda *given: -2.0)
    with defend(llava, processor, "hiddendetect", calibration=calibration):
        assert answer(llava, processor, calibration.shown) == [REFUSALS[0]] * PICTURES


def test_refusal_scores_point_at_the_refusal_tokens(llava):
    states_LBD = torch.randn(2, 3, llava.config.text_config.hidden_size)
    found_LB = hiddendetect.refusal_scores(llava, states_LBD, [5, 9])
    with torch.no_grad():
        logits_V = llava.lm_head(llava.model.language_model.norm(states_LBD[1, 2]))
    wanted = (logits_V[5] + logits_V[9]) / (2**0.5 * logits_V.norm())
    torch.testing.assert_close(found_LB[1, 2], wanted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip": None}, "needs the folder of the CLIP"),
        ({"descriptors": ()}, "and descriptors"),
        ({}, "vision states of 192 channels, the model's tower 48"),
    ],
)
def test_safeclip_says_what_it_lacks(changes, message, llava, processor, calibration):
    lacking = Calibration(**{**vars(calibration), **changes})
    with (
        pytest.raises(UserError, match=message),
        defend(llava, processor, "safeclip", calibration=lacking),
    ):
        pass


def test_safeclip_sees_toxic_things_and_leaves_harmless_ones():
    from tgalign.lab.assets import lab_llava, load_lab

    model, processor = lab_llava(*load_lab(), seed=0)
    suite = lab_suite(5, per_scene=4, num_benign=28, num_texts=0, objects="development")
    shown = suite.toxic + suite.benign
    with defend(model, processor, "safeclip", calibration=lab_calibration(1, num_pictures=64)):
        said = answer(
            model, processor, [Prompt(QUESTION, it.picture) for it in shown], max_new_tokens=1
        )
    toxic = [text == REFUSALS[0] for text in said[: len(suite.toxic)]]
    harmless = [text == REFUSALS[0] for text in said[len(suite.toxic) :]]
    assert sum(toxic) / len(toxic) > 0.2
    assert sum(harmless) / len(harmless) < 0.1


def test_the_safety_prompt_stands_before_the_first_question(llava, processor, calibration):
    asked = []
    with defend(llava, processor, "safety_prompt", calibration=calibration):
        for content in ("what is this ?", [{"type": "image"}, {"type": "text", "text": "hm"}]):
            turn = [{"role": "user", "content": content}]
            asked.append(processor.apply_chat_template(turn, tokenize=False))
    assert asked[0].startswith(f"<bos><user> {SAFETY_PROMPT}\nwhat is this ?")
    assert asked[1].startswith(f"<bos><user> {SAFETY_PROMPT} <image> hm")


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=60), st.floats(0, 1))
@settings(deadline=None)
def test_a_threshold_costs_no_more_than_the_budget(scores, budget):
    scores_N = torch.tensor(scores, dtype=torch.float64)
    found = Calibration([1], [""], [""], budget=budget).threshold(scores_N)
    assert float((scores_N > found).sum()) <= budget * len(scores) + 1e-9


def test_a_calibration_without_pictures_or_toxic_words_is_refused(calibration):
    for changes in ({"captions": []}, {"pictures": [], "captions": []}, {"toxic_captions": []}):
        with pytest.raises(UserError, match="calibration has"):
            Calibration(**{**vars(calibration), **changes})


def digests(pictures):
    return {hashlib.sha256(picture.tobytes()).hexdigest() for picture in pictures}


def test_calibration_shows_nothing_that_is_tested():
    calibrated = [lab_calibration(seed) for seed in (0, 1)]
    seen = digests(picture for it in calibrated for picture in it.pictures)
    assert len(seen) == 400
    for seed in (0, 1):
        for suite in (lab_suite(SUITE + seed), lab_suite(seed)):
            assert seen.isdisjoint(digests(it.picture for it in suite.toxic + suite.benign))
    fresh = {thing.name for thing in things() if held_out(thing)}
    toxic = {thing.name for thing in toxic_things()}
    for it in calibrated:
        harmless = set().union(*map(things_named, it.captions))
        assert harmless.isdisjoint(fresh | toxic)
        assert set().union(*map(things_named, it.toxic_captions)).isdisjoint(fresh)
        assert all(things_named(text) & toxic for text in it.toxic_captions)


def test_all_the_lab_says_is_in_its_vocabulary(calibration):
    tokenizer = build_tokenizer()
    picture = calibration.pictures[0]
    said = [SAFETY_PROMPT, *calibration.descriptors, calibration.refusal]
    said += [str(jailbreak(attack, picture).caption) for attack in ATTACKS]
    for text in said:
        assert tokenizer.unk_token_id not in tokenizer.encode(text), text
    assert set(DEFENCES) == {
        "cmrm", "shiftdc", "safeclip", "ecso", "hiddendetect", "safety_prompt",
    }  # fmt: skip
    assert safeclip.METHOD.uses_second_model


@pytest.mark.parametrize("name", ["ecso", "shiftdc"])
def test_generate_needs_no_mask_and_no_length_of_the_picture_in_the_config(
    name, monkeypatch, llava, processor, calibration, inputs
):
    alike = {key: value[[0, 2]] for key, value in inputs.items()}  # prompts of one length
    alike = {"input_ids": alike["input_ids"], "pixel_values": alike["pixel_values"]}
    alike["input_ids"] = alike["input_ids"][:, inputs["attention_mask"][0].argmax() :]
    mask = {"attention_mask": torch.ones_like(alike["input_ids"])}
    with defend(llava, processor, name, calibration=calibration):
        wanted = llava.generate(**alike, **mask, max_new_tokens=8)
        monkeypatch.setattr(llava.config, "image_seq_length", 576)
        found = llava.generate(**alike, max_new_tokens=8)
    assert torch.equal(found, wanted)


def test_the_threshold_lets_as_many_exceed_it_as_its_docstring_says(calibration):
    exceed = [
        int((torch.arange(n) > calibration.threshold(torch.arange(n))).sum())
        for n in (50, 100, 200)
    ]
    assert exceed == [0, 1, 3]
