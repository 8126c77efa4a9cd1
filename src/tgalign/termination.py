"""SIGTERM, which schedulers and containers send before they kill: end in order, keep what is done.

The command line unwinds as after Ctrl-C and exits with ``STATUS``; a training finishes the step it
is at, saves, and ends then, for which its workers outlive a SIGTERM to the whole group.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

STATUS = 128 + signal.SIGTERM
"""Exit status of a command that SIGTERM ended, as a shell would report it."""

ORPHANED_S = 5.0
"""Seconds between two looks of a worker whether its parent still runs, as torch's workers do."""


@dataclass
class Stop:
    """Whether the work under way is to end at the next point where it can be saved."""

    asked: bool = False


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Within, SIGTERM raises ``SystemExit``, so that files are closed and workers told."""
    with _handled(lambda *_: sys.exit(STATUS)):
        yield


@contextmanager
def postponed() -> Iterator[Stop]:
    """Within, SIGTERM only asks to stop; at the end it does what it would have done outside.

    The same if somebody else sets ``asked``, say another process of the same training.
    """
    stop = Stop()

    def ask(*_: Any) -> None:
        stop.asked = True

    with _handled(ask):
        yield stop
    if stop.asked:
        signal.raise_signal(signal.SIGTERM)


def heed_parent_alone(_worker: int = 0) -> None:
    """Have a worker process end at its parent's SIGTERM, but not at one sent to the whole group.

    For workers that are their parent's own children, forked or spawned: a parent that finishes its
    step needs them until then. They also end within ``ORPHANED_S`` of a parent that was killed:
    torch's own watch begins only after a worker has started up, and one whose parent is gone by
    then would wait for ever. Where Linux does not tell who sent a signal, nothing changes.
    """
    parent = multiprocessing.parent_process()
    if sys.platform != "linux" or parent is None:
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait() -> None:
        while os.getppid() == parent.pid:
            sent = signal.sigtimedwait({signal.SIGTERM}, ORPHANED_S)
            if sent and sent.si_pid == parent.pid:
                break
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def _handled(handler: Any) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread is told of signals
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
