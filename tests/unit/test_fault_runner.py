"""What the fault runner takes for equal, for whole and for a fault that was stood."""

import json
import sys

import pytest
from benchmarks.faults.__main__ import main
from benchmarks.faults.commands import name_commands
from benchmarks.faults.equality import differences, half_written, left_over
from benchmarks.faults.table import MORE, TABLE, held, markdown

GOOD = {
    "kill": {"status": -9, "half": [], "lost": 2, "second_status": 0, "differs": []},
    "full": {"status": 2, "half": [], "traceback": False, "second_status": 0, "differs": []},
    "read_only": {"status": 2, "traceback": False},
}


def test_trees_are_equal_but_for_times(tmp_path) -> None:
    for name, seconds in (("a", 1.0), ("b", 2.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "r.json").write_text(json.dumps({"seconds": seconds, "n": [1]}))
        (tmp_path / name / "m.jsonl").write_text(json.dumps({"step_seconds": seconds}) + "\n")
        (tmp_path / name / "w.bin").write_bytes(b"same")
    a, b = tmp_path / "a", tmp_path / "b"
    assert differences(a, b) == []
    (b / "r.json").write_text(json.dumps({"n": [2]}))
    (b / "w.bin").write_bytes(b"other")
    (b / "x.incomplete").touch()
    assert set(differences(a, b)) == {"x.incomplete", "r.json", "w.bin"}
    assert left_over(b) == [str(b / "x.incomplete")]


@pytest.mark.parametrize("name", ["a.json", "a.safetensors", "a.npy", "a.parquet", "a.png", "a.pt"])
def test_half_a_file_is_found_unless_its_name_says_so(name, tmp_path) -> None:
    (tmp_path / name).write_bytes(b'{"half')
    (tmp_path / f"{name}.incomplete").write_bytes(b'{"half')
    (tmp_path / "items.jsonl").write_bytes(b'{"a": 1}\n{"half')  # a journal
    assert half_written(tmp_path) == [name]


@pytest.mark.parametrize("fault", GOOD)
def test_a_fault_is_stood_only_if_all_is_as_it_should(fault) -> None:
    assert held(fault, GOOD[fault], 2)
    for key in GOOD[fault]:
        bad = {"half": ["a.json"], "differs": ["a"], "lost": 3, "traceback": True}.get(key, 1)
        assert not held(fault, GOOD[fault] | {key: bad}, 2), key


def test_the_table_counts_what_was_stood() -> None:
    found = {"unit": "steps", "may_lose": 2, "seconds": 1.5, **{k: [v] for k, v in GOOD.items()}}
    found["kill"] = [GOOD["kill"], GOOD["kill"] | {"differs": ["a"]}]
    table = markdown({"commands": {"train": found}, "seed": 0, "minutes": 3.0, "versions": {}})
    assert "same command again | 1 of 2; lost at most 2 steps |" in table
    assert "not run" in table and "4 faults, 2 of them kills at random moments" in table


@pytest.mark.parametrize(
    ("option", "said"),
    [("--commands=trian,demo", "unknown trian; known: train,"), ("--faults=kil", "unknown kil;")],
)
def test_what_is_misspelt_is_said(option, said, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["faults", option, "--out", "none.json"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2 and said in capsys.readouterr().err


def test_all_commands_have_a_name_to_ask_for(tmp_path) -> None:
    assert [it.name for it in name_commands(tmp_path)] == [*TABLE, *MORE]
