"""A part of `python -m benchmarks.faults`, and the same numbers twice (docs/reliability.md)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.faults.table import held, markdown

ROOT = Path(__file__).parents[2]
COMMANDS = ("train", "retrieve build", "evaluate")
TWICE = """
import multiprocessing, sys
from pathlib import Path
from benchmarks.faults import faults, runs
from benchmarks.faults.commands import name_commands, write_world
from benchmarks.faults.equality import differences
runs.prepare()
world = Path(sys.argv[1])
writer = multiprocessing.get_context("fork").Process(target=write_world, args=(world,))
writer.start()
writer.join()
for command in name_commands(world):
    if command.name in ("demo", "diagnose", "evaluate"):
        first, second = world / "first" / command.name, world / "second" / command.name
        faults.straight(command, first)
        faults.straight(command, second)
        files = len([it for it in first.rglob("*") if it.is_file()])
        print(command.name, files, *differences(first, second), sep=",")
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="faults are injected on Linux"),
]


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_killed_and_terminated_commands_end_as_undisturbed_ones(tmp_path: Path) -> None:
    out = tmp_path / "faults.json"
    arguments = ["-m", "benchmarks.faults", "--out", str(out), "--kills", "1", "--terms", "1"]
    run(*arguments, "--faults", "kill,term", "--commands", ",".join(COMMANDS))
    content = json.loads(out.read_text())
    assert set(content["commands"]) == set(COMMANDS)
    for name, found in content["commands"].items():
        for fault in ("kill", "term"):
            (row,) = found[fault]
            assert held(fault, row, found["may_lose"]), (name, fault, row)
    assert "| 1 of 1; ended within" in markdown(content)


def test_the_same_seed_gives_the_same_numbers_in_another_process(tmp_path: Path) -> None:
    said = [line.split(",") for line in run("-c", TWICE, str(tmp_path)).splitlines() if "," in line]
    assert [line[0] for line in said] == ["evaluate", "demo", "diagnose"]
    assert all(int(line[1]) >= 4 for line in said)
    assert [line[2:] for line in said] == [[], [], []]
