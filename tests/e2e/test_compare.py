"""`tgalign compare --smoke` through the real command line, killed once on its way."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from processes import children, runs
from tgalign import cli
from tgalign.baselines.ablate import run_variant
from tgalign.baselines.ablations import Variant
from tgalign.baselines.methods import DEFAULT_METHODS
from tgalign.lab.assets import sha256
from tgalign.locks import LOCK

TGALIGN = [sys.executable, "-m", "tgalign", "compare"]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
WAIT = 600

pytestmark = pytest.mark.slow


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TGALIGN, *arguments], capture_output=True, text=True, env=ENV, timeout=WAIT, check=False
    )


def wait_for(what, happened) -> None:
    until = time.monotonic() + WAIT
    while not happened():
        assert time.monotonic() < until, f"no {what}"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[Path, int]]:
    """A comparison killed after its first training, and what was finished by then."""
    out = tmp_path_factory.mktemp("compare") / "out"
    with subprocess.Popen(
        [*TGALIGN, "--out", str(out), "--smoke", "--jobs", "2"],
        env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        wait_for("checkpoint", lambda: [*out.glob("seed0/runs/*/checkpoint")])
        started = children(process.pid)
        process.send_signal(signal.SIGKILL)
    assert started
    wait_for("end of the workers", lambda: not any(map(runs, started)))
    weights = out.glob("seed0/runs/*/checkpoint/model.safetensors")
    return out, {path: path.stat().st_mtime_ns for path in weights}


@pytest.fixture(scope="module")
def compared(killed: tuple[Path, dict[Path, int]]) -> Path:
    out, _ = killed
    done = run("--out", str(out), "--smoke", "--jobs", "1")
    assert done.returncode == 0, done.stderr
    assert "SMOKE RUN, figures mean nothing" in done.stdout
    return out


def test_a_killed_comparison_goes_on_after_what_was_finished(
    killed: tuple[Path, dict[Path, int]], compared: Path
) -> None:
    _, finished = killed
    assert finished
    assert all(path.stat().st_mtime_ns == when for path, when in finished.items())
    assert not [it for it in compared.rglob("*.incomplete") if it.name != LOCK]


def test_every_method_has_every_promised_figure(compared: Path) -> None:
    content = json.loads((compared / "comparison.json").read_text())
    assert list(content["methods"]) == list(DEFAULT_METHODS)
    assert content["smoke"] and set(content["pareto"]) <= set(DEFAULT_METHODS)
    for name, found in content["methods"].items():
        for rate in ("dsr", "over_refusal", "named", "text_dsr", "jailbreak_dsr"):
            assert 0 <= found[rate]["low"] <= found[rate]["rate"] <= found[rate]["high"] <= 1
        assert found["dsr"]["n"] == 14 and found["jailbreak_dsr"]["n"] == 28
        assert found["added_latency"] == 0 or found["at_inference"]
        assert found["training_seconds"] > 0
        assert ("against_ce" in found) == (name != "ce")
    assert content["methods"]["vlguard"]["uses_image_safety_data"]
    assert content["methods"]["safeclip"]["uses_second_model"]


def test_page_table_and_csv_are_there(compared: Path) -> None:
    page = (compared / "comparison.html").read_text()
    assert "A smoke run, whose figures mean nothing" in page and "arXiv 2402.02207" in page
    with (compared / "comparison.csv").open() as lines:
        assert [row["method"] for row in csv.DictReader(lines)] == list(DEFAULT_METHODS)
    assert "| vlguard" in (compared / "comparison.md").read_text()


def test_published_codes_control_trains_what_cross_entropy_trains(compared: Path) -> None:
    weights = {
        name: sha256(next(compared.glob(f"seed0/runs/{name}-*/checkpoint/model.safetensors")))
        for name in ("ce", "released_nograd", "paper", "modality_gap", "textual_unlearning")
    }
    assert weights["ce"] == weights["released_nograd"]
    assert len(set(weights.values())) == len(weights) - 1


def test_what_is_finished_is_not_repeated_and_methods_can_be_added(
    compared: Path, tgalign: Callable[..., Any]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in compared.glob("seed0/measured/*")}
    given = next(compared.glob("seed0/runs/tga-*/checkpoint"))
    status, _, told = tgalign(
        "compare", "--out", compared, "--smoke", "--jobs", "1",
        "--methods", "ce,vlguard+safety_prompt", "--checkpoint", f"mine={given}",
    )  # fmt: skip
    assert status == 0, told
    assert {path: path.stat().st_mtime_ns for path in before} == before
    content = json.loads((compared / "comparison.json").read_text())["methods"]
    assert list(content) == ["ce", "vlguard+safety_prompt", "mine"]
    assert content["vlguard+safety_prompt"]["uses_image_safety_data"]
    assert content["mine"]["uses_image_safety_data"] is None


def test_an_estimate_trains_nothing(tmp_path: Path, tgalign: Callable[..., Any]) -> None:
    out = tmp_path / "out"
    status, said, told = tgalign(
        "compare", "--out", out, "--smoke", "--estimate", "--methods", "ce,ecso"
    )
    assert status == 0, told
    assert "2 measurements (2 methods, 1 seeds) are left: about 0.0 hours" in said
    assert not list(out.glob("seed0/runs")) and not (out / "comparison.json").exists()


def fails(*arguments: str) -> object:
    """The status of a command that ends badly, run in this process."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(sys, "argv", ["tgalign", "compare", *arguments])
        cli.main()
    return end.value.code


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "ce,tgaa"], "unknown method 'tgaa'"),
        (["--condition", "none"], "unknown condition"),
        (["--style", "oil"], "unknown style"),
        (["--scale", "0"], "expected a factor above 0"),
        (["--checkpoint", "mine"], "expected NAME=FOLDER"),
        (["--checkpoint", "mine=nowhere"], "no model.safetensors"),
        (["--checkpoint", "ecso=nowhere"], "choose another"),
        (["--checkpoint", "../up=nowhere"], "choose another"),
        (["--ablation", "layers", "--methods", "ce"], "--ablation has no use for --methods"),
        (["--ablation", "none"], "unknown ablation 'none'; expected one of: form"),
    ],
)
def test_mistakes_end_with_one_message(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fails("--out", str(tmp_path / "out"), *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_another_comparison_in_the_same_folder_is_refused(
    compared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fails("--out", str(compared), "--smoke", "--condition", "absent") == 2
    assert "another --out" in capsys.readouterr().err


def test_a_variant_of_an_ablation_runs_with_a_language_model_of_its_own(tmp_path: Path) -> None:
    found = run_variant(
        tmp_path,
        0,
        Variant("narrow", ("companions=0.5",), llm_width=64),
        smoke=True,
    )
    assert found["rates"]["dsr"]["n"] == 200
    assert set(found["dsr_by_scene"]) == {"alcohol", "bloody", "cigarette", "knife", "porn"}
    assert json.loads((tmp_path / "llm64-smoke/config.json").read_text())["hidden_size"] == 64
