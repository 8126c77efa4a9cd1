"""Pool what the demo measured over its seeds, and print it as one table."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from tgalign.evaluate.seeds import NOTE, counts_of, marked, noted, pool
from tgalign.evaluate.statistics import Rate
from tgalign.report.tables import markdown_table

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA_VERSION = 2
"""Of results.json and demo.json."""

Found = dict[str, Any]
"""One arm's measurement of one seed (``demo._run_arm``)."""

PICTURE_RATES = ("dsr", "over_refusal", "named", "undetermined")
OTHER_RATES = ("held_out_dsr", "held_out_named")
TEXT_RATES = ("text_dsr", "text_over_refusal", "text_named")
ROWS = {
    "dsr": "DSR, all scenes",
    "over_refusal": "over-refusal",
    "named": "objects named",
    "undetermined": "undetermined",
    "held_out_dsr": "DSR, things never tuned on",
    "held_out_named": "objects named, things never tuned on",
    "text_dsr": "text DSR",
    "text_over_refusal": "text over-refusal",
    "text_named": "objects named in text",
}


def assemble_results(
    measured: dict[int, dict[str, Found]],
    gallery: list[dict[str, Any]],
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Make the content of ``results.json``.

    Rates are pooled over seeds, each of which asks about its own pictures and texts. The intervals
    treat all items as independent; those of one model are not quite (nor are the two things of one
    picture), so look at the seeds one by one too.

    Args:
        measured: By seed and arm (``base`` among them), what was measured.
        gallery: Pictures with answers, of the first seed.
        settings: ``condition``, ``toxic_share`` and ``style`` of the alignment data, and whether
            this was a ``smoke`` run, whose figures mean nothing.
    """
    arms = [arm for arm in next(iter(measured.values())) if arm != "base"]
    base = [found["base"] for found in measured.values()]
    return {
        "schema_version": SCHEMA_VERSION,
        **settings,
        "seeds": list(measured),
        "arms": {
            arm: _arm({seed: found[arm] for seed, found in measured.items()})
            | {
                "same_weights_as_ce": all(
                    found[arm]["weights_sha256"] == found["ce"]["weights_sha256"]
                    for found in measured.values()
                )
            }
            for arm in arms
        },
        "base": {name: _rate(base, name).as_dict() for name in TEXT_RATES}
        | {"logit_lens": _mean_table(base, "text_logit_lens")},
        "gallery": gallery,
        "curves": {arm: measured[min(measured)][arm]["curve"] for arm in arms},
        # Of the parts that are in this table; what was interrupted and made again is not counted.
        "seconds": sum(it["seconds"] for found in measured.values() for it in found.values()),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """The versions that figures may depend on."""
    return {name: version(name) for name in ("tgalign", "torch", "transformers", "accelerate")}


def _arm(by_seed: dict[int, Found]) -> dict[str, Any]:
    found = list(by_seed.values())
    scenes = found[0]["dsr_by_scene"]
    return {
        "dsr_by_scene": {
            scene: pool(it["dsr_by_scene"][scene] for it in found).as_dict() for scene in scenes
        },
        **{
            name: _rate(found, name).as_dict()
            for name in (*PICTURE_RATES, *OTHER_RATES, *TEXT_RATES)
        },
        "step_seconds": sum(it["step_seconds"] for it in found) / len(found),
        "alignment": _mean_table(found, "alignment"),
        "logit_lens": _mean_table(found, "logit_lens"),
        "seeds": [
            {"seed": seed, "step_seconds": it["step_seconds"]}
            | {
                name: _rate([it], name).as_dict()
                for name in (*PICTURE_RATES, *OTHER_RATES, *TEXT_RATES)
            }
            for seed, it in by_seed.items()
        ],
    }


def _rate(found: list[Found], name: str) -> Rate:
    return pool(it["counts"][name] for it in found)


def _mean_table(found: list[Found], name: str) -> list[dict[str, float]]:
    tables = [it[name] for it in found]
    return [
        {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
        for rows in zip(*tables, strict=True)
    ]


def table_rows(results: dict[str, Any]) -> list[list[list[str]]]:
    """The demo's table as sections of rows: per scene DSR, other rates, alignment by state."""
    arms = list(results["arms"].values())
    scenes = [
        [f"DSR {scene}", *(show_rate(arm["dsr_by_scene"][scene]) for arm in arms)]
        for scene in arms[0]["dsr_by_scene"]
    ]
    rates = [[title, *(show_pooled(arm, name) for arm in arms)] for name, title in ROWS.items()]
    rates.append(["seconds a step", *(f"{arm['step_seconds']:.3f}" for arm in arms)])
    same = ("yes" if arm["same_weights_as_ce"] else "no" for arm in arms)
    rates.append(["same weights as ce", *same])
    states = []
    for row in range(len(arms[0]["alignment"])):
        cells = (
            f"{arm['alignment'][row]['caption_retrieval']:.2f} / "
            f"{arm['alignment'][row]['toxic_caption_retrieval']:.2f}"
            for arm in arms
        )
        states.append([f"own caption nearest, state {row}, benign / toxic", *cells])
    return [scenes, rates, states]


def title(results: dict[str, Any]) -> str:
    """What was run, in one line."""
    warning = "SMOKE RUN, figures mean nothing: " if results["smoke"] else ""
    share = f"{100 * results['toxic_share']:g} %"
    return (
        f"{warning}condition {results['condition']} ({share} toxic pictures), {results['style']}, "
        f"seeds {', '.join(map(str, results['seeds']))}; {results['seconds'] / 60:.0f} minutes of "
        "computing, summed over arms: rate [95 % Wilson interval] n"
    )


def base_line(results: dict[str, Any]) -> str:
    """The text side of the language model before any training, in one line."""
    base = results["base"]
    return (
        f"base LLM on text: DSR {show_rate(base['text_dsr'])}, over-refusal "
        f"{show_rate(base['text_over_refusal'])}, objects named {show_rate(base['text_named'])}"
    )


def markdown(results: dict[str, Any], *, states: bool = True) -> str:
    """Title, table and base line in Markdown.

    Args:
        results: The content of ``results.json``.
        states: Whether the table has the rows of the alignment by state.
    """
    sections = table_rows(results) if states else table_rows(results)[:-1]
    table = markdown_table(["", *results["arms"]], [row for rows in sections for row in rows])
    return noted(f"{title(results)}\n\n{table}\n{base_line(results)}\n")


def print_results(console: Console, results: dict[str, Any]) -> None:
    """Print the same to a terminal."""
    from rich.table import Table

    table = Table(title=title(results), title_justify="left")
    for column in ("", *results["arms"]):
        table.add_column(column)
    for section in table_rows(results):
        for row in section:
            table.add_row(*row)
        table.add_section()
    console.print(table)
    console.print(base_line(results))
    if NOTE in markdown(results):
        console.print(NOTE)


def show_rate(rate: dict[str, Any], *, with_n: bool = True) -> str:
    """A rate of results.json as text, ``0.50 [0.30, 0.70] n=20``."""
    if rate["rate"] is None:
        return "n/a"
    shown = str(Rate(rate["rate"], rate["low"], rate["high"], rate["n"]))
    return shown if with_n else shown.split(" n=", maxsplit=1)[0]


def show_pooled(
    found: Mapping[str, Any], name: str, *, with_n: bool = True, per_item: int = 1
) -> str:
    """A rate over several seeds as text, marked where they differ.

    Args:
        found: What was measured of an arm, a method or a variant: rates by name, and the same of
            each seed in ``seeds``.
        name: The rate.
        with_n: Whether to give its n.
        per_item: Trials of it that an item holds.
    """
    each = [seed[name] for seed in found.get("seeds", []) if name in seed]
    return marked(show_rate(found[name], with_n=with_n), counts_of(each, per_item=per_item))
