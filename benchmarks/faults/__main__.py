"""``python -m benchmarks.faults``; see the package."""

from __future__ import annotations

import argparse
import multiprocessing
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.faults import faults
from benchmarks.faults.commands import Command, name_commands, write_world
from benchmarks.faults.runs import prepare
from benchmarks.faults.table import FAULTS, markdown
from tgalign.demo_results import versions
from tgalign.files import read_json, write_json

HALVES = ("retrieve build", "retrieve attach")
"""These share the kills of one command."""


def main() -> None:
    """Inject what is asked for, write the JSON and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/reliability.json"))
    parser.add_argument("--seed", type=int, default=0, help="of the moments of kills")
    parser.add_argument("--kills", type=int, default=10, help="of each command")
    parser.add_argument("--terms", type=int, default=2, help="SIGTERMs to each command")
    parser.add_argument("--commands", help="comma-separated; by default all")
    parser.add_argument("--faults", help=f"comma-separated; by default all: {', '.join(FAULTS)}")
    parser.add_argument("--keep", action="store_true", help="what is in --out already, add to it")
    given = parser.parse_args()
    wanted = given.faults.split(",") if given.faults else list(FAULTS)
    content: dict[str, Any] = {"schema_version": 1, "seed": given.seed, "versions": versions()}
    content["commands"] = read_json(given.out)["commands"] if given.keep else {}
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tgalign-faults-") as folder:
        prepare()
        world = multiprocessing.get_context("fork").Process(
            target=write_world, args=(Path(folder),)
        )
        world.start()
        world.join()  # in a process of its own: no thread may run in this one when it forks
        for command in name_commands(Path(folder)):
            if given.commands and command.name not in given.commands.split(","):
                continue
            kills = given.kills // 2 if command.name in HALVES else given.kills
            rows = _inject(command, Path(folder), wanted, given.seed, kills, given.terms)
            found = content["commands"].setdefault(command.name, {})
            found |= {"unit": command.what, "may_lose": command.lost, **rows}
            write_json(given.out, content)
    content["minutes"] = (time.monotonic() - begun) / 60
    write_json(given.out, content)
    print(markdown(content))


def _inject(
    command: Command, folder: Path, wanted: list[str], seed: int, kills: int, terms: int
) -> dict[str, Any]:
    kept = folder / "straight" / command.place.name
    seconds, size = faults.straight(command, kept)
    print(f"{command.name}: {seconds:.1f} s, {size:,} bytes", flush=True)
    rng = random.Random(f"{seed}-{command.name}")
    plans: dict[str, list[Any]] = {
        "kill": [lambda: faults.killed(command, kept, rng, seconds)] * kills,
        "term": [lambda: faults.terminated(command, kept, rng, seconds)] * terms,
        "full": [
            lambda: faults.disk_full(command, kept, size // 5),
            lambda: faults.disk_full(command, kept, 4 * size // 5),
        ],
        "read_only": [lambda: faults.read_only(command)],
        "second": [lambda: faults.second_run(command, kept)],
        "clock": [lambda: faults.clock_back(command, kept, rng, seconds)],
    }
    found: dict[str, Any] = {"seconds": seconds, "bytes": size}
    for fault in wanted:
        found[fault] = []
        for inject in plans[fault]:
            row = inject()
            found[fault].append(row)
            print(f"  {fault}: {row}", flush=True)
    return found


if __name__ == "__main__":
    main()
