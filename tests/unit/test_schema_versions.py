"""Files of the schema versions that were ever written still open; one to come is refused by name.

`tests/data/versions/NAME-VERSION` holds a file of each as a release wrote it. A new version gets a
folder of its own beside the old one, which stays.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tgalign.app.comparison_files import read_comparison
from tgalign.config import parse_config
from tgalign.diagnose.diagnosed_layers import diagnosed_layers
from tgalign.errors import UserError
from tgalign.evaluate.results import read_results
from tgalign.evaluate.run import _check_same_run, read_items
from tgalign.files import claim, read_json
from tgalign.lab.assets import ASSETS, check_assets
from tgalign.report.conditions import combine
from tgalign.report.demo_report import write_demo_report
from tgalign.report.diagnosis_report import read_diagnosis, report_diagnoses
from tgalign.retrieval.index import Index
from tgalign.run_folder import claim_run
from tgalign.text_store import TextStore

VERSIONS = Path(__file__).parents[1] / "data" / "versions"


def open_evaluation(folder: Path) -> None:
    assert read_results(folder)["dsr"]["n"] > 0
    assert len(read_items(folder / "items.jsonl")) == 3


def open_state(folder: Path) -> None:
    _check_same_run(folder, read_json(VERSIONS / "evaluation-1/run.json"))


def open_demo(folder: Path) -> None:
    assert "tga" in combine([folder], folder / "all")
    assert write_demo_report(read_json(folder / "results.json"), folder).is_file()


def open_diagnosis(folder: Path) -> None:
    assert report_diagnoses([folder], None)
    assert read_diagnosis(folder)["causal_layers"]
    assert diagnosed_layers(folder / "diagnosis.json", "safety") == [3, 4, 5, 6]


def open_index(folder: Path) -> None:
    index = Index.open(folder)
    found = index.search_exactly(index.vectors(torch.tensor([1])), 1)
    assert index.side(found[0]) == {1: ("a blue hat .", False)}


def open_training(folder: Path) -> None:
    said = read_json(VERSIONS / "training-1/config.json") | {"out": str(folder)}
    path = folder / "config.json"
    path.write_text(json.dumps(read_json(path) | {"out": str(folder)}))
    claim_run(parse_config(said, "the same recipe today"))


def open_comparison(folder: Path) -> None:
    found = read_comparison(folder, [])
    assert "SMOKE" in found.title and found.methods


# What it is, the file that states its version under a key, and how a user's command opens it.
FILES: dict[str, tuple[str, str, Callable[[Path], None]]] = {
    "demo-2": ("results.json", "schema_version", open_demo),
    "evaluation-1": ("results.json", "schema_version", open_evaluation),
    "evaluation-1, under way": ("run.json", "schema_version", open_state),
    "diagnosis-1": ("diagnosis.json", "schema_version", open_diagnosis),
    "comparison-1": ("comparison.json", "schema_version", open_comparison),
    "index-1": ("manifest.json", "format", open_index),
    "training-1": ("config.json", "schema_version", open_training),
}


@pytest.fixture(params=FILES)
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str, str, Any]:
    """A copy of a folder, its versioned file and key, and what opens it."""
    file, key, opened = FILES[request.param]
    folder = tmp_path / "kept"
    shutil.copytree(VERSIONS / request.param.split(",")[0], folder)
    return folder, file, key, opened


def test_what_was_written_still_opens(kept: tuple[Path, str, str, Any]) -> None:
    folder, _, _, opened = kept
    opened(folder)


def test_a_version_to_come_is_refused_and_both_are_named(kept: tuple[Path, str, str, Any]) -> None:
    folder, file, key, opened = kept
    content = read_json(folder / file)
    now = content.get(key, 1)
    (folder / file).write_text(json.dumps(content | {key: 99}))
    with pytest.raises(
        UserError, match=f"has schema_version 99, .* version {now} .*update tgalign"
    ):
        opened(folder)


def test_every_version_kept_is_tested() -> None:
    assert {it.name for it in VERSIONS.iterdir()} == {name.split(",")[0] for name in FILES}


def test_markers_of_runs_name_both_versions(tmp_path: Path) -> None:
    claim(tmp_path / "out", "demo.json", {"schema_version": 2, "smoke": True}, "demo")
    with pytest.raises(UserError, match=r"demo\.json has schema_version 2, .* version 3 of a demo"):
        claim(tmp_path / "out", "demo.json", {"schema_version": 3, "smoke": True}, "demo")


def test_manifests_of_the_lab_and_of_kept_states_are_checked_too(tmp_path: Path) -> None:
    manifest = read_json(ASSETS / "manifest.json")
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 7}))
    with pytest.raises(UserError, match=r"has schema_version 7, .* version 1 of the lab's models"):
        check_assets(tmp_path)
    store = TextStore(tmp_path, {"llm": "one"})
    store.folder.mkdir()
    old = {"identity": {"llm": "one"}, "files": {}}  # as before there were versions
    (store.folder / "manifest.json").write_text(json.dumps(old))
    TextStore(tmp_path, {"llm": "one"})
    (store.folder / "manifest.json").write_text(json.dumps(old | {"schema_version": 2}))
    with pytest.raises(UserError, match=r"has schema_version 2, .* version 1 of kept states"):
        TextStore(tmp_path, {"llm": "one"})
