"""`tgalign demo --smoke` through the real command line, and its checkpoint without tgalign."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TGALIGN = [sys.executable, "-m", "tgalign"]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
CLOCK = r"\d:\d\d:\d\d"  # of a progress bar
ARMS = ["ce", "released_nograd", "tga"]
SCENES = ["alcohol", "bloody", "cigarette", "gun", "insulting_gesture", "knife", "porn"]

pytestmark = pytest.mark.slow


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TGALIGN, *arguments], capture_output=True, text=True, env=ENV, timeout=600, check=False
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "out"
    done = run("demo", "--out", str(out), "--seeds", "2", "--smoke", "--jobs", "1")
    assert done.returncode == 0, done.stderr
    assert "DSR cigarette" in done.stdout
    assert re.search(CLOCK, done.stdout)
    return out


def rates(results: dict) -> list[dict]:
    found = [results["base"]["text_dsr"], results["base"]["text_over_refusal"]]
    for arm in results["arms"].values():
        found += [arm[name] for name in ("dsr", "over_refusal", "named", "text_dsr")]
        found += arm["dsr_by_scene"].values()
    return found


def test_results_hold_every_promised_figure(demo: Path) -> None:
    results = json.loads((demo / "results.json").read_text())
    assert list(results["arms"]) == ARMS
    assert results["seconds"] > 0
    assert results["versions"]["torch"]
    for arm in results["arms"].values():
        assert list(arm["dsr_by_scene"]) == SCENES
        assert [seed["seed"] for seed in arm["seeds"]] == [0, 1]
        assert [row["layer"] for row in arm["alignment"]] == list(range(7))
        assert arm["step_seconds"] > 0
        assert arm["dsr"]["n"] == sum(rate["n"] for rate in arm["dsr_by_scene"].values()) == 28
    for rate in rates(results):
        assert rate["n"] > 0
        assert 0 <= rate["low"] <= rate["rate"] <= rate["high"] <= 1


def test_published_codes_control_trains_what_cross_entropy_trains(demo: Path) -> None:
    arms = json.loads((demo / "results.json").read_text())["arms"]
    assert arms["released_nograd"]["same_weights_as_ce"]
    assert not arms["tga"]["same_weights_as_ce"]


def test_no_picture_of_the_training_data_is_paired_with_a_refusal(demo: Path) -> None:
    from tgalign.evaluate.refusal import judge

    pictures = texts = 0
    for seed in (0, 1):
        for line in (demo / f"seed{seed}/data/records.jsonl").read_text().splitlines():
            record = json.loads(line)
            answers = [m["content"] for m in record["messages"] if m["role"] == "assistant"]
            if "image" in record:
                pictures += 1
                assert all(judge(text).label == "answered" for text in answers)
            else:
                texts += any(judge(text).label == "refused" for text in answers)
    assert pictures == 120
    assert texts > 0  # refusals are learnt, to texts


def test_other_versions_or_settings_are_not_mixed_into_a_table(
    demo: Path, tmp_path: Path, tgalign: Callable[..., Any]
) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(demo, copied)
    path = copied / "seed1/tga/measurement.json"
    found = json.loads(path.read_text())
    found["made_with"]["versions"]["torch"] = "1.0"
    path.write_text(json.dumps(found))
    status, _, told = tgalign("demo", "--out", copied, "--seeds", "2", "--smoke")
    assert status == 2
    assert "seed1/tga/measurement.json was made with other settings" in told


def test_report_and_pictures_are_there(demo: Path) -> None:
    page = (demo / "report.html").read_text()
    assert "A smoke run, whose figures mean nothing" in page
    assert "data:image/png;base64" in page
    for entry in json.loads((demo / "results.json").read_text())["gallery"]:
        assert (demo / entry["image"]).is_file()
        assert set(entry["answers"]) == set(ARMS)
    assert "DSR cigarette" in (demo / "table.md").read_text()
    assert not list(demo.rglob("*.incomplete"))


def test_a_finished_demo_is_not_repeated(demo: Path, tgalign: Callable[..., Any]) -> None:
    before = (demo / "seed1/tga/measurement.json").stat().st_mtime_ns
    status, _, told = tgalign("demo", "--out", demo, "--seeds", "2", "--smoke")
    assert status == 0, told
    assert (demo / "seed1/tga/measurement.json").stat().st_mtime_ns == before


def test_another_demo_in_the_same_folder_is_refused(
    demo: Path, tgalign: Callable[..., Any]
) -> None:
    status, _, told = tgalign("demo", "--out", demo, "--smoke", "--condition", "absent")
    assert status == 2
    assert "another --out" in told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--arms", "ce,tgaa"], "unknown arm 'tgaa'; expected one of: ce, "),
        (["--arms", "tga"], "expected ce among them, which the others are compared with"),
        (["--style", "oil"], "unknown style 'oil'"),
        (["--toxic-share", "0"], "toxic share 0.0 in condition guided"),
        (["--condition", "absent", "--toxic-share", "0.1"], "expected 0 in absent"),
    ],
)
def test_unknown_arms_styles_and_shares_are_refused(
    options: list[str], message: str, tmp_path: Path, tgalign: Callable[..., Any]
) -> None:
    status, _, told = tgalign("demo", "--out", tmp_path / "x", *options)
    assert status == 2
    assert message in told
    assert not (tmp_path / "x").exists()


def test_more_arms_can_be_added_to_a_finished_demo(
    demo: Path, tmp_path: Path, tgalign: Callable[..., Any]
) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(demo, copied)
    status, said, told = tgalign(
        "demo", "--out", copied, "--smoke", "--arms", "ce,paper,tga", "--jobs", "1", "--no-progress"
    )
    assert status == 0, told
    arms = json.loads((copied / "results.json").read_text())["arms"]
    assert list(arms) == ["ce", "paper", "tga"]
    assert "seed 0: models done: paper" in said
    assert not re.search(CLOCK, said)


def test_a_report_of_two_demos_is_made_by_the_command_line(
    demo: Path, tmp_path: Path, tgalign: Callable[..., Any]
) -> None:
    other = tmp_path / "other.json"
    results = json.loads((demo / "results.json").read_text())
    other.write_text(json.dumps(results | {"condition": "absent", "toxic_share": 0.0}))
    status, said, told = tgalign("report", demo, other, "--out", tmp_path / "both")
    assert status == 0, told
    assert "SMOKE RUN" in said
    assert {path.name for path in tmp_path.glob("both.*")} == {"both.json", "both.md", "both.svg"}


def test_an_experiment_is_measured_logged_and_not_repeated(
    tmp_path: Path, tgalign: Callable[..., Any]
) -> None:
    small = ["stage.steps=2", "data.pictures=80", "data.texts=20", "data.corpus=100"]
    command = ["lab", "experiment", "tga", "--condition", "captioned", "--conflict"]
    command += ["--out", str(tmp_path)] + [word for it in small for word in ("--set", it)]
    first, again = tgalign(*command), tgalign(*command)
    assert first[0] == again[0] == 0, first[2] + again[2]
    found = json.loads(first[1].splitlines()[-1])
    assert json.loads(again[1].splitlines()[-1]) == found
    assert found["changes"] == small
    assert found["rates"]["dsr"]["n"] == 200
    assert {row["probe"] for row in found["conflict"]} == {"toxic", "benign"}
    (gate,) = tmp_path.glob("tga-*/run/text_gate.json")
    refused = json.loads(gate.read_text())
    assert len(refused["rows"]) == 4  # 5 % of 80 pictures, found without a label
    assert refused["texts"]
    _, printed, _ = tgalign("lab", "table", tmp_path / "results.jsonl")
    assert "| tga | captioned 5 % | stage.steps=2," in printed
    assert "norms CE / guide" in printed


def test_an_unknown_condition_is_refused(tmp_path: Path, tgalign: Callable[..., Any]) -> None:
    status, _, told = tgalign("demo", "--out", tmp_path / "x", "--condition", "toxic")
    assert status == 2
    assert "'toxic'" in told
    assert "guided" in told
    assert not (tmp_path / "x").exists()


def test_a_killed_demo_goes_on_and_ends_the_same(
    demo: Path, tmp_path: Path, tgalign: Callable[..., Any]
) -> None:
    out = tmp_path / "killed"
    command = ["demo", "--out", str(out), "--smoke", "--arms", "ce,tga", "--jobs", "1"]
    kills = 0
    for part in ("seed0/data", "seed0/tga/stage1/metrics.jsonl", "seed0/tga/checkpoint"):
        process = subprocess.Popen(
            [*TGALIGN, *command], env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and not (out / part).exists():
            time.sleep(0.02)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills > 0
    status, _, told = tgalign(*command)
    assert status == 0, told
    for arm in ("ce", "tga"):
        resumed = json.loads((out / f"seed0/{arm}/measurement.json").read_text())
        straight = json.loads((demo / f"seed0/{arm}/measurement.json").read_text())
        assert resumed["weights_sha256"] == straight["weights_sha256"]
        assert resumed["answers"] == straight["answers"]


ALONE = """
import json, sys
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
folder, checkpoint, question = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained(checkpoint)
processor = AutoProcessor.from_pretrained(checkpoint)
assert type(model).__name__ == "LlavaForConditionalGeneration"
answers = []
for entry in json.load(open(f"{folder}/results.json"))["gallery"]:
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    prompt = processor.apply_chat_template(turn, add_generation_prompt=True)
    inputs = processor(
        text=prompt, images=Image.open(f"{folder}/{entry['image']}"), return_tensors="pt"
    )
    new = model.generate(**inputs, max_new_tokens=32, do_sample=False)
    text = processor.decode(new[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    answers.append(text.strip())
assert not any(name.split(".")[0] == "tgalign" for name in sys.modules)
print(json.dumps(answers))
"""


def test_checkpoint_gives_the_same_answers_with_nothing_but_transformers(demo: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(demo), str(demo / "seed0/tga/checkpoint"),
         "describe this image ."],
        capture_output=True, text=True, env=ENV, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    gallery = json.loads((demo / "results.json").read_text())["gallery"]
    ours = [entry["answers"]["tga"]["text"] for entry in gallery]
    assert json.loads(done.stdout.splitlines()[-1]) == ours
    assert any(ours)
