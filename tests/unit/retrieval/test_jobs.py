"""The same work by this process and by two Ray workers, one of which is killed."""

import os
from functools import partial
from pathlib import Path

import pytest
from shard_workers import refuser, writer

from tgalign.errors import UserError
from tgalign.retrieval import jobs
from tgalign.retrieval.attach import attach
from tgalign.retrieval.build import build_index
from tgalign.retrieval.jobs import run_shards

SHARDS = range(5)


def run(make_worker, engine, shards=SHARDS):
    run_shards(make_worker, shards, engine=engine, workers=2, title="shards", progress_bar=False)


def test_every_shard_is_worked_on_here(tmp_path):
    run(partial(writer, tmp_path, False), "local")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"shard-{n}" for n in SHARDS]
    run(lambda: pytest.fail("made for nothing"), "local", [])
    with pytest.raises(UserError, match="shard 0 is bad"):
        run(refuser, "local")


def test_without_ray_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(UserError, match=r"Ray is not installed: pip install 'tgalign\[scale\]'"):
        run(refuser, "ray")


def test_a_cluster_that_is_not_there_is_named(monkeypatch):
    ray = pytest.importorskip("ray", reason="Ray is not installed (extra [scale])")

    def fail(**options):
        raise ConnectionError("nobody there")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fail)
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    with pytest.raises(UserError, match=r"no connection to the Ray cluster at 192\.0\.2\.1:6379"):
        run(refuser, "ray")


@pytest.fixture(scope="module")
def cluster():
    """A real Ray of two workers on this machine, whose workers find this module."""
    ray = pytest.importorskip("ray", reason="Ray is not installed (extra [scale])")
    for name, value in jobs.QUIET.items():
        os.environ.setdefault(name, value)
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}},
    )
    yield ray
    ray.shutdown()


def test_a_killed_worker_loses_nothing(cluster, tmp_path):
    run(partial(writer, tmp_path, True), "ray")
    assert {path.name for path in tmp_path.iterdir()} == {"dead", *(f"shard-{n}" for n in SHARDS)}
    workers = {(tmp_path / f"shard-{n}").read_text() for n in SHARDS}
    assert str(os.getpid()) not in workers
    assert (tmp_path / "shard-2").read_text() != (tmp_path / "dead").read_text()


def test_the_users_mistake_comes_back_as_such(cluster):
    with pytest.raises(UserError, match=r"^shard \d is bad$"):
        run(refuser, "ray")


def test_ray_makes_the_same_index_and_the_same_rows(cluster, corpus, built, records, tmp_path):
    out = tmp_path / "index"
    build_index(corpus, out, shard_rows=64, progress_bar=False, engine="ray")
    for path in built.folder.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes(), path.name
    for engine in ("local", "ray"):
        attach(
            records, tmp_path / f"{engine}.jsonl", index=built.folder, engine=engine,
            shard_rows=4, progress_bar=False,
        )  # fmt: skip
    for end in (".jsonl", ".jsonl.report.json"):
        assert (tmp_path / f"local{end}").read_text() == (tmp_path / f"ray{end}").read_text()
