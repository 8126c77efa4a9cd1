"""The whole program where there is no network at all, with an empty home."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
UNSHARE = ["unshare", "--user", "--map-root-user", "--net"]
PROBE = "import socket; socket.create_connection(('1.1.1.1', 53), 2)"
COMMANDS = """
import sys
from tgalign import cli
checkpoint, short = "demo/seed0/ce/checkpoint", ["--max-new-tokens", "4"]
for command in (
    ["demo", "--out", "demo", "--smoke", "--arms", "ce", "--jobs", "1"],
    ["evaluate", checkpoint, "--out", "eval", "--limit", "1", *short],
    ["diagnose", checkpoint, "--out", "found", "--per-scene", "2", "--patch-layers", "0-1", *short],
):
    sys.argv = ["tgalign", *command]
    try:
        cli.main()
    except SystemExit as end:
        assert not end.code, (command, end.code)
"""


def isolated() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not isolated(), reason="the kernel forbids network namespaces to this user")
def test_demo_diagnose_and_evaluate_need_no_network(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    kept = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH") if key in os.environ}
    environment = {**kept, "HOME": str(home), "HF_HOME": str(home / "hf"), "OMP_NUM_THREADS": "1"}

    def run(*command: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*UNSHARE, sys.executable, *map(str, command)], cwd=tmp_path, env=environment,
            capture_output=True, text=True, timeout=900, check=False,
        )  # fmt: skip

    assert "Network is unreachable" in run("-c", PROBE).stderr  # the namespace does its work
    done = run("-c", COMMANDS)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("demo/results.json", "eval/results.json", "found/diagnosis.json"):
        assert (tmp_path / name).is_file()
    assert not (home / "hf").exists()  # nothing was fetched or cached
