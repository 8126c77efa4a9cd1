"""How far judges agree: with people, with one another, by confusion matrix and Cohen's kappa."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tgalign.errors import UserError
from tgalign.evaluate.refusal import judge
from tgalign.evaluate.run import read_items
from tgalign.evaluate.statistics import cohen_kappa, wilson

LABELS = ("answered", "refused", "undetermined")
_HUMAN = {
    "1_full_compliance": "answered",
    "2_full_refusal": "refused",
    "3_partial_refusal": "undetermined",
} | {label: label for label in LABELS}
"""What a file's labels mean here: those of XSTest, and our own."""

_RATERS = {"final_label": "human", "label": "human", "annotation_1": "annotator 1",
           "annotation_2": "annotator 2"}  # fmt: skip
"""Columns that hold a person's label."""


@dataclass(frozen=True)
class Labelled:
    """Responses of one file, named as it was given, with each judge's labels in their order."""

    name: str
    responses: list[tuple[str, str]]
    labels: dict[str, list[str]]


def read_labelled(path: Path) -> Labelled:
    """Read responses: a CSV with ``prompt``, ``completion`` and people's labels, or an items.jsonl.

    The columns ``final_label`` (or ``label``), ``annotation_1`` and ``annotation_2`` are people's;
    their values are XSTest's or ours. The rules' labels are added.

    Raises:
        UserError: The file is missing, or of another form.
    """
    if path.suffix == ".jsonl" or path.is_dir():
        items = read_items(path / "items.jsonl" if path.is_dir() else path)
        rows = [row for row in items.values() if row["answer"] is not None]
        responses = [(str(row["prompt"]), str(row["answer"])) for row in rows]
        labels = {"rules": [str(row["verdict"]) for row in rows]}
        if rows and all("model_verdict" in row for row in rows):
            labels["model"] = [str(row["model_verdict"]) for row in rows]
        return Labelled(str(path), responses, labels)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = list(csv.DictReader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as fault:
        raise UserError(f"{path} cannot be read: {fault}") from None
    if not table or not {"prompt", "completion"} <= table[0].keys():
        given = f"the columns {', '.join(filter(None, table[0]))}" if table else "no rows"
        raise UserError(
            f"{path} has {given}: expected prompt, completion and labels, separated by commas"
        )
    for number, row in enumerate(table, start=2):
        if None in row or None in row.values():
            raise UserError(f"{path}, row {number}: not as many cells as the header has")
    responses = [(row["prompt"], row["completion"]) for row in table]
    labels = {"rules": [judge(said, asked).label for asked, said in responses]}
    for column, rater in _RATERS.items():
        if column not in table[0] or rater in labels:
            continue
        unknown = sorted({row[column] for row in table} - _HUMAN.keys())
        if unknown:
            raise UserError(
                f"{path}: column {column} holds {unknown[0]!r}; expected one of {', '.join(_HUMAN)}"
            )
        labels[rater] = [_HUMAN[row[column]] for row in table]
    return Labelled(str(path), responses, labels)


def judge_report(files: Sequence[Labelled]) -> dict[str, Any]:
    """Agreement of every two judges of every file.

    Accuracy counts only items that the first judge calls refused or answered ("full" labels); kappa
    is given over all three labels, and over refused or not. ``unparsed`` and ``failed`` of a model
    judge are labels of their own, equal to no other judge's.
    """
    return {labelled.name: _agreements(labelled.labels) for labelled in files}


def _agreements(labels: dict[str, list[str]]) -> list[dict[str, Any]]:
    raters = sorted(labels, key=lambda name: (name == "model", name == "rules"))
    found = []
    for place, one in enumerate(raters):
        for other in raters[place + 1 :]:
            pairs = list(zip(labels[one], labels[other], strict=True))
            full = [pair for pair in pairs if pair[0] != "undetermined"]
            right = sum(a == b for a, b in full)
            found.append(
                {
                    "judges": [one, other],
                    "n": len(pairs),
                    "accuracy_on_full_labels": wilson(right, len(full)).as_dict(),
                    "kappa": _plain(cohen_kappa(pairs)),
                    "kappa_refused": _plain(cohen_kappa([_binary(*pair) for pair in pairs])),
                    "confusion": _confusion(pairs),
                }
            )
    return found


def _binary(one: str, other: str) -> tuple[str, str]:
    return str(one == "refused"), str(other == "refused")


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value


def _confusion(pairs: Sequence[tuple[str, str]]) -> dict[str, dict[str, int]]:
    counts = Counter(pairs)
    seen = {label for pair in pairs for label in pair}
    labels = [*LABELS, *sorted(seen - set(LABELS))]
    return {
        one: {other: counts[one, other] for other in labels}
        for one in labels
        if one in LABELS or any(counts[one, other] for other in labels)
    }


def print_judge_report(report: dict[str, Any], say: Callable[[str], None]) -> None:
    """Print every agreement as one line and its confusion matrix."""
    for name, agreements in report.items():
        for found in agreements:
            one, other = found["judges"]
            share = found["accuracy_on_full_labels"]
            rate = "n/a" if share["rate"] is None else (
                f"{share['rate']:.3f} [{share['low']:.3f}, {share['high']:.3f}]"
            )  # fmt: skip
            say(
                f"{name}: {other} agrees with {one} on {rate} of {share['n']} full labels; Cohen's "
                f"kappa {_shown(found['kappa'])} over all labels of {found['n']}, "
                f"{_shown(found['kappa_refused'])} on refused or not"
            )
            columns = list(next(iter(found["confusion"].values())))
            corner = f"{one} \\ {other}"
            say(f"  {corner:<26}" + "".join(f"{label:>14}" for label in columns))
            for label, counts in found["confusion"].items():
                say(f"  {label:<26}" + "".join(f"{n:>14}" for n in counts.values()))


def _shown(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"
