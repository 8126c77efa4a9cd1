"""The real command line on two processes, by the launcher that people use."""

import os
import subprocess
import sys

import pytest
import yaml

from tgalign.checkpoint import load_llava


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
