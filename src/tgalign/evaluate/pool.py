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
from tgalign.evaluate.seeds import counts_of, marked, noted
from tgalign.files import write_json, write_text
from tgalign.outputs import files_at
from tgalign.report.tables import markdown_table

ROWS = {
    "dsr": "DSR",
    "over_refusal": "over-refusal",
    "utility": "utility",
    "undetermined": "undetermined",
}


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
    one by one (``by_seed``, ``n_by_seed``) stand beside them.

    Raises:
        UserError: A folder holds no finished evaluation, or two of a label are of one model with
            one seed that were asked the same items.
    """
    pooled = {}
    for label, folders in columns.items():
        results = [read_results(folder) for folder in folders]
        seeds = [list(read_items(folder / ITEMS).values()) for folder in folders]
        _require_different(label, folders, results, seeds)
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
                        | _one_by_one([rates(_of(it, suite, condition)) for it in seeds])
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
    label: str,
    folders: Sequence[Path],
    results: Sequence[dict[str, Any]],
    seeds: Sequence[Sequence[dict[str, Any]]],
) -> None:
    seen: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
    for folder, found, rows in zip(folders, results, seeds, strict=True):
        said = {row["id"]: row["answer"] for row in rows}
        model = _answering(found, folder)
        others = seen.setdefault(json.dumps([model, found["seeds"]]), [])
        # A server does not tell its weights: of it, only the same answers are one evaluation.
        served = isinstance(model[0], list)
        first = next(
            (
                place
                for place, heard in others
                if (said == heard if served else not said.keys().isdisjoint(heard))
            ),
            None,
        )
        if first is not None:
            raise UserError(
                f"{label}: {first} and {folder} are evaluations of one model with one seed, whose "
                "items would count twice: leave one out"
            )
        others.append((folder, said))


def _answering(found: dict[str, Any], folder: Path) -> list[Any]:
    """What gave the answers: weights of a local model, a server's name, and what defends it."""
    model = found.get("model")
    model = model if isinstance(model, dict) else {}
    local = model.get("host") != "server"
    # A server's revision is a tag of its build, which all its models share.
    name = model.get("revision") if local else [model.get("url"), model.get("name")]
    return [name or str(folder.resolve()), model.get("defence")]


def _of(rows: Sequence[dict[str, Any]], suite: str, condition: str) -> list[dict[str, Any]]:
    return [row for row in rows if (row["suite"], row["condition"]) == (suite, condition)]


def _one_by_one(seeds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "by_seed": [{name: seed[name]["rate"] for name in ROWS} for seed in seeds],
        "n_by_seed": [{name: seed[name]["n"] for name in ROWS} for seed in seeds],
        "errors_by_seed": [sum(seed["errors"].values()) for seed in seeds],
    }


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
            if any(_is_shown(found, suite, condition, name) for found in pooled.values()):
                lines.append([suite, condition, title, *cells])
        errors = [_errors(found, suite, condition) for found in pooled.values()]
        if any(errors):
            lines.append([suite, condition, "errors", *(it or "0" for it in errors)])
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
    return noted(
        f"{text}\nRate [95 % interval] n over {seeds}; in brackets () the seeds one by one. Where "
        "an answer is undetermined or an item ended in an error, a row says so.\n"
    )


def _measured(found: dict[str, Any], suite: str, condition: str) -> dict[str, Any]:
    conditions = found["suites"].get(suite, {}).get("conditions", {})
    measured: dict[str, Any] = conditions.get(condition, {})
    return measured


def _is_shown(found: dict[str, Any], suite: str, condition: str, name: str) -> bool:
    rate = _measured(found, suite, condition).get(name, {}).get("rate")
    return bool(rate) if name == "undetermined" else rate is not None


def _cell(found: dict[str, Any], suite: str, condition: str, name: str) -> str:
    measured = _measured(found, suite, condition)
    if not measured or measured[name]["rate"] is None:
        return "n/a"
    shown, rates_of = show_rate(measured[name]), [it.get(name) for it in measured["by_seed"]]
    sizes = [it.get(name, 0) for it in measured.get("n_by_seed", [])]  # older tables have none
    each = [{"rate": rate, "n": n} for rate, n in zip(rates_of, sizes, strict=False)]
    known = [f"{rate:.2f}" for rate in rates_of if rate is not None]
    shown = marked(shown, counts_of(each))
    return f"{shown} ({', '.join(known)})" if len(known) > 1 else shown


def _errors(found: dict[str, Any], suite: str, condition: str) -> str:
    """How many items ended in an error, or nothing where none did."""
    measured = _measured(found, suite, condition)
    number = sum(measured.get("errors", {}).values())
    each = measured.get("errors_by_seed", [])
    by_seed = f" ({', '.join(map(str, each))})" if len(each) > 1 else ""
    return f"{number} of {measured['n']}{by_seed}" if number else ""


def write_pool(columns: dict[str, list[Path]], out: Path | None) -> str:
    """Pool, write OUT.json and OUT.md if asked for, and give the table.

    Raises:
        UserError: As ``pool``, or OUT is no place for these files.
    """
    places = (
        files_at(out, ".json", ".md", sign=r'\{\s*"(?!schema_version).*"safety_gap"')
        if out is not None
        else None
    )
    pooled = pool(columns)
    text = markdown(pooled)
    if places is not None:
        write_json(places[0], pooled)
        write_text(places[1], text)
    return text
