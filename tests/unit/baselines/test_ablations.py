"""Ablations as data: every setting is one that can be run, and what is made of the results."""

import json
import math
import re
from html import unescape
from pathlib import Path
from xml.etree import ElementTree

import pytest
from markupsafe import escape

from tgalign.baselines import ablate
from tgalign.baselines.ablate import (
    growth,
    markdown,
    run_ablation,
    run_variant,
)
from tgalign.baselines.ablations import ABLATIONS, Ablation, Variant
from tgalign.errors import UserError
from tgalign.evaluate.seeds import NOTE
from tgalign.lab import experiment
from tgalign.lab.build import build_llm
from tgalign.lab.objects import picture_pool
from tgalign.report.ablation_report import render
from tgalign.report.wording import percent

VARIANTS = [(name, it) for name, ablation in ABLATIONS.items() for it in ablation.variants]


def rate(share, n=10):
    return {"rate": share, "low": max(0.0, share - 0.1), "high": min(1.0, share + 0.1), "n": n}


@pytest.fixture
def ran(monkeypatch):
    """The configs that were to be run; nothing is trained."""
    calls = []

    def measured(config, data, condition, size, seed, llm, quality, progress_bar):
        assert not progress_bar, "workers would draw over one another"
        calls.append((config, size, llm))
        rates = {key: rate(0.1 * (seed + 1)) for key in ablate.COLUMNS}
        scenes = {scene: rate(0.5) for scene in picture_pool("development").scenes}
        found = {"rates": rates, "dsr_by_scene": scenes}
        if quality is not None:
            cosine = None if quality.floor == 1 else 0.25 * seed + 0.1 * (not quality.random)
            found["similarity"] = {"picture_retrieved": cosine, "caption_retrieved": cosine}
            found["similarity"]["picture_caption"] = 0.75 - quality.noise_share / 2
        return found

    monkeypatch.setattr(experiment, "_measured", measured)
    monkeypatch.setattr(ablate, "available_cores", lambda: 1)
    return calls


def test_names_of_the_ablations_that_were_asked_for():
    assert {
        "form", "similarity", "reference", "layers", "weight", "schedule", "prompt", "stages",
        "toxic_share", "held_out_scenes", "pictures", "llm_width", "retrieval", "captions",
    } <= set(ABLATIONS)  # fmt: skip
    for ablation in ABLATIONS.values():
        labels = [variant.label for variant in ablation.variants]
        assert len(set(labels)) == len(labels) >= 2
        assert (ablation.size is None) == all(it.size is None for it in ablation.variants)


@pytest.mark.parametrize(
    ("name", "variant"), VARIANTS, ids=[f"{name}: {it.label}" for name, it in VARIANTS]
)
def test_every_variant_can_be_run(name, variant, ran, tmp_path, monkeypatch):
    def built(out, seed, **options):
        out.mkdir()
        (out / "model.safetensors").write_bytes(str(options).encode())

    monkeypatch.setattr("tgalign.lab.build.build_llm", built)
    for smoke in (False, True):
        run_variant(tmp_path, 0, variant, smoke=smoke)
    (config, size, llm), (short, little, _) = ran
    assert config.stages[0].steps > 100 > short.stages[0].steps
    assert size.pictures >= 1000 > little.pictures
    assert (llm is None) == (variant.llm_width is None)
    assert size.left_out == variant.scene


def test_variants_of_one_ablation_differ(ran, tmp_path):
    for name, ablation in ABLATIONS.items():
        ran.clear()
        for variant in ablation.variants:
            if variant.llm_width is None:
                run_variant(tmp_path / name, 0, variant, smoke=False)
        seen = {repr((config.model_dump(exclude={"out"}), size)) for config, size, _ in ran}
        assert len(seen) == len(ran), name


def test_seeds_are_pooled_and_the_page_is_written(ran, tmp_path, capsys):
    content = run_ablation(tmp_path, "held_out_scenes", num_seeds=2)
    assert content == json.loads((tmp_path / "ablation-held_out_scenes.json").read_text())
    first = content["variants"][0]
    assert (first["dsr"]["rate"], first["dsr"]["n"]) == (pytest.approx(0.15), 20)
    assert [row["seed"] for row in first["seeds"]] == [0, 1]
    assert (
        "| none left out | 0.15 [0.05, 0.36] |"
        in (tmp_path / "ablation-held_out_scenes.md").read_text()
    )
    assert "DSR of the scene left out" in capsys.readouterr().out
    page = (tmp_path / "ablation-held_out_scenes.html").read_text()
    assert "Does safety reach a scene" in page and "data.left_out=knife" in page
    again = len(ran)
    run_ablation(tmp_path, "held_out_scenes", num_seeds=2)
    assert len(ran) == again


def test_a_smoke_run_states_the_settings_that_held(ran, tmp_path):
    changes = run_ablation(tmp_path, "held_out_scenes", num_seeds=1, smoke=True)["changes"]
    assert "stage.steps=2" in changes and "stage1.steps=800" not in changes


def test_growth_is_the_slope_over_doublings():
    rows = [
        {"size": size, "seeds": [{"dsr": rate(0.1 + 0.05 * math.log2(size))}] * 2}
        for size in (1, 2, 4, 8)
    ]
    fit = growth(rows, "dsr")
    assert fit["per_doubling"] == pytest.approx(0.05)
    assert fit["intercept"] == pytest.approx(0.1)
    assert fit["low"] <= fit["per_doubling"] <= fit["high"] and fit["runs"] == 8
    rows[0]["seeds"] = [{"dsr": rate(0.5)}, {"dsr": rate(0.0)}]
    noisy = growth(rows, "dsr")
    assert noisy["high"] - noisy["low"] > 0.05
    shared = growth(rows, "dsr", shared=True)
    assert shared["runs"] == 4  # seeds of one language model are one point
    assert shared["per_doubling"] == pytest.approx(noisy["per_doubling"])


def test_sizes_are_fitted_and_drawn(ran, tmp_path):
    content = run_ablation(tmp_path, "pictures", num_seeds=2)
    assert content["fit"]["dsr"]["per_doubling"] == pytest.approx(0.0)
    assert "Each doubling of the number of pictures adds 0.0 points" in markdown(content)
    assert "DSR, fitted" in render(content)
    ElementTree.parse(tmp_path / "ablation-pictures.svg")


def test_a_line_of_the_page_joins_one_family_and_nothing_is_rounded_to_0():
    content = json.loads(Path("docs/ablation-captions.json").read_text())
    families = {
        row["family"]: [it for it in content["variants"] if it["family"] == row["family"]]
        for row in content["variants"]
    }
    for rows in families.values():
        rows.sort(key=lambda row: row["similarity"][content["against"]])
    page, shown = unescape(render(content)), []
    for key in ("dsr", "over_refusal"):
        label = f"{ablate.COLUMNS[key]} by measured similarity"
        (said,) = re.findall(rf'aria-label="{label}\. ([^"]*)"', page)
        parts = []
        for name, rows in families.items():
            first, last = (f"{percent(rows[end][key]['rate'])} %" for end in (0, -1))
            parts.append(f"{name}: from {first} to {last}")
        assert said == "; ".join(parts)
        shown += parts
    assert any("<1 %" in part for part in shown)
    few = next(row for row in content["variants"] if 0 < row["over_refusal"]["rate"] < 0.005)
    assert f"{few['label']}, over-refusal: <1 %" in page


def test_a_rate_that_was_not_measured_is_said():
    content = json.loads(Path("docs/ablation-weight.json").read_text())
    for row in content["variants"]:
        row.update({key: {"rate": None} for key in ("dsr", "over_refusal", "named")})
    page = render(content)
    assert "n/a: nothing was measured" in page and ">None<" not in page


def test_names_of_variants_are_escaped(monkeypatch, ran, tmp_path):
    evil = Ablation("<b>?", (Variant("<i>one"), Variant("two", ("companions=0.1",))))
    monkeypatch.setitem(ablate.ABLATIONS, "evil", evil)
    run_ablation(tmp_path, "evil", num_seeds=1)
    page = (tmp_path / "ablation-evil.html").read_text()
    assert "<i>one" not in page and "<b>?" not in page and "&lt;i&gt;one" in page


def test_an_unknown_ablation_lists_all(tmp_path):
    with pytest.raises(UserError, match=r"unknown ablation 'layer'.*layers.*captions"):
        run_ablation(tmp_path / "out", "layer", num_seeds=1)
    assert not (tmp_path / "out").exists()


def test_worse_r_is_tabled_and_drawn_against_its_similarity(ran, tmp_path):
    content = run_ablation(tmp_path, "retrieval", num_seeds=3, scale=0.25)
    assert {config.stages[0].steps for config, _, _ in ran} == {200}
    nearest, *_, none = content["variants"]
    assert nearest["similarity"]["picture_retrieved"] == pytest.approx(0.35)
    assert none["similarity"]["picture_retrieved"] is None
    lines = (tmp_path / "ablation-retrieval.md").read_text().splitlines()
    assert "| nearest | 0.350 | 0.350 | 0.750 | 0.20 [" in lines[4]
    assert lines[4].endswith("| 0.10 0.20 0.30 |")
    assert lines[-1].startswith("Rate [95 % Wilson interval], arm tga_plain, development things, ")
    assert "stage1.steps=200 stage2.steps=112 data.pictures=5000, seeds 0, 1, 2." in lines[-1]
    ElementTree.parse(tmp_path / "ablation-retrieval.svg")
    page = (tmp_path / "ablation-retrieval.html").read_text()
    assert "cos(picture, R)" in page and "DSR by measured similarity" in page


def test_a_scale_that_is_none_is_refused(tmp_path):
    with pytest.raises(UserError, match="scale 0: expected a factor"):
        run_ablation(tmp_path / "out", "layers", num_seeds=1, scale=0)
    assert not (tmp_path / "out").exists()


def test_a_language_model_of_another_width_is_built_once(tmp_path):
    from tgalign.lab.assets import load_llm

    build_llm(tmp_path / "llm", 0, width=32, steps=(1, 1))
    before = (tmp_path / "llm/model.safetensors").stat().st_mtime_ns
    build_llm(tmp_path / "llm", 0, width=32, steps=(1, 1))
    assert (tmp_path / "llm/model.safetensors").stat().st_mtime_ns == before
    model = load_llm(tmp_path / "llm")
    assert (model.config.hidden_size, model.config.num_hidden_layers) == (32, 6)


def test_another_language_model_makes_another_experiment(ran, tmp_path):
    folders = set()
    for number in range(2):
        llm = tmp_path / f"llm{number}"
        llm.mkdir()
        (llm / "model.safetensors").write_bytes(bytes([number]))
        for given in (llm, None):
            experiment.run_experiment(
                tmp_path, "tga", condition="guided", toxic_share=None, seed=0, changes=[],
                llm=given, progress_bar=False,
            )  # fmt: skip
    folders = {config.out.parent for config, _, _ in ran}
    bases = {config.model for config, _, _ in ran}
    assert len(ran) == len(folders) == len(bases) == 3


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("weight", lambda config: f"weight {config.stages[0].objective.weight}"),
        ("prompt", lambda config: f"{config.stages[1].retrieved_in_prompt:.0%} of the rows"),
    ],
)
def test_a_variant_that_states_no_change_is_as_its_label_says(name, setting, ran, tmp_path):
    for variant in ABLATIONS[name].variants:
        run_variant(tmp_path, 0, variant)
        assert setting(ran[-1][0]) == variant.label


def test_where_the_installation_lies_decides_no_run(ran, tmp_path, monkeypatch):
    variant = ABLATIONS["weight"].variants[0]
    run_variant(tmp_path, 0, variant)
    monkeypatch.setattr("tgalign.lab.arms.ASSETS", tmp_path / "elsewhere")
    run_variant(tmp_path, 0, variant)
    assert len(ran) == 1


def test_a_rate_whose_seeds_differ_is_marked(ran, tmp_path):
    content = run_ablation(tmp_path, "held_out_scenes", num_seeds=2)
    assert "†" not in markdown(content)
    first = content["variants"][0]
    for seed, share in zip(first["seeds"], (0.0, 1.0), strict=True):
        seed["dsr"] = rate(share)
    text = markdown(content)
    assert "| none left out | 0.15 [0.05, 0.36]† |" in text and text.endswith(f"{NOTE}\n")
    page = render(content)
    assert (page.count("†"), page.count(str(escape(NOTE)))) == (2, 1)
    assert "†" not in (tmp_path / "ablation-held_out_scenes.html").read_text()
