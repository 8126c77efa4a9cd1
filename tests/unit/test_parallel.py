"""What is refused before processes meet, and how a step is shared."""

import runpy

import pytest

import tgalign.parallel
from tgalign.config import parse_config
from tgalign.errors import UserError
from tgalign.parallel import connect, share_of_accumulation


@pytest.fixture
def config(checkpoint, rows, tmp_path):
    """A function that gives a config of one stage."""

    def make(**options):
        stage = {"name": "one", "train": ["projector"], "steps": 1, "batch_size": 1}
        data = {
            "model": str(checkpoint),
            "records": str(rows.path),
            "out": str(tmp_path / "out"),
            "stages": [stage | {"projector_lr": 1e-3}],
        }
        return parse_config(data | options, "test")

    return make


def test_a_step_is_shared_evenly_or_not_at_all():
    assert [share_of_accumulation(8, "one", n) for n in (1, 2, 4, 8)] == [8, 4, 2, 1]
    with pytest.raises(UserError, match=r"stage one: 3 processes cannot share 8.*multiple of 3"):
        share_of_accumulation(8, "one", 3)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
@pytest.mark.parametrize("engine", ["FSDP", "DEEPSPEED"])
def test_a_launcher_that_asks_for_an_engine_is_refused(engine, parallel, config, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "true")
    connect(config(parallel=parallel))  # set by accelerate itself, in a training before
    started = runpy.run_path(tgalign.parallel.__file__)
    with pytest.raises(UserError, match=f"the launcher asks for {engine}"):
        started["connect"](config(parallel=parallel))


def test_one_process_is_alone(config):
    processes = connect(config(parallel="fsdp2"))
    assert processes.num_processes == 1
    assert processes.is_main_process
