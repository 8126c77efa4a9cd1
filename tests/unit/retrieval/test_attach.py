"""R attached to records: the nearest text that is not the caption, and every row accounted for.

Shape suffixes: Q queries, N texts, D channels.
"""

import json
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import BertConfig, BertModel

from tgalign.data.records import read_records
from tgalign.errors import UserError
from tgalign.files import write_jsonl
from tgalign.retrieval import attach as module
from tgalign.retrieval import attached_rows
from tgalign.retrieval.attach import attach
from tgalign.retrieval.build import build_index
from tgalign.retrieval.exact import retrieve
from tgalign.retrieval.nearest import Found, Rules, nearest, shuffle
from tgalign.retrieval.query import query
from tgalign.retrieval.tally import summary


@pytest.fixture
def run(records, built, tmp_path):
    """A function that attaches R and gives the rows with a picture and what was said."""

    def attach_it(*, rules=None, records=records, index=built.folder, name="out", **options):
        out = tmp_path / f"{name}.jsonl"
        options = {"shard_rows": 5, "progress_bar": False, **options}
        said = attach(records, out, index=index, rules=rules, **options)
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        return [row for row in rows if "image" in row], said

    return attach_it


def by_hand(built, embedded, texts, **options):
    _, query_QD, caption_QD = embedded
    return retrieve(query_QD, caption_QD, torch.cat(list(built.blocks())), texts, **options)


@pytest.mark.parametrize("k", [1, 3, 500])
def test_r_is_what_search_over_everything_gives(k, run, built, embedded, texts):
    rows, said = run(rules=Rules(k=k))
    for row, wanted in zip(rows, by_hand(built, embedded, texts, k=k), strict=True):
        assert [it["id"] for it in row["retrieved"]] == [it.id for it in wanted]
        assert [it["text"] for it in row["retrieved"]] == [it.text for it in wanted]
        assert [it["score"] for it in row["retrieved"]] == pytest.approx(
            [it.score for it in wanted], abs=1e-5
        )
        assert row["caption"] not in [it["text"] for it in row["retrieved"]]
    assert said["retrieved"] == len(rows)
    assert said["rows"] == len(rows) + 1
    assert said["no_image"] == 1
    best = [row["retrieved"][0]["score"] for row in rows]
    assert said["mean_similarity"] == pytest.approx(sum(best) / len(best))


def test_rows_keep_what_they_have_and_are_records_that_training_reads(run, records, tmp_path):
    before = [json.loads(line) for line in records.read_text().splitlines()]
    before[0]["retrieved"] = [{"text": "an old one"}]
    old = records.with_name("old.jsonl")
    old.write_text("".join(json.dumps(row) + "\n\n" for row in before))
    run(records=old)
    after = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for row, was in zip(after, before, strict=True):
        assert {**row, "retrieved": 0} == {**was, "retrieved": 0} or "retrieved" not in row
        assert ("retrieved" in row) == ("image" in row)
    assert after[0]["retrieved"][0]["text"] != "an old one"
    found, problems = read_records(tmp_path / "out.jsonl", records.parent)
    assert not problems
    assert [record.retrieved for record in found] == [
        row["retrieved"][0]["text"] if "image" in row else None for row in after
    ]


@pytest.mark.parametrize("near_duplicate", [0.95, 0.7])
def test_texts_as_near_to_the_caption_are_left_out(near_duplicate, run, built, embedded):
    caption_QD = embedded[2]
    rows, _ = run(rules=Rules(k=200, near_duplicate=near_duplicate))
    vectors_ND = torch.cat(list(built.blocks()))
    for row, caption_D in zip(rows, caption_QD, strict=True):
        allowed = (vectors_ND @ caption_D < near_duplicate).nonzero().flatten().tolist()
        ids = [it["id"] for it in row["retrieved"]]
        assert set(ids) <= set(allowed)
        assert len(ids) == min(200, len(allowed))


def test_many_copies_of_the_caption_do_not_hide_what_is_left(records, tmp_path):
    caption = json.loads(records.read_text().splitlines()[0])["caption"]
    (tmp_path / "corpus.txt").write_text(f"{caption}\n" * 300 + "a tree on a red background .\n")
    index = build_index(tmp_path / "corpus.txt", tmp_path / "index", progress_bar=False)
    attach(records, tmp_path / "out.jsonl", index=index.folder, progress_bar=False)
    first = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    assert [it["id"] for it in first["retrieved"]] == [300]
    # And if nothing is left, that is counted.
    (tmp_path / "only.txt").write_text(f"{caption}\n" * 300)
    index = build_index(tmp_path / "only.txt", tmp_path / "only", progress_bar=False)
    said = attach(records, tmp_path / "none.jsonl", index=index.folder, progress_bar=False)
    first = json.loads((tmp_path / "none.jsonl").read_text().splitlines()[0])
    assert first["retrieved"] == []
    assert said["nothing_left"] == 1
    assert any("nothing is left but the caption" in line for line in summary(said))


def test_below_the_floor_r_is_empty_and_counted(run, built, embedded, texts):
    best = sorted(row[0].score for row in by_hand(built, embedded, texts))
    floor = (best[3] + best[4]) / 2
    rows, said = run(rules=Rules(k=5, floor=floor))
    assert said["below_floor"] == sum(row["retrieved"] == [] for row in rows) == 4
    assert said["retrieved"] == len(rows) - 4
    assert all(it["score"] >= floor for row in rows for it in row["retrieved"])
    assert any("nothing reaches the floor" in line for line in summary(said))


def test_rank_begins_with_a_later_text(run, built, embedded, texts):
    rows, _ = run(rules=Rules(k=2, rank=30))
    for row, wanted in zip(rows, by_hand(built, embedded, texts, k=31), strict=True):
        assert [it["id"] for it in row["retrieved"]] == [it.id for it in wanted[29:]]


def test_r_does_not_depend_on_how_many_rows_are_in_memory(run, monkeypatch):
    whole = run(rules=Rules(k=3))
    monkeypatch.setattr("tgalign.retrieval.nearest._CELLS", 1)
    assert run(rules=Rules(k=3), name="one") == whole


def test_random_texts_are_never_the_caption_and_have_their_true_score(run, built, embedded):
    rows, said = run(rules=Rules(k=2, random=True))
    vectors_ND = torch.cat(list(built.blocks()))
    for row, query_D in zip(rows, embedded[1], strict=True):
        for it in row["retrieved"]:
            assert it["text"] != row["caption"]
            assert it["score"] == pytest.approx(float(query_D @ vectors_ND[it["id"]]), abs=1e-5)
    again, _ = run(rules=Rules(k=2, random=True), name="again", shard_rows=3)
    other, _ = run(rules=Rules(k=2, random=True, seed=1), name="other")
    assert again == rows != other
    _, nearest_said = run(name="nearest")
    assert said["mean_similarity"] < nearest_said["mean_similarity"] - 0.2


@given(share=st.floats(0, 1), seed=st.integers(0, 99), missing=st.sets(st.integers(0, 10)))
@settings(deadline=None, max_examples=25)
def test_shuffling_hands_r_round_among_a_share_of_the_rows(share, seed, missing, built, embedded):
    _, query_QD, caption_QD = embedded
    rules = Rules(k=2)
    plain = nearest(built, query_QD, caption_QD, range(len(query_QD)), rules)
    plain = [Found([], True) if n in missing else it for n, it in enumerate(plain)]
    after = shuffle(built, query_QD, caption_QD, plain, rules, share, random.Random(seed))
    ids = [sorted(text.id for text in it.texts) for it in plain]
    given = [sorted(text.id for text in it.texts) for it in after]
    moved = [n for n, (a, b) in enumerate(zip(plain, after, strict=True)) if a != b]
    wanted = round(share * sum(map(bool, ids)))
    assert len(moved) == (wanted if wanted > 1 else 0)
    assert not missing & set(moved)
    vectors_ND = torch.cat(list(built.blocks()))
    for n in moved:
        assert any(set(given[n]) <= set(ids[other]) for other in moved if other != n)
        for text in after[n].texts:
            assert text.score == pytest.approx(float(query_QD[n] @ vectors_ND[text.id]), abs=1e-5)
            assert float(caption_QD[n] @ vectors_ND[text.id]) < rules.near_duplicate


def test_shuffled_rows_are_less_similar_to_their_r(run):
    plain, plain_said = run()
    rows, said = run(shuffled=1.0, name="shuffled")
    assert all(a["retrieved"] != b["retrieved"] for a, b in zip(plain, rows, strict=True))
    given = {it["id"] for row in plain for it in row["retrieved"]}
    assert {it["id"] for row in rows for it in row["retrieved"]} <= given
    assert said["mean_similarity"] < plain_said["mean_similarity"] - 0.2
    with pytest.raises(UserError, match="share of shuffled R 2"):
        run(shuffled=2, name="more")


@pytest.mark.parametrize(
    "rules", [{"k": 0}, {"rank": 0}, {"k": 4_000, "rank": 200}, {"floor": 1.5}]
)
def test_rules_out_of_range_are_named(rules):
    with pytest.raises(UserError, match="expected"):
        Rules(**rules)


def test_faulty_rows_are_left_out_counted_and_named(run, records, tmp_path):
    folder = tmp_path / "bad"
    folder.mkdir()
    Image.new("RGB", (72, 72)).save(folder / "good.png")
    (folder / "broken.png").write_bytes((folder / "good.png").read_bytes()[:60])
    (folder / "text.png").write_text("no picture")
    bad = {
        '{"image": "broken.png", "caption": "a"}': "broken.png cannot be read",
        '{"image": "text.png", "caption": "a"}': "is no picture that PIL can read",
        '{"image": "none.png", "caption": "a"}': "does not exist",
        '{"image": "../bad/../../x.png", "caption": "a"}': "leads outside the image root",
        '{"image": "good.png", "captoin": "a"}': "unknown key(s) captoin",
        '{"image": "good.png", "caption": "\\ud800"}': "what is no character (not UTF-8)",
        "{": "not valid JSON",
    }
    long = json.dumps({"image": "good.png", "caption": "a dog " * 20_000})
    good = ['{"image": "good.png"}', long]
    path = folder / "records.jsonl"
    path.write_text("\n".join([good[0], *bad, good[1]]))
    rows, said = run(records=path, shard_rows=3)
    assert [row["image"] for row in rows] == ["good.png"] * 2
    assert all(row["retrieved"] for row in rows)
    assert said["rows"] == len(bad) + 2
    assert said["left_out"] == len(bad)
    for number, (fault, reason) in enumerate(zip(said["faults"], bad.values(), strict=True)):
        assert fault.startswith(f"records.jsonl:{number + 2}: ")
        assert reason in fault
    lines = summary(said, shown=2)
    assert lines[-1] == "… and 5 more in the report"
    assert json.loads((tmp_path / "out.jsonl.report.json").read_text()) == said


@pytest.fixture
def five(tmp_path):
    """A records file of five rows with pictures, two a shard, and a function that takes some away.

    The function gives those back that it took before.
    """
    folder = tmp_path / "five"
    folder.mkdir()
    path = folder / "records.jsonl"
    rows = [{"image": f"{n}.png", "caption": f"a {n}"} for n in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def lack(*numbers):
        for n in range(5):
            if n in numbers:
                (folder / f"{n}.png").unlink()
            else:
                Image.new("RGB", (72, 72), (40 * n, 0, 0)).save(folder / f"{n}.png")

    lack()
    return path, lack


def test_pictures_that_are_back_are_used_by_the_same_command(run, five):
    path, lack = five
    whole, said = run(records=path, shard_rows=2, name="whole")
    assert said["left_out"] == 0
    lack(0, 1, 2, 3, 4)
    with pytest.raises(UserError, match="none of 5 lines can be used"):
        run(records=path, shard_rows=2)
    with pytest.raises(UserError, match="none of 5 lines can be used"):
        run(records=path, shard_rows=2)
    lack()
    lack(3)
    assert run(records=path, shard_rows=2)[1]["left_out"] == 1
    assert run(records=path, shard_rows=2)[1]["left_out"] == 1
    lack()
    assert run(records=path, shard_rows=2) == (whole, said)


def test_only_shards_with_a_picture_that_is_back_are_done_again(run, five, monkeypatch):
    path, lack = five
    lack(0, 3)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_gather", lambda *args: pytest.fail("stopped"))
        with pytest.raises(pytest.fail.Exception):
            run(records=path, shard_rows=2)
    lack()
    lack(0)
    asked = []

    def count(*args):
        asked.append(list(args[3]))
        return nearest(*args)

    monkeypatch.setattr(attached_rows, "nearest", count)
    assert run(records=path, shard_rows=2)[1]["left_out"] == 1
    assert asked == [[3, 4]]


def test_a_json_array_of_one_object_a_line_is_refused(run, records, tmp_path):
    lines = records.read_text().splitlines()
    path = records.with_name("array.jsonl")
    for begin in ("[\n", "\ufeff  ["):
        path.write_text(begin + ",\n".join(lines) + "\n]\n", encoding="utf-8")
        with pytest.raises(UserError, match=r"array\.jsonl is a JSON array: .* jq -c"):
            run(records=path, name="x")
    assert not (tmp_path / "x.jsonl").exists()


def test_a_byte_order_mark_costs_no_row(run, records, built):
    rows, _ = run()
    marked = records.with_name("marked.jsonl")
    marked.write_bytes(b"\xef\xbb\xbf" + records.read_bytes())
    found, said = run(records=marked, name="marked")
    assert (found, said["left_out"]) == (rows, 0)


def test_an_interrupted_call_goes_on_after_its_last_shard(run, records, tmp_path, monkeypatch):
    whole, said = run(name="whole")
    written = []

    def stop(path, rows):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(path.name)
        write_jsonl(path, rows)

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_jsonl", stop)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert not (tmp_path / "out.jsonl").exists()
    asked = []

    def count(*args):
        asked.append(len(args[1]))
        return nearest(*args)

    monkeypatch.setattr(attached_rows, "nearest", count)
    assert run() == (whole, said)
    assert sum(asked) == len(whole) - 4  # the first shard has a text-only row among its five
    asked.clear()
    (tmp_path / "out.jsonl.shards.incomplete").mkdir()  # as a kill just before the end leaves it
    assert run() == (whole, said)
    assert asked == []
    kept = {f"{name}.jsonl{end}" for name in ("out", "whole") for end in ("", ".report.json")}
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_what_stands_in_the_way_is_named(run, records, built, tmp_path):
    run()
    with pytest.raises(UserError, match="was made of something else"):
        run(rules=Rules(k=2))
    (tmp_path / "other.jsonl").write_text("mine")
    with pytest.raises(UserError, match="was made of something else"):
        run(name="other")
    assert (tmp_path / "other.jsonl").read_text() == "mine"
    with pytest.raises(UserError, match="is the file of the records itself"):
        attach(records, records, index=built.folder)
    with pytest.raises(UserError, match="no records at"):
        run(records=tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="no image root at"):
        run(image_root=tmp_path / "none", name="x")
    (tmp_path / "array.json").write_text('[\n {"image": "a.png"}\n]\n')
    with pytest.raises(UserError, match=r"array\.json is a JSON array: .* jq -c"):
        run(records=tmp_path / "array.json", name="x")
    assert not (tmp_path / "x.jsonl").exists()
    for content in ("", "\n\n"):
        (tmp_path / "empty.jsonl").write_text(content)
        with pytest.raises(UserError, match="holds no record"):
            run(records=tmp_path / "empty.jsonl", name="x")


def test_toxic_r_is_counted(records, corpus, tmp_path):
    rows = [json.loads(line) for line in records.read_text().splitlines()]
    captions = [row["caption"] for row in rows if "image" in row]
    (tmp_path / "plain.txt").write_text("fog\nmud\n")
    toxic = [caption.replace(" on ", " near a gun on ") for caption in captions]
    (tmp_path / "toxic.txt").write_text("".join(f"{text}\n" for text in toxic))
    index = build_index(
        tmp_path / "plain.txt", tmp_path / "i", toxic=tmp_path / "toxic.txt", progress_bar=False
    )
    said = attach(
        records, tmp_path / "o.jsonl", index=index.folder, progress_bar=False,
        rules=Rules(near_duplicate=1.0),
    )  # fmt: skip
    written = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    found = [row["retrieved"][0]["text"] for row in written if row.get("retrieved")]
    assert said["toxic"] == sum(text in toxic for text in found) > 0


@pytest.fixture(scope="module")
def text_encoder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=40,
    )  # fmt: skip
    model = BertModel(config)
    model.embeddings.word_embeddings.weight.data.mul_(50)  # else all texts would be alike
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_text_encoder_goes_by_captions_and_opens_no_picture(
    text_encoder, corpus, records, tmp_path, run
):
    index = build_index(
        corpus, tmp_path / "index", encoder=text_encoder, shard_rows=100, progress_bar=False
    )
    assert index.manifest.encoder.kind == "text"
    rows = [json.loads(line) for line in records.read_text().splitlines()]
    rows[0] = {"image": rows[0]["image"]}
    rows[1]["image"] = "missing.png"
    path = records.with_name("some.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, said = run(records=path, index=index.folder)
    assert found[0]["retrieved"] == []
    assert said["no_caption"] == 1
    assert said["left_out"] == 0
    assert all(len(row["retrieved"]) == 1 for row in found[1:])
    assert all(row["retrieved"][0]["score"] < 0.95 for row in found[1:])
    assert all(row["retrieved"][0]["text"] != row["caption"] for row in found[1:])
    with pytest.raises(UserError, match=r"is a text model .* and embeds no picture"):
        query(index.folder, [records.parent / "0.png"])
