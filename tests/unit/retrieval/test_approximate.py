"""faiss beside exact search: the same rows up to its recall, and OpenMP of both in one process.

Shape suffixes: Q queries, N texts, D channels.
"""

import os
import subprocess
import sys

import pytest
import torch
from torch.nn.functional import normalize

pytest.importorskip("faiss", reason="approximate search needs the extra [retrieval]")

from tgalign.errors import UserError
from tgalign.retrieval import approximate
from tgalign.retrieval.approximate import TARGET_RECALL, choose, recall_at
from tgalign.retrieval.attach import attach
from tgalign.retrieval.build import build_index
from tgalign.retrieval.exact import search
from tgalign.retrieval.index import FAISS, Index
from tgalign.retrieval.tally import summary

KINDS = ("flat", "hnsw", "ivf", "ivfpq")


def clustered(count, dimension=16, seed=0):
    """Unit vectors around count // 50 centres, which do not depend on the seed."""
    centers_KD = torch.randn(count // 50, dimension, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    which_N = torch.randint(len(centers_KD), (count,), generator=generator)
    noise_ND = 0.7 * torch.randn(count, dimension, generator=generator)
    return normalize(centers_KD[which_N] + noise_ND, dim=-1)


@pytest.mark.parametrize(
    ("count", "dimension", "kind", "factory"),
    [
        (1, 512, "flat", "Flat"),
        (20_000, 512, "flat", "Flat"),
        (20_001, 512, "hnsw", "HNSW32"),
        (100_001, 512, "ivf", "IVF1265,SQfp16"),
        (1_000_000, 512, "ivf", "IVF4000,SQfp16"),
        (10_000_000, 512, "ivfpq", "IVF12649,PQ256"),
    ],
)
def test_the_kind_goes_by_the_number_of_texts_and_says_why(count, dimension, kind, factory):
    found, named, reason = choose(count, dimension)
    assert (found, named) == (kind, factory)
    assert f"{count:,} texts of {dimension} channels" in reason
    asked = choose(count, dimension, "ivf")
    assert asked[0] == "ivf"
    assert asked[2].endswith("asked for")


def test_what_cannot_be_compressed_is_named():
    assert choose(400, 6, "ivfpq")[1] == "IVF10,PQ3"
    for count, dimension in ((400, 7), (255, 6)):
        with pytest.raises(UserError, match="needs a dimension that is even and 256 texts"):
            choose(count, dimension, "ivfpq")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_finds_the_neighbours_that_it_says_it_finds(kind):
    corpus_ND, query_QD = clustered(3_000), clustered(500, seed=1)
    _, factory, _ = choose(3_000, 16, kind)

    def blocks():
        return corpus_ND.split(700)

    index, effort, recall = approximate.build(factory, 3_000, blocks, 16)
    assert index.ntotal == 3_000
    assert (effort == 0) == (kind == "flat")
    wanted_QK = search(query_QD, blocks(), 10)[1]
    found = recall_at(torch.from_numpy(index.search(query_QD.numpy(), 10)[1]), wanted_QK)
    assert found == pytest.approx(recall, abs=0.08)
    if kind == "ivfpq":
        assert recall > 0.6
    else:
        assert recall >= TARGET_RECALL
    if kind == "flat":
        assert found == 1


def test_recall_counts_wanted_rows_that_were_found():
    wanted = torch.tensor([[1, 2], [3, 4]])
    assert recall_at(torch.tensor([[2, 1], [4, 9]]), wanted) == 0.75
    assert recall_at(torch.tensor([[-1, -1], [-1, -1]]), wanted) == 0
    assert recall_at(torch.zeros(0, 2), torch.zeros(0, 2)) == 1


@pytest.fixture
def with_faiss(index_copy, corpus):
    """A function that adds a faiss index to a copy of the small index."""

    def add(kind):
        return build_index(
            corpus, index_copy, backend="faiss", kind=kind, shard_rows=64, progress_bar=False
        )

    return add


@pytest.mark.parametrize("kind", KINDS[:-1])
def test_records_get_the_same_r_by_faiss(kind, with_faiss, built, records, tmp_path):
    index = with_faiss(kind)
    assert index.manifest.faiss is not None
    assert index.manifest.faiss.kind == kind
    said = {}
    for name, folder in (("exact", built.folder), ("faiss", index.folder)):
        said[name] = attach(records, tmp_path / f"{name}.jsonl", index=folder, progress_bar=False)
    lines = [(tmp_path / f"{name}.jsonl").read_text().splitlines() for name in said]
    same = sum(a == b for a, b in zip(*lines, strict=True))
    # As many rows as its own recall on these pictures lets one expect; scores are exact anyhow.
    assert same >= len(lines[0]) - (0 if kind in ("flat", "hnsw") else 3)
    assert said["exact"]["faiss_recall_at_10"] is None
    assert said["faiss"]["faiss_wanted"] == 10 * said["faiss"]["retrieved"]
    assert said["faiss"]["faiss_recall_at_10"] >= (1 if kind == "flat" else 0.6)
    assert any("recall@10 of faiss on these pictures" in line for line in summary(said["faiss"]))


def test_a_faiss_index_is_added_replaced_and_otherwise_kept(with_faiss, corpus, monkeypatch):
    assert with_faiss("auto").manifest.faiss.kind == "flat"
    monkeypatch.setattr(approximate, "build", lambda *args: pytest.fail("built again"))
    assert with_faiss("flat").manifest.faiss.factory == "Flat"
    monkeypatch.undo()
    assert with_faiss("hnsw").manifest.faiss.effort >= 16


def test_a_damaged_faiss_index_is_refused(with_faiss):
    index = with_faiss("flat")
    path = index.folder / FAISS
    good = path.read_bytes()
    path.write_bytes(good[:-1] + b"\0")
    with pytest.raises(UserError, match=r"index\.faiss is not the file that the manifest names"):
        Index.open(index.folder)
    path.write_bytes(good[:200])
    with pytest.raises(UserError, match=r"index\.faiss is damaged"):
        Index.open(index.folder, verify=False).search(torch.zeros(1, 128), 1)
    other, _, _ = approximate.build("Flat", 5, lambda: [torch.zeros(5, 128)], 128)
    approximate.write(other, path)
    with pytest.raises(UserError, match="has 5 vectors of 128 channels, and the manifest says"):
        Index.open(index.folder, verify=False).search(torch.zeros(1, 128), 1)
    path.unlink()
    with pytest.raises(UserError, match=r"index\.faiss is missing"):
        Index.open(index.folder)


SIDE_BY_SIDE = """
import faiss  # first: its libgomp is the one that is loaded when torch comes
import torch
from tgalign.retrieval.approximate import build, choose
torch.set_num_threads(2)
x = torch.nn.functional.normalize(torch.randn(1_000, 64), dim=1)
for _ in range(2):
    index, _, recall = build(choose(1_000, 64, "ivf")[1], 1_000, lambda: x.split(300), 64)
    torch.nn.Linear(64, 512)(x).relu().sum().backward()
    found = index.search(x.numpy(), 1)[1][:, 0]
assert (torch.from_numpy(found) == torch.arange(1_000)).float().mean() > 0.99
assert torch.get_num_threads() == 2 == faiss.omp_get_max_threads()
print("fine")
"""


def test_torch_and_faiss_share_a_process_with_several_threads():
    done = subprocess.run(
        [sys.executable, "-c", SIDE_BY_SIDE],
        capture_output=True, text=True, timeout=120, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "2"},
    )  # fmt: skip
    assert done.stdout == "fine\n", done.stderr
