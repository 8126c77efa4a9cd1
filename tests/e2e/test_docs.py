"""The documentation's site: built with every link checked, needing nobody else; its tutorial."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


class Fetched(HTMLParser):
    """Addresses that a browser fetches by itself when it opens a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "link" and given.get("rel") not in ("canonical", "next", "prev"):
            self.addresses.append(given.get("href") or "")
        elif tag != "a" and given.get("src"):
            self.addresses.append(given["src"] or "")


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


def test_the_tutorial_can_be_followed(tmp_path: Path) -> None:
    """Its commands run in the order given, cut short; the page and pip have tests of their own."""
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    short = {
        "demo": ["--smoke"],
        "evaluate": ["--limit", "1", "--max-new-tokens", "8"],
        "diagnose": ["--per-scene", "2", "--patch-layers", "0-1"],
        "lab": [],
    }
    small = ("stage.steps=2", "data.pictures=80", "data.texts=20", "data.corpus=100")
    ran = []
    for line in lines:
        words = shlex.split(line)
        if words[0] != "tgalign" or words[1] == "app":
            continue
        more = list(short[words[1]])
        if words[1:3] == ["lab", "experiment"]:
            more += [part for setting in small for part in ("--set", setting)]
        done = subprocess.run(
            [sys.executable, "-m", *words, *more],
            cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        ran.append(words[1])
    assert ran == ["demo", "evaluate", "evaluate", "diagnose", "lab", "lab"]
    assert (tmp_path / "diagnosis" / "tga" / "report.html").is_file()
    from tgalign.app.comparison_files import read_comparison

    found = read_comparison(tmp_path / "runs", [tmp_path])
    assert list(found.methods) == ["ce", "tga"]
    assert all(item.picture is not None and item.picture() for item in found.items)
