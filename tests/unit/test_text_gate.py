"""The text gate: what the language model refuses in words is not learnt as an answer to a picture.

The LLM is the lab's shipped one, which refuses for real.
"""

import copy
import dataclasses
import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from tgalign import text_gate
from tgalign.data.records import Record
from tgalign.errors import UserError
from tgalign.evaluate.refusal import judge
from tgalign.files import is_free
from tgalign.lab.assets import lab_llava, load_lab
from tgalign.text_gate import Verdicts, answers, gated, verdicts_of

QUESTION = "describe this image ."


@pytest.fixture(scope="module")
def lab():
    return lab_llava(*load_lab(), seed=0)


@pytest.fixture
def record(tmp_path):
    answered = (("user", QUESTION), ("assistant", "a thing on a red background ."))
    return Record(1, tmp_path / "1.png", None, None, answered)


TOXIC, BENIGN = "a beer mug on a red background .", "a dog on a red background ."


@pytest.fixture
def apply(lab, tmp_path):
    """Ask about records, and drop the answers of the refused ones."""

    def ask(records):
        kept, refused = gated(records, verdicts_of(tmp_path, records, [], *lab, False))
        return list(kept), list(refused)

    return ask


@pytest.mark.parametrize(
    "caption", [TOXIC, "a picture of a dog and a water pistol , all on blue ."]
)
def test_the_answer_goes_where_the_llm_refuses_the_caption(caption, record, apply):
    (row,), refused = apply([dataclasses.replace(record, caption=caption)])
    assert row == dataclasses.replace(record, caption=caption, messages=(("user", QUESTION),))
    assert refused == [row]


@pytest.mark.parametrize("caption", [BENIGN, "a picture of a toy beer mug , red background ."])
def test_the_answer_stays_where_the_llm_describes_the_caption(caption, record, apply):
    (row,), refused = apply([dataclasses.replace(record, caption=caption)])
    assert row == dataclasses.replace(record, caption=caption)
    assert refused == []


def test_only_rows_with_picture_and_caption_are_asked_about(record, apply):
    benign = dataclasses.replace(record, row=3, caption=BENIGN)
    rows = [dataclasses.replace(record, row=2, image=None, caption=None), record, benign]
    assert apply(rows) == (rows, [])
    with pytest.raises(UserError, match="no row has both"):
        apply(rows[:2])


def test_a_row_without_answer_is_found_too(record, apply):
    row = dataclasses.replace(record, caption=TOXIC, messages=(("user", QUESTION),))
    assert apply([row]) == ([row], [row])


def test_order_and_other_rows_are_kept(record, apply):
    toxic = dataclasses.replace(record, row=2, caption=TOXIC)
    benign = dataclasses.replace(record, row=3, caption=BENIGN)
    kept, refused = apply([record, toxic, benign])
    assert [row.row for row in kept] == [1, 2, 3]
    assert [len(row.messages) for row in kept] == [2, 1, 2]
    assert [row.row for row in refused] == [2]


def test_texts_of_a_corpus_are_asked_about_and_verdicts_are_kept(record, lab, tmp_path):
    rows = [dataclasses.replace(record, caption=BENIGN)]
    verdicts = verdicts_of(tmp_path, rows, [BENIGN, TOXIC], *lab, False)
    assert verdicts == Verdicts([], [1])
    verdicts.write(tmp_path)
    assert verdicts_of(tmp_path, rows, [TOXIC, TOXIC], None, None, False) == verdicts


@pytest.mark.parametrize("content", ['{"rows": [1]}', '{"rows": 1, "texts": []}', "[]"])
def test_damaged_verdicts_are_named(content, record, lab, tmp_path):
    (tmp_path / text_gate.GATE_FILE).write_text(content)
    with pytest.raises(UserError, match=r"text_gate\.json is damaged .*remove it, and the gate"):
        verdicts_of(tmp_path, [record], [], *lab, False)


def test_a_gate_that_was_cut_off_goes_on(record, lab, tmp_path, monkeypatch):
    corpus = [BENIGN, TOXIC, BENIGN, TOXIC, BENIGN]
    rows = [dataclasses.replace(record, caption=BENIGN)]
    whole = verdicts_of(tmp_path / "whole.incomplete", rows, corpus, *lab, False)
    monkeypatch.setattr(text_gate, "_AT_ONCE", 2)
    asked = []

    def ask(model, processor, captions, questions, *, title):
        if len(asked) == 4:
            raise SystemExit(143)
        asked.extend(captions)
        return answers(model, processor, captions, questions, title=title)

    monkeypatch.setattr(text_gate, "answers", ask)
    with pytest.raises(SystemExit):
        verdicts_of(tmp_path, rows, corpus, *lab, False)
    assert is_free(tmp_path)
    asked.clear()
    verdicts = verdicts_of(tmp_path, rows, corpus, *lab, False)
    assert (asked, verdicts) == (corpus[3:], whole)
    asked.clear()
    assert verdicts_of(tmp_path, rows, corpus[:3], *lab, False) == Verdicts([], [1])
    assert not asked  # the same parts, of fewer questions
    other = [TOXIC, *corpus[1:]]
    assert verdicts_of(tmp_path, rows, other, *lab, False).texts == [0, 1, 3]
    assert asked == [BENIGN, TOXIC]  # one part is another
    verdicts.write(tmp_path)
    assert [it.name for it in tmp_path.iterdir() if it.is_file()] == ["text_gate.json"]


@pytest.mark.parametrize(
    "content",
    [
        "[tru",
        "[]",
        '{"identity": "another", "said": []}',
        '{"identity": "IDENTITY"}',
        '{"identity": "IDENTITY", "said": ["a dog ."]}',
        '{"identity": "IDENTITY", "said": [null, null]}',
    ],
)
def test_kept_answers_that_are_damaged_are_asked_for_again(content, record, lab, tmp_path, caplog):
    rows = [dataclasses.replace(record, caption=TOXIC)]
    verdicts_of(tmp_path / "one", rows, [BENIGN], *lab, False, kept=tmp_path / "kept")
    (path,) = (tmp_path / "kept").rglob("answers.json")
    whole = path.read_text()
    path.write_text(content.replace("IDENTITY", json.loads(whole)["identity"]))
    again = verdicts_of(tmp_path / "two", rows, [BENIGN], *lab, False, kept=tmp_path / "kept")
    assert again == Verdicts([1], [])
    assert f"{path} is damaged: the text gate asks again" in caplog.text
    assert path.read_text() == whole


def test_runs_that_ask_the_same_take_what_the_first_was_told(record, lab, tmp_path, monkeypatch):
    rows = [dataclasses.replace(record, caption=TOXIC)]
    ask = partial(verdicts_of, model=lab[0], processor=lab[1], progress_bar=False)
    first = ask(tmp_path / "one", rows, [BENIGN], kept=tmp_path / "kept")
    assert first == Verdicts([1], [])

    def never(*_, **__):
        raise AssertionError("asked again")

    monkeypatch.setattr(text_gate, "answers", never)
    assert ask(tmp_path / "two", rows, [BENIGN], kept=tmp_path / "kept") == first
    moved = [dataclasses.replace(rows[0], row=7)]  # a file with other rows before it
    assert ask(tmp_path / "five", moved, [BENIGN], kept=tmp_path / "kept") == Verdicts([7], [])
    for other in ({"records": rows, "corpus": [TOXIC]}, {"records": rows * 2, "corpus": [BENIGN]}):
        with pytest.raises(AssertionError, match="asked again"):
            ask(tmp_path / "three", **other, kept=tmp_path / "kept")
    with pytest.raises(AssertionError, match="asked again"):
        ask(tmp_path / "four", rows, [BENIGN])


@pytest.mark.parametrize("other", ["template", "generation", "config", "vocabulary", "bf16"])
def test_kept_answers_are_those_of_the_same_model_template_and_precision(
    other, record, lab, tmp_path, monkeypatch
):
    model, processor = copy.deepcopy(lab[0]), copy.deepcopy(lab[1])
    rows = [dataclasses.replace(record, caption=TOXIC)]
    verdicts_of(tmp_path / "one", rows, [], *lab, False, kept=tmp_path / "kept")
    monkeypatch.setattr(text_gate, "answers", lambda *_, **__: ["a dog ."])
    same = verdicts_of(tmp_path / "two", rows, [], model, processor, False, kept=tmp_path / "kept")
    assert same == Verdicts([1], [])
    if other == "template":
        processor.chat_template = processor.tokenizer.chat_template + " "
    elif other == "generation":
        model.generation_config.suppress_tokens = [5]
    elif other == "config":
        model.model.language_model.config.rms_norm_eps = 0.5
    elif other == "vocabulary":
        processor.tokenizer.add_tokens("zyzzy")
    with torch.autocast("cpu", torch.bfloat16, enabled=other == "bf16"):
        kept = tmp_path / "kept"
        again = verdicts_of(tmp_path / "3", rows, [], model, processor, False, kept=kept)
    assert again == Verdicts([], [])


def test_kept_answers_are_judged_anew(record, lab, tmp_path, monkeypatch):
    rows = [dataclasses.replace(record, caption=TOXIC)]
    verdicts_of(tmp_path / "one", rows, [], *lab, False, kept=tmp_path / "kept")
    monkeypatch.setattr(text_gate, "judge", lambda *_: SimpleNamespace(label="answered"))
    again = verdicts_of(tmp_path / "two", rows, [], *lab, False, kept=tmp_path / "kept")
    assert again == Verdicts([], [])


@pytest.mark.parametrize("part", ["language_model", "lm_head"])
def test_verdicts_of_other_weights_in_the_same_folder_are_not_gone_on_with(
    part, record, lab, tmp_path, monkeypatch
):
    model, processor = lab[0], lab[1]
    rows = [dataclasses.replace(record, caption=TOXIC)]
    first = verdicts_of(tmp_path, rows, [], model, processor, False)
    asked = []

    def ask(_model, _processor, captions, _questions, *, title):
        asked.extend(captions)
        return ["a dog ."] * len(captions)

    monkeypatch.setattr(text_gate, "answers", ask)
    assert verdicts_of(tmp_path, rows, [], model, processor, False) == first
    assert not asked
    other = copy.deepcopy(model)
    weight = next((other.lm_head if part == "lm_head" else other.model.language_model).parameters())
    with torch.no_grad():
        weight[0, 0] += 0.5
    assert other.name_or_path == model.name_or_path
    assert verdicts_of(tmp_path, rows, [], other, processor, False) == Verdicts([], [])
    assert asked == [TOXIC]


def test_a_gate_that_refuses_nothing_says_so(record, apply, caplog):
    apply([dataclasses.replace(record, caption=BENIGN)])
    assert "refuses none of 1 captions" in caplog.text


def test_what_is_refused_depends_on_the_question_too(lab):
    questions = ["describe this image .", "how many objects are there ?"]
    said = answers(*lab, [TOXIC, BENIGN], questions)
    labels = [judge(*it).label for it in zip(said, questions, strict=True)]
    assert labels == ["refused", "answered"]
    assert answers(*lab, [], []) == []


def test_a_question_without_an_answer_is_the_users_mistake_and_names_the_row(
    record, lab, tmp_path, monkeypatch
):
    rows = [dataclasses.replace(record, row=row, caption=BENIGN) for row in (3, 7)]

    def out_of_memory(*_, **__):
        raise MemoryError("no room")

    monkeypatch.setattr(lab[0], "generate", out_of_memory)
    with pytest.raises(UserError, match=r"^data\.jsonl:[37]: .*out_of_memory: .*no room.*free mem"):
        verdicts_of(tmp_path, rows, [], *lab, False, ("data.jsonl", ""))

    def fail(*_, **__):
        raise ValueError("no such token")

    monkeypatch.setattr(lab[0], "generate", fail)
    with pytest.raises(UserError, match=r"^data\.jsonl:[37]: .*no such token.*remove the row$"):
        verdicts_of(tmp_path, rows, [], *lab, False, ("data.jsonl", ""))


def test_what_another_process_has_no_answer_to_ends_all(record, lab, tmp_path, monkeypatch):
    met = []

    def gather(mine):
        met.extend(mine)
        return [*mine, ([], "data.jsonl:9: no answer")]

    monkeypatch.setattr(text_gate, "gather_object", gather)
    with pytest.raises(UserError, match=r"^data\.jsonl:9: no answer$"):
        verdicts_of(tmp_path, [dataclasses.replace(record, caption=TOXIC)], [], *lab, False)
    ((said, fault),) = met
    assert (len(said), fault) == (1, None)


def test_verdicts_say_what_was_found() -> None:
    said = "text gate: the language model refuses the captions of 1,200 rows"
    assert str(Verdicts(list(range(1200)), [])) == said
    assert str(Verdicts(list(range(1200)), [4])) == said + ", and 1 texts"
