"""The lab's shipped models, their manifest, and building, with the training cut to nothing."""

import json
import shutil

import pytest

from tgalign.errors import UserError
from tgalign.evaluate.statistics import wilson
from tgalign.lab import assets, base_clip, base_llm, build
from tgalign.lab.assets import ASSETS, check_assets, load_lab
from tgalign.lab.build_command import run_build
from tgalign.lab.gates import GATES, GateReport


def report(**successes: int) -> GateReport:
    counts = {"text_dsr": 100, "text_over_refusal": 0, "text_named": 100}
    counts |= {"probe_accuracy": 99, "icon_probe_accuracy": 97}
    return GateReport({k: wilson(n, 100) for k, n in (counts | successes).items()}, [])


def test_the_shipped_files_are_those_of_the_manifest_and_passed_the_gates():
    manifest = check_assets()
    assert set(manifest["gates"]) == set(GATES)
    for name, (sign, bound) in GATES.items():
        rate = manifest["gates"][name]["rate"]
        assert rate >= bound if sign == ">=" else rate <= bound
    llm, clip, tokenizer = load_lab()
    assert llm.config.vocab_size == clip.config.text_config.vocab_size == len(tokenizer)


def test_a_changed_file_is_refused_by_name(tmp_path):
    shutil.copytree(ASSETS, tmp_path / "lab")
    with (tmp_path / "lab/clip/model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(UserError, match=r"clip/model\.safetensors"):
        load_lab(tmp_path / "lab")
    (tmp_path / "lab/manifest.json").unlink()
    with pytest.raises(UserError, match="no lab models"):
        load_lab(tmp_path / "lab")


def test_gates_fail_at_their_bounds():
    assert report().failed == []
    assert report(text_dsr=97).failed == ["text_dsr"]
    assert report(text_over_refusal=3).failed == ["text_over_refusal"]
    assert report(text_named=98, probe_accuracy=94).failed == ["probe_accuracy"]
    assert report(icon_probe_accuracy=94).failed == ["icon_probe_accuracy"]


def test_builds_differ_by_more_than_two_points():
    assert build.differences(report(), report(text_dsr=98)) == []
    assert build.differences(report(), report(text_dsr=97)) == ["text_dsr"]


@pytest.fixture
def short(monkeypatch):
    for module, names in ((base_llm, ("CLEAN_STEPS", "MESSY_STEPS")), (base_clip, ("STEPS",))):
        for name in names:
            monkeypatch.setattr(module, name, 1)
    monkeypatch.setattr(build, "check_gates", lambda *_: report())


def test_a_build_is_whole_and_kept(short, tmp_path):
    build.build_lab(tmp_path / "lab", 3, "test")
    manifest = check_assets(tmp_path / "lab")
    assert manifest["seed"] == 3
    assert manifest["gates"]["text_dsr"]["n"] == 100
    first = (tmp_path / "lab/llm/model.safetensors").stat().st_mtime_ns
    build.build_lab(tmp_path / "lab", 3, "test")
    assert (tmp_path / "lab/llm/model.safetensors").stat().st_mtime_ns == first
    build.build_lab(tmp_path / "lab", 4, "test")
    assert (tmp_path / "lab/llm/model.safetensors").stat().st_mtime_ns != first
    assert not list(tmp_path.rglob("*.incomplete"))


def test_a_build_that_misses_a_gate_leaves_no_manifest(short, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "check_gates", lambda *_: report(text_named=50))
    with pytest.raises(UserError, match="text_named"):
        build.build_lab(tmp_path / "lab", 3, "test")
    assert not (tmp_path / "lab/manifest.json").exists()


def test_a_build_never_replaces_what_is_not_its_own(short, tmp_path):
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm/thesis.txt").touch()
    (tmp_path / "manifest.json").write_text(json.dumps({"mine": True}))
    with pytest.raises(UserError, match="holds no lab build"):
        build.build_lab(tmp_path, 0, "test")
    assert (tmp_path / "llm/thesis.txt").exists()
    assert (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize("check", [True, False])
def test_one_thing_at_a_time(tmp_path, check):
    with pytest.raises(UserError, match="give one of"):
        run_build(tmp_path if check else None, 0, check=check, gates_only=False)


@pytest.mark.parametrize(("rebuilt", "status"), [(99, 0), (95, 1)])
def test_a_check_compares_a_rebuild_with_the_shipped(monkeypatch, capsys, rebuilt, status):
    asked = []

    def fake(folder, seed, command, **_):
        asked.append((folder, seed))
        return report(text_named=rebuilt)

    monkeypatch.setattr("tgalign.lab.build_command.build_lab", fake)
    monkeypatch.setattr("tgalign.lab.build_command.check_shipped", report)
    assert run_build(None, 5, check=True, gates_only=False) == status
    assert asked[0][1] == assets.check_assets()["seed"] == 0
    assert ("text_named" in capsys.readouterr().out.splitlines()[-1]) == bool(status)
