"""The order of a stage's rows: whole passes, similar lengths together, the same for one seed."""

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from tgalign.data.order import CHUNK, row_order


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=70),
    steps=st.integers(1, 60),
    rows_per_step=st.integers(1, 16),
    seed=st.integers(0, 9),
)
def test_every_row_comes_equally_often_whatever_the_sizes(lengths, steps, rows_per_step, seed):
    order = row_order(lengths, steps=steps, rows_per_step=rows_per_step, seed=seed)
    assert len(order) == steps * rows_per_step
    assert order == row_order(lengths, steps=steps, rows_per_step=rows_per_step, seed=seed)
    seen = Counter(order)
    often = [seen[row] for row in range(len(lengths))]
    assert max(often) - min(often) <= 2  # at the end of a pass some rows wait for the next


def test_a_pass_holds_every_row_once_within_its_chunk():
    lengths = [random.Random(1).randint(10, 60) for _ in range(CHUNK * 4)]
    order = row_order(lengths, steps=3 * CHUNK, rows_per_step=4, seed=0)
    for start in range(0, len(order), len(lengths)):
        assert sorted(order[start : start + len(lengths)]) == list(range(len(lengths)))
    assert order[: len(lengths)] != order[len(lengths) : 2 * len(lengths)]


def test_little_of_a_step_is_padding_and_steps_are_not_sorted():
    rng = random.Random(2)
    lengths = [rng.randint(20, 60) for _ in range(4000)]

    def padded(order):
        steps = [order[i : i + 16] for i in range(0, len(order), 16)]
        return sum(max(lengths[row] for row in step) * len(step) for step in steps)

    order = row_order(lengths, steps=250, rows_per_step=16, seed=0)
    plain = rng.sample(range(4000), 4000)
    assert padded(order) < 1.06 * sum(lengths) < padded(plain)
    firsts = [lengths[order[i]] for i in range(0, len(order), 16)][:CHUNK]
    assert firsts != sorted(firsts)


def test_another_seed_gives_another_order():
    orders = {tuple(row_order([5] * 50, steps=5, rows_per_step=10, seed=seed)) for seed in range(5)}
    assert len(orders) == 5
