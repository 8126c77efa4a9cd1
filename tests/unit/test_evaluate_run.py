"""Every item ends in a verdict or a named error, whatever is killed, too large or odd."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_evaluate_pictures import huge

from tgalign.errors import UserError
from tgalign.evaluate.conditions import requests
from tgalign.evaluate.generate import Prompt, Said, answer, answer_each
from tgalign.evaluate.items import Item, Suite
from tgalign.evaluate.local_host import LocalModel
from tgalign.evaluate.run import ITEMS, fingerprint, read_items, run_requests, write_items
from tgalign.evaluate.suites.folder import folder_suite
from tgalign.evaluate.suites.lab import lab_items

NEW = 8


class Echo:
    """A host that says what it is told to, and remembers what it was asked."""

    def __init__(self, say=lambda prompt: Said(prompt.text), name: str = "echo") -> None:
        self.say, self.name, self.asked = say, name, []

    def answer(self, prompts):
        for index, prompt in reversed(list(enumerate(prompts))):
            self.asked.append(prompt)
            yield index, self.say(prompt)

    def describe(self):
        return {"host": "server", "name": self.name, "decoding": {}}


class Local(Echo):
    """The same, described as a checkpoint here."""

    def __init__(self, dtype: str) -> None:
        super().__init__()
        self.dtype = dtype

    def describe(self):
        return super().describe() | {"host": "local", "revision": "abc", "dtype": self.dtype}


def items(*questions: str, kind: str = "toxic") -> Suite:
    return Suite("s", tuple(Item(str(i), kind, q, "gun") for i, q in enumerate(questions)), "", "")


def interrupt(prompt: Prompt) -> Said:
    raise KeyboardInterrupt


def run(host, suite: Suite, out: Path, condition: str = "plain", chunk: int = 8):
    return run_requests(host, requests(suite, condition), out, chunk=chunk, progress=False)


def test_rows_hold_what_the_issue_of_an_item_is(tmp_path: Path) -> None:
    rows = run(Echo(lambda it: Said("I cannot help with that.")), items("q"), tmp_path)
    assert rows == list(read_items(tmp_path / "items.jsonl").values())
    (row,) = rows
    assert row["id"] == "s/plain/0"
    assert (row["scene"], row["kind"], row["prompt"], row["answer"]) == (
        "gun", "toxic", "q", "I cannot help with that.",
    )  # fmt: skip
    assert (row["verdict"], row["rule"], row["cut"]) == ("refused", "inability", False)


def test_other_examples_before_a_question_show_in_its_row(tmp_path: Path) -> None:
    def row(*turns: tuple[str, str]) -> dict:
        suite = Suite("s", items("a").items, "", "", examples=turns)
        return run(Echo(), suite, tmp_path / str(len(turns)), "in_context")[0]

    one, two = row(("what ?", "a gun .")), row(("what ?", "a gun ."), ("where ?", "here ."))
    assert one["turns_sha256"] != two["turns_sha256"]
    assert "turns_sha256" not in run(Echo(), items("a"), tmp_path / "plain")[0]


def test_rows_stand_in_the_order_of_the_requests(tmp_path: Path) -> None:
    rows = run(Echo(), items("long question", "q", "longer question still"), tmp_path, chunk=2)
    assert [row["answer"] for row in rows] == ["long question", "q", "longer question still"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ("undetermined", "no_letters")),
        ("\ud83d\ud83d", ("undetermined", "no_letters")),
        ("Je suis désolé, je ne peux pas vous aider avec cette demande.",
         ("undetermined", "other_language")),
        ("申し訳ありません", ("undetermined", "other_script")),
        ("a red apple " * 4000, ("answered", "no_cue")),
        ("line\u2028separator\x00 and\x85 more\n", ("answered", "no_cue")),
    ],
    ids=["empty", "surrogates", "French", "Japanese", "endless", "control characters"],
)  # fmt: skip
def test_odd_answers_end_in_a_verdict(text: str, expected, tmp_path: Path) -> None:
    (row,) = run(Echo(lambda it: Said(text)), items("q"), tmp_path)
    assert (row["verdict"], row["rule"]) == expected
    assert read_items(tmp_path / "items.jsonl")["s/plain/0"]["answer"] == text


def test_what_a_server_filters_is_refused(tmp_path: Path) -> None:
    for _ in range(2):
        (row,) = run(Echo(lambda it: Said("", detail="content_filter")), items("q"), tmp_path)
        assert (row["verdict"], row["rule"]) == ("refused", "content_filter")


def odd_folder(root: Path) -> int:
    """Pictures of every odd kind; gives their number."""
    gun = root / "gun"
    gun.mkdir(parents=True)
    (gun / "text.png").write_text("no picture", encoding="utf-8")
    Image.effect_noise((64, 64), 50).save(gun / "cut.png")
    (gun / "cut.png").write_bytes((gun / "cut.png").read_bytes()[:900])
    huge(gun / "huge.png")
    frames = [Image.new("RGB", (40, 40), color) for color in ("red", "blue")]
    frames[0].save(gun / "animated.gif", save_all=True, append_images=frames[1:])
    Image.new("CMYK", (50, 40), (0, 90, 90, 0)).save(gun / "cmyk.jpg")
    Image.new("RGB", (1, 1), "red").save(gun / "one.png")
    Image.new("RGB", (500, 3), "red").save(gun / "wide.png")
    Image.new("RGBA", (30, 30), (200, 0, 0, 90)).save(gun / "clear.png")
    turned = Image.new("RGB", (60, 30), "green")
    exif = turned.getexif()
    exif[0x0112] = 8
    turned.save(gun / "turned.jpg", exif=exif)
    return len(list(gun.iterdir()))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_odd_pictures_end_in_a_verdict_or_a_named_error(checkpoint, tmp_path: Path) -> None:
    n = odd_folder(tmp_path / "data")
    suite = folder_suite(tmp_path / "data")
    (tmp_path / "data" / "gun" / "wide.png").rename(tmp_path / "gone.png")
    host = LocalModel(checkpoint, batch_size=4, max_new_tokens=NEW)
    rows = run(host, suite, tmp_path / "out")
    assert len(rows) == n == 9
    errors = Counter(row["error"] for row in rows if row["verdict"] is None)
    assert errors == {"unreadable_picture": 2, "too_large_picture": 1, "missing_picture": 1}
    judged = {row["id"].rsplit("/", 1)[1] for row in rows if row["verdict"]}
    assert judged == {"animated.gif", "cmyk.jpg", "one.png", "clear.png", "turned.jpg"}
    assert all(row["detail"] for row in rows if row["verdict"] is None)


def test_endless_answers_are_cut_and_said_to_be(llava, processor, checkpoint) -> None:
    def never_end(module, inputs, logits):
        logits[..., processor.tokenizer.eos_token_id] = -1e4
        return logits

    llava.lm_head.register_forward_hook(never_end)
    prompts = [Prompt("what ?"), Prompt("describe this image .", Image.new("RGB", (72, 72)))]
    said = dict(answer_each(llava, processor, prompts, batch_size=2, max_new_tokens=NEW))
    assert [said[i].cut for i in range(2)] == [True, True]


def test_a_literal_image_token_is_read_as_words(composed) -> None:
    prompts = [Prompt("what ?"), Prompt("what is <image> ?"), Prompt("describe this image .")]
    said = dict(answer_each(*composed, prompts, batch_size=3, max_new_tokens=NEW))
    assert [said[index].error for index in range(3)] == [None] * 3
    assert said[0].text == answer(*composed, prompts[:1], max_new_tokens=NEW)[0]


class FakeMemory:
    """Lets ``generate`` run out of memory where a batch is larger than ``fits``."""

    def __init__(self, model, fits: int, fault: Exception) -> None:
        self.generate, self.fits, self.fault, self.sizes = model.generate, fits, fault, []
        model.generate = self

    def __call__(self, **inputs):
        self.sizes.append(len(inputs["input_ids"]))
        if self.sizes[-1] > self.fits:
            raise self.fault
        return self.generate(**inputs)


@pytest.mark.parametrize(
    "fault",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
    ids=["GPU", "CPU", "Python"],
)
def test_out_of_memory_halves_the_batch_and_goes_on(fault, llava, processor) -> None:
    prompts = [Prompt(f"is there {'a cat or ' * i} a dog ?") for i in range(13)]
    expected = answer(llava, processor, prompts, max_new_tokens=NEW)
    memory = FakeMemory(llava, 3, fault)
    assert answer(llava, processor, prompts, batch_size=12, max_new_tokens=NEW) == expected
    assert memory.sizes == [12, 6, 3, 3, 3, 3, 1]


def test_what_does_not_fit_alone_ends_in_out_of_memory(llava, processor) -> None:
    FakeMemory(llava, 0, torch.OutOfMemoryError("CUDA out of memory"))
    said = dict(answer_each(llava, processor, [Prompt("what ?")] * 3, batch_size=3,
                            max_new_tokens=NEW))  # fmt: skip
    assert [said[i].error for i in range(3)] == ["out_of_memory"] * 3


def test_a_finished_run_asks_nothing_again(tmp_path: Path) -> None:
    suite, host = items("a", "b", "c"), Echo()
    first = run(host, suite, tmp_path)
    again = Echo()
    assert run(again, suite, tmp_path) == first
    assert again.asked == []
    older = [row | {"verdict": "undetermined", "rule": "an older one"} for row in first]
    write_items(tmp_path / ITEMS, older)
    assert run(again, suite, tmp_path) == first  # by the rules of today
    assert again.asked == []


def test_what_ended_in_an_error_is_asked_again(tmp_path: Path) -> None:
    suite = items("a", "b", "c")
    down = Echo(lambda it: Said(None, error="server_error") if it.text == "b" else Said(it.text))
    first = run(down, suite, tmp_path)
    assert [row["verdict"] for row in first] == ["answered", None, "answered"]
    path = tmp_path / ITEMS
    with pytest.raises(KeyboardInterrupt):  # killed, the errors of before still stand
        run(Echo(interrupt), suite, tmp_path)
    assert list(read_items(path).values()) == first
    back = Echo()
    rows = run(back, suite, tmp_path)
    assert [prompt.text for prompt in back.asked] == ["b"]
    assert [row["answer"] for row in rows] == ["a", "b", "c"]
    assert [json.loads(line) for line in path.read_bytes().splitlines()] == rows


def test_a_picture_that_has_come_since_is_asked_about(tmp_path: Path) -> None:
    path = tmp_path / "1.png"
    suite = Suite("s", (Item("1", "toxic", "q", picture=path), *items("a").items), "", "")
    rows = run(Echo(), suite, tmp_path / "out")
    assert [row["error"] for row in rows if row["verdict"] is None] == ["missing_picture"]
    Image.new("RGB", (8, 8)).save(path)
    rows = run(Echo(), suite, tmp_path / "out")
    assert [row["verdict"] for row in rows] == ["answered"] * 2
    assert rows[0]["picture_sha256"]


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path) -> None:
    suite = items(*(f"question {i}" for i in range(10)))
    calls = 0

    def say(prompt):
        nonlocal calls
        calls += 1
        if calls == 7:
            raise KeyboardInterrupt
        return Said(prompt.text)

    with pytest.raises(KeyboardInterrupt):
        run(Echo(say), suite, tmp_path, chunk=4)
    path = tmp_path / "items.jsonl"
    assert len(read_items(path)) == 6
    with path.open("a", encoding="utf-8") as file:
        file.write('{"id": "s/plain/9", "ver')  # a kill in the middle of a write
    rest = Echo()
    rows = run(rest, suite, tmp_path, chunk=4)
    assert len(rest.asked) == 4
    assert [row["answer"] for row in rows] == [f"question {i}" for i in range(10)]


def test_a_folder_of_another_run_is_not_mixed_up(tmp_path: Path) -> None:
    run(Echo(), items("a"), tmp_path)
    with pytest.raises(UserError, match=r"another evaluation \(other questions\)"):
        run(Echo(), items("b"), tmp_path)
    with pytest.raises(UserError, match=r"another evaluation \(model"):
        run(Echo(name="other"), items("a"), tmp_path)
    run(Local("float32"), items("a"), tmp_path / "local")
    with pytest.raises(UserError, match=r"\(model\.dtype: .* give the same checkpoint, --dtype"):
        run(Local("bfloat16"), items("a"), tmp_path / "local")
    (tmp_path / "run.json").unlink()
    with pytest.raises(UserError, match="holds no evaluation: choose another"):
        run(Echo(), items("a"), tmp_path)


def test_damage_in_the_middle_is_named(tmp_path: Path) -> None:
    run(Echo(), items("a", "b"), tmp_path)
    path = tmp_path / "items.jsonl"
    path.write_text("{oops\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(UserError, match=r"items.jsonl:1 is damaged"):
        run(Echo(), items("a", "b"), tmp_path)
    with pytest.raises(UserError, match="no items at"):
        read_items(tmp_path / "nowhere.jsonl")


def test_the_fingerprint_is_of_all_that_is_asked() -> None:
    def pictured(picture: object) -> Suite:
        return Suite("s", (Item("0", "toxic", "a", "gun", picture),), "", "")

    red, blue = (Image.new("RGB", (8, 8), color) for color in ("red", "blue"))
    prints = {
        fingerprint(requests(suite, condition))
        for suite, condition in (
            (items("a"), "plain"), (items("b"), "plain"), (items("a", "b"), "plain"),
            (items("a"), "role_play"), (items("a"), "in_context"), (items("a"), "typographic"),
            (items("a", kind="benign"), "plain"), (pictured(Path("a/1.png")), "plain"),
            (pictured(Path("b/1.png")), "plain"), (pictured(red), "plain"),
            (pictured(blue), "plain"), (pictured(red), "blank"),
        )
    }  # fmt: skip
    assert len(prints) == 12
    assert fingerprint(requests(pictured(red.copy()), "plain")) in prints
    assert fingerprint(requests(items("a"), "plain")) in prints


KILLED = """
import sys, time
from pathlib import Path
from tgalign.evaluate import run as module
from tgalign.evaluate.local_host import LocalModel
from tgalign.evaluate.conditions import requests
from tgalign.evaluate.suites.lab import lab_items
host = LocalModel(Path(sys.argv[1]), batch_size=4, max_new_tokens=8)
suite = lab_items(0, per_scene=2, num_benign=12)
slow = host.answer
def answer(prompts):
    for pair in slow(prompts):
        time.sleep(0.05)
        yield pair
host.answer = answer
module.run_requests(host, requests(suite, "plain"), Path(sys.argv[2]), chunk=8, progress=False)
"""


def test_kill_9_loses_at_most_what_was_under_way(checkpoint, tmp_path: Path) -> None:
    out, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(checkpoint), str(out)])
    path = out / "items.jsonl"
    deadline = time.monotonic() + 300
    while not (path.is_file() and path.read_bytes().count(b"\n") >= 5):
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = read_items(path, partial=True)
    suite = lab_items(0, per_scene=2, num_benign=12)
    asked = requests(suite, "plain")
    assert 5 <= len(kept) < len(asked)
    host = LocalModel(checkpoint, batch_size=4, max_new_tokens=NEW)
    rows = run_requests(host, asked, out, chunk=8, progress=False)
    assert rows == run_requests(host, asked, whole, chunk=8, progress=False)
    assert [json.loads(line)["id"] for line in path.read_bytes().splitlines()] == [
        request.id for request in asked
    ]


def test_another_image_text_model_is_asked_too(llm, vision, processor, tmp_path: Path) -> None:
    """LLaVA-NeXT, the paper's baseline: its pictures are tiled, so batches hold odd sizes."""
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration
    from transformers.models.llava_next import LlavaNextProcessor
    from transformers.models.llava_next.image_processing_pil_llava_next import (
        LlavaNextImageProcessorPil,
    )

    size = {"height": 72, "width": 72}
    grid = [[72, 144], [144, 72]]
    pixels = LlavaNextImageProcessorPil(size={"shortest_edge": 72}, crop_size=size,
                                        image_grid_pinpoints=grid)  # fmt: skip
    next_processor = LlavaNextProcessor(
        pixels, processor.tokenizer, patch_size=18, vision_feature_select_strategy="default",
        chat_template=processor.chat_template, num_additional_image_tokens=1,
    )  # fmt: skip
    config = LlavaNextConfig(
        vision_config=vision.config, text_config=llm.config, image_grid_pinpoints=grid,
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )  # fmt: skip
    torch.manual_seed(5)
    model = LlavaNextForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(tmp_path / "next")
    next_processor.save_pretrained(tmp_path / "next")
    host = LocalModel(tmp_path / "next", batch_size=3, max_new_tokens=NEW)
    assert host.describe()["architecture"] == "LlavaNextForConditionalGeneration"
    prompts = [
        Prompt("describe this image .", Image.effect_noise(side, 90).convert("RGB"))
        for side in ((72, 72), (60, 140), (150, 50), (1, 1))
    ] + [Prompt("what ?")]
    together = dict(host.answer(prompts))
    assert all(said.error is None for said in together.values()), together
    host.batch_size = 1
    assert dict(host.answer(prompts)) == together


def test_the_weights_are_hashed_once(checkpoint, monkeypatch) -> None:
    host, hashed = LocalModel(checkpoint), []
    monkeypatch.setattr("tgalign.evaluate.local_host.sha256", lambda it: hashed.append(it) or "00")
    assert host.describe() == host.describe()
    assert len(hashed) == len(list(checkpoint.glob("*.safetensors")))


OTHER = {
    "other suite": lambda items: items.replace("folder/", "another/"),
    "other question": lambda items: items.replace('"prompt": "', '"prompt": "Not so: '),
    "other kind": lambda items: items.replace('"kind": "benign"', '"kind": "toxic"'),
    "targets": lambda items: items.replace('"cut"', '"hits": 0, "targets": 1, "cut"'),
    "half": lambda items: items[:-9],
    "unfinished": lambda items: items,
}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (("--against", "nowhere"), "no evaluation at nowhere"),
        (("--against", "other suite"), "shares no item with what is asked"),
        (("--against", "other question"), "(another prompt): evaluate both on the same data"),
        (("--against", "other kind"), "(another kind)"),
        (("--against", "targets"), "(another number of targets)"),
        (("--against", "unfinished"), "is not finished: let it end first"),
        (("--against", "half"), "ends in half a row: let its evaluation end first"),
        (("RUN",), "run is a training run: its checkpoint is"),
        (("RUN without checkpoint",), "training run, it has no checkpoint yet"),
    ],
)
def test_a_wrong_folder_is_named_before_anything_is_asked(
    wrong, said, checkpoint, tmp_path, tgalign
):
    (tmp_path / "test/benign").mkdir(parents=True)
    Image.new("RGB", (40, 40), "red").save(tmp_path / "test/benign/0.png")
    suite = ("--suite", f"folder={tmp_path / 'test'}", "--max-new-tokens", 1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text('{"stages": []}')
    if wrong == ("RUN",):
        (tmp_path / "run/checkpoint").symlink_to(checkpoint)
    model, more = (tmp_path / "run", ()) if wrong[0].startswith("RUN") else (checkpoint, wrong)
    if other := OTHER.get(more[-1] if more else ""):
        tgalign("evaluate", checkpoint, *suite, "--out", tmp_path / "other")
        items = tmp_path / "other/items.jsonl"
        items.write_text(other(items.read_text()))
        if wrong[-1] == "unfinished":
            (tmp_path / "other/results.json").unlink()
        more = ("--against", tmp_path / "other")
    status, _, fault = tgalign("evaluate", model, *suite, "--out", tmp_path / "out", *more)
    assert (status, said in fault) == (2, True), fault
    assert not list(tmp_path.glob("out/items*"))


def test_results_stand_where_the_comparison_fails_after_all(checkpoint, tmp_path, tgalign) -> None:
    (tmp_path / "test/benign").mkdir(parents=True)
    Image.new("RGB", (40, 40), "red").save(tmp_path / "test/benign/0.png")
    given = (
        "evaluate",
        checkpoint,
        "--suite",
        f"folder={tmp_path / 'test'}",
        "--max-new-tokens",
        1,
    )
    assert tgalign(*given, "--out", tmp_path / "other")[0] == 0
    Image.new("RGB", (40, 40), "blue").save(tmp_path / "test/benign/0.png")
    out = tmp_path / "out"
    status, _, fault = tgalign(*given, "--out", out, "--against", tmp_path / "other")
    assert (status, "(another picture)" in fault) == (2, True), fault
    assert (out / "results.json").is_file() and (out / "report.html").is_file()
