"""``tgalign retrieve``: from a corpus to records with R through the real command line."""

import json

import pytest


def test_a_corpus_becomes_an_index_that_is_asked_and_attached(
    tgalign, corpus, texts, records, tmp_path
):
    toxic = tmp_path / "toxic.txt"
    toxic.write_text("".join(f"a beer mug and {n} things .\n" for n in range(30)) + "\n")
    index = tmp_path / "index"
    status, said, _ = tgalign(
        "retrieve", "build", corpus, "--out", index, "--toxic", toxic, "--toxic-share", "0.05",
        "--shard-rows", "100", "--backend", "faiss",
    )  # fmt: skip
    assert status == 0
    assert f"corpus.jsonl: {len(texts):,} texts, 0 lines skipped" in said
    assert "toxic.txt: 12 texts" in said
    assert f"{len(texts) + 12:,} vectors of 128 channels by clip (image-text)" in said
    assert "faiss Flat" in said
    assert "so few are searched one by one; recall@10" in said

    picture = records.parent / "0.png"
    status, said, _ = tgalign("retrieve", "query", index, picture, picture, "--k", "2")
    assert status == 0
    lines = said.splitlines()
    assert len(lines) == 6
    assert lines[0] == lines[3] == str(picture)
    status, said, _ = tgalign("retrieve", "query", index, picture, "--k", "2", "--json")
    row = json.loads(said)
    assert row["image"] == str(picture)
    for text, line in zip(row["retrieved"], lines[1:3], strict=True):
        assert line.split(maxsplit=2) == [f"{text['score']:.3f}", str(text["id"]), text["text"]]

    out = tmp_path / "with_r.jsonl"
    arguments = ["retrieve", "attach", records, "--index", index, "--out", out, "--k", "2"]
    status, said, progress = tgalign(*arguments)
    assert status == 0
    assert "attaching R to 1 shard(s) of records" in progress
    assert said.splitlines()[0].split() == ["12", "rows"]
    assert "11 with R" in said
    assert "1 text only" in said
    assert said.splitlines()[-1] == str(out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    for row in rows:
        for text in row.get("retrieved", []):
            assert set(text) == {"text", "score", "id"}
            assert text["text"] != row["caption"]
    assert tgalign(*arguments)[1] == said

    knobs = ["--rank", "5", "--shuffled", "0.5", "--floor", "0.1", "--near-duplicate", "0.9"]
    status, _, _ = tgalign(*arguments[:-2], "--random", "--seed", "1", *knobs)
    assert status == 2  # the file is there and was made of something else
    out.unlink()
    status, _, _ = tgalign(*arguments[:-2], "--random", "--seed", "1", *knobs)
    assert status == 0
    report = json.loads((tmp_path / "with_r.jsonl.report.json").read_text())
    assert report["settings"]["rules"] == {
        "k": 1, "rank": 5, "random": True, "floor": 0.1, "near_duplicate": 0.9, "seed": 1,
    }  # fmt: skip
    assert report["settings"]["shuffled"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "none.txt", "--out", "index"], "no corpus at none.txt"),
        (["build", "none.txt", "--out", "index", "--encoder", "none"], "no encoder at none"),
        (["build", "x", "--out", "i", "--backend", "other"], "not one of 'exact'"),
        (["build", "x", "--out", "i", "--kind", "ivf"], "give --backend faiss too"),
        (["build", "x", "--out", "i", "--engine", "spark"], "not one of 'local'"),
        (["query", "none", "picture.png"], "no index at none"),
        (["attach", "none.jsonl", "--index", "none", "--out", "o"], "no records at none.jsonl"),
        (["attach", "x", "--index", "i", "--out", "o", "--floor", "2"], "floor 2.0"),
    ],
)
def test_mistakes_are_named_and_end_with_status_2(
    arguments, message, tgalign, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    status, _, said = tgalign("retrieve", *arguments)
    assert status == 2
    assert message in " ".join(said.split())
    assert list(tmp_path.iterdir()) == []
