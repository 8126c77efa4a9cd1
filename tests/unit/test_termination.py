"""SIGTERM, locks and full disks, as the command line meets them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tgalign import locks
from tgalign.errors import UserError, disk_refusal
from tgalign.locks import LOCK, sole_writer
from tgalign.termination import STATUS, exit_on_sigterm, postponed

HOLDER = """
import sys
from pathlib import Path
from tgalign.locks import sole_writer
with sole_writer(Path(sys.argv[1]), beside=sys.argv[2] == "beside"):
    print("held", flush=True)
    sys.stdin.read()
"""
WRITERS = """
import resource, sys
import numpy as np, torch
from safetensors.torch import save_file
from tgalign.errors import disk_refusal
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
folder, x = sys.argv[1], torch.zeros(100_000)
def write_text():
    with open(f"{folder}/a.json", "w") as file:
        file.write("x" * 100_000)
for write in (
    write_text,
    lambda: torch.save({"x": x}, f"{folder}/a.pt"),
    lambda: save_file({"x": x}, f"{folder}/a.safetensors"),
    lambda: np.save(open(f"{folder}/a.npy", "wb"), x.numpy()),
):
    try:
        write()
    except Exception as fault:
        print(disk_refusal(fault) or f"NOT TOLD {fault!r}")
"""


@pytest.fixture
def hold(monkeypatch):
    """A function that makes another process hold the lock of an output until the test ends."""
    monkeypatch.setattr(locks, "PATIENCE", 0.1)
    holders = []

    def start(out: Path, how: str) -> None:
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(out), how],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        holders.append(holder)
        assert holder.stdout.readline() == "held\n"

    yield start
    for holder in holders:
        holder.communicate(timeout=60)
        assert holder.returncode == 0


def test_the_lock_of_a_killed_run_is_free_and_that_of_an_ended_one_gone(hold, tmp_path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(out), ""], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"held\n"
    process.kill()
    process.communicate()
    assert (out / LOCK).is_file()
    with sole_writer(out):
        pass
    assert not list(out.iterdir())


def commands(checkpoint: Path, rows, tmp_path: Path) -> dict[str, tuple[str, list[str]]]:
    """Every command that writes, the output it is given, and whether that is a file."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"{{model: {checkpoint}, records: {rows.path}, out: {tmp_path}/out, stages: [{{name: s, "
        "train: [projector], steps: 1, batch_size: 1, projector_lr: 1.0}]}"
    )
    out, corpus = ["--out", f"{tmp_path}/out"], tmp_path / "corpus.txt"
    corpus.write_text("a mug .\n")
    return {
        "train": ("", ["train", str(recipe)]),
        "retrieve build": ("beside", ["retrieve", "build", str(corpus), *out]),
        "caption": ("beside", ["caption", str(rows.path.parent), "--model", "nowhere", *out]),
        "evaluate": ("", ["evaluate", str(checkpoint), "--limit", "1", *out]),
        "diagnose": ("", ["diagnose", str(checkpoint), "--per-scene", "2", *out]),
        "compare": ("", ["compare", "--smoke", *out]),
        "compare --ablation": ("", ["compare", "--ablation", "layers", "--smoke", *out]),
        "compose": ("beside", ["compose", "--llm", "nowhere", "--vision", "nowhere", *out]),
        "demo": ("", ["demo", "--smoke", *out]),
        "lab build": ("", ["lab", "build", *out]),
        "lab experiment": ("", ["lab", "experiment", "ce", "--set", "stage.steps=1", *out]),
    }


@pytest.mark.parametrize(
    "name",
    ["train", "retrieve build", "caption", "evaluate", "diagnose", "compare", "compare --ablation",
     "compose", "demo", "lab build", "lab experiment"],
)  # fmt: skip
def test_a_second_run_on_one_output_is_refused(
    name, hold, tgalign, checkpoint, rows, tmp_path
) -> None:
    how, arguments = commands(checkpoint, rows, tmp_path)[name]
    hold(tmp_path / "out", how)
    before = sorted(tmp_path.rglob("*"))
    status, _, said = tgalign(*arguments)
    assert (status, f"another run is writing to {tmp_path}/out" in said) == (2, True), said
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["retrieve build", "caption", "compose"])
def test_an_output_without_a_name_is_the_folder_it_stands_for(
    name, tgalign, checkpoint, rows, tmp_path, monkeypatch
) -> None:
    arguments = commands(checkpoint, rows, tmp_path)[name][1][:-1]
    here = tmp_path / "here"
    here.mkdir()
    (here / "mine").touch()
    monkeypatch.chdir(here)
    for out, said in ((".", str(here)), ("/", "it has no name")):
        status, _, err = tgalign(*arguments, out)
        assert (status, said in err) == (2, True), err
    assert [path.name for path in here.iterdir()] == ["mine"]


def test_sigterm_ends_with_its_status_and_is_postponed_within_a_step() -> None:
    before, done = signal.getsignal(signal.SIGTERM), []
    with pytest.raises(SystemExit) as end, exit_on_sigterm(), postponed() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked
        done.append("the step")
    assert (end.value.code, done) == (STATUS, ["the step"])
    with exit_on_sigterm(), postponed() as stop:
        pass
    assert not stop.asked
    with pytest.raises(SystemExit), exit_on_sigterm(), postponed() as stop:
        stop.asked = True  # another process of the same training was told
    assert signal.getsignal(signal.SIGTERM) is before


def test_every_librarys_full_disk_is_told_from_a_bug(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WRITERS, str(tmp_path)], capture_output=True, text=True, check=True
    )
    said = done.stdout.splitlines()
    assert len(said) == 4 and not any("NOT TOLD" in line for line in said), done.stdout
    assert said[0] == "File too large. Make room"
    assert all("Make room" in line for line in said)
    assert disk_refusal(FileNotFoundError(2, "No such file")) is None
    assert disk_refusal(KeyError("os")) is None


def test_what_may_not_be_read_is_named_and_asks_for_no_room(tgalign, tmp_path, monkeypatch) -> None:
    def refuse(runs, _out):
        raise PermissionError(13, "Permission denied", str(runs[0]))

    monkeypatch.setattr("tgalign.report.runs.report_runs", refuse)  # root may read everything
    status, _, said = tgalign("report", tmp_path / "mine", "--out", tmp_path / "all")
    assert status == 2 and f"no permission: Permission denied: {tmp_path}/mine" in said
    assert "Make room" not in said and "goes on from what was finished" in said
    inner = RuntimeError('I/O error: Permission denied (os error 13) at path "/x/y"')
    found = disk_refusal(inner)
    assert "no permission" in found and "/x/y" in found and "Make room" not in found


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_ends_a_command_with_one_message_and_keeps_the_old_file(
    tgalign, tmp_path
) -> None:
    demo = Path(__file__).parents[1] / "data/versions/demo-2"
    assert tgalign("report", demo, "--out", tmp_path / "all")[0] == 0
    old = (tmp_path / "all.md").read_text()
    (tmp_path / "all.md.incomplete").symlink_to("/dev/full")
    status, _, said = tgalign("report", demo, "--out", tmp_path / "all")
    assert status == 2 and "No space left on device" in said and "Make room" in said
    assert (tmp_path / "all.md").read_text() == old


def test_an_output_that_cannot_be_written_is_named(tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write to"), sole_writer(tmp_path / "file" / "out"):
        pass
