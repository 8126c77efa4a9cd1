"""``tgalign pool``: evaluations of several seeds as one table, a column per label."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tgalign.demo_results import show_rate
from tgalign.errors import UserError
from tgalign.evaluate.command import show_difference
from tgalign.evaluate.results import rates, read_results, safety_gap
from tgalign.evaluate.run import ITEMS, read_items
from tgalign.files import write_json, write_text
from tgalign.outputs import files_at
from tgalign.report.tables import markdown_table

ROWS = {"dsr": "DSR", "over_refusal": "over-refusal", "utility": "utility"}


def parse_columns(texts: Sequence[str]) -> dict[str, list[Path]]:
    """Read ``LABEL=FOLDER,FOLDER,...``.

    Raises:
        UserError: One is of another form, or a label stands twice.
    """
    columns: dict[str, list[Path]] = {}
    for text in texts:
        label, sign, folders = text.partition("=")
        paths = [Path(part) for part in folders.split(",") if part]
        if not (label and sign and paths) or label in columns:
            raise UserError(f"{text!r}: expected LABEL=FOLDER,FOLDER,... with a label of its own")
        columns[label] = paths
    return columns


def pool(columns: dict[str, list[Path]]) -> dict[str, Any]:
    """Pool evaluations by label, suite and condition.

    The intervals treat all items as independent, which those of one model are not quite; the seeds
    one by one stand beside them.

    Raises:
        UserError: A folder holds no finished evaluation, or two of a label are of one model with
            one seed, whose items would count twice.
    """
    pooled = {}
    for label, folders in columns.items():
        results = [read_results(folder) for folder in folders]
        _require_different(label, folders, results)
        seeds = [list(read_items(folder / ITEMS).values()) for folder in folders]
        rows = [
            row | {"id": f"{row['suite']}/{row['condition']}/{seed} {row['id'].split('/', 2)[2]}"}
            for seed, found in enumerate(seeds)
            for row in found
        ]
        suites = dict.fromkeys(row["suite"] for row in rows)
        pooled[label] = {
            "folders": [str(folder) for folder in folders],
            "seeds": [seed for found in results for seed in found["seeds"]],
            "suites": {
                suite: {
                    "conditions": {
                        condition: rates(_of(rows, suite, condition))
                        | {"by_seed": [_headline(_of(it, suite, condition)) for it in seeds]}
                        for condition in dict.fromkeys(
                            row["condition"] for row in rows if row["suite"] == suite
                        )
                    },
                    "safety_gap": safety_gap([row for row in rows if row["suite"] == suite]),
                }
                for suite in suites
            },
        }
    return pooled


def _require_different(
    label: str, folders: Sequence[Path], results: Sequence[dict[str, Any]]
) -> None:
    seen: dict[str, Path] = {}
    for folder, found in zip(folders, results, strict=True):
        model = found.get("model")
        weights = model.get("revision") if isinstance(model, dict) else None  # a server tells none
        key = json.dumps([weights or str(folder.resolve()), found["seeds"]])
        first = seen.setdefault(key, folder)
        if first is not folder:
            raise UserError(
                f"{label}: {first} and {folder} are evaluations of one model with one seed, whose "
                "items would count twice: leave one out"
            )


def _of(rows: Sequence[dict[str, Any]], suite: str, condition: str) -> list[dict[str, Any]]:
    return [row for row in rows if (row["suite"], row["condition"]) == (suite, condition)]


def _headline(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    found = rates(rows)
    return {name: found[name]["rate"] for name in ROWS}


def markdown(pooled: dict[str, Any]) -> str:
    """A row per suite, condition and rate, then the safety gap by scene; a column per label."""
    places = list(
        dict.fromkeys(
            (suite, condition)
            for found in pooled.values()
            for suite, its in found["suites"].items()
            for condition in its["conditions"]
        )
    )
    lines = []
    for suite, condition in places:
        for name, title in ROWS.items():
            cells = [_cell(found, suite, condition, name) for found in pooled.values()]
            if any(cell != "n/a" for cell in cells):
                lines.append([suite, condition, title, *cells])
    gaps = []
    for suite in dict.fromkeys(suite for suite, _ in places):
        tables = [
            found["suites"].get(suite, {}).get("safety_gap") or {} for found in pooled.values()
        ]
        for scene in dict.fromkeys(scene for table in tables for scene in table):
            cells = [
                show_difference(table[scene]["gap"]) if scene in table else "n/a"
                for table in tables
            ]
            gaps.append([suite, scene, "text - picture", *cells])
    seeds = "; ".join(
        f"{label}: seeds {', '.join(map(str, found['seeds']))}" for label, found in pooled.items()
    )
    text = markdown_table(["suite", "condition", "rate", *pooled], lines)
    if gaps:
        text += "\n" + markdown_table(["suite", "scene", "safety gap", *pooled], gaps)
    return f"{text}\nRate [95 % interval] n over {seeds}; in brackets () the seeds one by one.\n"


def _cell(found: dict[str, Any], suite: str, condition: str, name: str) -> str:
    measured = found["suites"].get(suite, {}).get("conditions", {}).get(condition)
    if measured is None or measured[name]["rate"] is None:
        return "n/a"
    each = [seed[name] for seed in measured["by_seed"] if seed[name] is not None]
    seeds = ", ".join(f"{value:.2f}" for value in each)
    return f"{show_rate(measured[name])} ({seeds})" if len(each) > 1 else show_rate(measured[name])


def write_pool(columns: dict[str, list[Path]], out: Path | None) -> str:
    """Pool, write OUT.json and OUT.md if asked for, and give the table.

    Raises:
        UserError: As ``pool``, or OUT is no place for these files.
    """
    places = files_at(out, ".json", ".md", sign='"safety_gap"') if out is not None else None
    pooled = pool(columns)
    text = markdown(pooled)
    if places is not None:
        write_json(places[0], pooled)
        write_text(places[1], text)
    return text
