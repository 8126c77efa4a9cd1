"""Several demos in one table and one plot."""

import copy
import json
from xml.etree import ElementTree

import pytest

from tgalign.errors import UserError
from tgalign.report.conditions import COLUMNS, combine


def rate(value):
    return {"rate": value, "low": value / 2, "high": (1 + value) / 2, "n": 40}


def demo(condition, share, dsr, style="emoji"):
    arms = {arm: {key: rate(0.25) for key in COLUMNS} | {"dsr": rate(dsr)} for arm in ("ce", "tga")}
    return {
        "schema_version": 2, "smoke": False, "condition": condition, "toxic_share": share,
        "style": style, "seeds": [0, 1, 2], "arms": arms, "gallery": [1], "curves": {"ce": []},
    }  # fmt: skip


@pytest.fixture
def folders(tmp_path):
    made = []
    for name, it in {
        "guided": demo("guided", 0.1, 0.75),
        "absent": demo("absent", 0.0, 0.125),
        "one": demo("captioned", 0.01, 0.5),
        "icons": demo("guided", 0.1, 0.25, "icons"),
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(it))
        made.append(tmp_path / name)
    return made


def test_every_condition_and_arm_has_its_row(folders, tmp_path):
    table = combine(folders, tmp_path / "all")
    lines = table.splitlines()
    assert [line.split(" | ")[0][2:] for line in lines[2:10:2]] == [
        "guided 10 %", "absent", "captioned 1 %", "guided 10 %, icons",
    ]  # fmt: skip
    assert lines[2].startswith("| guided 10 % | ce | 0.75 [0.38, 0.88] | 0.25 [0.12, 0.62] |")
    assert "Seeds pooled: guided 10 %: 0, 1, 2; absent: 0, 1, 2;" in table
    assert "n of the columns: guided 10 %: 40, 40, 40," in table
    assert "SMOKE" not in table
    assert (tmp_path / "all.md").read_text() == table
    drawing = (tmp_path / "all.svg").read_text()
    assert ElementTree.fromstring(drawing).tag.endswith("svg")


def test_its_own_json_gives_the_same_again(folders, tmp_path):
    table = combine(folders, tmp_path / "all")
    kept = json.loads((tmp_path / "all.json").read_text())
    assert all("gallery" not in it and "curves" not in it for it in kept)
    first = (tmp_path / "all.svg").read_bytes()
    assert combine([tmp_path / "all.json"], tmp_path / "again") == table
    assert (tmp_path / "again.svg").read_bytes() == first


def test_a_dot_in_the_name_begins_no_ending(folders, tmp_path):
    for name in ("tga-0.8", "tga-0.4"):
        combine(folders, tmp_path / name)
    written = sorted(path.name for path in tmp_path.glob("tga-*"))
    assert written == [
        f"{name}.{end}" for name in ("tga-0.4", "tga-0.8") for end in ("json", "md", "svg")
    ]


def test_a_smoke_run_says_so(folders, tmp_path):
    path = folders[0] / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"smoke": True}))
    assert "SMOKE RUN, figures mean nothing." in combine(folders, tmp_path / "all")


def test_what_cannot_be_combined_is_named(folders, tmp_path):
    with pytest.raises(UserError, match=r"no results at .*nothing"):
        combine([tmp_path / "nothing"], tmp_path / "all")
    with pytest.raises(UserError, match="two demos of guided 10 %"):
        combine([folders[0], folders[0]], tmp_path / "all")
    old = copy.deepcopy(demo("guided", 0.2, 0.5)) | {"schema_version": 1}
    (tmp_path / "old.json").write_text(json.dumps(old))
    with pytest.raises(UserError, match="schema version 2"):
        combine([tmp_path / "old.json"], tmp_path / "all")
    assert not list(tmp_path.glob("all.*"))
