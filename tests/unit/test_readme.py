"""The README's results, code and recipe are what the program makes.

`python tests/unit/test_readme.py --write` renews the generated block from docs/demo-results.json.
"""

import json
import re
import sys
from pathlib import Path

import pytest

from tgalign.config import load_config
from tgalign.demo_results import markdown
from tgalign.lab.arms import arm_config

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
BLOCK = re.compile(r"(<!-- results: [^>]*-->\n)(.*?)(<!-- end of results -->)", re.DOTALL)


def with_results(text: str) -> str:
    results = json.loads((ROOT / "docs/demo-results.json").read_text())
    return BLOCK.sub(lambda found: f"{found[1]}\n{markdown(results)}\n{found[3]}", text)


def test_results_block_is_rendered_from_the_committed_results() -> None:
    text = README.read_text()
    assert BLOCK.search(text)
    assert with_results(text) == text


def test_committed_results_cover_three_seeds() -> None:
    results = json.loads((ROOT / "docs/demo-results.json").read_text())
    assert results["seeds"] == [0, 1, 2]
    assert results["condition"] == "guided"


def test_python_blocks_run(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
        promised = re.findall(r"# (\[.*\])$", block, re.MULTILINE)
        assert capsys.readouterr().out.splitlines() == promised


def test_every_house_entry_exists() -> None:
    house = README.read_text().split("## The house")[1]
    for row in re.findall(r"^\| (`.*?) \|", house, re.MULTILINE):
        for name in re.findall(r"`([^`]+)`", row):
            assert (ROOT / "src/tgalign" / name).exists(), name


def test_lab_recipe_is_the_demos_tga_arm() -> None:
    recipe = load_config(ROOT / "recipes/lab.yaml")
    arm = arm_config(
        "tga", model=recipe.model, records=recipe.records, out=recipe.out, seed=0, smoke=False
    )
    # The demo picks the precision by the machine; a recipe states one.
    assert recipe == arm.model_copy(update={"precision": recipe.precision})


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    README.write_text(with_results(README.read_text()))
