"""What is released: the source archive and the wheel built from it, and their version."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "tgalign"

pytestmark = pytest.mark.slow


def run(*arguments: str, cwd: Path) -> str:
    done = subprocess.run(arguments, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for needed in ("build", "hatchling", "hatch_vcs"):
        pytest.importorskip(needed)
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), cwd=ROOT)
    return out


def test_the_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        sizes = {item.filename: item.file_size for item in wheel.infolist()}
    files = [it for it in PACKAGE.rglob("*") if it.is_file() and "__pycache__" not in it.parts]
    assert names == {f"tgalign/{it.relative_to(PACKAGE).as_posix()}" for it in files}
    kinds = {Path(name).suffix or Path(name).name for name in names}
    assert kinds == {".py", ".typed", ".jinja", ".css", ".yaml", ".json", ".safetensors"}
    assert sizes["tgalign/lab/assets/llm/model.safetensors"] > 1_000_000
    assert path.stat().st_size < 10_000_000


def test_wheel_and_archive_are_of_one_version(built: Path) -> None:
    (path,), (archive,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(path) as wheel:
        (name,) = (it for it in wheel.namelist() if it.endswith(".dist-info/METADATA"))
        metadata = message_from_bytes(wheel.read(name))
    assert Version(metadata["Version"]) >= Version("0.1.dev0")
    assert archive.name == f"tgalign-{metadata['Version']}.tar.gz"
    with tarfile.open(archive) as source:
        tops = {member.name.split("/")[1] for member in source.getmembers()}
    assert {"src", "tests", "docs", "recipes", "LICENSE", "CHANGELOG.md", "PKG-INFO"} <= tops
    assert not tops & {".venv", "dist", "build", "demo", "runs", "site"}


def test_a_shallow_clone_and_a_copy_without_git_have_a_version(built: Path, tmp_path: Path) -> None:
    hatchling = [sys.executable, "-m", "hatchling", "version"]
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    assert run(*hatchling, cwd=copy).strip() == "0.1.dev0"
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    run("git", "clone", "--quiet", "--depth", "1", ROOT.as_uri(), "clone", cwd=tmp_path)
    found = Version(run(*hatchling, cwd=tmp_path / "clone").strip())
    assert found > Version("0.1.dev0")
