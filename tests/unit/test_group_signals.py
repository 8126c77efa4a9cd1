"""SIGTERM to a whole process group: a training with workers saves and ends, and leaves nobody."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from processes import children, runs
from tgalign.termination import STATUS, heed_parent_alone
from tgalign.trainer import WEIGHTS

PATIENCE = 300.0
LOADER = """
import sys, time
from torch.utils.data import DataLoader
from tgalign.termination import heed_parent_alone
how = sys.argv[1]
def start(worker):
    heed_parent_alone(worker)
    if how == "killed early" and worker == 1:
        time.sleep(1000)  # its parent is gone when it first looks who that is
loader = DataLoader(
    range(100), num_workers=2, worker_init_fn=start, multiprocessing_context="fork"
)
batches = iter(loader)
next(batches)
if how == "killed":
    next(batches)  # by the second worker
print(*(worker.pid for worker in batches._workers), flush=True)
if how == "fails":
    raise RuntimeError("with the batches still in a frame")
time.sleep(1000)
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="who sent a signal: Linux alone")


def wait_until(true, process=None) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "waited in vain"
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.05)


def test_a_training_with_workers_saves_and_ends(checkpoint, rows, tmp_path) -> None:
    stage = {"name": "s", "train": ["projector"], "steps": 100_000, "batch_size": 2}
    recipe = {
        "model": str(checkpoint), "records": str(rows.path), "out": str(tmp_path / "out"),
        "workers": 2, "logging_steps": 1, "stages": [stage | {"projector_lr": 1e-3}],
    }  # fmt: skip
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    process = subprocess.Popen(
        [sys.executable, "-m", "tgalign", "train", str(tmp_path / "r.yaml"), "--no-progress"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    metrics = tmp_path / "out/s/metrics.jsonl"
    wait_until(lambda: metrics.is_file() and metrics.read_text().count("\n") > 1, process)
    workers = children(process.pid)
    assert len(workers) == 2
    os.killpg(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=PATIENCE)
    assert (process.returncode, said.count("stopped by SIGTERM")) == (STATUS, 1), said
    assert "Traceback" not in said
    (state,) = (tmp_path / "out/s").glob("checkpoint-*")
    assert (state / WEIGHTS).is_file()
    last = json.loads(metrics.read_text().splitlines()[-1])["step"]
    assert last == int(state.name.split("-")[1])
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


@pytest.mark.parametrize("how", ["killed early", "killed", "fails"])
def test_workers_end_with_their_parent(how) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", LOADER, how],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    workers = [int(it) for it in process.stdout.readline().split()]
    assert len(workers) == 2
    if how != "fails":
        process.kill()
    process.communicate(timeout=PATIENCE)
    wait_until(lambda: not any(map(runs, workers)))


def _echo(pipe) -> None:
    heed_parent_alone()
    while True:
        pipe.send(pipe.recv())


def test_a_worker_heeds_its_parent_alone() -> None:
    ours, theirs = multiprocessing.Pipe()
    worker = multiprocessing.get_context("fork").Process(target=_echo, args=(theirs,), daemon=True)
    worker.start()
    for word in ("started", "went on"):
        ours.send(word)
        assert ours.poll(PATIENCE) and ours.recv() == word
        subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)  # by another process
    worker.terminate()
    worker.join(PATIENCE)
    assert worker.exitcode == 0
