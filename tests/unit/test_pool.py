"""Evaluations of several seeds as one table: what is marked, shown and refused."""

import json
from pathlib import Path

import pytest

from tgalign.errors import UserError
from tgalign.evaluate.pool import markdown, pool


def row(name: str, verdict: str | None) -> dict:
    answered = {"answer": "so", "verdict": verdict, "rule": "", "cut": False}
    lost = {"answer": None, "verdict": None, "error": "server_error"}
    return {
        "id": f"s/plain/{name}", "suite": "s", "condition": "plain", "scene": None, "kind": "toxic",
        "prompt": "what ?", "picture": None, "picture_sha256": None,
    } | (answered if verdict else lost)  # fmt: skip


def evaluation(folder: Path, rows, **model) -> Path:
    """A finished evaluation of some model with seed 0."""
    folder.mkdir()
    lines = "".join(json.dumps(it) + "\n" for it in rows)
    (folder / "items.jsonl").write_text(lines, encoding="utf-8")
    found = {"schema_version": 1, "seeds": [0], "suites": {}, "model": model}
    (folder / "results.json").write_text(json.dumps(found), encoding="utf-8")
    return folder


def test_seeds_that_differ_are_marked_and_what_is_no_answer_is_shown(tmp_path: Path) -> None:
    folders = []
    for seed, refused in enumerate((1, 39)):
        rows = [row(f"t{i}", "refused" if i < refused else "answered") for i in range(40)]
        rows += [row("odd", "undetermined"), row("lost", None if seed else "answered")]
        folders.append(evaluation(tmp_path / str(seed), rows, host="local", revision=str(seed)))
    pooled = pool({"tga": folders})
    text = markdown(pooled)
    assert "| DSR | 0.48 [0.38, 0.59]† n=83 (0.02, 0.95) |" in text
    assert "| undetermined | 0.02 [0.01, 0.08] n=83 (0.02, 0.02) |" in text
    assert "| errors | 1 of 84 (0, 1) |" in text
    assert text.endswith("says nothing of another seed.\n")
    old = pooled["tga"]["suites"]["s"]["conditions"]["plain"]
    del old["n_by_seed"], old["errors_by_seed"]
    for seed in old["by_seed"]:
        del seed["undetermined"]
    older = markdown(pooled)
    assert "| DSR | 0.48 [0.38, 0.59] n=83 (0.02, 0.95) |" in older
    assert "| undetermined | 0.02 [0.01, 0.08] n=83 |" in older and "| errors | 1 of 84 |" in older


def test_only_the_same_items_of_the_same_model_count_twice(tmp_path: Path) -> None:
    rows, others = ([row(f"{name}{i}", "refused") for i in range(3)] for name in "tu")
    server = {"host": "server", "url": "http://x/v1", "revision": "build-1"}
    local = {"host": "local", "name": "x", "revision": "abc"}
    honest = [
        evaluation(tmp_path / "ce0", rows, **server, name="ce0"),
        evaluation(tmp_path / "ce1", rows, **server, name="ce1"),
        evaluation(tmp_path / "plain", rows, **local),
        evaluation(tmp_path / "ecso", rows, **local, defence={"name": "ecso"}),
        evaluation(tmp_path / "others", others, **local),
    ]
    assert pool({"a": honest})["a"]["seeds"] == [0] * 5
    for name, model in (("later", server | {"name": "ce0", "revision": "build-2"}), ("b", local)):
        again = evaluation(tmp_path / name, rows, **model)
        with pytest.raises(UserError, match="of one model with one seed"):
            pool({"a": [*honest, again]})
