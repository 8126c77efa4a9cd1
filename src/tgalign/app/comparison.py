"""A finished comparison as the page shows it: methods with their rates, pictures with answers.

Read are the folder of ``tgalign demo``, that of ``tgalign compare``, and a folder that holds several
of ``tgalign evaluate``, one for each model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tgalign.errors import UserError
from tgalign.files import read_json

if TYPE_CHECKING:
    from PIL.Image import Image

ANY = "any"
BENIGN = "harmless"
RATES = {
    "dsr": "DSR",
    "over_refusal": "over-refusal",
    "named": "objects named",
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


def read_comparison(folder: Path) -> Comparison:
    """Read a finished comparison.

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
            return _read_evaluations(folder, runs)
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
    over-refusal at least as low, one of them better."""
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
    dsr, over, named = ((found.get(key) or {}).get("rate") for key in list(RATES)[:3])
    return (dsr or 0.0, -(over or 0.0), named or 0.0)


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
        said = item.answers if method == ANY else {k: v for k, v in item.answers.items() if k == method}
        return (
            (scene in (ANY, item.scene or BENIGN))
            and (label == ANY or any(it.label == label for it in said.values()))
            and (method == ANY or bool(said))
            and (not disputed or item.disputed)
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
    suite = _lab_suite(seed, style, smoke)
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
def _lab_suite(seed: int, style: Any, smoke: bool) -> Any:
    from tgalign.demo import demo_suite

    return demo_suite(seed, style, smoke)
