"""The documentation's site: built with every link checked, needing nobody else; its tutorial."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app_world import Fetched, save_models
from tgalign.app.comparison_files import read_comparison
from tgalign.cli import app

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def test_the_site_is_whole_and_asks_nobody_else(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    site = tmp_path / "site"
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert built.returncode == 0, built.stdout + built.stderr
    pages = list(site.rglob("*.html"))
    modules = [path for path in (ROOT / "src").rglob("*.py") if path.name != "__main__.py"]
    assert len(list((site / "reference").glob("tgalign*.html"))) == len(modules)
    for page in pages:
        for address in Fetched(page.read_text(encoding="utf-8")).addresses:
            assert not re.match(r"(https?:)?//", address), f"{page.name} fetches {address}"
    for style in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//", style.read_text(encoding="utf-8"))
    method = (site / "method.html").read_text(encoding="utf-8")
    assert method.count("<math") > 5 and "\\(" not in method and "arithmatex" not in method
    reference = (site / "reference" / "tgalign.objective.html").read_text(encoding="utf-8")
    assert "retrieved_LBD" in reference and "Raises" in reference


def test_the_tutorials_evaluations_can_be_compared_on_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the tutorial gives them, cut short; its other commands are the README's, run there."""
    for path, name in zip(save_models(tmp_path / "made"), ("ce", "tga"), strict=True):
        shutil.copytree(path, tmp_path / "demo" / "seed0" / name / "checkpoint")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    lines = re.findall(r"^tgalign (evaluate .*)$", text, re.MULTILINE)
    assert len(lines) == 2
    for line in lines:
        short = ["--limit", "1", "--max-new-tokens", "8"]
        done = CliRunner().invoke(app, [*shlex.split(line), *short], catch_exceptions=False)
        assert done.exit_code == 0, done.output
    found = read_comparison(tmp_path / "runs", [tmp_path])
    assert list(found.methods) == ["ce", "tga"]
    assert len(found.items) > 7
    assert all(item.picture is not None and item.picture() for item in found.items)
