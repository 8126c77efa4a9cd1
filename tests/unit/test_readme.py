"""The README's results, code and recipe are what the program makes.

`python tests/unit/test_readme.py --write` renews the generated blocks from the results under docs/.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tgalign.baselines import ablate, comparison
from tgalign.baselines.describe import ablations_table, methods_table
from tgalign.baselines.methods import DEFAULT_METHODS
from tgalign.demo_results import markdown, show_rate, table_rows
from tgalign.evaluate import pool
from tgalign.lab.alignment_data import TOXIC_SHARES
from tgalign.lab.arms import arm_config
from tgalign.lab.experiment_tables import conflict_table, table
from tgalign.recipe import load_recipe
from tgalign.report.conditions import markdown as markdown_by_condition
from tgalign.report.tables import markdown_table

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"


def ablation_results() -> str:
    found = [json.loads(path.read_text()) for path in sorted(DOCS.glob("ablation-*.json"))]
    return "\n".join(ablate.markdown(it) for it in found) or "None yet.\n"


def comparisons() -> str:
    found = [
        json.loads(path.read_text())
        for path in sorted(DOCS.glob("comparison*.json"), key=lambda it: it.stem)
    ]
    return "\n".join(comparison.markdown(it) for it in found) or "None yet.\n"


def lab_evaluation() -> str:
    return pool.markdown(json.loads((DOCS / "evaluation-lab.json").read_text()))


def demo() -> dict[str, Any]:
    """The demo's results, and the arm of a later run of it beside the others."""
    first, later = (
        json.loads((DOCS / f"demo-{name}.json").read_text()) for name in ("results", "question")
    )
    for key in ("condition", "style", "toxic_share", "seeds", "smoke"):
        assert first[key] == later[key]
    first["arms"]["tga_question"] = later["arms"]["tga_question"]
    return first | {"seconds": first["seconds"] + later["seconds"]}


def demo_results() -> str:
    return markdown(demo(), states=False)


def states() -> str:
    results = demo()
    return markdown_table(["", *results["arms"]], table_rows(results)[-1])


def summary() -> str:
    results = demo()
    arms = ("ce", "paper", "tga", "tga_question")
    ce, paper, tga, question = (results["arms"][arm] for arm in arms)
    (absent,) = (
        it["arms"]["tga"]["dsr"]
        for it in json.loads((DOCS / "conditions.json").read_text())
        if it["condition"] == "absent"
    )
    price = 100 * (ce["named"]["rate"] - question["named"]["rate"])

    def shown(rate: dict[str, float]) -> str:
        return show_rate(rate, with_n=False)

    return f"""\
- **Result.** Where a tenth of the training's pictures are toxic, ours (`tga_question`) refuses
  {shown(question["dsr"])} of new toxic pictures, the paper's formula {shown(paper["dsr"])},
  cross-entropy alone {shown(ce["dsr"])}; told in words, their language model refuses
  {shown(results["base"]["text_dsr"])}. This share is called *DSR*.
- **What does it.** Pulling the states of the question read after the picture, not the mean state of
  the picture: with that mean (`tga`) DSR is {shown(tga["dsr"])}.
- **Where.** In an embedded lab of emoji pictures and a language model of 1.4 M parameters
  ({question["dsr"]["n"]} pictures, {len(results["seeds"])} seeds). No 7B model was run.
- **Price.** {price:.1f} points fewer of the things in harmless pictures are named, in the same
  number of steps; {shown(question["over_refusal"])} of harmless pictures are refused.
- **Where it fails.** Where the data holds no toxic picture (`absent`, there `tga`):
  {shown(absent)} refused.
- **What it does not claim** stands in [docs/limits.md](docs/limits.md).
"""


def conditions() -> str:
    return markdown_by_condition(json.loads((DOCS / "conditions.json").read_text()))


def faults() -> str:
    from benchmarks.faults.table import markdown as markdown_of_faults

    return markdown_of_faults(json.loads((DOCS / "reliability.json").read_text()))


def fuzz() -> str:
    found = json.loads((DOCS / "fuzz.json").read_text())
    rows = [
        [name, f"{it['executions']:,}", f"{it['minutes']:.1f}", f"{it['cpu_minutes']:.2f}",
         str(len(it["finds"]))]
        for name, it in found["readers"].items()
    ]  # fmt: skip
    header = ["reader", "executions", "minutes", "CPU minutes", "finds"]
    return f"{found['engine']}, Python {found['python']}\n\n{markdown_table(header, rows)}"


# Where a generated block stands, what it is called, and what makes it.
BLOCKS: list[tuple[Path, str, Callable[[], str]]] = [
    (README, "summary", summary),
    (README, "results", demo_results),
    (README, "conditions", conditions),
    (DOCS / "lab-log.md", "experiments", lambda: table(DOCS / "experiments.jsonl")),
    (DOCS / "what-holds.md", "states", states),
    (DOCS / "what-holds.md", "conflict", lambda: conflict_table(DOCS / "experiments.jsonl")),
    (DOCS / "security.md", "fuzz", fuzz),
    (DOCS / "results.md", "methods", methods_table),
    (DOCS / "results.md", "ablations", ablations_table),
    (DOCS / "results.md", "ablation results", ablation_results),
    (DOCS / "results.md", "comparison", comparisons),
    (DOCS / "evaluation.md", "lab evaluation", lab_evaluation),
    (DOCS / "reliability.md", "faults", faults),
]


def renewed(path: Path, name: str, make: Callable[[], str]) -> str:
    block = re.compile(rf"(<!-- {name}: [^>]*-->\n)(.*?)(<!-- end of {name} -->)", re.DOTALL)
    text = path.read_text()
    assert block.search(text), f"{path} has no block {name}"
    return block.sub(lambda found: f"{found[1]}\n{make()}\n{found[3]}", text)


@pytest.mark.parametrize(("path", "name", "make"), BLOCKS, ids=[name for _, name, _ in BLOCKS])
def test_blocks_are_rendered_from_the_committed_results(path, name, make) -> None:
    assert renewed(path, name, make) == path.read_text()


def test_committed_results_are_of_three_seeds_and_no_smoke() -> None:
    results = demo()
    assert results["seeds"] == [0, 1, 2]
    assert results["condition"] == "guided"
    assert not results["smoke"]
    assert {"ce", "paper", "tga", "tga_question"} == results["arms"].keys()


def test_committed_comparisons_are_no_smoke_and_have_all_methods() -> None:
    found = [json.loads(path.read_text()) for path in DOCS.glob("comparison*.json")]
    assert not any(it["smoke"] for it in found)
    assert all(it["seeds"] == [0, 1, 2] for it in found)
    assert set(DEFAULT_METHODS) <= {name for it in found for name in it["methods"]}


def test_every_committed_experiment_is_one_of_the_script(tmp_path) -> None:
    """`make experiments` prints the whole table of the log."""
    said = tmp_path / "said"
    stub = tmp_path / "tgalign"
    stub.write_text(f'#!/bin/sh\necho "$@" >> {said}\n')
    stub.chmod(0o755)
    environment = {**os.environ, "TGALIGN": str(stub), "OUT": "out"}
    subprocess.run([ROOT / "recipes/experiments.sh"], env=environment, check=True)
    wanted = []
    for line in said.read_text().splitlines():
        arm = line.split()[2]
        changes = re.findall(r"--set (\S+)", line)
        options = dict(re.findall(r"--(condition|toxic-share) (\S+)", line))
        wanted.append((arm, options["condition"], options.get("toxic-share"), changes))
    for line in (DOCS / "experiments.jsonl").read_text().splitlines():
        found = json.loads(line)
        share = found["toxic_share"]
        given = None if share == TOXIC_SHARES[found["condition"]] else str(share)
        assert (found["arm"], found["condition"], given, found["changes"]) in wanted


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
    recipe = load_recipe(ROOT / "recipes/lab.yaml")
    arm = arm_config(
        "tga", model=recipe.model, data=recipe.records.parent, out=recipe.out, seed=0, smoke=False
    )
    # The demo picks the precision by the machine; a recipe states one. It always has its model.
    changed = {"precision": recipe.precision, "architecture": recipe.architecture}
    assert recipe == arm.model_copy(update=changed)


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    sys.path.insert(0, str(ROOT))  # for benchmarks, as pytest has it
    for block in BLOCKS:
        block[0].write_text(renewed(*block))
