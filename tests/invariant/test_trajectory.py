"""What must not change a training: how a step is cut into batches, a kill, a cache, a second run.

Float32, a tiny model, a few steps of ``tgalign.train.train``.
"""

import json
import math
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from parallel_runs import refuse_even_captions
from safetensors.torch import load_file

import tgalign.text_gate
import tgalign.train
from tgalign.config import parse_config
from tgalign.data.collate import Collator
from tgalign.errors import UserError
from tgalign.train import train

STEPS = 7
SUMMED = ("loss", "ce", "guide", "align", "rank")


@pytest.fixture(scope="module")
def settings(checkpoint, rows):
    """A function that gives a config as plain data; ``stages`` are options over a common stage."""

    def make(out, *stages, **options):
        common = {
            "name": "stage2",
            "train": ["projector", "llm"],
            "steps": STEPS,
            "batch_size": 8,
            "projector_lr": 1e-3,
            "llm_lr": 3e-4,
            "warmup": 0.2,
            "weight_decay": 0.01,
            "retrieved_in_prompt": 0.5,
        }
        return {
            "model": str(checkpoint),
            "records": str(rows.path),
            "out": str(out),
            "seed": 3,
            "max_length": 200,
            "attention": "eager",
            "save_steps": 3,
            "logging_steps": 1,
            "stages": [common | stage for stage in stages or ({},)],
            **options,
        }

    return make


def run(data):
    """Train, and give the weights and the lines of every stage's metrics."""
    config = parse_config(data, "test")
    path = train(config, progress_bar=False)
    assert path == config.out / "checkpoint"
    lines = [
        json.loads(line)
        for stage in config.stages
        for line in (config.out / stage.name / "metrics.jsonl").read_text().splitlines()
    ]
    return load_file(path / "model.safetensors"), lines


def farthest(first, second):
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def identical(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture
def seen(monkeypatch):
    """The rows in the order in which they were batched."""
    order = []
    collate = Collator.__call__

    def noted(self, rows):
        order.extend(tuple(row.input_ids) for row in rows)
        return collate(self, rows)

    monkeypatch.setattr(Collator, "__call__", noted)
    return order


@pytest.mark.parametrize("similarity", ["cosine", "centered_cosine"])
def test_how_a_step_is_cut_into_batches_changes_nothing(
    similarity, settings, checkpoint, tmp_path, seen
):
    """25 rows of every kind in steps of 8: a pass ends within a step."""
    runs, orders = {}, {}
    for size, accumulation in ((8, 1), (1, 8), (2, 4)):
        stage = {
            "batch_size": size,
            "accumulation": accumulation,
            "objective": {"form": "paper", "similarity": similarity, "reference": "frozen"},
        }
        seen.clear()
        runs[size] = run(settings(tmp_path / str(size), stage))
        orders[size] = tuple(seen)
    weights, lines = runs[8]
    trained = STEPS * 8
    assert len(set(orders[8][:24])) > 20
    assert orders[8][:24] != orders[8][24:48]  # shuffled anew
    assert farthest(weights, load_file(checkpoint / "model.safetensors")) > 1e-3
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for size in (1, 2):
        assert orders[size][:trained] == orders[8][:trained]
        print(f"| one process, {8 // size} × {size}, {similarity} | ", end="")
        print(f"{farthest(runs[size][0], weights):.1e} |")
        assert farthest(runs[size][0], weights) < 1e-5
        for ours, theirs in zip(runs[size][1], lines, strict=True):
            assert all(("guide" in line) for line in (ours, theirs))
            for name in SUMMED:
                assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-5), name
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
            assert ours["learning_rate"] == theirs["learning_rate"]


TWO_STAGES = (
    {"name": "stage1", "train": ["projector"], "batch_size": 4, "accumulation": 2},
    {
        "batch_size": 4,
        "accumulation": 2,
        "objective": {
            "similarity": "centered_cosine",
            "reference": "frozen",
            "schedule": "linear_decay",
        },
    },
)
# Stage 1 has 18 rows, stage 2 has 25: passes of two and of three whole steps.
KILLS = {
    "before the first state of stage 1": ("step", "stage1", 1),
    "stage 1, from a state of its second pass": ("step", "stage1", 5),
    "stage 2, from a state within a pass": ("step", "stage2", 4),
    "stage 2, in its second pass": ("step", "stage2", 6),
    "while a state is written": ("state", "stage2", 6),
    "before the result of stage 2 is written": ("end of stage", "stage2", STEPS),
    "while the checkpoint is written": ("checkpoint", "", 0),
    "before the states are removed": ("cleaning", "", 0),
}


@pytest.fixture(scope="module")
def straight(settings, tmp_path_factory):
    """The weights and metrics of the run of two stages, never killed."""
    return run(settings(tmp_path_factory.mktemp("straight") / "run", *TWO_STAGES))


@pytest.fixture(scope="module")
def killed(settings, tmp_path_factory):
    """The settings of the same run, killed at every moment of ``KILLS``."""
    folder = tmp_path_factory.mktemp("killed")
    jobs = []
    for number, (moment, stage, step) in enumerate(KILLS.values()):
        data = settings(folder / str(number), *TWO_STAGES)
        jobs.append({"config": data, "moment": moment, "stage": stage, "step": step})
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("killed_runs.py"))],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [str(int(signal.SIGKILL))] * len(jobs), done.stderr
    return {name: job["config"] for name, job in zip(KILLS, jobs, strict=True)}


def left_over(out):
    """What a finished run must not leave."""
    return [
        str(path.relative_to(out))
        for path in out.rglob("*")
        if "incomplete" in path.name or path.name.startswith(("checkpoint-", "end."))
    ]


@pytest.mark.parametrize("name", KILLS)
def test_a_killed_run_goes_on_to_the_same_weights(name, killed, straight):
    out = Path(killed[name]["out"])
    assert left_over(out) or not (out / "checkpoint").exists()
    weights, lines = run(killed[name])
    assert identical(weights, straight[0])
    both = list(range(1, STEPS + 1))
    assert [(line["stage"], line["step"]) for line in lines] == [
        *(("stage1", step) for step in both),
        *(("stage2", step) for step in both),
    ]
    for ours, theirs in zip(lines, straight[1], strict=True):
        timeless = ours.keys() - {"step_seconds"}
        assert {key: ours[key] for key in timeless} == {key: theirs[key] for key in timeless}
    assert left_over(out) == []


def test_the_two_stages_train_what_they_name(straight, settings, checkpoint, tmp_path):
    start = load_file(checkpoint / "model.safetensors")
    moved = {name for name in start if not torch.equal(start[name], straight[0][name])}
    assert not any("vision_tower" in name for name in moved)
    assert any("language_model" in name for name in moved)
    assert any("lm_head" in name for name in moved)
    weights, _ = run(settings(tmp_path / "run", {**TWO_STAGES[0], "steps": 2}))
    moved = {name for name in start if not torch.equal(start[name], weights[name])}
    assert moved == {name for name in start if "multi_modal_projector" in name}


def test_text_only_rows_take_no_part_while_the_llm_is_frozen(
    settings, rows, encode, seen, tmp_path
):
    """They reach no weight that is trained; a batch of nothing else has no gradient at all."""
    stage = {**TWO_STAGES[0], "steps": 20, "batch_size": 1, "accumulation": 1}
    run(settings(tmp_path / "run", stage | {"retrieved_in_prompt": 0.0}, save_steps=100))
    shown = encode([record for record in rows.records if record.image])
    assert set(seen) == {tuple(row.input_ids) for row in shown}


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(straight, settings, tmp_path):
    again, _ = run(settings(tmp_path / "again", *TWO_STAGES))
    assert identical(again, straight[0])
    other, _ = run(settings(tmp_path / "other", *TWO_STAGES, seed=4))
    assert not identical(other, straight[0])


def test_cached_vision_features_change_nothing(straight, settings, tmp_path):
    cached, lines = run(settings(tmp_path / "run", *TWO_STAGES, cache_vision=True))
    assert farthest(cached, straight[0]) < 1e-5
    for ours, theirs in zip(lines, straight[1], strict=True):
        assert ours["ce"] == pytest.approx(theirs["ce"], rel=1e-5)


def test_kept_states_of_texts_change_nothing(straight, settings, tmp_path):
    """The reference is frozen in both stages, and its states do not depend on the batch."""
    cached, lines = run(settings(tmp_path / "run", *TWO_STAGES, cache_text=True))
    assert farthest(cached, straight[0]) < 1e-5
    for ours, theirs in zip(lines, straight[1], strict=True):
        assert ours["guide"] == pytest.approx(theirs["guide"], rel=1e-4, abs=1e-5)


def test_kept_states_are_the_same_numbers_in_a_resumed_run(gate, settings, tmp_path):
    """Stage 2 alone fills the cache with what stage 1 had filled it with, in the same batches."""
    data = settings(tmp_path / "run", *TWO_STAGES, **GATED, cache_text=True)
    ends = {}
    unlink = Path.unlink

    def noted(path, **options):
        if path.name == "end.safetensors" and path.exists():
            ends[path] = path.read_bytes()
        unlink(path, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", noted)
        straight, _ = run(data)
    shutil.rmtree(tmp_path / "run" / "checkpoint")
    shutil.rmtree(tmp_path / "run" / "stage2")
    (stage1,) = [path for path in ends if path.parent.name == "stage1"]
    stage1.write_bytes(ends[stage1])
    assert identical(run(data)[0], straight)


def test_a_reference_that_moves_is_never_kept(settings, tmp_path):
    stage = {"objective": {"reference": "live", "similarity": "cosine"}}
    plain, _ = run(settings(tmp_path / "plain", stage))
    cached, _ = run(settings(tmp_path / "cached", stage, cache_text=True))
    assert identical(plain, cached)


@pytest.fixture
def gate(monkeypatch):
    """A language model that refuses captions of an even number of letters."""
    monkeypatch.setattr(tgalign.text_gate, "answers", refuse_even_captions)


GATED = {"text_gate": True, "companions": 0.6}


def test_companions_leave_it_alone_how_a_step_is_cut_into_batches(gate, settings, tmp_path):
    runs = {}
    for size, accumulation in ((8, 1), (1, 8)):
        stage = {
            "batch_size": size,
            "accumulation": accumulation,
            "objective": {"similarity": "centered_cosine", "reference": "frozen"},
        }
        runs[size] = run(settings(tmp_path / str(size), stage, **GATED))
    assert farthest(runs[1][0], runs[8][0]) < 1e-5
    for ours, theirs in zip(runs[1][1], runs[8][1], strict=True):
        for name in SUMMED:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-5), name
    plain, _ = run(settings(tmp_path / "plain", {"objective": {"reference": "frozen"}}))
    assert not identical(plain, runs[8][0])


def test_what_the_gate_refuses_is_not_learnt_and_goes_beside_other_rows(
    gate, settings, rows, seen, tmp_path, monkeypatch
):
    batches = []
    collate = Collator.__call__

    def noted(self, given):
        batch = collate(self, given)
        batches.append((given, batch))
        return batch

    monkeypatch.setattr(Collator, "__call__", noted)
    run(settings(tmp_path / "run", {"steps": 4}, **GATED))
    even = {
        record.image: len(record.caption) % 2 == 0
        for record in rows.records
        if record.image is not None and record.caption is not None
    }
    assert 0 < sum(even.values()) < len(even)
    told = json.loads((tmp_path / "run" / "text_gate.json").read_text())
    assert len(told["rows"]) == sum(even.values())
    assert told["texts"] == []
    companions = 0
    for given, batch in batches:
        for row in given:
            if even.get(row.image):
                assert set(row.labels) == {-100}
            if row.companion is not None:
                companions += 1
                assert even[row.companion.image]
                assert set(row.companion.labels) == {-100}
        beside = sum(row.companion is not None for row in given)
        assert len(batch["input_ids"]) == len(given) + beside
    assert companions > 5


def test_a_resumed_run_keeps_the_verdicts_of_the_gate(gate, settings, tmp_path, monkeypatch):
    """Another machine may hear other answers from the language model."""
    data = settings(tmp_path / "run", {"steps": 2}, **GATED)
    first, _ = run(data)
    shutil.rmtree(tmp_path / "run" / "checkpoint")  # as if killed before it was written
    monkeypatch.setattr(tgalign.text_gate, "answers", lambda *_, **__: pytest.fail("asked again"))
    shutil.rmtree(tmp_path / "run" / "stage2")
    assert identical(run(data)[0], first)


def test_probes_are_logged_and_change_nothing(straight, settings, rows, tmp_path):
    complete = [
        row
        for row in rows.data
        if row.keys() >= {"image", "caption", "messages"} and len(row["messages"]) > 1
    ]
    path = tmp_path / "probe.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in complete[:4]))
    probes = {"probes": {"some": str(path)}, "image_root": str(rows.path.parent)}
    weights, _ = run(settings(tmp_path / "run", *TWO_STAGES, **probes))
    assert identical(weights, straight[0])
    text = (tmp_path / "run" / "stage2" / "conflict.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["step"] for line in lines] == [1, 3, 6]
    assert {line["probe"] for line in lines} == {"some"}
    assert all(len(line["cosine"]) == 4 for line in lines)
    assert all(any(abs(value) > 1e-3 for value in line["cosine"]) for line in lines)


def test_a_probe_that_cannot_be_compared_is_named(settings, rows, tmp_path):
    path = tmp_path / "probe.jsonl"
    path.write_text(json.dumps(next(row for row in rows.data if "image" not in row)) + "\n")
    probes = {"probes": {"some": str(path)}, "image_root": str(rows.path.parent)}
    with pytest.raises(UserError, match=r"probe.jsonl:1: a probe needs an image, a caption"):
        run(settings(tmp_path / "run", *TWO_STAGES, **probes))


def test_logging_more_rarely_logs_the_mean(straight, settings, tmp_path):
    _, lines = run(settings(tmp_path / "run", *TWO_STAGES, logging_steps=3))
    each = {(line["stage"], line["step"]): line for line in straight[1]}
    assert [(line["stage"], line["step"]) for line in lines] == [
        (stage, step) for stage in ("stage1", "stage2") for step in (3, 6, 7)
    ]
    for line in lines:
        meant = 1 if line["step"] == 7 else 3  # the last step is logged whatever its number
        steps = [each[line["stage"], line["step"] - back] for back in range(meant)]
        for name in SUMMED:
            assert line[name] == pytest.approx(math.fsum(step[name] for step in steps) / meant)


def test_a_finished_run_is_not_trained_again(straight, settings, tmp_path, monkeypatch):
    data = settings(tmp_path / "run", {"steps": 1})
    run(data)
    out = tmp_path / "run"
    assert left_over(out) == []
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    monkeypatch.setattr(tgalign.train, "load_llava", lambda path: pytest.fail("loaded"))
    monkeypatch.setattr(tgalign.train, "TrainingData", lambda *args, **named: pytest.fail("read"))
    run(data)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_another_config_is_refused_in_the_same_folder(settings, tmp_path):
    run(settings(tmp_path / "run", {"steps": 1}))
    with pytest.raises(UserError, match=r"holds a run with another config.*name another folder"):
        run(settings(tmp_path / "run", {"steps": 2}))


def without(rows, tmp_path, dropped):
    """The records that a condition does not drop, beside the same pictures."""
    path = tmp_path / "records.jsonl"
    kept = [row for row in rows.data if not dropped(row)]
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    return {"records": str(path), "image_root": str(rows.path.parent)}


FIRST = {"name": "stage1", "train": ["projector"], "steps": 1, "retrieved_in_prompt": 0.0}
CENTERED = {"objective": {"similarity": "centered_cosine"}}


@pytest.mark.parametrize(
    ("dropped", "stages", "message"),
    [
        (None, (FIRST, {"objective": {"layers": "3-9"}}), "9 is out of range"),
        (
            lambda row: "caption" in row,
            (FIRST, CENTERED),
            "stage2: centered_cosine needs captions, and no row has one",
        ),
        (lambda row: "image" in row, ({}, FIRST), "stage1 trains the projector alone"),
    ],
)
def test_what_a_later_stage_would_refuse_is_said_before_the_first(
    dropped, stages, message, settings, rows, tmp_path
):
    """A stage may train for days."""
    options = without(rows, tmp_path, dropped) if dropped else {}
    with pytest.raises(UserError, match=message):
        run(settings(tmp_path / "run", *stages, **options))
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("kind", ["with R in the prompt", "text alone"])
def test_a_row_too_long_for_a_later_stage_is_said_before_the_first(
    kind, settings, rows, encode, tmp_path
):
    texts = [record for record in rows.records if record.image is None]
    images = [record for record in rows.records if record.image is not None]
    plain = max(len(row.input_ids) for row in encode(images, 0.0))
    if kind == "text alone":
        long = " ".join(["cat"] * plain)
        data = [
            {
                "messages": [
                    {"role": "user", "content": long},
                    {"role": "assistant", "content": "cat"},
                ]
            }
        ]
        (tmp_path / "records.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows.data + data)
        )
        options = {"records": str(tmp_path / "records.jsonl"), "image_root": str(rows.path.parent)}
        later = {"retrieved_in_prompt": 0.0}
    else:
        assert max(len(row.input_ids) for row in encode(images + texts, 1.0)) > plain
        options, later = {}, {"retrieved_in_prompt": 1.0}
    with pytest.raises(UserError, match=f"more than the limit of {plain}"):
        run(settings(tmp_path / "run", FIRST, later, max_length=plain, **options))
    assert not (tmp_path / "run" / "stage1").exists()
