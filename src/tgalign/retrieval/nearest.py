"""The rules that make R useful: never the caption or its like, nothing below a floor, rank by rank.

An index proposes rows for each picture, more than are wanted; their vectors are scored exactly, so
that an approximate index only chooses among which texts; what a rule forbids is left out.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tgalign.errors import UserError
from tgalign.retrieval.exact import NEAR_DUPLICATE, Retrieved
from tgalign.retrieval.index import Index

# Shape legend: Q pictures, F proposed rows, D channels.

_SPARE = 16
"""Rows proposed beyond those wanted, to make up for near-duplicates."""

_MOST = 4_096
"""Rows proposed at most: a caption with so many near-duplicates gets what is left."""

_CELLS = 2**24
"""Vector components of proposed rows in memory at a time (64 MiB)."""


@dataclass(frozen=True)
class Rules:
    """Which texts of an index are R.

    Attributes:
        k: How many.
        rank: The first of them is the one of this rank, from 1; above 1 for ablations.
        random: Random texts instead of the nearest, for ablations.
        floor: A text less similar than this is none.
        near_duplicate: A text whose embedding is at least this close to the caption's counts as
            the caption.
        seed: Of random texts.
    """

    k: int = 1
    rank: int = 1
    random: bool = False
    floor: float = -1.0
    near_duplicate: float = NEAR_DUPLICATE
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            UserError: Naming what is out of range.
        """
        most = _MOST - _SPARE
        if self.k < 1 or self.rank < 1 or self.k + self.rank - 1 > most:
            raise UserError(
                f"k {self.k} and rank {self.rank}: expected both from 1, and their sum to {most}"
            )
        if not -1 <= self.floor <= 1 or not -1 <= self.near_duplicate <= 1:
            raise UserError(
                f"floor {self.floor} and near-duplicate {self.near_duplicate} are cosines: "
                "expected numbers from -1 to 1"
            )


@dataclass(frozen=True)
class Found:
    """What one picture gets.

    Attributes:
        texts: R, best first; empty if nothing passes the rules.
        below_floor: Whether the floor alone keeps it empty.
    """

    texts: list[Retrieved]
    below_floor: bool


def nearest(
    index: Index, query_QD: Tensor, caption_QD: Tensor, numbers: Sequence[int], rules: Rules
) -> list[Found]:
    """R for every picture.

    Args:
        index: Where from.
        query_QD: Unit embeddings of the pictures.
        caption_QD: Those of their captions; zeros where there is none.
        numbers: A number for each picture, which seeds its random texts.
        rules: Which texts.
    """
    wanted = rules.k + rules.rank - 1
    kept: list[list[tuple[int, float]]] = [[] for _ in query_QD]
    left, width = list(range(len(query_QD))), wanted + _SPARE
    while left:
        width = min(width, index.manifest.count)
        if rules.random:
            rows_QF = _random_rows(index, [numbers[q] for q in left], width, rules.seed)
        else:
            rows_QF = index.search(query_QD[left], width)
        size = max(1, _CELLS // (width * index.manifest.dimension))
        for part, part_QF in zip(_parts(left, size), rows_QF.split(size), strict=True):
            allowed = _allowed(index, part_QF, query_QD[part], caption_QD[part], rules)
            for q, row in zip(part, allowed, strict=True):
                kept[q] = row
        if width in (index.manifest.count, _MOST):
            break
        left = [q for q in left if len(kept[q]) < wanted]
        width = min(8 * width, _MOST)
    return _found(index, [row[rules.rank - 1 : wanted] for row in kept], rules)


def shuffle(
    index: Index,
    query_QD: Tensor,
    caption_QD: Tensor,
    found: Sequence[Found],
    rules: Rules,
    share: float,
    rng: random.Random,
) -> list[Found]:
    """Give a share of the pictures the R of another one of them; for ablations.

    Args:
        index: Where R is from.
        query_QD: As of ``nearest``.
        caption_QD: As of ``nearest``.
        found: What each picture got; those that got nothing take no part.
        rules: They hold of what a picture is given, too.
        share: Share of the others.
        rng: Chooses them, and the order in which R is handed round.
    """
    places = [place for place, it in enumerate(found) if it.texts]
    chosen = rng.sample(places, round(share * len(places)))
    if len(chosen) < 2:
        return list(found)
    given = [[text.id for text in found[place].texts] for place in chosen[1:] + chosen[:1]]
    rows_QF = torch.full((len(given), max(map(len, given))), -1)
    for place, ids in enumerate(given):
        rows_QF[place, : len(ids)] = torch.tensor(ids)
    allowed = _allowed(index, rows_QF, query_QD[chosen], caption_QD[chosen], rules)
    shuffled = list(found)
    for place, it in zip(chosen, _found(index, allowed, rules), strict=True):
        shuffled[place] = it
    return shuffled


def _found(index: Index, rows: Sequence[list[tuple[int, float]]], rules: Rules) -> list[Found]:
    """The texts of rows that are allowed, without those below the floor."""
    side = index.side(torch.tensor([id_ for row in rows for id_, _ in row], dtype=torch.long))
    found = []
    for row in rows:
        texts = [
            Retrieved(side[id_][0], round(score, 6), id_)
            for id_, score in row
            if score >= rules.floor
        ]
        found.append(Found(texts, below_floor=bool(row) and not texts))
    return found


def _allowed(
    index: Index, rows_QF: Tensor, query_QD: Tensor, caption_QD: Tensor, rules: Rules
) -> list[list[tuple[int, float]]]:
    """By picture the proposed rows that are not like its caption, with their exact scores."""
    vectors_QFD = index.vectors(rows_QF)
    score_QF = torch.einsum("qd,qfd->qf", query_QD, vectors_QFD)
    like_QF = torch.einsum("qd,qfd->qf", caption_QD, vectors_QFD)
    captioned_Q1 = caption_QD.any(dim=1, keepdim=True)
    good_QF = (rows_QF >= 0) & ~((like_QF >= rules.near_duplicate) & captioned_Q1)
    allowed = []
    for rows, scores, good in zip(
        rows_QF.tolist(), score_QF.tolist(), good_QF.tolist(), strict=True
    ):
        pairs = [(r, s) for r, s, fine in zip(rows, scores, good, strict=True) if fine]
        if not rules.random:
            pairs.sort(key=lambda pair: -pair[1])
        allowed.append(pairs)
    return allowed


def _parts(queries: list[int], size: int) -> list[list[int]]:
    return [queries[start : start + size] for start in range(0, len(queries), size)]


def _random_rows(index: Index, numbers: Sequence[int], width: int, seed: int) -> Tensor:
    rows = []
    for number in numbers:
        drawn = random.Random(f"random-{seed}-{number}")
        rows.append(drawn.sample(range(index.manifest.count), width))
    return torch.tensor(rows)
