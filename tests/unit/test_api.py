"""The public API: every name of docs/api.md can be imported and says what it is."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
import yaml

import tgalign

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
NAMES = re.findall(r"\[`(tgalign\.[\w.]+)`\]\[\]", PAGE)


def test_every_name_stands_there_once() -> None:
    assert len(NAMES) > 30
    assert len(set(NAMES)) == len(NAMES)
    assert not [name for name in NAMES if any(part[0] == "_" for part in name.split("."))]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_can_be_imported_and_has_a_docstring(name: str) -> None:
    module_name, _, attribute = name.rpartition(".")
    module = importlib.import_module(module_name)
    assert module.__doc__
    value = getattr(module, attribute)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert value.__doc__ and len(value.__doc__) > 20
        assert value.__module__.startswith(module_name), f"{name} is only passed through"
    else:
        assert attribute.isupper() and value


def test_what_a_package_offers_is_public() -> None:
    offered = []
    for found in pkgutil.walk_packages(tgalign.__path__, "tgalign."):
        if found.ispkg:
            package = importlib.import_module(found.name)
            offered += [f"{found.name}.{name}" for name in getattr(package, "__all__", ())]
    assert offered
    assert set(offered) <= set(NAMES)


def test_the_contributors_guide_names_every_module() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[^|]+`) \|", guide, re.MULTILINE)
    named = {name.rstrip("/") for row in rows for name in re.findall(r"`([\w./]+)`", row)}
    package = ROOT / "src" / "tgalign"
    there = {it.name for it in package.iterdir() if it.suffix == ".py" or it.is_dir()}
    assert named == {it for it in there if not it.startswith("__")}


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda it: it.name
)
def test_an_issue_template_is_a_form(path: Path) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.name == "config.yml":
        assert form == {"blank_issues_enabled": True}
        return
    assert {"name", "description", "body"} <= form.keys()
    names = [part["id"] for part in form["body"]]
    assert len(set(names)) == len(names)
    assert all(part["attributes"]["label"] for part in form["body"])
    assert {part["type"] for part in form["body"]} <= {"textarea", "input", "dropdown"}
