"""Run jobs side by side where cores allow, with a bar, and without orphans."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from tgalign.terminal import quiet_libraries
from tgalign.termination import STATUS

Job = tuple[str, Callable[..., Any], tuple[Any, ...]]
"""What it is called, a function of a module, and its arguments."""


def available_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """Processes that run jobs, or, with one of them, this process itself."""

    def __init__(
        self, pool: ProcessPoolExecutor | None, console: Console, progress_bar: bool
    ) -> None:
        self._pool = pool
        self._console = console
        self._progress_bar = progress_bar

    def run(
        self, title: str, jobs: Sequence[Job], watch: Callable[[Progress], None] | None = None
    ) -> dict[str, Any]:
        """Run all jobs and wait for them.

        Args:
            title: Of the bar.
            jobs: In the order in which they are begun.
            watch: Called twice a second while they run in other processes; may draw further bars.

        Returns:
            Their results by name. The first that fails stops those not yet begun, and its error is
            raised.
        """
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        done: dict[str, Any] = {}
        with Progress(*columns, console=self._console, disable=not self._progress_bar) as progress:
            bar = progress.add_task(title, total=len(jobs))
            for name, result in self._results(jobs, lambda: watch and watch(progress)):
                done[name] = result
                progress.console.print(f"  {title}: {name}", highlight=False)
                progress.advance(bar)
        return done

    def _results(self, jobs: Sequence[Job], watch: Callable[[], None]) -> Iterator[tuple[str, Any]]:
        if self._pool is None:
            for name, function, arguments in jobs:
                yield name, function(*arguments)
            return
        with _interrupts_ignored():  # it is this process that ends the others
            names = {self._pool.submit(function, *args): name for name, function, args in jobs}
        running = set(names)
        try:
            while running:
                done, running = wait_for(running, 0.5, FIRST_COMPLETED)
                watch()
                for future in done:
                    yield names[future], future.result()
        finally:
            for future in names:
                future.cancel()


@contextmanager
def workers(number: int, console: Console, *, progress_bar: bool = True) -> Iterator[Workers]:
    """Start worker processes; with one, jobs run in this process.

    Args:
        number: How many.
        console: Where the bar is drawn, and a line for every finished job.
        progress_bar: Whether to draw it.
    """
    quiet_libraries()
    if number == 1:
        yield Workers(None, console, progress_bar)
        return
    with ProcessPoolExecutor(
        number,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(max(1, available_cores() // number),),
    ) as pool:
        try:
            yield Workers(pool, console, progress_bar)
        except BaseException as fault:
            with _interrupts_ignored():  # of one who presses Ctrl-C twice
                pool.shutdown(wait=False, cancel_futures=True)
                if isinstance(fault, KeyboardInterrupt | SystemExit):  # which reach this one alone
                    for worker in multiprocessing.active_children():
                        worker.terminate()
            raise


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Let no Ctrl-C come between; processes started meanwhile are left alone by it for good."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _start(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    quiet_libraries()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(STATUS))  # not on to the job that is next
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed must not go on writing beside a resumed run."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
