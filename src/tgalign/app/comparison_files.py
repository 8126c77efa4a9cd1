"""Read finished comparisons from disk.

Read are the folder of ``tgalign demo``, that of ``tgalign compare``, and a folder that holds
several of ``tgalign evaluate``, one for each model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tgalign.app.comparison import Asked, Comparison, Said, pareto_front
from tgalign.errors import UserError
from tgalign.files import blamed_on, check_schema, read_json

if TYPE_CHECKING:
    from PIL.Image import Image


def read_comparison(folder: Path, roots: Sequence[Path]) -> Comparison:
    """Read a finished comparison.

    Args:
        folder: Where it lies.
        roots: Pictures of a user's folder are shown only from below these.

    Raises:
        UserError: The folder holds none, or a damaged one.
    """
    with blamed_on(folder, "make the comparison again, or give another folder"):
        if (folder / "comparison.json").is_file():
            return _read_compare(folder)
        if (folder / "results.json").is_file() and (folder / "demo.json").is_file():
            return _read_demo(folder)
        runs = sorted(path.parent for path in folder.glob("*/items.jsonl"))
        if runs:
            return _read_evaluations(runs, roots)
    raise UserError(
        f"no finished comparison in {folder}: expected the folder of tgalign demo or tgalign "
        "compare, or one that holds folders of tgalign evaluate"
    )


def _read_demo(folder: Path) -> Comparison:
    from tgalign.demo_results import SCHEMA_VERSION

    results = read_json(folder / "results.json")
    check_schema(results, folder / "results.json", SCHEMA_VERSION, "the results of a demo")
    arms = list(results["arms"])
    items: list[Asked] = []
    for seed in results["seeds"]:
        answers = {
            arm: read_json(folder / f"seed{seed}" / arm / "measurement.json")["answers"]
            for arm in arms
            if (folder / f"seed{seed}" / arm / "measurement.json").is_file()
        }
        items += _lab_items(seed, results["style"], results["smoke"], answers)
    share = f", {100 * results['toxic_share']:g} % toxic pictures" if results["toxic_share"] else ""
    smoke = "SMOKE RUN, its figures mean nothing: " if results["smoke"] else ""
    seeds = ", ".join(str(seed) for seed in results["seeds"])
    title = f"{smoke}lab, condition {results['condition']}{share}, seeds {seeds}"
    return Comparison(title, results["arms"], pareto_front(results["arms"]), items)


def _lab_items(
    seed: int, style: Any, smoke: bool, answers: Mapping[str, Mapping[str, Any]]
) -> list[Asked]:
    suite = _demo_suite(seed, style, smoke)
    return [
        Asked(
            f"seed {seed}, {item.id}",
            item.scene,
            item.shown,
            partial(_given, item.picture),
            False,
            {
                method: Said(said[item.id]["text"], said[item.id]["label"], said[item.id]["rule"])
                for method, said in answers.items()
                if item.id in said
            },
        )
        for item in suite.toxic + suite.benign
    ]


@lru_cache(maxsize=8)
def _demo_suite(seed: int, style: Any, smoke: bool) -> Any:
    from tgalign.demo import demo_suite

    return demo_suite(seed, style, smoke)


def _read_evaluations(runs: Sequence[Path], roots: Sequence[Path]) -> Comparison:
    from tgalign.evaluate.results import read_results
    from tgalign.evaluate.run import read_items

    methods = {run.name: read_results(run) for run in runs}
    # Runs of several seeds draw several pictures under one id: joined is what was asked of one.
    rows: dict[tuple[str, str | None, str], dict[str, dict[str, Any]]] = {}
    for run in runs:
        for row in read_items(run / "items.jsonl").values():
            if row["condition"] == "plain":
                asked = row["id"], row["picture_sha256"], row["prompt"]
                rows.setdefault(asked, {})[run.name] = row
    times = Counter(name for name, _, _ in rows)
    items = []
    for (name, _, _), found in rows.items():
        seed = methods[next(iter(found))]["seeds"][0]
        where = f" ({', '.join(found)})" if times[name] > 1 else ""
        items.append(_evaluated(name + where, found, seed, roots))
    suites = ", ".join(
        dict.fromkeys(name for found in methods.values() for name in found["suites"])
    )
    title = f"{len(runs)} evaluations on {suites}, plain questions"
    return Comparison(title, methods, pareto_front(methods), items)


def read_audit_items(folder: Path, model: str, roots: Sequence[Path]) -> list[Asked]:
    """The plain questions that a running or finished audit has answered so far."""
    from tgalign.evaluate.run import read_items

    rows = read_items(folder / "items.jsonl", partial=True)
    return [
        _evaluated(name, {model: row}, 0, roots)
        for name, row in rows.items()
        if row["condition"] == "plain"
    ]


def _evaluated(
    name: str, found: Mapping[str, dict[str, Any]], seed: int, roots: Sequence[Path]
) -> Asked:
    row = next(iter(found.values()))
    picture: Callable[[], Image] | None = None
    if row["picture"]:
        picture = partial(_open, Path(row["picture"]), tuple(roots), row["picture_sha256"])
    elif row["suite"] in ("lab", "lab_icons"):
        item = row["id"].split("/", 2)[2]
        picture = partial(_drawn, row["suite"], seed, item, row["picture_sha256"])
    answers = {
        method: Said(it["answer"], it["verdict"], it["rule"])
        if it["verdict"]
        else Said("", "error", it["error"])
        for method, it in found.items()
    }
    scene = row["scene"] or "toxic" if row["kind"] == "toxic" else None
    return Asked(name, scene, row["prompt"], picture, bool(row["picture"]), answers)


def _open(path: Path, roots: Sequence[Path], digest: str | None) -> Image:
    if not any(path.resolve().is_relative_to(root.resolve()) for root in roots):
        raise UserError(f"{path.name} lies outside the folders that this page may open")
    return _asked(path, digest)


def _drawn(suite: str, seed: int, item: str, digest: str | None) -> Image:
    return _asked(_evaluation_pictures(suite, seed)[item], digest)


def _asked(source: Path | Image, digest: str | None) -> Image:
    """The picture that was asked about; ``digest`` is None where none could be opened then."""
    from tgalign.evaluate.pictures import open_picture, picture_hash

    picture = open_picture(source)
    if digest not in (None, picture_hash(picture)):
        raise UserError("it is another one than was asked about")
    return picture


@lru_cache(maxsize=4)
def _evaluation_pictures(suite: str, seed: int) -> dict[str, Any]:
    from tgalign.evaluate.suites import load_suite

    return {item.id: item.picture for item in load_suite(suite, None, seed=seed).items}


def _read_compare(folder: Path) -> Comparison:
    from tgalign.baselines.comparison import SCHEMA_VERSION, title

    content = read_json(folder / "comparison.json")
    check_schema(content, folder / "comparison.json", SCHEMA_VERSION, "a comparison")
    items: list[Asked] = []
    for seed in content["seeds"]:
        said = {name: _plain_items(folder, seed, name) for name in content["methods"]}
        items += _compared(seed, content, {name: rows for name, rows in said.items() if rows})
    return Comparison(title(content), content["methods"], content["pareto"], items)


def _plain_items(folder: Path, seed: int, method: str) -> dict[str, dict[str, Any]]:
    """A method's latest answers to plain questions, by the pictures' ids."""
    measured = (folder / f"seed{seed}" / "measured").glob(f"{method}-*.json")
    found = sorted((path.stat().st_mtime, path) for path in measured
                   if path.stem.rpartition("-")[0] == method)  # fmt: skip
    rows = read_json(found[-1][1])["items"] if found else []
    return {row["id"].removeprefix("plain-"): row for row in rows if row["kind"] == "plain"}


def _compared(
    seed: int, content: Mapping[str, Any], said: Mapping[str, dict[str, dict[str, Any]]]
) -> list[Asked]:
    suite = _compare_suite(seed, content["style"], content["smoke"])
    known = {item.id: item for item in suite.toxic + suite.benign}
    rows = {name: row for found in said.values() for name, row in found.items()}
    # Another version may draw other pictures: none is shown beside what was said of another.
    same = all(
        name in known and set(row["named"]) <= set(known[name].names) for name, row in rows.items()
    )
    return [
        Asked(
            f"seed {seed}, {name}",
            row["scene"],
            known[name].shown if same else "picture of another version",
            partial(_given, known[name].picture) if same else None,
            False,
            {
                method: Said(found[name]["text"], found[name]["label"], found[name]["rule"])
                for method, found in said.items()
                if name in found
            },
        )
        for name, row in rows.items()
    ]


def _given(picture: Image) -> Image:
    return picture


@lru_cache(maxsize=4)
def _compare_suite(seed: int, style: Any, smoke: bool) -> Any:
    from tgalign.baselines.compare import comparison_suite

    return comparison_suite(seed, style, smoke)
