"""Approximate search with faiss: which kind of index for how many texts, and how wide to search.

faiss and torch each bring an OpenMP runtime of their own (libgomp); faiss is kept to the number of
threads that torch uses, so that the two do not fight for cores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tgalign.errors import UserError
from tgalign.files import file_at_once, sha256
from tgalign.retrieval.exact import search

# Shape legend: N texts, Q queries, K neighbours, D channels.

Chosen = Literal["flat", "hnsw", "ivf", "ivfpq"]
Kind = Literal["auto"] | Chosen

FLAT_UNTIL, HNSW_UNTIL = 20_000, 100_000
"""Texts up to which each kind is chosen."""

MEMORY_LIMIT = 4 * 2**30
"""Bytes of vectors in half precision that are kept in memory; more are compressed."""

TARGET_RECALL = 0.95
_LINKS = 32
_ITERATIONS = 10
_POINTS_PER_LIST = 40
_CENTROIDS = 256
"""Of each piece of a compressed vector, which has a byte."""
_POINTS_PER_CENTROID = 40
_SAMPLE = 256
_GAIN = 0.005
"""Recall that searching twice as wide must add."""


def faiss_module() -> Any:
    """The faiss package, kept to as many threads as torch uses.

    Raises:
        UserError: It is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise UserError(
            "faiss is not installed: pip install 'tgalign[retrieval]', or use --backend exact"
        ) from None
    faiss.omp_set_num_threads(torch.get_num_threads())
    return faiss


def choose(count: int, dimension: int, kind: Kind = "auto") -> tuple[Chosen, str, str]:
    """Choose an index for so many texts.

    Args:
        count: Texts N.
        dimension: Channels D.
        kind: The kind, or ``auto``: by the number of texts.

    Returns:
        The kind, as ``faiss.index_factory`` takes it, and why.

    Raises:
        UserError: Vectors that cannot be cut into pieces for ``ivfpq``.
    """
    half = 2 * count * dimension
    size = f"{count:,} texts of {dimension} channels ({half / 2**30:.2f} GiB in half precision)"
    reason = f"{size}: asked for"
    if kind == "auto":
        if count <= FLAT_UNTIL:
            kind, reason = "flat", f"{size}: so few are searched one by one"
        elif count <= HNSW_UNTIL:
            kind, reason = "hnsw", f"{size}: a graph finds most and needs no training"
        elif half <= MEMORY_LIMIT:
            kind, reason = "ivf", f"{size}: fits in memory, in lists by cluster"
        else:
            kind, reason = "ivfpq", f"{size}: too much for memory, so compressed, in lists"
    lists = max(1, min(round(4 * math.sqrt(count)), count // _POINTS_PER_LIST))
    if kind == "ivfpq":
        if dimension % 2 or count < _CENTROIDS:
            raise UserError(
                f"{size}: ivfpq needs a dimension that is even and {_CENTROIDS} texts or more"
            )
        # Two channels a byte keep the ten nearest among the candidates, which are scored again.
        return kind, f"IVF{lists},PQ{dimension // 2}", reason
    named = {"flat": "Flat", "hnsw": f"HNSW{_LINKS}", "ivf": f"IVF{lists},SQfp16"}
    return kind, named[kind], reason


def build(
    factory: str, count: int, blocks: Callable[[], Iterable[Tensor]], dimension: int
) -> tuple[Any, int, float]:
    """Train and fill an index, and widen its search until it finds ``TARGET_RECALL``.

    Args:
        factory: As of ``choose``.
        count: Texts N.
        blocks: Gives their vectors (N, D) shard by shard, as often as it is called.
        dimension: Channels D.

    Returns:
        The index, its effort, and the recall@10 it reaches on texts of the corpus as queries
        (themselves left out).
    """
    faiss = faiss_module()
    index = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
    lists = index.nlist if factory.startswith("IVF") else 0
    if lists:
        index.cp.niter = _ITERATIONS
        if "PQ" in factory:
            index.do_polysemous_training = False  # minutes, for a search we do not do
        points = max(_POINTS_PER_LIST * lists, _POINTS_PER_CENTROID * _CENTROIDS)
        index.train(_spread(blocks(), count, points).numpy())
    for block_ND in blocks():
        index.add(block_ND.numpy())
    query_QD = _spread(blocks(), count, _SAMPLE)
    wanted_QK = search(query_QD, blocks(), 11)[1][:, 1:]
    widest = lists or 1024
    effort = 0 if factory == "Flat" else 1 if lists else 16
    before = -1.0
    while True:
        set_effort(index, effort)
        recall = recall_at(torch.from_numpy(index.search(query_QD.numpy(), 11)[1]), wanted_QK)
        # Compressed vectors lose neighbours that no wider search brings back.
        if recall >= TARGET_RECALL or effort in (0, widest) or recall < before + _GAIN:
            return index, effort, recall
        before, effort = recall, min(2 * effort, widest)


def recall_at(found_QK: Tensor, wanted_QK: Tensor) -> float:
    """Share of the wanted rows that were found."""
    hits_QK = (wanted_QK.unsqueeze(2) == found_QK.unsqueeze(1)).any(dim=2)
    return hits_QK.float().mean().item() if hits_QK.numel() else 1.0


def set_effort(index: Any, effort: int) -> None:
    """Set ``nprobe`` of an IVF index or ``efSearch`` of an HNSW one; a flat one has neither."""
    faiss = faiss_module()
    if effort:
        name = "nprobe" if hasattr(faiss.downcast_index(index), "nprobe") else "efSearch"
        faiss.ParameterSpace().set_index_parameter(index, name, effort)


def write(index: Any, path: Path) -> str:
    """Write an index beside ``path`` and rename it; returns its checksum."""
    with file_at_once(path) as beside:
        faiss_module().write_index(index, str(beside))
    return sha256(path)


def read(path: Path, *, count: int, dimension: int, effort: int) -> Any:
    """Read an index.

    Raises:
        UserError: It is damaged, or of other vectors than these.
    """
    try:
        index = faiss_module().read_index(str(path))
    except RuntimeError as fault:
        raise UserError(f"{path} is damaged ({fault}): build the index again") from None
    if (index.ntotal, index.d) != (count, dimension):
        raise UserError(
            f"{path} has {index.ntotal} vectors of {index.d} channels, and the manifest says "
            f"{count} of {dimension}: build the index again"
        )
    set_effort(index, effort)
    return index


def _spread(blocks: Iterable[Tensor], count: int, wanted: int) -> Tensor:
    """About ``wanted`` vectors, evenly spread over all ``count``."""
    step, start, parts = max(1, count // wanted), 0, []
    for block_ND in blocks:
        parts.append(block_ND[-start % step :: step].clone())
        start += len(block_ND)
    return torch.cat(parts)
