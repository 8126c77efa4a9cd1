"""What must not change a training: how many processes share it, and how.

Float32, two gloo processes on CPU, a tiny model, a few steps of ``tgalign.train.train``.
``pytest -rP`` of this file prints the rows of the table in docs/scale.md.
"""

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from parallel_runs import refuse_even_captions
from safetensors.torch import load_file

from tgalign.config import parse_config
from tgalign.data.order import row_order
from tgalign.errors import UserError
from tgalign.train import train
from tgalign.trainer import TGATrainer

SUMMED = ("loss", "ce", "guide", "align", "rank")
STEPS = 4


@pytest.fixture(scope="module")
def settings(checkpoint, rows):
    """A function that gives a run of two stages as plain data."""
    common = {
        "steps": STEPS,
        "batch_size": 2,
        "accumulation": 4,
        "projector_lr": 1e-3,
        "warmup": 0.2,
        "weight_decay": 0.01,
    }
    objective = {"similarity": "centered_cosine", "schedule": "linear_decay"}
    stages = [
        common | {"name": "stage1", "train": ["projector"]},
        common
        | {"name": "stage2", "train": ["projector", "llm"], "llm_lr": 3e-4}
        | {"retrieved_in_prompt": 0.5, "objective": objective},
    ]

    def make(out, **options):
        if options.get("cache_text"):
            options["cache_text"] = f"{out}-kept"
        changed = {"objective": objective | {"reference": "frozen"}} if "lora" in options else {}
        return {
            "model": str(checkpoint),
            "records": str(rows.path),
            "out": str(out),
            "seed": 4,
            "max_length": 200,
            "attention": "eager",
            "save_steps": 3,
            "logging_steps": 1,
            "stages": [stages[0], stages[1] | changed],
        } | options

    return make


def result(data):
    """The weights and the lines of both stages' metrics."""
    out = Path(data["out"])
    lines = [
        json.loads(line)
        for stage in data["stages"]
        for line in (out / stage["name"] / "metrics.jsonl").read_text().splitlines()
    ]
    return load_file(out / "checkpoint" / "model.safetensors"), lines


def gate_of(data):
    """The rows whose captions the text gate found refused; None: no gate asked."""
    path = Path(data["out"]) / "text_gate.json"
    return json.loads(path.read_text())["rows"] if path.is_file() else None


def farthest(first, second):
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


WAYS = {
    "ddp": {},
    "ddp, checkpointed": {"activation_checkpointing": True},
    "fsdp2": {"parallel": "fsdp2"},
    "fsdp2, checkpointed": {"parallel": "fsdp2", "activation_checkpointing": True},
    "ddp, lora": {"lora": {"r": 4, "alpha": 8}},
    "fsdp2, lora": {"parallel": "fsdp2", "lora": {"r": 4, "alpha": 8}},
    "fsdp2, gated, texts on disk": {
        "parallel": "fsdp2", "cache_text": True, "text_gate": True, "companions": 0.6,
    },
}  # fmt: skip
SAME_ALONE = ("lora", "text_gate", "companions")
"""What one process has to be told too."""
MISREAD = "ddp, a picture misread by process 0"
ALONE_AFTER = "fsdp2, process 1 killed, gone on alone"
KILLED = {name: name + ", process 1 killed" for name in ("ddp", "fsdp2")}


@pytest.fixture(scope="module")
def runs(settings, tmp_path_factory):
    """Per way the config and what ``parallel_runs.py`` says of it."""
    folder = tmp_path_factory.mktemp("runs")
    plain = {"kill": None, "misread": False}
    jobs = {name: plain | {"config": settings(folder / name, **WAYS[name])} for name in WAYS}
    bad = settings(folder / MISREAD, max_bad_share=0.1)
    jobs[MISREAD] = {"config": bad, "kill": None, "misread": True}
    sharded = settings(folder / ALONE_AFTER, **WAYS["fsdp2"])
    jobs[ALONE_AFTER] = plain | {"config": sharded, "kill": ["stage2", 3]}
    for name, killed in KILLED.items():
        config = settings(folder / killed, **WAYS[name])
        jobs[killed] = plain | {"config": config, "kill": ["stage2", 3]}
        jobs[killed + ", restarted"] = plain | {"config": config}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("parallel_runs.py"))],
        input=json.dumps(list(jobs.values())),
        capture_output=True,
        text=True,
        timeout=400,
        check=True,
    )
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(said) == len(jobs), done.stderr[-5000:]
    return {
        name: job | each | {"stderr": done.stderr}
        for (name, job), each in zip(jobs.items(), said, strict=True)
    }


@pytest.fixture(scope="module")
def alone(settings, tmp_path_factory):
    """A function: a way's weights, metrics and gate by one process, one batch of eight a step."""
    done = {}

    def train_alone(way):
        options = {name: value for name, value in WAYS[way].items() if name in SAME_ALONE}
        if (key := json.dumps(options)) not in done:
            data = settings(tmp_path_factory.mktemp("alone") / "run", **options)
            data["stages"] = [it | {"batch_size": 8, "accumulation": 1} for it in data["stages"]]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("tgalign.text_gate.answers", refuse_even_captions)
                train(parse_config(data, "test"), progress_bar=False)
            done[key] = *result(data), gate_of(data)
        return done[key]

    return train_alone


def test_there_are_passes_in_which_one_process_alone_has_a_picture(settings, rows, encode):
    """Either of them: what the other tests say would else hold of an easier case."""
    data = settings("out")
    stage = data["stages"][1]
    encoded = encode(rows.records, stage["retrieved_in_prompt"])
    size = stage["batch_size"]
    order = row_order(
        [len(row.input_ids) for row in encoded],
        steps=STEPS,
        rows_per_step=size * stage["accumulation"],
        seed=data["seed"],
    )
    pictured = [
        any(encoded[row].image is not None for row in order[start : start + size])
        for start in range(0, len(order), size)
    ]
    passes = set(zip(pictured[::2], pictured[1::2], strict=True))
    assert {(True, False), (False, True)} <= passes


@pytest.mark.parametrize("name", WAYS)
def test_two_processes_train_as_one(name, runs, alone):
    run = runs[name]
    assert run["codes"] == [0, 0], run["stderr"][-5000:]
    weights, lines = result(run["config"])
    expected = alone(name)
    print(f"| two processes, {name} | {farthest(weights, expected[0]):.1e} |")
    assert farthest(weights, expected[0]) < 1e-5
    assert gate_of(run["config"]) == expected[2]
    assert bool(expected[2]) == ("gated" in name)
    assert len(lines) == 2 * STEPS
    for ours, theirs in zip(lines, expected[1], strict=True):
        for key in SUMMED:
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4, abs=1e-5), key
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
        assert ours["learning_rate"] == theirs["learning_rate"]


@pytest.mark.parametrize("name", WAYS)
def test_they_train_in_the_way_asked_for(name, runs):
    config = runs[name]["config"]
    stages = runs[name]["stages"]
    assert [stage["stage"] for stage in stages] == ["stage1", "stage2"]
    for stage in stages:
        assert stage["passes"] == 2  # of the four of a step
        assert stage["checkpointed"] == (4 if "checkpointed" in name else 0)
        if config.get("parallel") == "fsdp2":
            assert not stage["ddp"]
            assert stage["here"] == pytest.approx(stage["whole"] / 2, rel=0.01)
        else:
            assert stage["ddp"]
            assert stage["sharded"] == []


def test_one_process_goes_on_from_what_two_had_sharded(runs):
    config = runs[ALONE_AFTER]["config"]
    assert list(Path(config["out"]).glob("stage2/checkpoint-3/shards/*.safetensors"))
    train(parse_config(config, "test"), progress_bar=False)
    weights, lines = result(config)
    straight, expected = result(runs["fsdp2"]["config"])
    assert farthest(weights, straight) < 1e-5
    assert [line["step"] for line in lines] == [line["step"] for line in expected]
    assert lines[-1]["learning_rate"] == expected[-1]["learning_rate"]


def test_two_processes_refuse_what_one_has_written_whole(tmp_path):
    whole = SimpleNamespace(is_fsdp_enabled=True)
    with pytest.raises(UserError, match=r"written by one process.*go on with one process"):
        TGATrainer._load_from_checkpoint(whole, str(tmp_path))


def test_all_processes_leave_out_what_one_of_them_cannot_read(runs, rows):
    run = runs[MISREAD]
    assert run["codes"] == [0, 0], run["stderr"][-5000:]
    skipped = json.loads((Path(run["config"]["out"]) / "skipped.json").read_text())
    assert [it["reason"] for it in skipped["bad"]] == ["input/output error"]
    pictured = sum(1 for it in rows.data if it.get("image"))
    assert run["stages"][0]["rows"] < runs["ddp"]["stages"][0]["rows"] <= pictured


@pytest.mark.parametrize("name", KILLED)
def test_a_killed_process_ends_the_run_and_a_restart_goes_on_to_the_same_weights(name, runs):
    killed = KILLED[name]
    codes = runs[killed]["codes"]
    assert codes[1] == -signal.SIGKILL
    assert codes[0] != 0
    again = runs[killed + ", restarted"]
    assert again["codes"] == [0, 0], again["stderr"][-5000:]
    assert [stage["stage"] for stage in again["stages"]] == ["stage2"]
    weights, lines = result(again["config"])
    straight, expected = result(runs[name]["config"])
    print(f"| two processes, {killed}, started again | {farthest(weights, straight):.1e} |")
    assert farthest(weights, straight) == 0
    for ours, theirs in zip(lines, expected, strict=True):
        timeless = ours.keys() - {"step_seconds"}
        assert {key: ours[key] for key in timeless} == {key: theirs[key] for key in timeless}
    out = Path(again["config"]["out"])
    assert not [path for path in out.rglob("*") if path.name.startswith(("checkpoint-", "end."))]
