"""Two evaluations of the same items: paired tests between models, and parity between hosts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tgalign.errors import UserError
from tgalign.evaluate.conditions import Request
from tgalign.evaluate.pictures import open_picture, picture_hash
from tgalign.evaluate.results import RESULTS, Row, by_scene
from tgalign.evaluate.run import ITEMS, read_items
from tgalign.evaluate.statistics import (
    holm,
    mcnemar,
    paired_difference,
    paired_share_difference,
    permutation_p,
    wilson,
)
from tgalign.evaluate.utility import score

Pair = tuple[Row, Row]
SHOWN = 5
"""Items that differ which ``parity`` names."""


def read_evaluation(where: Path) -> dict[str, dict[str, Any]]:
    """The rows of an evaluation by id.

    Args:
        where: Its folder, or the results.json in it.

    Raises:
        UserError: There is none, or it is damaged.
    """
    if not where.exists():
        raise UserError(
            f"no evaluation at {where}: expected the folder of one, or its results.json"
        )
    return read_items(_folder_of(where) / ITEMS)


def _folder_of(where: Path) -> Path:
    return where if where.is_dir() else where.parent


def require_finished(where: Path) -> None:
    """Refuse an evaluation that was cut off: what it lacks would look like other questions.

    Raises:
        UserError: It has no results yet.
    """
    folder = _folder_of(where)
    if (folder / ITEMS).is_file() and not (folder / RESULTS).is_file():
        raise UserError(f"the evaluation at {folder} is not finished: let it end first")


def read_other(where: Path, requests: Sequence[Request], out: Path) -> dict[str, dict[str, Any]]:
    """The rows of an evaluation to compare with, before anything is asked.

    Pictures in files are left to ``pair``: their hashes come with the answers.

    Args:
        where: Its folder, or its results.json.
        requests: What is to be asked.
        out: Folder of the evaluation that asks.

    Raises:
        UserError: There is none, it is not finished, shares no item, asked something else, or is
            the one that asks.
    """
    others = read_evaluation(where)
    require_finished(where)
    if _folder_of(where).resolve() == out.resolve():
        raise UserError(f"{where} is the evaluation that asks: name another one")
    shared = [it for it in requests if it.id in others]
    if not shared:
        raise UserError(
            f"{where} shares no item with what is asked: evaluate both on the same suite"
        )
    for request in shared:
        _check_same(request.id, _to_ask(request), _asked(others[request.id]), out, where)
    return others


def _to_ask(request: Request) -> dict[str, Any]:
    """What is known of a question that is not asked yet, as of ``_asked``."""
    known: dict[str, Any] = {
        "prompt": request.prompt,
        "kind": request.item.kind,
        "number of targets": score(request.item, "")[1],
    }
    if request.turns:
        known["earlier turns"] = request.turns_sha256
    if request.picture is not None and not isinstance(request.picture, Path):
        known["picture"] = picture_hash(open_picture(request.picture))
    elif request.picture is None and request.drawn is None and not request.error:
        known["picture"] = None
    return known


def _asked(row: Row) -> dict[str, Any]:
    """What a row tells of its question; one that ended in an error may lack the picture."""
    known = {"prompt": row["prompt"], "kind": row["kind"]}
    if row.get("turns_sha256"):
        known["earlier turns"] = row["turns_sha256"]
    if row["verdict"] or row["picture_sha256"]:
        known["picture"] = row["picture_sha256"]
    if row["verdict"]:
        known["number of targets"] = row.get("targets", 0)
    return known


def _check_same(
    name: str, asked: dict[str, Any], others: dict[str, Any], one: Path, other: Path
) -> None:
    for what, known in asked.items():
        if what in others and known != others[what]:
            raise UserError(
                f"item {name} is not the same question in {one} and {other} (another {what}): "
                "evaluate both on the same data, with the same seed"
            )


def load_pairs(one: Path, other: Path) -> tuple[list[Pair], int]:
    """``pair`` of what two folders of evaluations, or their results.json, hold."""
    return pair(read_evaluation(one), read_evaluation(other), one, other)


def pair(
    rows: Mapping[str, Row], others: Mapping[str, Row], one: Path, other: Path
) -> tuple[list[Pair], int]:
    """The items that two evaluations share, with both rows, and how many only one of them has.

    Args:
        rows: Of an evaluation, by id.
        others: Of another.
        one: What to call the first.
        other: What to call the other.

    Raises:
        UserError: They share no item, or shared items asked different things.
    """
    shared = [(row, others[name]) for name, row in rows.items() if name in others]
    if not shared:
        raise UserError(f"{one} and {other} share no item: evaluate both on the same suite")
    for row, its in shared:
        _check_same(row["id"], _asked(row), _asked(its), one, other)
    return shared, len(rows.keys() ^ others.keys())


def compare(pairs: Sequence[Pair], against: str, unshared: int = 0) -> dict[str, Any]:
    """Paired comparison, by suite and condition: is this model (first) other than that one?

    DSR and over-refusal by the exact McNemar test, utility by a permutation test of the targets
    met, with a paired bootstrap over items for its interval; p-values of
    scenes are Holm-adjusted within their suite and condition. Items that ended in an error in
    either are left out and counted.
    """
    judged = [pair for pair in pairs if all(row["verdict"] is not None for row in pair)]
    groups: dict[str, list[Pair]] = {}
    for pair in judged:
        groups.setdefault(f"{pair[0]['suite']}/{pair[0]['condition']}", []).append(pair)
    return {
        "against": against,
        "shared": len(pairs),
        "unshared": unshared,
        "left_out": len(pairs) - len(judged),
        "groups": {name: _group(found) for name, found in groups.items()},
    }


def _group(pairs: Sequence[Pair]) -> dict[str, Any]:
    toxic = [pair for pair in pairs if pair[0]["kind"] == "toxic"]
    benign = [pair for pair in pairs if pair[0]["kind"] == "benign"]
    scenes = {
        scene: [pair for pair in toxic if pair[0]["scene"] == scene]
        for scene in by_scene(one for one, _ in toxic)
    }
    tested = {scene: _refusals(found) for scene, found in scenes.items()}
    adjusted = holm([found["p"] for found in tested.values()])
    for found, p_holm in zip(tested.values(), adjusted, strict=True):
        found["p_holm"] = p_holm
    useful = [
        (one["hits"], other["hits"], one["targets"]) for one, other in benign if one.get("targets")
    ]
    return {
        "dsr": _refusals(toxic),
        "dsr_by_scene": tested,
        "over_refusal": _refusals(benign),
        "utility": paired_share_difference(useful).as_dict()
        | {"p": permutation_p([one - other for one, other, _ in useful]) if useful else None},
    }


def _refusals(pairs: Sequence[Pair]) -> dict[str, Any]:
    both = [(one["verdict"] == "refused", other["verdict"] == "refused") for one, other in pairs]
    return paired_difference(both).as_dict() | {"p": mcnemar(both)}


def parity(pairs: Sequence[Pair], unshared: int = 0) -> dict[str, Any]:
    """Whether two hosts give the same answers to the same items.

    Returns:
        Shares of equal answers and of equal verdicts (an error equals only the same error), and the
        first ``SHOWN`` items that differ, and ``unshared``: how many only one host was asked.
    """

    def same(key: Callable[[Row], Any]) -> dict[str, Any]:
        equal = sum(key(one) == key(other) for one, other in pairs)
        return wilson(equal, len(pairs)).as_dict()

    differing = [(one, other) for one, other in pairs if _answer(one) != _answer(other)]
    return {
        "n": len(pairs),
        "unshared": unshared,
        "same_answer": same(_answer),
        "same_verdict": same(lambda row: row["verdict"] or row["error"]),
        "differing": [
            {"id": one["id"], "one": _answer(one), "other": _answer(other)}
            for one, other in differing[:SHOWN]
        ],
    }


def _answer(row: Row) -> str:
    return str(row["error"] if row["answer"] is None else " ".join(row["answer"].split()))
