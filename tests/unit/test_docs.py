"""Every block of code in the documentation: commands parse, Python runs, data can be read."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from tgalign.cli import app

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
RUN_WHOLE = ("method.md", "own-model.md")
"""Pages whose Python needs nothing that a reader would have to bring; of others the imports run."""


def blocks(language: str) -> list[Any]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            found.append(pytest.param(page, block, id=f"{page.name}-{len(found)}"))
    return found


def commands() -> list[Any]:
    found = []
    for parameter in blocks("bash"):
        page, block = parameter.values
        for line in re.split(r"\n|&&", block.replace("\\\n", " ")):
            said = re.search(r"(?:^|-m )tgalign (.*)", line.strip())
            if said:
                found.append(pytest.param(said[1], id=f"{page.name}: {said[1][:60]}"))
    return found


def test_there_is_something_to_check() -> None:
    assert len(commands()) > 25
    assert len(blocks("python")) > 3 and len(blocks("json")) > 1 and len(blocks("yaml")) > 0


@pytest.mark.parametrize("line", commands())
def test_a_command_is_one_that_there_is(line: str) -> None:
    arguments = shlex.split(line, comments=True)
    command: Any = get_command(app)
    while arguments and arguments[0] in getattr(command, "commands", {}):
        command = command.commands[arguments.pop(0)]
    assert not hasattr(command, "commands"), f"tgalign {line}: no such command"
    if ">" in arguments:
        arguments = arguments[: arguments.index(">")]
    command.make_context(command.name, arguments)  # raises on an option that is not there


@pytest.mark.parametrize(("page", "block"), blocks("python"))
def test_python_runs(
    page: Path, block: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    tree = ast.parse(block)
    if page.name not in RUN_WHOLE:
        tree.body = [it for it in tree.body if isinstance(it, ast.Import | ast.ImportFrom)]
        assert tree.body, "nothing of this block can be checked"
    exec(compile(tree, page.name, "exec"), {})


@pytest.mark.parametrize(("page", "block"), blocks("json"))
def test_json_can_be_read(page: Path, block: str) -> None:
    try:
        json.loads(block)
    except json.JSONDecodeError:
        for line in block.splitlines():
            json.loads(line)


@pytest.mark.parametrize(("page", "block"), blocks("yaml"))
def test_yaml_can_be_read(page: Path, block: str) -> None:
    assert yaml.safe_load(block)


def test_rows_of_ones_own_data_are_records(tmp_path: Path) -> None:
    from PIL import Image

    from tgalign.data.records import read_records

    (block,) = re.findall(r"```json\n(.*?)```", (DOCS / "own-data.md").read_text(), re.DOTALL)
    (tmp_path / "pictures").mkdir()
    for name in ("1.png", "2.png"):
        Image.new("RGB", (9, 9)).save(tmp_path / "pictures" / name)
    (tmp_path / "records.jsonl").write_text(block)
    records, problems = read_records(tmp_path / "records.jsonl", tmp_path)
    assert not problems
    assert len(records) == 3
