"""A finished comparison as the page shows it: methods with their rates, pictures with answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tgalign.baselines.pareto import pareto
from tgalign.report.wording import share

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
        pareto: The methods that no other beats on all of DSR, over-refusal and objects named;
            one that lacks a rate is not among them.
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


def front_rates(
    methods: Mapping[str, Mapping[str, Any]],
) -> dict[str, tuple[float, float, float]]:
    """DSR, over-refusal and naming (or other utility) of the methods that have all of them.

    A utility that no method has decides nothing: it is 0 in all.
    """
    used = [
        key
        for key in ("named", "utility")
        if any(share(found.get(key)) is not None for found in methods.values())
    ]
    rates = {}
    for name, found in methods.items():
        dsr, over_refusal = share(found.get("dsr")), share(found.get("over_refusal"))
        named = share(found.get(used[0])) if used else 0.0
        if dsr is not None and over_refusal is not None and named is not None:
            rates[name] = dsr, over_refusal, named
    return rates


def pareto_front(methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The methods that no other beats in their ``front_rates``."""
    return pareto(front_rates(methods))


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
