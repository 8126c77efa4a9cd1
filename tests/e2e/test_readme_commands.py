"""Every `tgalign` line of the README runs, in the order given, with demos cut short."""

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TOO_LONG = ["tgalign lab build --check"]  # trains both base models: about half an hour

pytestmark = pytest.mark.slow


def readme_commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("tgalign ")]


def test_readme_commands_run(
    tmp_path: Path, tgalign: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process: each new one spends seconds on imports, and `test_demo.py` has real ones."""
    monkeypatch.chdir(tmp_path)
    commands = readme_commands()
    assert len(commands) >= 5
    assert set(TOO_LONG) <= set(commands)
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    recipe = tmp_path / "recipes/lab.yaml"
    settings = yaml.safe_load(recipe.read_text())
    for stage in settings["stages"]:
        stage["steps"] = 2
    settings["synthetic"]["clip"] = str(ROOT / "src/tgalign/lab/assets/clip")
    recipe.write_text(yaml.safe_dump(settings))
    for command in commands:
        if command in TOO_LONG:
            continue
        arguments = shlex.split(command)[1:]
        if arguments[0] == "demo":
            arguments += ["--smoke", "--jobs", "1"]
            if "--seeds" in arguments:
                arguments[arguments.index("--seeds") + 1] = "1"
        if arguments[:2] == ["lab", "experiment"]:
            for small in ("stage.steps=2", "data.pictures=80", "data.texts=20", "data.corpus=100"):
                arguments += ["--set", small]
        if arguments[0] == "diagnose":
            arguments += ["--per-scene", "2", "--patch-layers", "2-2"]
        status, _, said = tgalign(*arguments)
        assert status == 0, f"{command}\n{said}"
    assert (tmp_path / "runs/lab/checkpoint/model.safetensors").is_file()
