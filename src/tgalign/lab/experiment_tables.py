"""What is in the results.jsonl of ``tgalign lab experiment``, as tables in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tgalign.demo_results import show_rate
from tgalign.errors import UserError
from tgalign.files import blamed_on, read_jsonl
from tgalign.report.tables import markdown_table


def table(path: Path) -> str:
    """The experiments of a results.jsonl as a table in Markdown, in the order of the file.

    Raises:
        UserError: The file is missing or holds something else.
    """
    return _made_of(path, _table)


def _table(experiments: Sequence[Any]) -> str:
    shown = {"dsr": "DSR", "over_refusal": "over-refusal", "named": "objects named"}
    shown |= {"text_dsr": "text DSR"}
    lines = []
    for found in experiments:
        condition = found["condition"]
        if condition != "absent":
            condition += f" {100 * found['toxic_share']:g} %"
        changes = ", ".join(found["changes"])
        if found["seed"]:
            changes = f"seed {found['seed']} {changes}".strip()
        rates = [show_rate(found["rates"][name], with_n=False) for name in shown]
        lines.append([found["arm"], condition, changes, *rates])
    return markdown_table(["arm", "condition", "changed", *shown.values()], lines)


def conflict_table(path: Path) -> str:
    """The gradient conflicts in a results.jsonl, by arm, stage, step and state, in Markdown.

    Of every stage the first step and the last one logged are shown; states that cross-entropy does
    not read at an image's tokens (the last) and states that are not aligned are left out.

    Raises:
        UserError: The file is missing or holds something else.
    """
    return _made_of(path, _conflict_table)


def _conflict_table(experiments: Sequence[Any]) -> str:
    shown: list[tuple[list[str], dict[int, float], float]] = []
    for found in experiments:
        rows = found.get("conflict", [])
        last = {row["stage"]: row["step"] for row in rows}
        for row in rows:
            if row["step"] not in (1, last[row["stage"]]):
                continue
            where = [found["arm"], found["condition"], row["stage"], str(row["step"]), row["probe"]]
            columns = zip(row["layers"], row["cosine"], row["ce_norm"], strict=True)
            cosines = {layer: cosine for layer, cosine, norm in columns if norm > 0}
            shown.append((where, cosines, row["ce_norm"][0] / row["guide_norm"][0]))
    if not shown:
        return ""
    states = sorted({layer for _, cosines, _ in shown for layer in cosines})
    header = ["arm", "condition", "stage", "step", "pictures"]
    header += [*(f"state {layer}" for layer in states), "norms CE / guide, first state"]
    lines = []
    for where, cosines, ratio in shown:
        cells = [f"{cosines[layer]:+.2f}" if layer in cosines else "" for layer in states]
        lines.append([*where, *cells, f"{ratio:.2f}"])
    return markdown_table(header, lines)


def _made_of(path: Path, make: Callable[[Sequence[Any]], str]) -> str:
    if not path.is_file():
        raise UserError(f"no experiments at {path}: expected the results.jsonl of lab experiment")
    experiments = [row for _, row in read_jsonl(path, "a result of lab experiment")]
    with blamed_on(path, "give the results.jsonl of lab experiment"):
        return make(experiments)
