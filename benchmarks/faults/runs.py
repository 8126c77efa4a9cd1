"""Start a command as a process, watch what it keeps, wait for its end."""

from __future__ import annotations

import gc
import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.faults.commands import FINISHED, Command
from benchmarks.faults.equality import differences, left_over

LIMIT = 900.0
"""Seconds after which a command that does not end is an error."""
LIBRARIES = (
    "torch", "transformers", "accelerate", "pyarrow.parquet", "matplotlib.figure", "jinja2",
    "transformers.models.llava.modeling_llava", "transformers.models.llama.modeling_llama",
    "transformers.models.clip.modeling_clip", "transformers.models.llava.processing_llava",
    "transformers.generation.utils", "tgalign.train", "tgalign.caption", "tgalign.captioner",
    "tgalign.baselines.compare", "tgalign.baselines.items", "tgalign.baselines.calibration",
    "tgalign.evaluate.command", "tgalign.evaluate.local_host", "tgalign.evaluate.suites",
    "tgalign.report.evaluation_report", "tgalign.report.comparison_report",
    "tgalign.retrieval.build", "tgalign.retrieval.attach", "tgalign.cli",
)  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: Its exit status; minus the number of the signal that killed it.
        said: Its stderr.
        fewest: The fewest finished units that were seen while it ran.
    """

    status: int
    said: str
    fewest: int


class Running:
    """A command under way.

    Args:
        command: The command.
        around: A program that is given the command, as ``unshare``; without one, a fork runs it.
        first: What the fork does before.
    """

    def __init__(
        self,
        command: Command,
        *,
        around: Sequence[str] = (),
        first: Callable[[], None] = lambda: None,
    ) -> None:
        self.command = command
        self.status: int | None = None
        self._log = command.place.parent / f"{command.place.name}.{time.monotonic_ns()}.log"
        with self._log.open("wb") as log:
            if around:
                self.pid = subprocess.Popen(
                    [*around, sys.executable, "-m", "tgalign", *command.arguments],
                    stdout=subprocess.DEVNULL, stderr=log, stdin=subprocess.DEVNULL,
                ).pid  # fmt: skip
            else:
                self.pid = os.fork()
                if self.pid == 0:
                    _become(command, log.fileno(), first)

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status is None

    def wait_until_it_writes(self) -> None:
        """Return when its first file is there, or it has ended."""
        while self.alive and not any(path.is_file() for path in self.command.place.rglob("*")):
            time.sleep(0.03)

    def end(self) -> Ended:
        """Wait for its end."""
        fewest, until = self.command.finished(), time.monotonic() + LIMIT
        while self.alive:
            if time.monotonic() > until:
                os.kill(self.pid, signal.SIGKILL)
                raise TimeoutError(f"{self.command.name} did not end: {self._log}")
            fewest = min(fewest, self.command.finished())
            time.sleep(0.03)
        assert self.status is not None
        return Ended(self.status, self._log.read_text(errors="replace"), fewest)


def prepare() -> None:
    """Set the environment of all commands, and import what the forks would import one by one."""
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()


def _become(command: Command, log: int, first: Callable[[], None]) -> None:
    """Run the command line in this process, a fork, and end it."""
    status: Any = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(0, 1)
        os.dup2(log, 2)
        sys.argv = ["tgalign", *command.arguments]
        first()
        from tgalign import cli

        cli.main()
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def clear(place: Path) -> None:
    """Empty a folder, which stays."""
    for path in place.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def go_on(
    command: Command, straight: Path, *, first: Callable[[], None] = lambda: None
) -> dict[str, object]:
    """Give the command again, and say whether it ends as the undisturbed run."""
    before = command.finished()
    ended = Running(command, first=first).end()
    return {
        "kept": None if before == FINISHED else before,
        "lost": max(0, before - ended.fewest),
        **outcome(ended, command.place, straight),
    }


def outcome(ended: Ended, place: Path, straight: Path) -> dict[str, object]:
    """How the last run ended, and what differs from the undisturbed one."""
    return {
        "second_status": ended.status,
        "differs": differences(place, straight) + left_over(place),
        **({"second_said": ended.said[-2000:]} if ended.status else {}),
    }
