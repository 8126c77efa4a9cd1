"""Retrieval on synthetic clustered vectors: exact search, faiss IVF, memory; the lab's recall.

``python -m benchmarks.retrieval --json`` prints what it measures and, as its last line, ratios of
one run on one machine:

- ``exact_over_gemm``: time of exact search on the index on disk, over that of the matrix products
  of the same queries and vectors in memory;
- ``ivf_speedup``: time of exact search over that of faiss IVF;
- ``ivf_recall_at_10``: share of the ten nearest that IVF finds.

``python -m benchmarks.retrieval --lab`` prints how often the lab's encoder finds the caption of a
picture.

The vectors lie near a space of 32 dimensions, as embeddings do, in clusters of 250 that overlap
(noise of 0.7 in each of the 32, where centres have 1), and have a noise of length 0.3 in all 512.
Queries are drawn likewise and are none of them.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.measure import apart
from tgalign.evaluate.statistics import wilson
from tgalign.files import sha256, write_json
from tgalign.retrieval import approximate
from tgalign.retrieval.build import SHARD_ROWS, add_faiss, write_vectors
from tgalign.retrieval.embed import LAB, Embedder, Identity
from tgalign.retrieval.exact import search
from tgalign.retrieval.index import Index, pyarrow_module, texts_path, vectors_path
from tgalign.retrieval.manifest import MANIFEST, Corpus, Manifest, Shard

# Shape legend: K clusters, N vectors, Q queries, L latent dimensions, D channels.

DIMENSION = 512
QUERIES = 512
PER_CLUSTER, LATENT, SPREAD, NOISE = 250, 32, 0.7, 0.3
ROUNDS = 3
LAB_PICTURES, LAB_CORPUS = 1_000, 4_000


def clustered(count: int, size: int, seed: str) -> Tensor:
    """Unit vectors (count, D) of the clusters of a corpus of ``size``, which no seed changes."""
    clusters = max(1, size // PER_CLUSTER)
    center_KL, basis_LD = (
        _normal((clusters, LATENT), "centres"),
        _normal((LATENT, DIMENSION), "all"),
    )
    which_N = torch.randint(clusters, (count,), generator=_generator(f"{seed}-which"))
    latent_NL = center_KL[which_N] + SPREAD * _normal((count, LATENT), f"{seed}-latent")
    vectors_ND = normalize(latent_NL, dim=1) @ normalize(basis_LD, dim=1)
    vectors_ND += NOISE / DIMENSION**0.5 * _normal((count, DIMENSION), seed)
    return normalize(vectors_ND, dim=1)


def _generator(seed: str) -> torch.Generator:
    return torch.Generator().manual_seed(random.Random(seed).getrandbits(32))


def _normal(shape: tuple[int, int], seed: str) -> Tensor:
    return torch.randn(shape, generator=_generator(seed))


def write_index(folder: Path, size: int) -> None:
    """Write an index of synthetic vectors, shard by shard, as ``retrieve build`` does."""
    pyarrow = pyarrow_module()
    shards: list[Shard] = []
    for start in range(0, size, SHARD_ROWS):
        number, rows = len(shards), min(SHARD_ROWS, size - start)
        write_vectors(vectors_path(folder, number), clustered(rows, size, f"shard {number}"))
        columns = {
            "text": [f"text {row}" for row in range(start, start + rows)],
            "toxic": [False] * rows,
            "line": list(range(start + 1, start + rows + 1)),
        }
        pyarrow.parquet.write_table(pyarrow.table(columns), texts_path(folder, number))
        digests = [sha256(path(folder, number)) for path in (vectors_path, texts_path)]
        shards.append(Shard(rows=rows, vectors_sha256=digests[0], texts_sha256=digests[1]))
    manifest = Manifest(
        format=1,
        encoder=Identity(path="none", kind="text", model_type="synthetic", revision="none"),
        dimension=DIMENSION,
        normalised=True,
        count=size,
        shards=shards,
        corpus=Corpus(file="none", sha256="none", kept=size, skipped=0, faults=[]),
        toxic=None,
        toxic_share=None,
        shard_rows=SHARD_ROWS,
        faiss=None,
    )
    write_json(folder / MANIFEST, manifest.model_dump())


def stream(folder: Path, size: int, threads: int) -> tuple[float, float]:
    """Write an index, open it with its checksums and search it; how the peak of memory grows."""
    torch.set_num_threads(threads)
    search(torch.zeros(1, DIMENSION), [torch.zeros(1, DIMENSION)], 1)  # what torch takes anyway
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
    write_index(folder, size)
    written = _memory("VmHWM")
    query_QD = clustered(QUERIES, size, "queries")
    index = Index.open(folder)
    index.side(index.search_exactly(query_QD, 10))
    return written - before, _memory("VmHWM") - before


def _memory(name: str) -> float:
    """MiB of this process by the kernel's books: VmRSS now, VmHWM at most (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def seconds(*works: Callable[[], object]) -> list[float]:
    """The shortest time of each work, over rounds in which all take turns."""
    best = [float("inf")] * len(works)
    for _ in range(ROUNDS):
        for number, work in enumerate(works):
            start = time.perf_counter()
            work()
            best[number] = min(best[number], time.perf_counter() - start)
    return best


def measure(folder: Path, size: int) -> dict[str, float]:
    """Time exact search against the plain matrix products, then IVF against exact search."""
    index = Index.open(folder, verify=False)
    query_QD = clustered(QUERIES, size, "queries")
    blocks = [block_ND.clone() for block_ND in index.blocks()]

    def gemm() -> None:
        for block_ND in blocks:
            query_QD @ block_ND.T

    gemm_s, exact_s = seconds(gemm, lambda: index.search_exactly(query_QD, 10))
    blocks.clear()
    wanted_QK = index.search_exactly(query_QD, 10)
    print(f"matrix products {gemm_s:.2f} s, exact search {exact_s:.2f} s for {QUERIES} queries")
    start = time.perf_counter()
    add_faiss(folder, "ivf")
    index = Index.open(folder, verify=False)
    said = index.manifest.faiss
    assert said is not None
    print(f"{said.factory} built in {time.perf_counter() - start:.0f} s, nprobe {said.effort}")
    index.search(query_QD[:1], 10)  # reads the file
    ivf_s, beside_s = seconds(
        lambda: index.search(query_QD, 10), lambda: index.search_exactly(query_QD, 10)
    )
    print(f"IVF {ivf_s:.3f} s, exact search {beside_s:.2f} s")
    return {
        "exact_over_gemm": exact_s / gemm_s,
        "ivf_speedup": beside_s / ivf_s,
        "ivf_recall_at_10": approximate.recall_at(index.search(query_QD, 10), wanted_QK),
    }


def lab_recall() -> str:
    """How often the lab's encoder finds a new picture's own caption first, among others."""
    from tgalign.lab.language import scene_caption, things_named
    from tgalign.lab.objects import picture_pool
    from tgalign.lab.pictures import draw, sample_scene

    rng, pool = random.Random("recall"), picture_pool("all", "emoji")
    scenes = [sample_scene([*pool.benign, *pool.toxic], rng) for _ in range(LAB_CORPUS)]
    captions = [scene_caption(scene, rng) for scene in scenes]
    embedder = Embedder.load(LAB)
    pictures = [draw(scene, rng) for scene in scenes[:LAB_PICTURES]]
    best_Q = search(embedder.pictures(pictures), [embedder.texts(captions)], 1)[1][:, 0]
    found = list(zip([captions[row] for row in best_Q.tolist()], captions, strict=False))
    right = sum(text == caption for text, caption in found)
    named = sum(things_named(text) == things_named(caption) for text, caption in found)
    return (
        f"lab, {LAB_CORPUS:,} captions: recall@1 of the own caption {wilson(right, len(found))}, "
        f"of one that names the same things {wilson(named, len(found))}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--size", type=int, default=1_000_000, help="vectors")
    parser.add_argument("--threads", type=int, default=1, help="of torch and faiss")
    parser.add_argument("--json", action="store_true", help="ratios as the last line")
    parser.add_argument("--lab", action="store_true", help="only the recall of the lab's encoder")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.lab:
        print(lab_recall())
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        written, searched = apart(stream, folder, given.size, given.threads)
        print(
            f"{given.size:,} × {DIMENSION} ({4 * given.size * DIMENSION / 2**20:,.0f} MiB): memory "
            f"grows by {written:,.0f} MiB at most to write them, {searched:,.0f} MiB to search"
        )
        ratios = measure(folder, given.size)
    for key, value in ratios.items():
        print(f"{key}: {value:.3f}")
    if given.json:
        print(json.dumps(ratios))


if __name__ == "__main__":
    main()
