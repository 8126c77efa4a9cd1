"""Work shard by shard, in this process or on the workers of a Ray cluster.

A shard's work is to write that shard's file, complete or not at all. So nothing goes through the
driver, what is there need not be made again, and a worker that dies loses only the shard it had in
hand, which Ray gives to another.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from tgalign.errors import UserError
from tgalign.files import read_json, write_json
from tgalign.terminal import tracked

Engine = Literal["local", "ray"]
Worker = Callable[[int], None]

SETTINGS = "settings.json"
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
"""Environment of Ray: it reports to nobody, and says less."""


def run_shards(
    make_worker: Callable[[], Worker],
    shards: Sequence[int],
    *,
    engine: Engine,
    workers: int,
    title: str,
    progress_bar: bool,
) -> None:
    """Have every shard worked on.

    Args:
        make_worker: Makes what works on a shard (loads an encoder, say). With ``ray`` it is sent to
            every worker, so it must pickle: a partial of a module's function.
        shards: Their numbers.
        engine: ``local``, here one by one; or ``ray``, through Ray Data: on the cluster of
            ``RAY_ADDRESS`` or one that runs on this machine, else on one that is started.
        workers: With ``ray``: how many.
        title: Of the progress bar.
        progress_bar: Whether to draw it.

    Raises:
        UserError: As the work raises it, or Ray is not installed.
    """
    if not shards:
        return
    done = _on_ray(make_worker, shards, workers) if engine == "ray" else _here(make_worker, shards)
    for _ in tracked(done, title, shown=progress_bar, total=len(shards)):
        pass


def offsets_of(file: Path, shard_lines: int) -> tuple[int, ...]:
    """The bytes at which shards of the lines of a file start, and where it ends."""
    offsets = [0]
    with file.open("rb") as lines:
        while read := sum(map(len, islice(lines, shard_lines))):
            offsets.append(offsets[-1] + read)
    return tuple(offsets)


def work_folder(work: Path, settings: dict[str, Any]) -> None:
    """Make the folder of finished shards, unless a call of the same settings has begun it."""
    said = work / SETTINGS
    if not said.is_file() or read_json(said) != settings:
        shutil.rmtree(work, ignore_errors=True)
        write_json(said, settings)


def _here(make_worker: Callable[[], Worker], shards: Sequence[int]) -> Iterator[int]:
    work = make_worker()
    for shard in shards:
        work(shard)
        yield shard


def _on_ray(
    make_worker: Callable[[], Worker], shards: Sequence[int], workers: int
) -> Iterator[int]:
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError:
        raise UserError(
            "Ray is not installed: pip install 'tgalign[scale]', or use --engine local"
        ) from None

    class OnWorker:
        def __init__(self) -> None:
            self.work: Worker | None = None

        def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
            try:
                self.work = self.work or make_worker()
                self.work(int(row["item"]))
            except UserError as fault:  # Ray would wrap it beyond recognition
                return row | {"fault": str(fault)}
            return row | {"fault": ""}

    if not ray.is_initialized():
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError as fault:
            where = os.environ.get("RAY_ADDRESS", "this machine")
            raise UserError(f"no connection to the Ray cluster at {where}: {fault}") from None
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    has = ray.cluster_resources()
    size = max(1, min(workers, len(shards), int(has.get("CPU", 1))))  # more would wait for ever
    pool = ray.data.ActorPoolStrategy(size=size)
    todo = ray.data.from_items(list(shards), override_num_blocks=len(shards))
    mapped = todo.map(OnWorker, compute=pool, num_gpus=min(1.0, has.get("GPU", 0.0) / size))
    for row in mapped.iter_rows():
        if row["fault"]:
            raise UserError(row["fault"])
        yield row["item"]
