"""The table of faults and commands, in Markdown, from what was measured."""

from __future__ import annotations

import signal
from typing import Any

from tgalign.report.tables import markdown_table
from tgalign.termination import STATUS

TABLE = ("train", "retrieve build", "retrieve attach", "caption", "evaluate", "compare")
"""The commands of the table."""
MORE = ("demo", "diagnose")
"""Commands that can be asked for beside these."""
FAULTS = {
    "kill": "kill -9 at a random moment, same command again",
    "term": "SIGTERM at a random moment, same command again",
    "full": "disk full, room made, same command again",
    "read_only": "read-only output folder",
    "second": "second run on the same output",
    "clock": "kill -9, files of tomorrow, clock back a day, same command again",
}
"""By their names in the JSON."""
_WANTED = {
    "kill": {"status": -signal.SIGKILL, "second_status": 0},
    "term": {"status": STATUS, "second_status": 0},
    "full": {"status": 2, "second_status": 0, "traceback": False},
    "read_only": {"status": 2, "traceback": False},
    "second": {"status": 2, "second_status": 0, "traceback": False},
    "clock": {"status": -signal.SIGKILL, "second_status": 0},
}


def held(fault: str, row: dict[str, Any], may_lose: int) -> bool:
    """Whether a command did all that it should under a fault."""
    return (
        all(row[key] == value for key, value in _WANTED[fault].items())
        and not row.get("half")
        and not row.get("differs")
        and row.get("lost", 0) <= may_lose
    )


def markdown(content: dict[str, Any]) -> str:
    """A row per fault, a column per command: how many of the injected faults it stood."""
    commands = {name: content["commands"][name] for name in TABLE if name in content["commands"]}
    lines = [
        [title, *(_cell(fault, found) for found in commands.values())]
        for fault, title in FAULTS.items()
    ]
    seconds = [f"{found['seconds']:.1f}" for found in commands.values()]
    lines.append(["seconds undisturbed, from the first file on", *seconds])
    table = markdown_table(["fault", *commands], lines)
    total = sum(len(found.get(fault, [])) for found in commands.values() for fault in FAULTS)
    kills = sum(len(found.get("kill", [])) for found in commands.values())
    versions = ", ".join(f"{name} {said}" for name, said in content["versions"].items())
    return (
        f"{table}\n{total} faults, {kills} of them kills at random moments; seed of the moments "
        f"{content['seed']}; {content['minutes']:.0f} minutes; {versions}\n"
    )


def _cell(fault: str, found: dict[str, Any]) -> str:
    rows = found.get(fault, [])
    if not rows:
        return "not run"
    good = sum(held(fault, row, found["may_lose"]) for row in rows)
    cell = f"{good} of {len(rows)}"
    if fault == "kill":
        cell += f"; lost at most {max(row['lost'] for row in rows)} {found['unit']}"
    if fault == "term":
        cell += f"; ended within {max(row['seconds'] for row in rows):.0f} s"
    return cell
