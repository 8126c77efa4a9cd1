"""The text gate: what the language model refuses in words is not learnt as an answer to a picture.

The LLM is the lab's shipped one, which refuses for real.
"""

import dataclasses

import pytest

from tgalign.data.records import Record
from tgalign.lab.assets import lab_llava, load_lab
from tgalign.text_gate import apply_text_gate, refuses

QUESTION = "describe this image ."


@pytest.fixture(scope="module")
def lab():
    return lab_llava(*load_lab(), seed=0)


@pytest.fixture
def record(tmp_path):
    answered = (("user", QUESTION), ("assistant", "a thing on a red background ."))
    return Record(1, tmp_path / "1.png", None, None, answered)


TOXIC, BENIGN = "a beer mug on a red background .", "a dog on a red background ."


def gated(record, caption, lab):
    (row,), refused = apply_text_gate([dataclasses.replace(record, caption=caption)], *lab)
    return row, refused


@pytest.mark.parametrize(
    "caption", [TOXIC, "a picture of a dog and a water pistol , all on blue ."]
)
def test_the_answer_goes_where_the_llm_refuses_the_caption(caption, record, lab):
    row, refused = gated(record, caption, lab)
    assert row == dataclasses.replace(record, caption=caption, messages=(("user", QUESTION),))
    assert refused == [row]


@pytest.mark.parametrize("caption", [BENIGN, "a picture of a toy beer mug , red background ."])
def test_the_answer_stays_where_the_llm_describes_the_caption(caption, record, lab):
    row, refused = gated(record, caption, lab)
    assert row == dataclasses.replace(record, caption=caption)
    assert refused == []


def test_only_rows_with_picture_and_caption_are_asked_about(record, lab):
    rows = [dataclasses.replace(record, image=None, caption=None), record]
    assert apply_text_gate(rows, *lab) == (rows, [])


def test_a_row_without_answer_is_found_too(record, lab):
    row = dataclasses.replace(record, caption=TOXIC, messages=(("user", QUESTION),))
    assert apply_text_gate([row], *lab) == ([row], [row])


def test_order_and_other_rows_are_kept(record, lab):
    toxic = dataclasses.replace(record, row=2, caption=TOXIC)
    benign = dataclasses.replace(record, row=3, caption=BENIGN)
    kept, refused = apply_text_gate([record, toxic, benign], *lab)
    assert [row.row for row in kept] == [1, 2, 3]
    assert [len(row.messages) for row in kept] == [2, 1, 2]
    assert [row.row for row in refused] == [2]


def test_what_is_refused_depends_on_the_question_too(lab):
    questions = ["describe this image .", "how many objects are there ?"]
    assert refuses(*lab, [TOXIC, BENIGN], questions) == [True, False]
    assert refuses(*lab, [], []) == []
