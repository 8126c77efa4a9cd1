"""Batching: padding, masks, spans and the order of captions, retrieved texts and pictures."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tgalign.data.collate import Collator
from tgalign.data.encode import IGNORE_INDEX, EncodedRecord, Span

PAD = 0


def load_numbers(paths):
    """Stands for pixels: the number in each path."""
    return torch.tensor([[int(path.stem)] for path in paths])


def row(length, *, image=None, caption=None, retrieved=None, learnt=2):
    ids = list(range(10, 10 + length))
    labels = [IGNORE_INDEX] * (length - learnt) + ids[length - learnt :]
    return EncodedRecord(ids, labels, Path(f"{image}.png") if image else None, caption, retrieved)


C1, C2, R2 = Span([1, 2, 3], 1, 3), Span([4, 5, 6, 7, 8], 2, 4), Span([9], 0, 1)


@pytest.fixture
def collator():
    return Collator(PAD, load_numbers)


def test_conversations_are_padded_on_the_right(collator):
    batch = collator([row(3), row(5), row(2)])
    assert batch["input_ids"].tolist() == [
        [10, 11, 12, PAD, PAD],
        [10, 11, 12, 13, 14],
        [10, 11, PAD, PAD, PAD],
    ]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5, [1, 1, 0, 0, 0]]
    assert batch["labels"].tolist() == [
        [-100, 11, 12, -100, -100],
        [-100, -100, -100, 13, 14],
        [10, 11, -100, -100, -100],
    ]
    assert batch["attention_mask"].dtype == torch.long


def test_a_pad_id_inside_a_row_is_attended_to(collator):
    batch = collator([EncodedRecord([5, PAD, 6], [5, PAD, 6], None, None, None), row(4)])
    assert batch["attention_mask"][0].tolist() == [1, 1, 1, 0]
    assert batch["labels"][0].tolist() == [5, PAD, 6, IGNORE_INDEX]


def test_captions_come_first_then_retrieved_texts_each_in_the_rows_order(collator):
    batch = collator(
        [
            row(3, image=1),
            row(3, image=2, caption=C2, retrieved=R2),
            row(3),
            row(3, image=3, caption=C1),
        ]
    )
    assert batch["caption_mask"].tolist() == [False, True, False, True]
    assert batch["retrieved_mask"].tolist() == [False, True, False, False]
    assert batch["text_input_ids"].tolist() == [
        [4, 5, 6, 7, 8],
        [1, 2, 3, PAD, PAD],
        [9, PAD, PAD, PAD, PAD],
    ]
    assert batch["text_attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]
    assert batch["text_span"].dtype == torch.bool
    assert batch["text_span"].int().tolist() == [
        [0, 0, 1, 1, 0],
        [0, 1, 1, 0, 0],
        [1, 0, 0, 0, 0],
    ]
    assert batch["pixel_values"].tolist() == [[1], [2], [3]]


def test_texts_alone_bring_no_pixels_and_no_text_batch(collator):
    batch = collator([row(3), row(4)])
    assert set(batch) == {
        "input_ids",
        "attention_mask",
        "labels",
        "caption_mask",
        "retrieved_mask",
    }
    assert not batch["caption_mask"].any()
    assert batch["caption_mask"].dtype == torch.bool


def test_pictures_without_captions_bring_pixels_alone(collator):
    batch = collator([row(3, image=4, learnt=0)])
    assert batch["pixel_values"].tolist() == [[4]]
    assert "text_input_ids" not in batch
    assert batch["labels"].eq(IGNORE_INDEX).all()


def test_no_pixels_are_loaded_for_texts():
    Collator(PAD, lambda paths: pytest.fail("loaded"))([row(3)])


def test_real_rows_come_back_from_their_batch(rows, encode, collator, tokenizer):
    encoded = encode(rows.records, 0.5)
    batch = Collator(tokenizer.pad_token_id, lambda paths: torch.zeros(len(paths)))(encoded)
    for number, one in enumerate(encoded):
        kept = batch["attention_mask"][number].bool()
        assert batch["input_ids"][number][kept].tolist() == one.input_ids
        assert batch["labels"][number][kept].tolist() == one.labels
        assert batch["labels"][number][~kept].eq(IGNORE_INDEX).all()
    captioned = [record for record in rows.records if record.caption]
    ranked = [record for record in captioned if record.retrieved]
    texts = [record.caption for record in captioned] + [record.retrieved for record in ranked]
    spans = zip(batch["text_input_ids"], batch["text_span"], texts, strict=True)
    assert all(tokenizer.decode(ids[span]) == text for ids, span, text in spans)
    assert int(batch["caption_mask"].sum()) == len(captioned)
    assert int(batch["retrieved_mask"].sum()) == len(ranked)


def test_packed_texts_share_rows_and_each_can_be_found_again():
    batch = Collator(PAD, load_numbers, pack=True)(
        [row(3, image=2, caption=C2, retrieved=R2), row(3, image=3, caption=C1)]
    )
    assert "text_span" not in batch
    # Twice the longest text to a row, longest first: C2, C1 and R2 are numbers 0, 1 and 2.
    assert batch["text_input_ids"].tolist() == [[4, 5, 6, 7, 8, 1, 2, 3, 9]]
    assert batch["text_position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 0]]
    assert batch["text_number"].tolist() == [[-1, -1, 0, 0, -1, -1, 1, 1, 2]]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40))
@settings(deadline=None, max_examples=60)
def test_packing_loses_nothing_and_pads_little(lengths):
    texts = [Span([number + 1] * n, n // 2, n) for number, n in enumerate(lengths)]
    batch = Collator(PAD, load_numbers, pack=True).packed_texts(texts)
    ids_BT, positions_BT = batch["text_input_ids"], batch["text_position_ids"]
    for number, n in enumerate(lengths):
        rows, at = (ids_BT == number + 1).nonzero(as_tuple=True)
        assert len(rows) == n
        assert len(set(rows.tolist())) == 1
        assert at.tolist() == list(range(int(at[0]), int(at[0]) + n))
        assert positions_BT[rows, at].tolist() == list(range(n))
        where = (batch["text_number"] == number).nonzero().tolist()
        assert where == [[int(rows[0]), int(at[0]) + i] for i in range(n // 2, n)]
    assert ids_BT.shape[1] <= 2 * max(lengths)
    # First-fit decreasing leaves at most one row less than half full.
    fill = sorted((ids_BT > 0).sum(1).tolist())
    assert all(2 * filled > max(lengths) for filled in fill[1:])
    padding = ids_BT == PAD
    assert positions_BT[padding].eq(0).all()
    assert batch["text_number"][padding].eq(-1).all()


@pytest.mark.parametrize("pack", [True, False])
def test_a_batch_without_captions_can_make_the_passes_of_one_with_some(pack):
    nothing = Collator(PAD, load_numbers, pack=pack).no_texts()
    assert nothing["text_input_ids"].tolist() == [[PAD]]
    assert Collator(PAD, load_numbers, lambda texts: texts, pack=pack).no_texts() == {}
