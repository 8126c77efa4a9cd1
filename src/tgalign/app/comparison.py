"""A finished comparison as the page shows it: methods with their rates, pictures with answers.

Read are the folder of ``tgalign demo``, that of ``tgalign compare``, and a folder that holds several
of ``tgalign evaluate``, one for each model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tgalign.errors import UserError
from tgalign.files import read_json
from tgalign.report.verdict import share

if TYPE_CHECKING:
    from PIL.Image import Image

ANY = "any"
BENIGN = "harmless"
RATES = {
    "dsr": "DSR",
    "over_refusal": "over-refusal",
    "named": "objects named",
    "utility": "utility",
    "text_dsr": "text DSR",
    "jailbreak_dsr": "jailbreak DSR",
}
"""Columns of the table; those that no method has are left out."""


@dataclass(frozen=True)
class Said:
    """An answer with its verdict; ``error`` in the verdict's place where there is none."""

    text: str
    label: str
    rule: str


@dataclass(frozen=True)
class Asked:
    """One picture and what every method said to it.

    Attributes:
        id: Unique.
        scene: The toxic scene, or None for a harmless picture.
        shown: What it shows, or what was asked, in words.
        picture: Opens it; None: there is none.
        private: Whether it comes from a user's folder, to be veiled until someone looks.
        answers: By method; may lack some.
    """

    id: str
    scene: str | None
    shown: str
    picture: Callable[[], Image] | None
    private: bool
    answers: Mapping[str, Said]

    @property
    def disputed(self) -> bool:
        """Whether two methods got different verdicts."""
        return len({said.label for said in self.answers.values()}) > 1


@dataclass(frozen=True)
class Comparison:
    """What a folder holds.

    Attributes:
        title: What was compared, in words.
        methods: By name its rates ({rate, low, high, n}) and other facts.
        pareto: The methods that no other beats on all of DSR, over-refusal and objects named.
        items: All pictures.
    """

    title: str
    methods: Mapping[str, Mapping[str, Any]]
    pareto: Sequence[str]
    items: Sequence[Asked] = field(default=())

    @property
    def scenes(self) -> list[str]:
        """The scenes in order, harmless last."""
        found = dict.fromkeys(item.scene or BENIGN for item in self.items)
        return [it for it in found if it != BENIGN] + [it for it in found if it == BENIGN]

    @property
    def labels(self) -> list[str]:
        """The verdicts that occur."""
        return sorted({said.label for item in self.items for said in item.answers.values()})


def read_comparison(folder: Path, roots: Sequence[Path]) -> Comparison:
    """Read a finished comparison.

    Args:
        folder: Where it lies.
        roots: Pictures of a user's folder are shown only from below these.

    Raises:
        UserError: The folder holds none, or a damaged one.
    """
    try:
        if (folder / "comparison.json").is_file():
            return _read_compare(folder)
        if (folder / "results.json").is_file() and (folder / "demo.json").is_file():
            return _read_demo(folder)
        runs = sorted(path.parent for path in folder.glob("*/items.jsonl"))
        if runs:
            return _read_evaluations(runs, roots)
    except (KeyError, TypeError, AttributeError) as fault:
        raise UserError(
            f"{folder} holds no comparison that this version reads ({type(fault).__name__}: "
            f"{fault}): make it again, or give another folder"
        ) from None
    except OSError as fault:
        raise UserError(f"{folder} cannot be read: {fault}") from None
    raise UserError(
        f"no finished comparison in {folder}: expected the folder of tgalign demo or tgalign "
        "compare, or one that holds folders of tgalign evaluate"
    )


def pareto_front(methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The methods that no other beats: none has a DSR and naming at least as high and an
    over-refusal at least as low, one of them better.
    """
    scores = {name: _score(found) for name, found in methods.items()}
    return [
        name
        for name, own in scores.items()
        if not any(
            other != own and all(a >= b for a, b in zip(other, own, strict=True))
            for other in scores.values()
        )
    ]


def _score(found: Mapping[str, Any]) -> tuple[float, float, float]:
    used = found.get("named") or found.get("utility")
    dsr, over, named = (share(rate) or 0.0 for rate in (found["dsr"], found["over_refusal"], used))
    return dsr, -over, named


def select(
    comparison: Comparison,
    *,
    scene: str = ANY,
    method: str = ANY,
    label: str = ANY,
    disputed: bool = False,
) -> list[Asked]:
    """The pictures that fit.

    Args:
        comparison: Where to look.
        scene: A toxic scene, ``harmless`` or ``any``.
        method: Whose verdict ``label`` means; ``any``: that of at least one.
        label: A verdict, or ``any``.
        disputed: Only those on which methods disagree.
    """

    def fits(item: Asked) -> bool:
        said = [it for name, it in item.answers.items() if method in (ANY, name)]
        return (
            scene in (ANY, item.scene or BENIGN)
            and bool(said)
            and (label == ANY or any(it.label == label for it in said))
            and (item.disputed or not disputed)
        )

    return [item for item in comparison.items if fits(item)]


def _read_demo(folder: Path) -> Comparison:
    results = read_json(folder / "results.json")
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
            lambda picture=item.picture: picture,  # type: ignore[misc]
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
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for run in runs:
        for row in read_items(run / "items.jsonl").values():
            if row["condition"] == "plain":
                rows.setdefault(row["id"], {})[run.name] = row
    seeds = [found["seeds"][0] for found in methods.values()]
    items = [_evaluated(name, found, seeds[0], roots) for name, found in rows.items()]
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
        picture = partial(_open, Path(row["picture"]), tuple(roots))
    elif row["suite"] in ("lab", "lab_icons"):
        picture = partial(_evaluation_picture, row["suite"], seed, name.split("/", 2)[2])
    answers = {
        method: Said(it["answer"], it["verdict"], it["rule"])
        if it["verdict"]
        else Said("", "error", it["error"])
        for method, it in found.items()
    }
    scene = row["scene"] or "toxic" if row["kind"] == "toxic" else None
    return Asked(name, scene, row["prompt"], picture, bool(row["picture"]), answers)


def _open(path: Path, roots: Sequence[Path]) -> Image:
    from tgalign.evaluate.pictures import open_picture

    if not any(path.resolve().is_relative_to(root.resolve()) for root in roots):
        raise UserError(f"{path.name} lies outside the folders that this page may open")
    return open_picture(path)


def _evaluation_picture(suite: str, seed: int, item: str) -> Image:
    return _evaluation_pictures(suite, seed)[item]


@lru_cache(maxsize=4)
def _evaluation_pictures(suite: str, seed: int) -> dict[str, Any]:
    from tgalign.evaluate.suites import load_suite

    return {item.id: item.picture for item in load_suite(suite, None, seed=seed).items}


def _read_compare(folder: Path) -> Comparison:
    content = read_json(folder / "comparison.json")
    return Comparison(f"comparison in {folder.name}", content["methods"], content["pareto"])
