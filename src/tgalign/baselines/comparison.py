"""The comparison's figures: pooled over seeds, tested against CE, as JSON, CSV and a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tgalign.baselines.items import Outcome, outcomes
from tgalign.baselines.methods import DEFENCES, TRAININGS, Plan
from tgalign.baselines.pareto import pareto
from tgalign.demo_results import show_rate, versions
from tgalign.evaluate.statistics import holm, mcnemar, wilson
from tgalign.files import write_json, write_text
from tgalign.report.tables import csv_table, markdown_table

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA_VERSION = 1
"""Of comparison.json and compare.json."""

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

    Rates are pooled over seeds with Wilson intervals. Every method is tested against ``ce`` on the
    same items of the same seeds (McNemar, exact), and the p-values of one rate are corrected over
    the methods (Holm). Items of one model are not quite independent, so p-values are too small
    rather than too large.

    Args:
        measured: By seed and method, what was measured.
        plans: The methods, ``ce`` among them.
        setting: What they share.
    """
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
    points = {
        name: tuple(found[key]["rate"] for key in ("dsr", "over_refusal", "named"))
        for name, found in methods.items()
    }
    return {
        "schema_version": SCHEMA_VERSION,
        **setting,
        "seeds": list(measured),
        "methods": methods,
        "pareto": pareto(points),
        "versions": versions(),
    }


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
    """The outcomes of all seeds; ids begin with the seed."""
    pooled: dict[str, list[Outcome]] = {}
    for seed, found in measured.items():
        for rate, rows in outcomes(found[name]["items"]).items():
            pooled.setdefault(rate, []).extend((f"{seed}: {key}", hit) for key, hit in rows)
    return pooled


def _rates(found: Mapping[str, list[Outcome]]) -> dict[str, Any]:
    return {
        name: wilson(sum(hit for _, hit in rows), len(rows)).as_dict()
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
        tests = []
        for name in others:
            new, old = dict(items[name][rate]), dict(items["ce"][rate])
            assert new.keys() == old.keys(), "methods were asked different items"
            pairs = [(new[key], hit) for key, hit in old.items()]
            gained, lost = pairs.count((True, False)), pairs.count((False, True))
            tests.append({"difference": (gained - lost) / len(pairs), "gained": gained,
                          "lost": lost, "n": len(pairs), "p": mcnemar(pairs)})  # fmt: skip
        corrected = holm([test["p"] for test in tests])
        for name, test, p_holm in zip(others, tests, corrected, strict=True):
            methods[name]["against_ce"][rate] = test | {"p_holm": p_holm}


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

    ``*`` marks a rate that differs from that of CE, ``★`` a method on the Pareto front.
    """
    rows = [["method", *COLUMNS.values(), "added latency", "training s", "needs"]]
    for name, found in comparison["methods"].items():
        cells = [f"{name} ★" if name in comparison["pareto"] else name]
        for rate in COLUMNS:
            p_holm = found.get("against_ce", {}).get(rate, {}).get("p_holm", 1.0)
            cells.append(show_rate(found[rate], with_n=False) + ("*" if p_holm < LEVEL else ""))
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
    return (
        f"{title(comparison)}: rate [95 % Wilson interval]\n\n{shown}\n"
        f"`*` differs from ce on the same items (McNemar, exact; Holm over the methods; "
        f"p < {LEVEL}). ★ on the Pareto front of DSR, over-refusal and objects named. n: {n}.\n"
    )


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
    for suffix in ("json", "html", "csv", "md"):
        console.print(out / f"comparison.{suffix}", soft_wrap=True)
