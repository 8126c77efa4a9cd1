"""``python -m benchmarks.faults``; see the package."""

from __future__ import annotations

import argparse
import multiprocessing
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.faults import faults
from benchmarks.faults.commands import Command, name_commands, write_world
from benchmarks.faults.runs import prepare
from benchmarks.faults.table import FAULTS, MORE, TABLE, markdown
from tgalign.demo_results import versions
from tgalign.files import read_json, write_json

HALVES = ("retrieve build", "retrieve attach")
"""These share the kills of one command."""
ONCE = {"full": 2}
"""How often a fault is injected, if not once: disks of a fifth and of four fifths of the result."""


def main() -> None:
    """Inject what is asked for, write the JSON and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/reliability.json"))
    parser.add_argument("--seed", type=int, default=0, help="of the moments of kills")
    parser.add_argument("--kills", type=int, default=10, help="of each command")
    parser.add_argument("--terms", type=int, default=2, help="SIGTERMs to each command")
    parser.add_argument("--commands", help=f"comma-separated; by default: {', '.join(TABLE)}")
    parser.add_argument("--faults", help=f"comma-separated; by default all: {', '.join(FAULTS)}")
    parser.add_argument("--anew", action="store_true", help="drop what --out holds; else go on")
    given = parser.parse_args()
    wanted = given.faults.split(",") if given.faults else list(FAULTS)
    commands = given.commands.split(",") if given.commands else list(TABLE)
    checked = ("commands", commands, (*TABLE, *MORE)), ("faults", wanted, tuple(FAULTS))
    for option, names, known in checked:
        if unknown := [name for name in names if name not in known]:
            parser.error(f"--{option}: unknown {', '.join(unknown)}; known: {', '.join(known)}")
    content: dict[str, Any] = {"schema_version": 1, "seed": given.seed, "versions": versions()}
    content |= {"minutes": 0.0, "commands": {}}
    if given.out.is_file() and not given.anew:
        found = read_json(given.out)
        if {**found, "minutes": 0, "commands": {}} != {**content, "minutes": 0, "commands": {}}:
            parser.error(f"{given.out} is of another seed or version: give --anew")
        content = found
    with tempfile.TemporaryDirectory(prefix="tgalign-faults-") as folder:
        prepare()
        fork = multiprocessing.get_context("fork")
        writer = fork.Process(target=write_world, args=(Path(folder),))
        writer.start()
        writer.join()  # in a process of its own: no thread may run in this one when it forks
        for command in name_commands(Path(folder)):
            if command.name not in commands:
                continue
            kills = -(-given.kills // 2) if command.name in HALVES else given.kills
            counts = {fault: ONCE.get(fault, 1) for fault in wanted}
            counts |= {"kill": kills} if "kill" in wanted else {}
            counts |= {"term": given.terms} if "term" in wanted else {}
            for _ in _inject(command, Path(folder), content, counts):
                write_json(given.out, content)
    print(markdown(content))


def _inject(
    command: Command, folder: Path, content: dict[str, Any], counts: dict[str, int]
) -> Iterator[None]:
    """Add the faults that a command lacks to what was measured, one by one."""
    found = content["commands"].setdefault(command.name, {})
    found |= {"unit": command.what, "may_lose": command.lost}
    left = {fault: range(len(found.get(fault, [])), count) for fault, count in counts.items()}
    if not any(left.values()):
        return
    begun = time.monotonic()
    kept = folder / "straight" / command.place.name
    seconds, size = faults.straight(command, kept)
    found |= {"seconds": seconds, "bytes": size}
    for fault, numbers in left.items():
        for number in numbers:
            rng = random.Random(f"{content['seed']} {command.name} {fault} {number}")
            row = _one(command, kept, fault, number, rng, seconds, size)
            found.setdefault(fault, []).append(row)
            print(f"{command.name}, {fault}: {row}", flush=True)
            content["minutes"] += (time.monotonic() - begun) / 60
            begun = time.monotonic()
            yield


def _one(
    command: Command,
    kept: Path,
    fault: str,
    number: int,
    rng: random.Random,
    seconds: float,
    size: int,
) -> faults.Row:
    match fault:
        case "kill":
            return faults.killed(command, kept, rng, seconds)
        case "term":
            return faults.terminated(command, kept, rng, seconds)
        case "full":
            return faults.disk_full(command, kept, (4 if number else 1) * size // 5)
        case "read_only":
            return faults.read_only(command)
        case "second":
            return faults.second_run(command, kept)
        case "clock":
            return faults.clock_back(command, kept, rng, seconds)
    raise ValueError(f"no fault {fault!r}: expected one of {', '.join(FAULTS)}")


if __name__ == "__main__":
    main()
