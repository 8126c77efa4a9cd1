"""`tgalign caption`: what gets a caption, what is left out and named, and runs that are killed."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_models import TEXT_SIZES, new_tokenizer
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    LlavaForConditionalGeneration,
)

from tgalign.caption import Captioned, caption
from tgalign.captioner import Captioner
from tgalign.data.records import read_records
from tgalign.errors import UserError
from tgalign.evaluate.generate import Prompt, Said, answer

NEW = 6
KILLED = Path(__file__).parent / "killed_captions.py"


def draw(path, seed):
    rng = random.Random(seed)
    picture = Image.new("RGB", (72, 72), tuple(rng.choices(range(256), k=3)))
    corner = (rng.randrange(40), rng.randrange(40))
    picture.paste(tuple(rng.choices(range(256), k=3)), (*corner, corner[0] + 30, corner[1] + 30))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return picture


@pytest.fixture
def folder(tmp_path):
    """Nine pictures in two folders, beside other files."""
    path = tmp_path / "pictures"
    for number in range(9):
        draw(path / ("deep/er" if number % 2 else "") / f"{number}.png", number)
    (path / "notes.txt").write_text("no picture")
    return path


@pytest.fixture
def captioner(checkpoint):
    return Captioner(checkpoint, None, batch_size=4, max_new_tokens=NEW, dtype="auto")


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(source, checkpoint, out, **options):
    defaults = {"batch_size": 4, "max_new_tokens": NEW, "progress_bar": False}
    return caption(source, checkpoint, out, **(defaults | options))


def test_a_folder_becomes_records(folder, checkpoint, tmp_path, tgalign, composed):
    out = tmp_path / "made" / "records.jsonl"
    small = ("--batch-size", 4, "--max-new-tokens", NEW)
    status, said, drawn = tgalign("caption", folder, "--model", checkpoint, "--out", out, *small)
    assert status == 0
    assert f"{out}: 9 captioned, 0 as they were" in said
    assert "captions" in drawn and "100%" in drawn
    records, problems = read_records(out, folder)
    assert not problems
    names = [record.image.relative_to(folder).as_posix() for record in records]
    assert names == sorted(names) and len(names) == 9
    # What the model says of each picture alone, asked the question of the paper.
    prompts = [Prompt("Describe this image.", Image.open(record.image)) for record in records]
    alone = [answer(*composed, [prompt], max_new_tokens=NEW)[0] for prompt in prompts]
    assert [record.caption for record in records] == alone
    assert len(set(alone)) > 2
    assert [path.name for path in out.parent.iterdir()] == ["records.jsonl"]


def test_records_keep_what_they_have(rows, checkpoint, tmp_path):
    out = tmp_path / "out.jsonl"
    done = run(rows.path, checkpoint, out)
    wanting = [row for row in rows.data if "image" in row and "caption" not in row]
    assert done == Captioned(len(wanting), len(rows.data) - len(wanting), [])
    assert len(wanting) == 3
    for before, after in zip(rows.data, lines_of(out), strict=True):
        assert after == (before | {"caption": after["caption"]} if before in wanting else before)
    records, problems = read_records(out, rows.path.parent)
    assert not problems
    assert all(record.caption for record in records if record.image)


def test_other_shapes_of_rows_become_records(checkpoint, tmp_path):
    for number in range(3):
        draw(tmp_path / f"{number}.png", number)
    talk = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A thing."}]
    rows = [{"id": f"r{number}", "image": f"{number}.png"} for number in range(3)]
    llava = [row | {"conversations": talk} for row in rows] + [{"conversations": talk[1:] * 2}]
    (tmp_path / "llava.json").write_text(json.dumps(llava))
    done = run(tmp_path / "llava.json", checkpoint, tmp_path / "out.jsonl")
    assert (done.captioned, done.kept, [it.row for it in done.problems]) == (3, 0, [4])
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A thing."}]
    found = lines_of(tmp_path / "out.jsonl")
    said = [row.pop("caption") for row in found]
    assert found == [row | {"messages": turns} for row in rows] and all(said)
    records, problems = read_records(tmp_path / "out.jsonl", tmp_path)
    assert len(records) == 3 and not problems
    # A table in the folder of its pictures.
    (tmp_path / "table.csv").write_text("file_name,text,split\n0.png,has one,x\n1.png,,x\n")
    assert run(tmp_path, checkpoint, tmp_path / "table.jsonl") == Captioned(1, 1, [])
    assert [row["caption"] for row in lines_of(tmp_path / "table.jsonl")] == ["has one", said[1]]


def test_a_picture_of_several_rows_is_captioned_once(checkpoint, tmp_path, monkeypatch):
    draw(tmp_path / "a.png", 1)
    row = {"image": "a.png", "id": 7, "retrieved": [{"text": "x", "score": 0.5}]}
    (tmp_path / "records.jsonl").write_text((json.dumps(row) + "\n") * 3 + "\n")
    asked = []
    call = Captioner.__call__
    monkeypatch.setattr(
        Captioner, "__call__", lambda self, them: asked.extend(them) or call(self, them)
    )
    run(tmp_path / "records.jsonl", checkpoint, tmp_path / "out.jsonl")
    assert len(asked) == 1
    first, *rest = lines_of(tmp_path / "out.jsonl")
    assert rest == [first, first]
    assert first == row | {"caption": first["caption"]}


def test_a_refusal_is_no_caption(checkpoint, tmp_path, monkeypatch):
    said = [
        "a red square .",
        "I'm sorry, but I can't describe this image.",
        "a poster with the text i must decline",
        "I'm sorry, but no.",
        "a meme with the words i cannot help it",
        "Unfortunately, I am unable to help with that.",
    ]
    for number in range(len(said)):
        draw(tmp_path / f"{number}.png", number)
    monkeypatch.setattr(Captioner, "__call__", lambda *_: said)
    out = tmp_path.with_suffix(".jsonl")
    done = run(tmp_path, checkpoint, out, batch_size=len(said))
    assert (done.captioned, done.kept, [it.row for it in done.problems]) == (3, 0, [2, 4, 6])
    assert "reads as a refusal: \"I'm sorry" in done.problems[0].reason
    assert [row["caption"] for row in lines_of(out)] == said[::2]


def test_bad_rows_are_left_out_counted_and_named(folder, checkpoint, tmp_path, tgalign):
    (folder / "0.png").write_bytes(b"no picture")
    data = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(data[: len(data) // 2])
    outside = tmp_path / "outside.png"
    draw(outside, 1)
    (folder / "link.png").symlink_to(outside)
    (folder / "m.png").symlink_to(tmp_path / "gone.png")
    (folder / "no ending").write_bytes(data)
    out = tmp_path / "out.jsonl"
    small = ("--batch-size", 4, "--max-new-tokens", NEW, "--no-progress")
    status, said, fault = tgalign("caption", folder, "--model", checkpoint, "--out", out, *small)
    assert status == 1
    assert "7 captioned" in said and "4 row(s) left out" in fault
    named = lines_of(tmp_path / "out.jsonl.problems.jsonl")
    assert [row["file"] for row in named] == ["pictures"] * 4
    reasons = ("0.png is no picture", "2.png cannot", "outside", "m.png is a link to nothing")
    for row, reason in zip(named, reasons, strict=True):
        assert reason in row["reason"] and row["reason"] in fault
    assert [row["image"] for row in lines_of(out)] == sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*.png")
        if path.name not in ("0.png", "2.png", "link.png", "m.png")
    )
    # The others' captions are those of a run without them, and mended ones are found.
    out.unlink()
    draw(folder / "0.png", 0)
    draw(folder / "2.png", 2)
    (folder / "link.png").unlink()
    (folder / "m.png").unlink()
    assert run(folder, checkpoint, out) == Captioned(9, 0, [])
    assert not (tmp_path / "out.jsonl.problems.jsonl").exists()


def test_bad_records_are_named_by_row(checkpoint, tmp_path):
    draw(tmp_path / "a.png", 1)
    good = {"image": "a.png"}
    rows = [good, {"image": "../b.png"}, {"image": "gone.png"}, {"imgae": "a.png"}]
    text = "".join(json.dumps(row) + "\n" for row in rows) + "{\n" + json.dumps(good) + "\n"
    (tmp_path / "records.jsonl").write_text(text)
    done = run(tmp_path / "records.jsonl", checkpoint, tmp_path / "out.jsonl")
    assert (done.captioned, [problem.row for problem in done.problems]) == (2, [2, 3, 4, 5])
    reasons = ("leads outside", "does not exist", "unknown key", "not valid JSON")
    for problem, reason in zip(done.problems, reasons, strict=True):
        assert reason in str(problem) and str(problem).startswith("records.jsonl:")


def test_where_no_row_can_be_used_nothing_is_written_and_nothing_binds(
    folder, checkpoint, tmp_path, tgalign
):
    path, out = tmp_path / "records.jsonl", tmp_path / "out.jsonl"
    path.write_text("".join(json.dumps({"image": f"{n}.png"}) + "\n" for n in (0, 2, 4)))
    arguments = ("caption", path, "--model", checkpoint, "--out", out, "--max-new-tokens", NEW)
    status, _, fault = tgalign(*arguments)
    assert status == 2
    assert "none of 3 row(s) can be used" in fault and "0.png does not exist" in fault
    assert f"looked for in {tmp_path} (--images)" in fault
    assert {it.name for it in tmp_path.iterdir()} == {"pictures", "records.jsonl"}
    assert tgalign(*arguments, "--images", folder)[0] == 0


def test_a_picture_given_as_records_is_told_as_that(folder, checkpoint, tmp_path):
    with pytest.raises(UserError, match=r"0\.png is a picture: give its folder, or records"):
        run(folder / "0.png", checkpoint, tmp_path / "out.jsonl")


def failing(monkeypatch, fails):
    """Make the model fail on batches; gives the sizes it was asked for."""
    generate, sizes = LlavaForConditionalGeneration.generate, []

    def generate_or_fail(self, **inputs):
        sizes.append(len(inputs["input_ids"]))
        fails(inputs["pixel_values"])
        return generate(self, **inputs)

    monkeypatch.setattr(LlavaForConditionalGeneration, "generate", generate_or_fail)
    return sizes


def test_out_of_memory_halves_the_batch(captioner, tmp_path, monkeypatch):
    pictures = [draw(tmp_path / f"{number}.png", number) for number in range(8)]
    straight = captioner(pictures)

    def memory_for_three(pixels):
        if len(pixels) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    sizes = failing(monkeypatch, memory_for_three)
    assert captioner(pictures) == straight
    assert sizes[:2] == [4, 2]
    assert captioner.batch_size == 2
    del sizes[:]
    assert captioner(pictures) == straight
    assert sizes == [2] * 4  # what did not fit is not tried again


@pytest.mark.parametrize("kind", [IndexError, KeyError])
def test_a_bad_picture_costs_one_failed_batch(kind, captioner, tmp_path, monkeypatch):
    captioner.batch_size = 8
    pictures = [draw(tmp_path / f"{number}.png", number) for number in range(8)]
    straight = captioner(pictures)
    calls = []

    def fail_on_the_batch_and_the_sixth(_):
        calls.append(1)
        if len(calls) in (1, 7):
            raise kind("odd picture")

    sizes = failing(monkeypatch, fail_on_the_batch_and_the_sixth)
    said = captioner(pictures)
    assert sizes == [8] + [1] * 8
    assert said[:5] + said[6:] == straight[:5] + straight[6:]
    assert str(said[5]) == f"the model fails on it: {kind.__name__}: {kind('odd picture')}"
    assert captioner.batch_size == 8


def test_a_chat_template_that_fails_is_told_of_every_picture(captioner, tmp_path):
    captioner.processor.chat_template = "{{ raise_exception('no pictures') }}"
    for it in captioner([draw(tmp_path / f"{number}.png", number) for number in range(2)]):
        assert str(it).startswith("the model fails on it: ") and "no pictures" in str(it)


def test_a_picture_the_model_fails_on_costs_the_others_nothing(
    folder, checkpoint, tmp_path, monkeypatch
):
    run(folder, checkpoint, tmp_path / "straight.jsonl")
    marked = Image.new("RGB", (72, 72))  # black: the only one
    marked.save(folder / "marked.png")

    def never_black(pixels):
        dark = pixels.flatten(1)
        if (dark == dark[:, :1]).all(dim=1).any() or dark.amax(dim=1).min() < 0:
            raise IndexError("odd picture")

    failing(monkeypatch, never_black)
    done = run(folder, checkpoint, tmp_path / "out.jsonl")
    (problem,) = done.problems
    assert "marked.png: the model fails on it: " in problem.reason
    assert problem.reason.endswith("IndexError: odd picture")
    assert lines_of(tmp_path / "out.jsonl") == lines_of(tmp_path / "straight.jsonl")


def test_memory_for_not_even_one_is_a_problem_of_that_picture(captioner, tmp_path, monkeypatch):
    def no_memory(pixels):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    failing(monkeypatch, no_memory)
    (said,) = captioner([draw(tmp_path / "a.png", 1)])
    assert isinstance(said, ValueError) and "out of memory" in str(said)


def test_a_model_that_never_speaks_is_given_up(checkpoint, tmp_path, monkeypatch):
    for number in range(40):
        draw(tmp_path / "pictures" / f"{number}.png", number)

    def mute(self, pictures):
        return [ValueError("the model says nothing of it")] * len(pictures)

    monkeypatch.setattr(Captioner, "__call__", mute)
    with pytest.raises(
        UserError, match="no caption for any of 16 pictures: the model says nothing"
    ):
        run(tmp_path / "pictures", checkpoint, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
    # A few that it says nothing of are their own problem.
    for number in range(12, 40):
        (tmp_path / "pictures" / f"{number}.png").unlink()
    with pytest.raises(UserError, match=r"none of 12 row.s. can be used.*says nothing of it"):
        run(tmp_path / "pictures", checkpoint, tmp_path / "out.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_a_model_that_refuses_all_is_told_as_that_and_its_words_are_kept(
    folder, checkpoint, tmp_path, monkeypatch
):
    refuse = ["I'm sorry, but I cannot help with that."]
    monkeypatch.setattr(Captioner, "__call__", lambda self, pictures: refuse * len(pictures))
    with pytest.raises(UserError, match=r"0\.png: what the model said reads as a ref") as caught:
        run(folder, checkpoint, tmp_path / "out.jsonl")
    assert "--images" not in str(caught.value)
    names = {it.name for it in tmp_path.iterdir() if it.is_file()}
    assert names == {"out.jsonl.progress", "out.jsonl.problems.jsonl"}


def test_a_run_of_an_earlier_version_goes_on(folder, checkpoint, tmp_path):
    out = tmp_path / "out.jsonl"
    begun = {"model": str(checkpoint), "prompt": None, "max_new_tokens": NEW}
    out.with_name("out.jsonl.progress").write_text(json.dumps(begun) + "\n")
    assert run(folder, checkpoint, out).captioned


def test_a_literal_image_token_never_enters_a_record(captioner, tmp_path, monkeypatch):
    said = [Said("a <image> b"), Said(" <image> ")]
    monkeypatch.setattr("tgalign.evaluate.generate._generate", lambda *_: said)
    first, second = captioner([draw(tmp_path / "a.png", 1)] * 2)
    assert first == "a   b"
    assert isinstance(second, ValueError)


def test_killed_runs_go_on_and_end_as_a_straight_one(folder, checkpoint, tmp_path):
    """Killed in a line of the progress, after one, before the output and just after it, in turn."""
    (folder / "bad.png").write_bytes(b"no picture")
    straight, out = tmp_path / "straight.jsonl", tmp_path / "out.jsonl"
    run(folder, checkpoint, straight, batch_size=2)
    arguments = ["caption", folder, "--model", checkpoint, "--out", out, "--batch-size", 2]
    arguments = [str(it) for it in [*arguments, "--max-new-tokens", NEW, "--no-progress"]]
    moments = [("in", 1), ("after", 2), ("in", 2), ("output", 0), ("written", 0), ("", 0)]
    process = subprocess.run(
        [sys.executable, KILLED, *arguments], input=json.dumps(moments),
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    signals = [int(line) for line in process.stdout.split("\n") if line.strip().isdigit()]
    assert signals == [9] * 5 + [0], process.stderr
    assert out.read_bytes() == straight.read_bytes()
    problems = [it.with_name(it.name + ".problems.jsonl").read_bytes() for it in (out, straight)]
    assert problems[0] == problems[1]
    assert not list(tmp_path.glob("*.progress"))


def test_what_is_done_is_not_done_again(folder, checkpoint, tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"
    call, asked = Captioner.__call__, []

    def stop_at_the_third(self, pictures):
        asked.append(len(pictures))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return call(self, pictures)

    monkeypatch.setattr(Captioner, "__call__", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run(folder, checkpoint, out)
    with pytest.raises(UserError, match=r'was begun with .*"prompt": null.*"prompt": "Why\?"'):
        run(folder, checkpoint, out, prompt="Why?")
    with pytest.raises(UserError, match=r'begun with .*"dtype": "auto".*"dtype": "bfloat16"'):
        run(folder, checkpoint, out, dtype="bfloat16")
    assert run(folder, checkpoint, out).captioned == 9
    assert asked == [4, 4, 1, 1]


@pytest.mark.parametrize("line", ["{", "[1]", "5", '{"a.png": 5}'])
def test_damaged_progress_is_named(line, folder, checkpoint, tmp_path):
    settings = {"model": str(checkpoint), "prompt": None, "max_new_tokens": NEW, "dtype": "auto"}
    progress = tmp_path / "out.jsonl.progress"
    progress.write_text(f"{json.dumps(settings)}\n{line}\n")
    with pytest.raises(UserError, match=r"out\.jsonl\.progress is damaged .*: remove it to begin"):
        run(folder, checkpoint, tmp_path / "out.jsonl")
    assert progress.read_text().endswith(f"{line}\n")


def test_misuse_is_named(folder, checkpoint, tmp_path, tgalign):
    def refused(*said, source=folder, model=checkpoint, out="out.jsonl", more=()):
        arguments = ("caption", source, "--model", model, "--out", tmp_path / out, *more)
        status, _, fault = tgalign(*arguments)
        assert status == 2
        assert all(text in fault for text in said), fault

    (tmp_path / "mine.jsonl").write_text("mine")
    refused("mine.jsonl exists", out="mine.jsonl")
    assert (tmp_path / "mine.jsonl").read_text() == "mine"
    refused("no records at", source=tmp_path / "nowhere")
    refused("no image-text-to-text model at", model=tmp_path / "nowhere")
    refused("its own image root", more=("--images", tmp_path))
    (tmp_path / "empty").mkdir()
    refused("no picture in", source=tmp_path / "empty")
    text_only = Path(__file__).parents[2] / "src/tgalign/lab/assets/llm"
    refused("LlamaConfig: is this the folder that was meant", model=text_only)
    assert not (tmp_path / "out.jsonl").exists()


def test_a_model_without_a_chat_template(tmp_path):
    """BLIP: nothing is asked of it by default, and a prompt is the beginning of its caption."""
    tokenizer = new_tokenizer()
    text = TEXT_SIZES | {"vocab_size": len(tokenizer), "encoder_hidden_size": 32}
    text |= {"bos_token_id": 1, "sep_token_id": 2, "eos_token_id": 2, "pad_token_id": 0}
    pictures = {**TEXT_SIZES, "image_size": 32, "patch_size": 16}
    torch.manual_seed(1)
    config = BlipConfig(text_config=text, vision_config=pictures, projection_dim=16)
    model = BlipForConditionalGeneration(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.3)
        model.text_decoder.cls.predictions.bias[:4] = -100.0  # no special token
    model.save_pretrained(tmp_path / "blip")
    square = {"height": 32, "width": 32}
    BlipProcessor(BlipImageProcessor(size=square), tokenizer).save_pretrained(tmp_path / "blip")
    seen = [draw(tmp_path / f"{number}.png", number) for number in range(3)]
    options = {"batch_size": 2, "max_new_tokens": 4, "dtype": "auto"}
    plain = Captioner(tmp_path / "blip", None, **options)(seen)
    asked = Captioner(tmp_path / "blip", "w1 w2 w3", **options)(seen)
    assert all(isinstance(said, str) and said for said in plain + asked)
    assert plain != asked
