"""The real command line on two processes, by the launcher that people use."""

import os
import socket
import subprocess
import sys

import pytest
import yaml

from tgalign.checkpoint import load_llava
from tgalign.locks import sole_writer


@pytest.fixture
def recipe(checkpoint, rows, tmp_path):
    """A recipe of one short stage."""
    stage = {
        "name": "stage1",
        "train": ["projector"],
        "steps": 2,
        "batch_size": 2,
        "accumulation": 2,
        "projector_lr": 1e-3,
    }
    data = {
        "model": str(checkpoint),
        "records": str(rows.path),
        "out": str(tmp_path / "out"),
        "parallel": "fsdp2",
        "stages": [stage],
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.mark.slow
def test_torchrun_trains_to_one_checkpoint(recipe, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "tgalign", "train", str(recipe), "--no-progress"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "out" / "checkpoint")]
    load_llava(tmp_path / "out" / "checkpoint")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "checkpoint",
        "config.json",
        "skipped.json",
        "stage1",
    ]
    assert [path.name for path in (tmp_path / "out" / "stage1").iterdir()] == ["metrics.jsonl"]


@pytest.mark.slow
def test_all_processes_end_where_another_run_writes_and_one_says_so(recipe, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with sole_writer(tmp_path / "out"):
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "tgalign", "train", str(recipe), "--no-progress"],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                env=os.environ | common | {"RANK": rank, "LOCAL_RANK": rank},
            )
            for rank in ("0", "1")
        ]  # fmt: skip
        said = [process.communicate(timeout=600)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], said
    assert "another run is writing to" in said[0]
    assert "another run is writing to" not in said[1] and "Traceback" not in said[0] + said[1]
