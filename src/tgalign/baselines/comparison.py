"""The comparison's figures: pooled over seeds, tested against CE, as JSON, CSV and a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tgalign.baselines.methods import DEFENCES, TRAININGS, Plan
from tgalign.baselines.pareto import Point, pareto
from tgalign.demo_results import show_pooled, versions
from tgalign.evaluate.seeds import NOTE, noted
from tgalign.evaluate.statistics import (
    bootstrap_share,
    holm,
    mcnemar,
    paired_share_difference,
    permutation_p,
)
from tgalign.files import write_json, write_text
from tgalign.lab.jailbreaks import ATTACKS
from tgalign.lab.outcomes import Outcome, outcomes
from tgalign.report.tables import csv_table, markdown_table

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA_VERSION = 1
"""Of comparison.json and compare.json."""

_BY_PICTURE = (
    "Intervals of Wilson, tests of McNemar (exact); of objects named and jailbreak DSR, where a "
    "picture holds several trials, a bootstrap over pictures and a permutation test."
)

_BY_TRIAL = (
    "Intervals of Wilson, tests of McNemar (exact). This file is older than the count by picture: "
    "its columns objects named and jailbreak DSR take the trials of one picture as independent, so "
    "their intervals are too narrow and their p-values too small."
)

TRIALS = {"jailbreak_dsr": len(ATTACKS)}
"""Trials of a picture, by rate, where every picture has several."""

Found = dict[str, Any]
"""What was measured of one method and seed (``compare.measure_method``)."""

COLUMNS = {
    "dsr": "DSR",
    "over_refusal": "over-refusal",
    "named": "objects named",
    "text_dsr": "text DSR",
    "jailbreak_dsr": "jailbreak DSR",
}
"""The rates of the table; the others stand in ``comparison.json``."""

NEEDS = {
    "uses_image_safety_data": "image safety data",
    "uses_second_model": "second model",
    "at_inference": "at inference",
}
"""What a method may need that a plain checkpoint does not."""

LEVEL = 0.05
"""A corrected p-value below this is marked in the table."""


def assemble(
    measured: Mapping[int, Mapping[str, Found]], plans: Sequence[Plan], setting: dict[str, Any]
) -> dict[str, Any]:
    """Make the content of ``comparison.json``.

    Rates are pooled over seeds. Every method is tested against ``ce`` on the same pictures or texts
    of the same seeds, and the p-values of one rate are corrected over the methods (Holm). Intervals
    are Wilson's and tests McNemar's, exact; where a picture holds several trials (two attacks, or
    the things shown) a bootstrap over pictures and a sign-flip permutation test. Pictures of one
    model are not quite independent, so p-values are too small rather than too large.

    Args:
        measured: By seed and method, what was measured.
        plans: The methods, ``ce`` among them.
        setting: What they share.
    """
    for by_method in measured.values():
        first, *others = map(_asked, by_method.values())
        assert all(asked == first for asked in others), "methods were asked different items"
    items = {it.name: _pooled(measured, it.name) for it in plans}
    methods: dict[str, Any] = {}
    for it in plans:
        found = [measured[seed][it.name] for seed in measured]
        by_seed = [
            {"seed": seed, **_rates(outcomes(measured[seed][it.name]["items"]))}
            for seed in measured
        ]
        methods[it.name] = {
            **_rates(items[it.name]),
            "added_latency": _mean([one["added_latency"] for one in found]),
            "training_seconds": _mean([one["training_seconds"] for one in found]),
            **facts(it),
            "seeds": [
                {key: row[key] for key in ("seed", *COLUMNS) if key in row} for row in by_seed
            ],
        }
    _test(methods, items)
    return {
        "schema_version": SCHEMA_VERSION,
        **setting,
        "seeds": list(measured),
        "methods": methods,
        "pareto": pareto({name: point(found) for name, found in methods.items()}),
        "versions": versions(),
    }


def point(method: Mapping[str, Any]) -> Point:
    """The rates by which a method may beat another."""
    return method["dsr"]["rate"], method["over_refusal"]["rate"], method["named"]["rate"]


def facts(method: Plan) -> dict[str, Any]:
    """What a method needs and where it comes from; None where a given checkpoint does not say."""
    training, defence = TRAININGS.get(method.training), DEFENCES.get(method.defence or "")
    sources = [it for it in (defence, training) if it is not None]
    # What stands around the ce model is described alone.
    if defence is not None and method.training == "ce":
        sources = [defence]
    return {
        "training": method.training,
        "defence": method.defence,
        "uses_image_safety_data": training.uses_image_safety_data if training else None,
        "uses_second_model": bool(defence and defence.uses_second_model),
        "at_inference": defence is not None,
        "paper": "; ".join(it.paper for it in sources),
        "what": " ".join(it.what for it in sources),
        "departure": " ".join(it.departure for it in sources),
    }


def _pooled(measured: Mapping[int, Mapping[str, Found]], name: str) -> dict[str, list[Outcome]]:
    """The outcomes of all seeds; keys begin with the seed."""
    pooled: dict[str, list[Outcome]] = {}
    for seed, found in measured.items():
        for rate, rows in outcomes(found[name]["items"]).items():
            pooled.setdefault(rate, []).extend(
                (f"{seed}: {key}", hits, of) for key, hits, of in rows
            )
    return pooled


def _rates(found: Mapping[str, list[Outcome]]) -> dict[str, Any]:
    return {
        name: bootstrap_share([(hits, trials) for _, hits, trials in rows]).as_dict()
        for name, rows in found.items()
    }


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _test(methods: dict[str, Any], items: Mapping[str, Mapping[str, list[Outcome]]]) -> None:
    """Add ``against_ce`` to every method but ``ce``."""
    others = [name for name in methods if name != "ce"]
    for name in others:
        methods[name]["against_ce"] = {}
    for rate in COLUMNS:
        tests = [_paired(items[name][rate], items["ce"][rate]) for name in others]
        corrected = holm([test["p"] for test in tests])
        for name, test, p_holm in zip(others, tests, corrected, strict=True):
            methods[name]["against_ce"][rate] = test | {"p_holm": p_holm}


def _asked(found: Found) -> tuple[str | None, set[tuple[Any, ...]]]:
    """What a method was asked: the digest of it all, pictures too, and its items."""
    return found.get("asked"), {
        (it["id"], it["question"], it["toxic"], *sorted(it["named"])) for it in found["items"]
    }


def _paired(new: list[Outcome], old: list[Outcome]) -> dict[str, Any]:
    """The difference of a rate over ``n`` trials, its p, and how many items changed.

    ``gained`` and ``lost`` count the pictures or texts with more and with fewer hits, of ``pairs``
    that were compared. Where a picture holds several trials, ``n`` is larger than ``pairs``, and
    ``difference`` is not (``gained`` - ``lost``) / ``pairs`` either.
    """
    known = {key: hits for key, hits, _ in old}
    sides = [(hits, known[key], trials) for key, hits, trials in new]
    changes = [one - other for one, other, _ in sides]
    single = all(trials == 1 for *_, trials in sides)
    return paired_share_difference(sides).as_dict() | {
        "gained": sum(change > 0 for change in changes),
        "lost": sum(change < 0 for change in changes),
        "pairs": len(sides),
        "p": mcnemar([(one > 0, other > 0) for one, other, _ in sides])
        if single
        else permutation_p(changes),
    }


def title(comparison: Mapping[str, Any]) -> str:
    """What was compared, in one line."""
    warning = "SMOKE RUN, figures mean nothing: " if comparison["smoke"] else ""
    share = f"{100 * comparison['toxic_share']:g} %"
    scale = "" if comparison["scale"] == 1 else f", scale {comparison['scale']:g}"
    return (
        f"{warning}condition {comparison['condition']} ({share} toxic pictures), "
        f"{comparison['style']}{scale}, seeds {', '.join(map(str, comparison['seeds']))}"
    )


def table(comparison: Mapping[str, Any]) -> list[list[str]]:
    """Header and a row for every method.

    ``*`` marks a rate that differs from that of CE, ``†`` one whose seeds differ, ``★`` a method on
    the Pareto front.
    """
    rows = [["method", *COLUMNS.values(), "added latency", "training s", "needs"]]
    for name, found in comparison["methods"].items():
        cells = [f"{name} ★" if name in comparison["pareto"] else name]
        for rate in COLUMNS:
            p_holm = found.get("against_ce", {}).get(rate, {}).get("p_holm", 1.0)
            cells.append(
                show_pooled(found, rate, with_n=False, per_item=TRIALS.get(rate, 1))
                + ("*" if p_holm < LEVEL else "")
            )
        cost = found["training_seconds"]
        cells.append(f"{100 * found['added_latency']:+.0f} %" if found["at_inference"] else "0")
        cells.append("n/a" if cost is None else f"{cost:.0f}")
        needs = [said for need, said in NEEDS.items() if found[need]]
        rows.append([*cells, ", ".join(needs)])
    return rows


def markdown(comparison: Mapping[str, Any]) -> str:
    """Title, table and how to read it, in Markdown."""
    header, *rows = table(comparison)
    shown = markdown_table(header, rows)
    counts = comparison["methods"]["ce"]
    n = ", ".join(f"{heading} {counts[rate]['n']}" for rate, heading in COLUMNS.items())
    return noted(
        f"{title(comparison)}: rate [95 % interval]\n\n{shown}\n{how(comparison)} `*` differs from "
        f"ce on the same items (Holm over the methods; p < {LEVEL}). ★ on the Pareto front of DSR, "
        f"over-refusal and objects named. n: {n}.\n"
    )


def how(comparison: Mapping[str, Any]) -> str:
    """How intervals and tests were made; before trials were told from pictures, none had ends."""
    tests = [
        test for it in comparison["methods"].values() for test in it.get("against_ce", {}).values()
    ]
    return _BY_PICTURE if all("low" in test for test in tests) else _BY_TRIAL


def csv_text(comparison: Mapping[str, Any]) -> str:
    """A row for every method, with the numbers of the JSON."""
    ends = ("rate", "low", "high", "n")
    needs = ("added_latency", "training_seconds", *NEEDS)
    tests = [f"{rate}_p_holm" for rate in COLUMNS]
    rows: list[list[Any]] = [
        ["method", *(f"{rate}_{end}" for rate in COLUMNS for end in ends), *needs, *tests, "pareto"]
    ]
    for name, found in comparison["methods"].items():
        against = found.get("against_ce", {})
        row = [name, *(found[rate][end] for rate in COLUMNS for end in ends)]
        row += [found[need] for need in needs]
        row += [against.get(rate, {}).get("p_holm") for rate in COLUMNS]
        rows.append([*row, name in comparison["pareto"]])
    return csv_table(rows)


def write_comparison(comparison: dict[str, Any], out: Path, console: Console) -> None:
    """Write ``comparison.json``, ``.csv``, ``.md`` and ``.html``, and print the table."""
    from rich.table import Table

    from tgalign.report.comparison_report import render

    write_text(out / "comparison.csv", csv_text(comparison))
    write_text(out / "comparison.md", markdown(comparison))
    write_text(out / "comparison.html", render(comparison))
    write_json(out / "comparison.json", comparison)
    header, *rows = table(comparison)
    shown = Table(title=title(comparison), title_justify="left")
    for number, column in enumerate(header):
        shown.add_column(column, no_wrap=number == 0)
    for row in rows:
        shown.add_row(*row)
    console.print(shown)
    if NOTE in markdown(comparison):
        console.print(NOTE)
    for suffix in ("json", "html", "csv", "md"):
        console.print(out / f"comparison.{suffix}", soft_wrap=True)
