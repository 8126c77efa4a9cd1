"""The faults: each disturbs a command, gives it again, and says what came of it."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from benchmarks.faults.commands import Command
from benchmarks.faults.equality import half_written
from benchmarks.faults.runs import Ended, Running, clear, go_on, outcome

Row = dict[str, Any]
"""One injected fault: what was done, how the command ended, and what the second run made of it."""

NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-ec")
FULL = """place=$1 size=$2 kept=$3; shift 3
mount -t tmpfs -o size=$size none "$place"
set +e; "$@"; echo $? > "$kept/status"; set -e
cp -a "$place" "$kept/left"
mount -o remount,size=4g "$place"
set +e; "$@"; status=$?; set -e
cp -a "$place" "$kept/right"
exit $status"""
READ_ONLY = 'place=$1; shift; mount -t tmpfs -o ro none "$place"; exec "$@"'
DAY = 86400


def straight(command: Command, kept: Path) -> tuple[float, int]:
    """Run undisturbed, and keep the result.

    Returns:
        Seconds from the first file to the end, and bytes of the result.
    """
    clear(command.place)
    running = Running(command)
    running.wait_until_it_writes()
    start = time.monotonic()
    ended = running.end()
    seconds = time.monotonic() - start
    if ended.status:
        raise RuntimeError(f"{command.name} fails undisturbed: {ended.said}")
    shutil.copytree(command.place, kept)
    return seconds, sum(path.stat().st_size for path in kept.rglob("*") if path.is_file())


def _disturbed(
    command: Command, number: signal.Signals, rng: random.Random, seconds: float
) -> tuple[float, Ended, float]:
    """Send a signal at a random moment of the run; the moment, the end, the seconds until it."""
    for _ in range(8):
        clear(command.place)
        running = Running(command)
        running.wait_until_it_writes()
        moment = rng.uniform(0, seconds)
        time.sleep(moment)
        if running.alive:
            os.kill(running.pid, number)
            start = time.monotonic()
            ended = running.end()
            if ended.status:
                return moment, ended, time.monotonic() - start
        seconds *= 0.8  # the machine is faster now than it was undisturbed
    raise RuntimeError(f"{command.name} always ended before the signal")


def killed(command: Command, kept: Path, rng: random.Random, seconds: float) -> Row:
    """SIGKILL at a random moment."""
    moment, ended, _ = _disturbed(command, signal.SIGKILL, rng, seconds)
    row: Row = {"moment": round(moment, 2), "status": ended.status}
    row["half"] = half_written(command.place)
    return row | go_on(command, kept)


def terminated(command: Command, kept: Path, rng: random.Random, seconds: float) -> Row:
    """SIGTERM at a random moment."""
    moment, ended, until = _disturbed(command, signal.SIGTERM, rng, seconds)
    row: Row = {"moment": round(moment, 2), "status": ended.status, "seconds": round(until, 1)}
    row |= {"said": _last_line(ended), "half": half_written(command.place)}
    return row | go_on(command, kept)


def disk_full(command: Command, kept: Path, size: int) -> Row:
    """A tmpfs smaller than the result, which then grows."""
    clear(command.place)
    around = command.place.parent / f"{command.place.name}-full-{time.monotonic_ns()}"
    around.mkdir()
    arguments = (*NAMESPACE, FULL, "sh", str(command.place), str(size), str(around))
    ended = Running(command, around=arguments).end()
    row: Row = {"bytes": size, "status": int((around / "status").read_text())}
    row |= {"said": _complaint(ended), "half": half_written(around / "left")}
    row["traceback"] = "Traceback" in ended.said
    return row | outcome(ended, around / "right", kept)


def read_only(command: Command) -> Row:
    """A folder on a read-only tmpfs."""
    clear(command.place)
    arguments = (*NAMESPACE, READ_ONLY, "sh", str(command.place))
    ended = Running(command, around=arguments).end()
    row: Row = {"status": ended.status, "said": _complaint(ended)}
    return row | {"traceback": "Traceback" in ended.said}


def second_run(command: Command, kept: Path) -> Row:
    """Another run of the same command while the first, held by SIGSTOP, has begun to write."""
    clear(command.place)
    first = Running(command)
    first.wait_until_it_writes()
    if not first.alive:
        raise RuntimeError(f"{command.name} ended at once: {first.end().said}")
    os.kill(first.pid, signal.SIGSTOP)
    try:
        second = Running(command).end()
    finally:
        os.kill(first.pid, signal.SIGCONT)
    row: Row = {"status": second.status, "said": _complaint(second)}
    row["traceback"] = "Traceback" in second.said
    return row | outcome(first.end(), command.place, kept)


def clock_back(command: Command, kept: Path, rng: random.Random, seconds: float) -> Row:
    """SIGKILL, then all files are of tomorrow, and the clock goes back once more on the way."""
    moment, ended, _ = _disturbed(command, signal.SIGKILL, rng, seconds)
    tomorrow = time.time() + DAY
    for path in command.place.rglob("*"):
        os.utime(path, (tomorrow, tomorrow))
    row: Row = {"moment": round(moment, 2), "status": ended.status}
    return row | go_on(command, kept, first=_set_clock_back)


def _set_clock_back() -> None:
    """In a process that is to run a command: a second after its start it is yesterday."""
    began, true, true_ns = time.monotonic(), time.time, time.time_ns

    def back() -> int:
        return DAY if time.monotonic() > began + 1 else 0

    time.time = lambda: true() - back()
    time.time_ns = lambda: true_ns() - back() * 10**9


def _complaint(ended: Ended) -> str:
    """The message of the command line, or else the last line."""
    said = [line for line in ended.said.splitlines() if line.startswith("tgalign: ")]
    return said[0] if said else _last_line(ended)


def _last_line(ended: Ended) -> str:
    lines = ended.said.strip().splitlines()
    return lines[-1] if lines else ""
