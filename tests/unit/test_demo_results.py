"""The demo's table against figures counted by hand."""

import json

import pytest
from rich.console import Console

from tgalign.demo import _training_curve
from tgalign.demo_results import assemble_results, markdown, print_results
from tgalign.evaluate.seeds import NOTE


def found(refused: int, named: int, weights: str, seconds: float) -> dict:
    return {
        "counts": {
            "dsr": [refused, 10], "over_refusal": [1, 20], "named": [named, 8],
            "undetermined": [0, 30], "text_dsr": [5, 5], "text_over_refusal": [0, 5],
            "text_named": [4, 4], "held_out_dsr": [refused, 10], "held_out_named": [2, 4],
        },
        "dsr_by_scene": {"gun": [refused, 6], "knife": [0, 4]},
        "alignment": [{"layer": 0, "caption_retrieval": seconds, "toxic_caption_retrieval": 0.5}],
        "logit_lens": [{"layer": 0, "toxic": 0.25, "benign": 0.0}],
        "text_logit_lens": [{"layer": 0, "toxic": 1.0, "benign": 0.0}],
        "step_seconds": seconds, "seconds": 10 * seconds, "weights_sha256": weights, "curve": [],
    }  # fmt: skip


def test_rates_are_pooled_and_tables_averaged_over_seeds():
    measured = {
        0: {"base": found(0, 0, "x", 0), "ce": found(0, 7, "a", 1.0), "tga": found(6, 6, "b", 2.0)},
        1: {"base": found(0, 0, "x", 0), "ce": found(1, 8, "c", 2.0), "tga": found(4, 8, "c", 4.0)},
    }
    settings = {"condition": "guided", "toxic_share": 0.1, "style": "icons", "smoke": False}
    results = assemble_results(measured, [], settings)
    assert results["condition"] == "guided"
    tga = results["arms"]["tga"]
    assert (tga["dsr"]["rate"], tga["dsr"]["n"]) == (0.5, 20)
    assert tga["dsr"]["low"] == pytest.approx(0.299298, abs=1e-6)  # Wilson, 10 of 20
    assert (tga["dsr_by_scene"]["gun"]["rate"], tga["dsr_by_scene"]["gun"]["n"]) == (10 / 12, 12)
    assert tga["named"]["rate"] == 14 / 16
    assert tga["held_out_dsr"]["rate"] == 0.5
    assert tga["step_seconds"] == 3.0
    assert tga["alignment"][0]["caption_retrieval"] == 3.0
    assert [seed["dsr"]["rate"] for seed in tga["seeds"]] == [0.6, 0.4]
    assert not tga["same_weights_as_ce"]  # in one seed only
    assert results["arms"]["ce"]["same_weights_as_ce"]
    assert results["seconds"] == 90.0
    assert results["base"]["text_dsr"]["n"] == 10
    table = markdown(results)
    assert "| DSR gun | 0.08 [0.01, 0.35] n=12 | 0.83 [0.55, 0.95] n=12 |" in table
    assert "| DSR, things never tuned on | 0.05 [0.01, 0.24] n=20 |" in table
    assert table.startswith("condition guided (10 % toxic pictures), icons, seeds 0, 1; ")
    assert "SMOKE" not in table
    assert markdown(results | {"smoke": True}).startswith("SMOKE RUN")


def test_curve_and_step_time_come_from_the_metrics(tmp_path):
    for stage, times in (("one", (9.0, 1.0, 1.0)), ("two", (3.0, 3.0, 8.0))):
        (tmp_path / stage).mkdir()
        lines = [
            {"step": 20 * n + 20, "stage": stage, "ce": n, "step_seconds": time}
            for n, time in enumerate(times)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / stage / "metrics.jsonl").write_text(text)
    curve = _training_curve(tmp_path, ["one", "two"])
    assert curve["step_seconds"] == 2.0  # medians 1 and 3, as many steps each
    assert [line["step"] for line in curve["curve"]] == [20, 40, 60, 80, 100, 120]
    assert curve["curve"][3] == {"step": 80, "stage": "two", "ce": 0}


def test_a_rate_whose_seeds_differ_is_marked(capsys):
    measured = {
        seed: {"base": found(0, 0, "x", 0), "ce": found(refused, 7, "a", 1.0)}
        for seed, refused in enumerate((0, 10))
    }
    settings = {"condition": "guided", "toxic_share": 0.1, "style": "emoji", "smoke": False}
    results = assemble_results(measured, [], settings)
    text = markdown(results)
    assert "| DSR, all scenes | 0.50 [0.30, 0.70]† n=20 |" in text
    assert "| objects named | 0.88 [0.64, 0.97] n=16 |" in text
    assert text.endswith(f"{NOTE}\n")
    print_results(Console(width=200), results)
    assert NOTE in capsys.readouterr().out
    results["arms"]["ce"]["seeds"] = []
    assert NOTE not in markdown(results)
