"""The offline HTML page of ``tgalign evaluate``: one file, no network, no script, all escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tgalign.data.pictures import PictureError
from tgalign.evaluate.pictures import data_url, open_picture
from tgalign.files import write_text
from tgalign.report.page import render_page
from tgalign.report.wording import MARKS, Tone, tone

NUM_CARDS = 60
"""Answers on the page, taken in turn from every suite, condition and kind."""

THUMBNAIL = 224


def write_evaluation_report(
    results: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    folder: Path,
    *,
    pictures: Mapping[str, Any] | None = None,
    diagnosis: str | None = None,
) -> Path:
    """Write ``folder/report.html``, whole or not at all.

    Args:
        results: The content of results.json.
        rows: Those of items.jsonl.
        folder: Where to.
        pictures: By item id what was shown; None: pictures stay out of the page, as they should
            where they are harmful.
        diagnosis: Name of a page or file beside it that holds a diagnosis, or None.
    """
    page = render_page(
        "evaluation.html.jinja",
        results={**results, "judge": {"model": None, **results["judge"]}},
        plain=any(row["condition"] == "plain" for row in rows),
        warnings=warnings(results),
        defence=results["model"].get("defence"),
        scenes=_scenes,
        comparison=results.get("comparison"),
        diagnosis=diagnosis,
        cards=[_card(row, pictures) for row in _chosen(rows)],
        pictures=pictures is not None,
        total=len(rows),
    )
    path = folder / "report.html"
    write_text(path, page)
    return path


def warnings(results: Mapping[str, Any]) -> list[str]:
    """What a reader must not overlook."""
    said = []
    if not results["dsr"]["n"]:
        said.append(
            "DSR was not measured, as no toxic item was answered: a model that refuses nothing "
            "would look as good. Add a suite with toxic items (--suite), or mend their errors."
        )
    if results["dsr"]["n"] and not results["over_refusal"]["n"]:
        said.append(
            "Over-refusal was not measured: a model that refuses everything would look as safe. "
            "Add a suite with harmless items (--suite)."
        )
    if results["dsr"]["n"] and not results["utility"]["n"]:
        said.append("Utility was not measured: add a suite with right answers (--suite).")
    measured = [r for it in results["suites"].values() for r in it["conditions"].values()]
    lost = sum(sum(rates["errors"].values()) for rates in measured)
    if lost:
        n = sum(rates["n"] for rates in measured)
        said.append(f"{lost} of {n} items ended in an error and are in no rate.")
    unshared = results.get("comparison", {}).get("unshared")
    if unshared:
        said.append(f"{unshared} items that only one of the models was asked are not compared.")
    return said


def _scenes(found: Mapping[str, Any], key: str) -> list[str]:
    return list(dict.fromkeys(s for rates in found["conditions"].values() for s in rates[key]))


def _chosen(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Up to ``NUM_CARDS`` rows, in turn from every suite, condition and kind, wrong ones first."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda it: _tone(it) == "good"):
        groups.setdefault((row["suite"], row["condition"], row["kind"]), []).append(row)
    deepest = max(map(len, groups.values()), default=0)
    mixed = [found[i] for i in range(deepest) for found in groups.values() if i < len(found)]
    return mixed[:NUM_CARDS]


def _tone(row: Mapping[str, Any]) -> Tone:
    return tone(row["verdict"], toxic=row["kind"] == "toxic")


def _card(row: Mapping[str, Any], pictures: Mapping[str, Any] | None) -> dict[str, Any]:
    found = _tone(row)
    shown = (pictures or {}).get(row["id"])
    url = None
    if shown is not None:
        try:
            picture = open_picture(shown)
            picture.thumbnail((THUMBNAIL, THUMBNAIL))
            url = data_url(picture)
        except PictureError:
            url = None
    row = {"rule": "", "detail": "", **row}
    return {"row": row, "tone": found, "mark": MARKS[found], "picture": url}
