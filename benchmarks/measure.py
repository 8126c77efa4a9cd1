"""Interleaved timing and peak memory: what a machine that others use too can still tell.

Arms take turns, and a ratio is the median over turns of two neighbouring times. On a CPU the time
is that of the process, not of the wall, which counts the others' turns.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


def apart(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What a work returns in a process of its own, whose memory is then its alone.

    Raises:
        BrokenProcessPool: The process died.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *args, **kwargs).result()


@dataclass(frozen=True)
class Ratio:
    """The median of per-turn ratios.

    Attributes:
        median: Of them.
        low: The first quartile.
        high: The third quartile.
        turns: How many.
    """

    median: float
    low: float
    high: float
    turns: int

    def __str__(self) -> str:
        return f"{self.median:.3f} (quartiles {self.low:.3f} to {self.high:.3f}, n={self.turns})"


def clock(device: torch.device) -> float:
    """Seconds: of this process on a CPU, of the wall on an accelerator whose work is done."""
    if device.type == "cpu":
        return time.process_time()
    torch.accelerator.synchronize(device)
    return time.perf_counter()


def take_turns(
    arms: Mapping[str, Callable[[int], object]], turns: int, device: torch.device
) -> dict[str, list[float]]:
    """The seconds of every arm's every step, after one unmeasured turn.

    Args:
        arms: Step functions by name; each is given the number of the turn.
        turns: Measured turns. Odd ones take the arms in reverse.
        device: What computes.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(-1, turns):
        for name in reversed(list(arms)) if turn % 2 else arms:
            start = clock(device)
            arms[name](max(turn, 0))
            if turn >= 0:
                seconds[name].append(clock(device) - start)
    return seconds


def ratio(seconds: dict[str, list[float]], arm: str, base: str) -> Ratio:
    """How much longer an arm's steps take than the base's."""
    pairs = [ours / theirs for ours, theirs in zip(seconds[arm], seconds[base], strict=True)]
    low, median, high = statistics.quantiles(pairs, n=4)
    return Ratio(median, low, high, len(pairs))


def peak_bytes(step: Callable[[], object], device: torch.device) -> int:
    """The most memory that a step takes beyond what is there before it."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
        before = torch.accelerator.memory_allocated(device)
        torch.accelerator.reset_peak_memory_stats(device)
        step()
        torch.accelerator.synchronize(device)
        return torch.accelerator.max_memory_allocated(device) - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step()
    taken = peak = 0
    assert profile.profiler is not None and profile.profiler.kineto_results is not None
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            taken += event.nbytes()
            peak = max(peak, taken)
    return peak
