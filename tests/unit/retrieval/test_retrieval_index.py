"""The index on disk: what goes in comes out; what was damaged or made otherwise is refused.

Shape suffixes: Q queries, N texts, D channels.
"""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tgalign.errors import UserError
from tgalign.lab.assets import ASSETS, CLIP
from tgalign.retrieval import build as module
from tgalign.retrieval.attach import attach
from tgalign.retrieval.build import build_index, write_vectors
from tgalign.retrieval.index import Index, texts_path, vectors_path
from tgalign.retrieval.query import query


def build(corpus, out, **options):
    return build_index(corpus, out, **{"shard_rows": 64, "progress_bar": False, **options})


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def write_lines(path, *texts):
    path.write_text("".join(f"{text}\n" for text in texts))
    return path


def test_what_goes_in_comes_out(built, texts, lab_encoder):
    said = built.manifest
    assert said.count == len(texts) == sum(shard.rows for shard in said.shards)
    assert [shard.rows for shard in said.shards][:-1] == [64] * (len(said.shards) - 1)
    assert said.dimension == 128
    assert (said.encoder.path, said.encoder.kind) == ("lab", "image-text")
    vectors_ND = torch.cat(list(built.blocks()))
    torch.testing.assert_close(vectors_ND, lab_encoder.texts(texts), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vectors_ND.norm(dim=1), torch.ones(len(texts)))
    rows = torch.tensor([[0, 63, 64], [len(texts) - 1, -1, 64]])
    side = built.side(rows)
    assert {row: text for row, (text, _) in side.items()} == {
        row: texts[row] for row in (0, 63, 64, len(texts) - 1)
    }
    found = built.vectors(rows)
    assert torch.equal(found[1, 1], torch.zeros(128))
    assert torch.equal(found[0, 2], vectors_ND[64])
    assert torch.equal(found[1, 2], vectors_ND[64])


@pytest.mark.parametrize("k", [1, 5, 64, 10_000])
def test_search_over_shards_equals_search_over_all(k, built, embedded):
    query_QD, vectors_ND = embedded[1], torch.cat(list(built.blocks()))
    found = built.search(query_QD, k)
    score_QN = query_QD @ vectors_ND.T
    best = score_QN.sort(dim=1, descending=True).values[:, :k]
    torch.testing.assert_close(score_QN.gather(1, found), best)
    assert all(len(set(row)) == len(row) for row in found.tolist())


def test_a_finished_index_is_kept_and_another_refused(corpus, built, monkeypatch, tmp_path):
    before = content(built.folder)
    monkeypatch.setattr(module, "_encoder", lambda *args: pytest.fail("encoded again"))
    (built.folder / "settings.json").write_text("{}")  # as a kill just before the end leaves it
    assert build(corpus, built.folder).manifest == built.manifest
    assert content(built.folder) == before
    other = write_lines(tmp_path / "corpus.jsonl", '{"text": "a dog"}')
    with pytest.raises(UserError, match=r"an index made otherwise .corpora differ"):
        build(other, built.folder)
    with pytest.raises(UserError, match=r"an index made otherwise .shard_rows differ"):
        build(corpus, built.folder, shard_rows=65)
    (tmp_path / "full").mkdir()
    with pytest.raises(UserError, match="exists and is no index"):
        build(corpus, tmp_path / "full")


def test_an_interrupted_build_goes_on_after_its_last_shard(corpus, built, tmp_path, monkeypatch):
    written = []

    def stop(path, vectors_ND):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.name)
        write_vectors(path, vectors_ND)

    out = tmp_path / "index"
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_vectors", stop)
        with pytest.raises(KeyboardInterrupt):
            build(corpus, out)
    assert not out.exists()
    written.clear()
    monkeypatch.setattr(
        module, "write_vectors", lambda path, v: (written.append(path.name), write_vectors(path, v))
    )
    build(corpus, out)
    assert written == [vectors_path(out, n).name for n in range(2, len(built.manifest.shards))]
    assert content(out) == content(built.folder)
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_an_interrupted_build_of_something_else_is_not_gone_on_with(corpus, tmp_path, monkeypatch):
    out = tmp_path / "index"
    with monkeypatch.context() as patch:
        patch.setattr(module, "_encoder", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build(corpus, out)
    other = write_lines(tmp_path / "other.txt", "a dog .", "a cat .")
    index = build(other, out)
    assert index.manifest.count == 2
    assert sorted(content(out)) == ["manifest.json", "texts-00000.parquet", "vectors-00000.npy"]


def changed_manifest(**changes):
    def change(folder):
        path = folder / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def changed_vectors(change):
    def save(folder):
        path = vectors_path(folder, 1)
        np.save(path, change(np.load(path)))

    return save


def flip(name, at):
    def change(folder):
        path = folder / name
        data = bytearray(path.read_bytes())
        data[at] ^= 1
        path.write_bytes(data)

    return change


def nan(vectors_ND):
    vectors_ND[3, 3] = np.nan
    return vectors_ND


DAMAGE = {
    "a vector changed": (flip("vectors-00001.npy", -1), "is not the file that the manifest names"),
    "a text changed": (flip("texts-00000.parquet", 100), "is not the file that the manifest names"),
    "vectors cut": (
        lambda folder: vectors_path(folder, 1).write_bytes(b"\x93NUMPY"),
        "is not the file that the manifest names",
    ),
    "vectors missing": (lambda folder: vectors_path(folder, 0).unlink(), "is missing"),
    "texts missing": (lambda folder: texts_path(folder, 2).unlink(), "is missing"),
    "NaN": (changed_vectors(nan), "is not the file that the manifest names"),
    "another dimension": (changed_manifest(dimension=127), "and the manifest says"),
    "another count": (changed_manifest(count=7), "the manifest counts 7 texts"),
    "a format to come": (
        changed_manifest(format=2),
        "has schema_version 2, and this tgalign reads schema version 1",
    ),
    "an unknown key": (changed_manifest(secret=1), "manifest.json is damaged .secret"),
    "no JSON": (
        lambda folder: (folder / "manifest.json").write_text("{"),
        "manifest.json is damaged",
    ),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "no index at"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_index_is_refused(name, index_copy, records, tmp_path):
    damage, message = DAMAGE[name]
    damage(index_copy)
    with pytest.raises(UserError, match=message):
        Index.open(index_copy)
    with pytest.raises(UserError, match=message):
        query(index_copy, [records.parent / "0.png"])
    with pytest.raises(UserError, match=message):
        attach(records, tmp_path / "out.jsonl", index=index_copy, progress_bar=False)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v[:, :-1], r"vectors of shape \(64, 127\)"),
        (lambda v: v.astype(np.float64), "holds float64"),
        (lambda v: v[0], r"of shape \(128,\)"),
        (lambda v: np.array([{"a": 1}], dtype=object), "is damaged"),
    ],
)
def test_vectors_of_another_shape_or_kind_are_refused_even_unverified(change, message, index_copy):
    changed_vectors(change)(index_copy)
    with pytest.raises(UserError, match=message):
        Index.open(index_copy, verify=False)


def test_queries_of_another_dimension_or_nan_are_refused(built):
    with pytest.raises(UserError, match="queries of 64 channels"):
        built.search(torch.zeros(1, 64), 1)
    with pytest.raises(UserError, match="NaN or infinite"):
        built.search(torch.full((1, 128), torch.nan), 1)


@pytest.fixture
def other_clip(tmp_path):
    """A function that copies the lab's CLIP with its weights changed."""

    def make(change):
        folder = tmp_path / "clip"
        shutil.copytree(ASSETS / CLIP, folder)
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make


def test_another_encoder_is_refused_and_a_moved_one_is_not(built, other_clip, records, tmp_path):
    picture = [records.parent / "0.png"]
    moved = shutil.copytree(ASSETS / CLIP, tmp_path / "moved")
    assert query(built.folder, picture, encoder=moved) == query(built.folder, picture)

    def change(weights):
        weights["logit_scale"] += 1

    clip = other_clip(change)
    for run in (
        lambda: query(built.folder, picture, encoder=clip),
        lambda: attach(
            records, tmp_path / "o.jsonl", index=built.folder, encoder=clip, progress_bar=False
        ),
    ):
        with pytest.raises(UserError, match="give the encoder that made it"):
            run()
    with pytest.raises(UserError, match="no encoder at"):
        query(built.folder, picture, encoder=tmp_path / "none")


def test_an_encoder_that_gives_nan_is_named_with_the_text(other_clip, tmp_path):
    def damage(weights):
        shape = weights["text_projection.weight"].shape
        weights["text_projection.weight"] = torch.full(shape, 3e38)  # finite, and so it loads

    corpus = write_lines(tmp_path / "corpus.txt", "", "a dog .", "a cat .")
    with pytest.raises(UserError, match=r"NaN or infinity for 2 text\(s\), the first on line 2"):
        build(corpus, tmp_path / "index", encoder=other_clip(damage))
    assert not (tmp_path / "index").exists()


def test_a_picture_that_cannot_be_read_is_named(built, tmp_path):
    picture = tmp_path / "picture.png"
    with pytest.raises(UserError, match="does not exist"):
        query(built.folder, [picture])
    picture.write_text("no picture")
    with pytest.raises(UserError, match="is no picture that PIL can read"):
        query(built.folder, [picture])


def test_a_query_finds_the_text_of_its_picture(built, records, embedded):
    rows, query_QD, _ = embedded
    found = query(built.folder, [records.parent / row["image"] for row in rows], k=4_000)
    assert all(len(texts) == built.manifest.count for texts in found)
    # Likewise by hand.
    scores_QN = query_QD @ torch.cat(list(built.blocks())).T
    assert [texts[0].id for texts in found] == scores_QN.argmax(dim=1).tolist()
    assert sum(texts[0].text == row["caption"] for texts, row in zip(found, rows, strict=True)) > 5


def test_a_corpus_without_a_text_is_refused(tmp_path):
    with pytest.raises(UserError, match="no corpus at"):
        build(tmp_path / "none.txt", tmp_path / "index")
    with pytest.raises(UserError, match="holds no text to retrieve"):
        build(write_lines(tmp_path / "empty.txt"), tmp_path / "index")
    bad = write_lines(tmp_path / "bad.jsonl", "", "{", '{"text": 1}', "[]")
    with pytest.raises(UserError, match="holds no text to retrieve") as fault:
        build(bad, tmp_path / "index")
    assert "bad.jsonl: 1 line(s) skipped, empty (line 1)" in str(fault.value)
    assert '2 line(s) skipped, no "text" or "caption" that is a string (line 3, 4)' in str(
        fault.value
    )
    assert not (tmp_path / "index").exists()


def test_toxic_snippets_are_mixed_in_at_their_share_and_told_apart(corpus, texts, tmp_path):
    toxic = write_lines(tmp_path / "toxic.txt", *(f"a beer mug {n}" for n in range(40)))
    index = build(corpus, tmp_path / "index", toxic=toxic, toxic_share=0.1)
    said = index.manifest
    assert said.toxic is not None
    assert (said.corpus.kept, said.toxic_share) == (len(texts), 0.1)
    assert said.toxic.kept == pytest.approx(0.1 * said.count, abs=1)
    side = index.side(torch.arange(said.count))
    assert [text for text, is_toxic in side.values() if is_toxic] == [
        f"a beer mug {n}" for n in range(said.toxic.kept)
    ]
    assert {is_toxic for text, is_toxic in side.values() if "beer mug" not in text} == {False}
    with pytest.raises(UserError, match=r"too few for a share of 0\.5"):
        build(corpus, tmp_path / "more", toxic=toxic, toxic_share=0.5)
    with pytest.raises(UserError, match="and a toxic corpus"):
        build(corpus, tmp_path / "more", toxic_share=0.5)
    every = build(corpus, tmp_path / "all", toxic=toxic)
    assert every.manifest.count == len(texts) + 40
