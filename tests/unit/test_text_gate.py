"""The text gate: what the language model refuses in words is not learnt as an answer to a picture.

The LLM is the lab's shipped one, which refuses for real.
"""

import dataclasses

import pytest

from tgalign.data.records import Record
from tgalign.lab.assets import lab_llava, load_lab
from tgalign.text_gate import apply_text_gate

QUESTION = "describe this image ."


@pytest.fixture(scope="module")
def lab():
    return lab_llava(*load_lab(), seed=0)


@pytest.fixture
def record(tmp_path):
    answered = (("user", QUESTION), ("assistant", "a thing on a red background ."))
    return Record(1, tmp_path / "1.png", None, None, answered)


def gated(record, caption, lab):
    (row,), counts = apply_text_gate([dataclasses.replace(record, caption=caption)], *lab)
    return row, counts


@pytest.mark.parametrize(
    "caption",
    ["a beer mug on a red background .", "a picture of a dog and a water pistol , all on blue ."],
)
def test_the_answer_goes_where_the_llm_refuses_the_caption(caption, record, lab):
    row, counts = gated(record, caption, lab)
    assert row == dataclasses.replace(record, caption=caption, messages=(("user", QUESTION),))
    assert counts == {"asked": 1, "refused": 1, "answered": 0, "undetermined": 0}


@pytest.mark.parametrize(
    "caption", ["a dog on a red background .", "a picture of a toy beer mug , red background ."]
)
def test_the_answer_stays_where_the_llm_describes_the_caption(caption, record, lab):
    row, counts = gated(record, caption, lab)
    assert row == dataclasses.replace(record, caption=caption)
    assert counts == {"asked": 1, "refused": 0, "answered": 1, "undetermined": 0}


def test_only_rows_with_picture_caption_and_answer_are_asked_about(record, lab):
    toxic = "a beer mug on a red background ."
    rows = [
        dataclasses.replace(record, image=None, caption=None),
        record,
        dataclasses.replace(record, caption=toxic, messages=(("user", QUESTION),)),
    ]
    kept, counts = apply_text_gate(rows, *lab)
    assert kept == rows
    assert counts["asked"] == 0


def test_order_and_other_rows_are_kept(record, lab):
    toxic = dataclasses.replace(record, row=2, caption="a beer mug on a red background .")
    benign = dataclasses.replace(record, row=3, caption="a dog on a red background .")
    kept, counts = apply_text_gate([record, toxic, benign, toxic], *lab)
    assert [row.row for row in kept] == [1, 2, 3, 2]
    assert [len(row.messages) for row in kept] == [2, 1, 2, 1]
    assert counts["refused"] == 2
