"""The benchmark of a step: what it measures is what it says. No time is judged."""

import json
import os
import sys
from concurrent.futures.process import BrokenProcessPool

import pytest
import torch
from benchmarks import step
from benchmarks.measure import apart, peak_bytes, ratio, take_turns
from benchmarks.released_style import released_step
from benchmarks.shapes import SHAPES, build_collator, build_model, build_rows

from tgalign.config import ObjectiveConfig
from tgalign.task import AlignmentTask

CPU = torch.device("cpu")
TINY = SHAPES["tiny"]


def test_the_last_line_has_the_ratios(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["step", "--shape", "tiny", "--turns", "2", "--json"])
    step.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(found) == {
        "time_ratio",
        "memory_ratio",
        "floor_ratio",
        "speedup_over_released_style",
        "cached_epoch_ratio",
    }
    assert all(value > 0 for value in found.values())
    assert 1 < found["floor_ratio"] < 1.5
    assert found["memory_ratio"] > 1


@pytest.mark.parametrize("lora", [False, True])
def test_what_is_measured_at_7b_runs_at_a_tiny_shape(lora, monkeypatch):
    """Projector alone, and adapters: with tokens a second and, on a known GPU, MFU."""
    monkeypatch.setitem(step.SHAPES, "7b", TINY)
    monkeypatch.setitem(step.PEAK_FLOPS, "cpu", 1e12)
    parts = ["projector", "llm"] if lora else ["projector"]
    found = step.against_plain(step.Bench(TINY, parts, lora, CPU), 2, lambda text: None)
    for arm in ("ce", "tga"):
        assert found[f"{arm}_tokens_per_second"] > 0
        assert 0 < found[f"{arm}_mfu"] < 1


def test_shape_7b_says_that_it_needs_a_gpu():
    if torch.accelerator.is_available():
        pytest.skip("there is one")
    with pytest.raises(SystemExit, match="needs a GPU"):
        step.run("7b", 1, print)


def test_shape_7b_is_mistral_and_clip():
    with torch.device("meta"):
        model = build_model(SHAPES["7b"], torch.bfloat16, torch.device("meta"))
    decoder = sum(weight.numel() for weight in model.model.language_model.parameters())
    head = model.lm_head.weight.numel()
    assert decoder + head == pytest.approx(7.24e9, rel=0.001)
    tower = sum(weight.numel() for weight in model.model.vision_tower.parameters())
    assert tower == pytest.approx(0.304e9, rel=0.01)
    assert SHAPES["7b"].image_tokens == 576


def test_the_released_style_computes_the_released_losses():
    model = build_model(TINY, torch.float32, CPU)
    model.set_attn_implementation("eager")
    rows = build_rows(TINY, 3, retrieved_in_prompt=True)
    batch = build_collator(TINY, pack=False)(rows)
    theirs = released_step(model, batch, [1, 2], TINY.template, progress=0.25)
    ours = AlignmentTask(model, ObjectiveConfig(form="released", layers=[1, 2]))(
        **batch, progress=0.25
    )
    torch.testing.assert_close(theirs["ce"], ours["ce"])
    torch.testing.assert_close(theirs["pair"], ours["align"])
    assert model.training
    theirs["loss"].backward()


def test_arms_take_turns():
    order = []
    seconds = take_turns(
        {name: lambda turn, name=name: order.append((name, turn)) for name in "ab"}, 3, CPU
    )
    assert "".join(name for name, _ in order) == "baabbaab"
    assert [turn for _, turn in order] == [0, 0, 0, 0, 1, 1, 2, 2]
    assert {name: len(each) for name, each in seconds.items()} == {"a": 3, "b": 3}


def test_a_ratio_is_the_median_over_turns():
    found = ratio({"a": [2.0, 3.0, 40.0], "b": [1.0, 1.0, 1.0]}, "a", "b")
    assert (found.median, found.turns) == (3.0, 3)
    assert found.low < found.median < found.high


def test_the_peak_is_what_was_there_at_once():
    def work():
        for _ in range(3):
            kept = torch.ones(250_000)
            kept + 1  # one more of the same size
            del kept

    assert peak_bytes(work, CPU) == pytest.approx(2_000_000, rel=0.01)


def test_a_work_apart_gives_its_result_or_is_said_to_have_died():
    assert apart(os.getpid) != os.getpid()
    with pytest.raises(BrokenProcessPool):
        apart(os._exit, 9)
