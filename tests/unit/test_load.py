"""What a run trains on: bad rows are left out exactly, named and kept, or the data is refused."""

import json
import os
import shutil

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from tgalign.config import TrainConfig
from tgalign.data import records as reading
from tgalign.data.encode import Encoder
from tgalign.data.load import SKIPPED, UNPACKED, TrainingData
from tgalign.data.spool import Lazy, spool_encoded, spool_records
from tgalign.errors import UserError
from tgalign.text_gate import Verdicts
from tgalign.train import train

STAGES = [
    {"name": "one", "train": ["projector"], "steps": 2, "batch_size": 4, "projector_lr": 1e-3},
    {
        "name": "two",
        "train": ["projector", "llm"],
        "steps": 2,
        "batch_size": 4,
        "projector_lr": 1e-3,
        "llm_lr": 1e-4,
        "retrieved_in_prompt": 1.0,
    },
]


@pytest.fixture
def data(rows, tmp_path):
    """A function that writes the rows, and others after them, beside copies of the pictures."""

    def write(*more):
        folder = tmp_path / "data"
        if not folder.exists():
            shutil.copytree(rows.path.parent, folder)
        lines = [json.dumps(row) for row in (*rows.data, *more)]
        (folder / "records.jsonl").write_text("\n".join(lines))
        return folder / "records.jsonl"

    return write


@pytest.fixture
def config(checkpoint, tmp_path):
    def make(records, out="out", **changes):
        settings = {"model": checkpoint, "records": records, "out": tmp_path / out}
        return TrainConfig.model_validate(
            settings | {"stages": STAGES, "max_length": 200} | changes
        )

    return make


def weights(checkpoint):
    return load_file(checkpoint / "model.safetensors")


BAD = [{"image": "none.png", "caption": "a cat ."}, {"image": "00.png"}]


def test_bad_rows_are_left_out_exactly_counted_and_named(data, config, caplog, rows):
    good = train(config(data(), "good"), progress_bar=False)
    with caplog.at_level("WARNING"):
        past = train(config(data(*BAD), max_bad_share=0.1), progress_bar=False)
    for name, weight in weights(good).items():
        assert torch.equal(weight, weights(past)[name]), name
    total = len(rows.data) + 2
    kept = json.loads((past.parent / SKIPPED).read_text())
    assert kept["rows"] == total
    row = len(rows.data) + 1
    assert [it["row"] for it in kept["bad"]] == [row]
    assert "none.png does not exist" in kept["bad"][0]["reason"]
    for stage in ("one", "two"):  # the other has a picture, but no caption and no answer
        assert [it["row"] for it in kept["bad_by_stage"][stage]] == [row + 1]
    assert f"all stages: bad and left out: 1 of {total} rows" in caplog.text
    assert f"stage two: bad and left out: 1 of {total} rows" in caplog.text
    assert f"records.jsonl:{row}: " in caplog.text
    assert f"records.jsonl:{row + 1}: no token to learn" in caplog.text


@pytest.mark.parametrize("share", [0.0, 0.01, 1 / 27])
def test_more_bad_rows_than_allowed_are_refused(share, data, config):
    with pytest.raises(UserError) as caught:
        train(config(data(*BAD), max_bad_share=share), progress_bar=False)
    said = str(caught.value)
    count = 2 if share > 0.01 else 1  # the second turns up later, when it is encoded
    assert said.startswith(f"{count} bad row(s) of 27, more than max_bad_share {share:g} allows")
    assert "records.jsonl:26: image" in said
    assert not (config(data()).out / SKIPPED).exists()


def test_no_row_left_is_refused(data, config, tmp_path):
    path = tmp_path / "data" / "records.jsonl"
    data()
    path.write_text("{\n{")
    with pytest.raises(
        UserError, match="stage one trains the projector alone, on pictures, and has no row"
    ):
        train(config(path, max_bad_share=1.0), progress_bar=False)


def test_a_run_that_goes_on_leaves_out_the_same_rows_and_opens_no_picture(
    data, config, rows, monkeypatch
):
    made = config(data(*BAD), max_bad_share=0.1)
    options = {"out": made.out, "max_bad_share": 0.1, "progress_bar": False}
    root = made.records.parent
    began = TrainingData(made.records, root, **options)
    made.out.mkdir()
    began.write(made.out)
    (root / "none.png").write_bytes((root / rows.data[0].get("image", "00.png")).read_bytes())
    monkeypatch.setattr(reading, "read_picture", lambda _: pytest.fail("opened"))
    again = TrainingData(made.records, root, **options)
    assert list(again.records) == list(began.records)
    again.write(made.out)
    assert json.loads((made.out / SKIPPED).read_text())["bad"][0]["row"] == 26
    for changed in ([], [*BAD, rows.data[0]], [BAD[0], "no row"]):
        with pytest.raises(UserError, match="has changed since the run at"):
            TrainingData(data(*changed), root, **options)


def test_a_run_that_goes_on_notices_rows_of_another_content(data, config, rows, tmp_path):
    made = config(data(*BAD), max_bad_share=0.1)
    options = {"out": made.out, "max_bad_share": 0.1, "progress_bar": False}
    root = made.records.parent
    made.out.mkdir()
    TrainingData(made.records, root, **options).write(made.out)
    written = made.records.read_text()
    for old, new in ((rows.data[0], rows.data[1]), ({"image": "00.png"}, {"image": "01.png"})):
        made.records.write_text(written.replace(json.dumps(old), json.dumps(new)))
        assert made.records.read_text() != written
        with pytest.raises(UserError, match="has changed since the run at"):
            TrainingData(made.records, root, **options)
    kept = json.loads((made.out / SKIPPED).read_text())
    assert len(kept.pop("sha256")) == 64
    old = tmp_path / "old"
    old.mkdir()
    (old / SKIPPED).write_text(json.dumps(kept))  # of a version that kept none
    assert len(TrainingData(made.records, root, **options | {"out": old}).records)
    made.records.write_text(written)
    moved = tmp_path / "moved"
    shutil.copytree(root, moved)
    again = TrainingData(moved / made.records.name, moved, **options)
    assert len(again.records) == len(rows.data) + 1


@pytest.mark.parametrize("content", ["{}", "[]", '{"rows": 1, "bad": [{"row": 1}]}', "{"])
def test_a_damaged_list_of_what_was_left_out_is_named(content, data, config):
    made = config(data())
    made.out.mkdir()
    (made.out / SKIPPED).write_text(content)
    with pytest.raises(UserError, match=r"skipped\.json is damaged .*remove it"):
        TrainingData(
            made.records, made.records.parent, out=made.out, max_bad_share=0, progress_bar=False
        )


def test_pictures_in_rows_are_unpacked_for_the_run_and_removed_after_it(
    config, rows, tmp_path, checkpoint
):
    datasets = pytest.importorskip("datasets")
    pictured = [row for row in rows.data if "image" in row and "caption" in row][:6]
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    datasets.Dataset.from_dict(
        {
            "image": [
                {"bytes": (rows.path.parent / row["image"]).read_bytes(), "path": None}
                for row in pictured
            ],
            "caption": [row["caption"] for row in pictured],
        },
        features=features,
    ).to_parquet(str(tmp_path / "data.parquet"))
    path = rows.path.parent / "pictured.jsonl"
    lines = [json.dumps({key: row[key] for key in ("image", "caption")}) for row in pictured]
    path.write_text("\n".join(lines))
    stages = STAGES[:1]
    ours = train(config(path, "ours", stages=stages), progress_bar=False)
    theirs = train(config(tmp_path / "data.parquet", "theirs", stages=stages), progress_bar=False)
    path.unlink()
    for name, weight in weights(ours).items():
        assert torch.equal(weight, weights(theirs)[name]), name
    assert not (theirs.parent / UNPACKED).exists()
    before = weights(checkpoint)
    assert any(not torch.equal(it, before[name]) for name, it in weights(theirs).items())


def test_spooled_rows_are_what_was_spooled(rows, encode):
    encoded = encode(rows.records, 0.5)
    read = encode(rows.records, 0.5, guide_span="question")
    assert any(row.question for row in read)
    for spool, items in (
        (spool_records, rows.records), (spool_encoded, encoded), (spool_encoded, read),
    ):  # fmt: skip
        spooled = spool(iter(items))
        assert len(spooled) == len(items)
        assert list(spooled) == items
        assert spooled[-1] == items[-1]
        assert spooled[3:6] == items[3:6]
        with pytest.raises(IndexError):
            spooled[len(items)]
        assert len(spool([])) == 0


def test_what_is_lazy_is_made_when_asked_for():
    asked = []
    numbers = Lazy(10, lambda number: asked.append(number) or number * number)
    assert (len(numbers), asked) == (10, [])
    assert (numbers[3], numbers[-1], asked) == (9, 81, [3, 9])


def test_encoding_names_the_stage_s_rows_and_counts_them(data, config, rows, tokenizer):
    made = config(data())
    loaded = TrainingData(
        made.records, made.records.parent, out=made.out, max_bad_share=1.0, progress_bar=False
    )
    lengths = [
        len(it.input_ids) for it in loaded.encode(encoder(tokenizer, 200), loaded.records, "a")
    ]
    limit = sorted(lengths)[10]
    kept = loaded.encode(encoder(tokenizer, limit), loaded.records, "b")
    longest = [max(len(it.input_ids), limit) for it in kept]
    assert longest == [limit] * len(kept)
    made.out.mkdir()
    loaded.write(made.out)
    bad = json.loads((made.out / SKIPPED).read_text())["bad_by_stage"]
    assert bad["a"] == []
    assert len(bad["b"]) + len(kept) == len(rows.records)


def encoder(tokenizer, max_length):
    return Encoder(tokenizer, 9, max_length=max_length, retrieved_in_prompt=0.0)


def test_a_refused_row_that_is_bad_is_no_companion(data, config, rows, monkeypatch):
    picture = next(row["image"] for row in rows.data if "image" in row)
    path = data({"image": picture, "caption": "a cat " * 150})
    captioned = next(it.row for it in rows.records if it.image and it.caption)
    verdicts = Verdicts([captioned, len(rows.data) + 1], [])
    monkeypatch.setattr("tgalign.train.verdicts_of", lambda *_: verdicts)
    changes = {"text_gate": True, "companions": 0.5, "max_bad_share": 0.1, "stages": STAGES[:1]}
    out = train(config(path, **changes), progress_bar=False).parent
    left_out = json.loads((out / SKIPPED).read_text())
    (problem,) = left_out["bad"]
    assert (problem["row"], left_out["bad_by_stage"]) == (len(rows.data) + 1, {"one": []})
    assert "more than the limit" in problem["reason"]


def test_a_row_that_cannot_be_encoded_is_left_out_before_the_gate_asks(
    data, config, rows, monkeypatch
):
    picture = next(row["image"] for row in rows.data if "image" in row)
    row, question = len(rows.data) + 1, {"role": "user", "content": "what ?"}
    told = {"role": "assistant", "content": "a cat " * 150}
    path = data(
        {"image": picture, "caption": "a cat " * 150},
        {"image": picture, "caption": "a cat .", "messages": [question, told]},
    )
    asked = []

    def ask(out, records, *_):
        asked.extend(it.row for it in records)
        return Verdicts([row + 1], [])

    monkeypatch.setattr("tgalign.train.verdicts_of", ask)
    changes = {"text_gate": True, "stages": STAGES[:1]}
    with pytest.raises(UserError, match=rf"records.jsonl:{row}: .*more than the limit"):
        train(config(path, **changes), progress_bar=False)
    assert asked == []
    settings = config(path, max_bad_share=0.1, **changes)
    left_out = settings.out / SKIPPED
    train(settings, progress_bar=False)
    said = json.loads(left_out.read_text())
    # The other's answer is too long, but the gate drops it.
    assert [it["row"] for it in said["bad"]] == [row]
    assert said["bad_by_stage"] == {"one": []}
    assert asked == [*range(1, row), row + 1]
    shutil.rmtree(settings.out / "checkpoint")
    train(settings, progress_bar=False)  # goes on with the same rows
    assert json.loads(left_out.read_text()) == said


def test_a_stage_may_not_be_called_as_the_folder_of_the_result(data, config):
    stage = STAGES[0] | {"name": "checkpoint"}
    with pytest.raises(ValueError, match="no stage may be called checkpoint"):
        config(data(), stages=[stage])


def test_a_folder_without_a_checkpoint_is_no_trained_run(data, config):
    settings = config(data(), stages=STAGES[:1])
    path = train(settings, progress_bar=False)
    shutil.rmtree(path)
    path.mkdir()
    assert (train(settings, progress_bar=False) / "config.json").is_file()


def test_what_the_data_as_a_whole_lacks_is_said_once(data, config, rows, caplog):
    path = data()
    captioned = [row for row in rows.data if "image" in row and "caption" in row]
    bare = [{key: row[key] for key in ("image", "caption")} for row in captioned[:4]]
    bare.append(bare[0] | {"caption": "a zyzzy ."})
    path.write_text("\n".join(map(json.dumps, bare)))
    settings = config(path, stages=STAGES[1:])
    train(settings, progress_bar=False)
    for said in ("no row has a retrieved text R", "no row is text alone"):
        assert caplog.text.count(said) == 1
    assert "stage two: in 1 rows a word that is learnt, averaged or read by what is" in caplog.text
    assert "finished already" not in caplog.text
    caplog.clear()
    train(settings, progress_bar=False)
    assert "finished already" in caplog.text
    assert "was not trained on as it is now" not in caplog.text
    later = path.stat().st_mtime + 3_600
    os.utime(path, (later, later))
    train(settings, progress_bar=False)
    assert f"{path} was written after it, and was not trained on as it is now" in caplog.text
    caplog.clear()
    train(config(data(), "whole", stages=STAGES[1:]), progress_bar=False)
    assert not caplog.records


def test_runs_with_one_folder_for_texts_ask_the_gate_once(
    config, rows, monkeypatch, tmp_path, capsys
):
    asked = []

    def refuse(model, processor, captions, questions, *, title):
        asked.append(len(captions))
        return ["i can not talk about this ."] * len(captions)

    monkeypatch.setattr("tgalign.text_gate.answers", refuse)
    changes = {"text_gate": True, "stages": STAGES[:1], "cache_text": str(tmp_path / "kept")}
    verdicts = []
    for name in ("one", "two"):
        out = train(config(rows.path, name, **changes), progress_bar=False).parent
        verdicts.append(json.loads((out / "text_gate.json").read_text()))
        assert f"{out / 'text_gate.json'}\n" in capsys.readouterr().err  # bars or not
    assert len(asked) == 1
    assert verdicts[0] == verdicts[1]
    assert verdicts[0]["rows"] == [it.row for it in rows.records if it.image and it.caption]


def test_a_run_killed_in_the_gate_goes_on_with_a_folder_for_texts_in_its_own(
    config, rows, monkeypatch, tmp_path
):
    def killed(*_, **__):
        raise SystemExit(143)

    def answered(model, processor, captions, questions, *, title):
        return ["a dog ."] * len(captions)

    texts = {"cache_text": str(tmp_path / "run" / "for" / "texts")}
    settings = config(rows.path, "run", text_gate=True, stages=STAGES[:1], **texts)
    assert settings.out == tmp_path / "run"
    monkeypatch.setattr("tgalign.text_gate.answers", killed)
    with pytest.raises(SystemExit):
        train(settings, progress_bar=False)
    assert list((settings.out / "for/texts").iterdir())
    monkeypatch.setattr("tgalign.text_gate.answers", answered)
    assert (train(settings, progress_bar=False) / "config.json").is_file()


def test_the_folder_for_texts_is_not_the_run_s(config, rows, tmp_path):
    unpacked = f"{UNPACKED} in out"
    for folder, said in (("", "out"), ("checkpoint", "checkpoint in out"), ("one", "one in out"),
                         (f"{UNPACKED}/a", unpacked)):  # fmt: skip
        with pytest.raises(ValidationError, match=f"cache_text is {said}: name another folder"):
            config(rows.path, "run", cache_text=str(tmp_path / "elsewhere/../run" / folder))
    config(rows.path, "run", cache_text=str(tmp_path / "run/texts"))
