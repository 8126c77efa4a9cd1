"""The offline HTML report of ``tgalign diagnose``, of one diagnosis or of several side by side.

One file, no network, no script; captions and answers are not trusted: everything is escaped but our
own drawings, and the page's content policy forbids all that is not in the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tgalign.diagnose.diagnosed_layers import DIAGNOSIS_SCHEMA
from tgalign.errors import UserError
from tgalign.files import check_schema, read_json, write_text
from tgalign.outputs import files_at
from tgalign.report import diagnosis_verdict, page, svg
from tgalign.report.diagnosis_plots import draw_plots
from tgalign.report.tables import markdown_table
from tgalign.report.wording import MARKS, rate_text, share, tone

FILE = "diagnosis.json"
_RATES = {
    "text_refusal": "toxic words refused",
    "image_refusal": "toxic pictures refused (DSR)",
    "text_over_refusal": "harmless words refused",
    "image_over_refusal": "harmless pictures refused (over-refusal)",
    "image_named": "objects named in pictures",
    "image_undetermined": "undetermined, pictures",
}


def write_diagnosis_report(diagnosis: Mapping[str, Any], folder: Path) -> Path:
    """Write ``folder/report.html``; the gallery's pictures are relative to ``folder``."""
    path = folder / "report.html"
    write_text(path, render({"": diagnosis}, folder))
    return path


def read_diagnosis(folder: Path) -> dict[str, Any]:
    """Read a folder's diagnosis.

    Raises:
        UserError: It holds none, or one of another schema version.
    """
    path = folder / FILE
    if not path.is_file():
        raise UserError(f"no diagnosis at {path}: expected a folder that tgalign diagnose wrote")
    found = read_json(path)
    check_schema(found, path, DIAGNOSIS_SCHEMA, "a diagnosis")
    return dict(found)


def report_diagnoses(folders: Sequence[Path], out: Path | None) -> str:
    """Rebuild the report of one diagnosis, or put several side by side.

    Args:
        folders: Folders of finished diagnoses, named by their last part.
        out: Of several: where ``out``.html and ``out``.md go.

    Returns:
        What was written; of several, the table in Markdown.

    Raises:
        UserError: A folder holds no diagnosis, several lack ``out``, one has it, two share a name,
            or ``out`` is no place for these files.
    """
    found = {folder.resolve().name: read_diagnosis(folder) for folder in folders}
    if len(folders) == 1:
        if out is not None:
            raise UserError("the report of one diagnosis goes into its folder: leave --out away")
        return str(write_diagnosis_report(next(iter(found.values())), folders[0]))
    if out is None:
        raise UserError("several diagnoses side by side need --out, where to put them")
    if len(found) < len(folders):
        raise UserError("two folders have the same name: give them names to tell them by")
    page_at, table_at = files_at(
        out, ".html", ".md", sign=".*<title>tgalign diagnosis: Diagnoses side by side"
    )
    table = markdown(found)
    write_text(page_at, render(found, None))
    write_text(table_at, table)
    return table


def render(diagnoses: Mapping[str, Mapping[str, Any]], folder: Path | None) -> str:
    """The page as a string.

    Args:
        diagnoses: By name; a single one has a verdict, tokens, scenes and a gallery besides.
        folder: Where the pictures of a single one's gallery lie.
    """
    one = next(iter(diagnoses.values())) if len(diagnoses) == 1 else None
    plots = draw_plots(diagnoses)
    return page.render_page(
        "diagnosis.html.jinja",
        headline=diagnosis_verdict.headline(one) if one else "Diagnoses side by side",
        sentences=diagnosis_verdict.sentences(one) if one else [],
        verdicts=[] if one else [
            (name, [f"{diagnosis_verdict.headline(it)}.", *diagnosis_verdict.sentences(it)[1:]])
            for name, it in diagnoses.items()
        ],
        one=one,
        names=list(diagnoses),
        table=table_rows(diagnoses),
        plots=plots,
        files={
            f"{plot.name}/{panel.title}": (svg.standalone(panel.svg), panel.csv)
            for plot in plots
            for panel in plot.panels
            if panel.svg is not None
        },
        associations=diagnosis_verdict.associations(one) if one else "",
        scenes=_scenes(one) if one else [],
        gallery=_gallery(one, folder) if one and folder else [],
    )  # fmt: skip


def table_rows(diagnoses: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """The main figures, a row each with a cell per diagnosis."""
    all_of = list(diagnoses.values())
    rows = [(title, [rate_text(it.get(key)) for it in all_of]) for key, title in _RATES.items()]
    for rule, title in (("paper", "the paper\u2019s"), ("released", "the released code\u2019s")):
        ranges = [diagnosis_verdict.span(it["safety_layers"][rule]) for it in all_of]
        rows.append((f"safety layers by {title} rule", ranges))
    for kind in ("toxic", "benign"):
        name = "harmless" if kind == "benign" else kind
        for measure, title in (
            ("centered_cosine", "centred cosine there"),
            ("caption_retrieval", "own caption nearest there"),
        ):
            cells = [_with_ends(it["alignment_gap"][measure], kind) for it in all_of]
            rows.append((f"{title}, {name} pictures", cells))
    gaps = [_with_ends(it["alignment_gap"]["centered_cosine"], "gap") for it in all_of]
    rows.append(("centred cosine there, harmless minus toxic", gaps))
    rows.append(("DSR and centred cosine by scene, Spearman's \u03c1", [
        _ends(it["scene_correlation"]["centered_cosine_correlation"], "rho") for it in all_of
    ]))  # fmt: skip
    rows.append(("refused pictures are better aligned than others, AUROC", [
        _ends(it["picture_association"]["centered_cosine"], "auroc") for it in all_of
    ]))  # fmt: skip
    rows.append(("pictures left to patch", [str(_left(it)) for it in all_of]))
    for title, key, control in (
        ("refused with the own caption\u2019s states", "caption", "benign"),
        ("refused with the own caption\u2019s mean", "mean_caption", "mean_benign"),
    ):
        rows.append((f"{title}, best state", [_best(it, key) for it in all_of]))
        rows.append(("there with a harmless caption\u2019s", [
            _best(it, key, control) for it in all_of
        ]))  # fmt: skip
    rows.append(("states that restore refusals", [
        ", ".join(map(str, it.get("causal_layers") or [])) or "none" for it in all_of
    ]))  # fmt: skip
    rows.append(("captions no longer refused with the picture\u2019s states, state 0", [
        _first_rate(it, "image") for it in all_of
    ]))  # fmt: skip
    rows.append(("the same with a harmless picture\u2019s", [
        _first_rate(it, "benign") for it in all_of
    ]))  # fmt: skip
    return rows


def markdown(diagnoses: Mapping[str, Mapping[str, Any]]) -> str:
    """The same in Markdown."""
    header = ["", *diagnoses]
    text = markdown_table(header, [[title, *cells] for title, cells in table_rows(diagnoses)])
    pairs = ", ".join(f"{name} {it['pairs']}" for name, it in diagnoses.items())
    return f"{text}\nPairs of probes: {pairs}. Wilson and bootstrap intervals at 95 %.\n"


def _with_ends(row: Mapping[str, Any], kind: str) -> str:
    return f"{row[kind]:.2f} [{row[f'{kind}_low']:.2f}, {row[f'{kind}_high']:.2f}]"


def _ends(row: Mapping[str, Any], key: str) -> str:
    if row[key] is None:
        return "n/a"
    return f"{row[key]:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def _left(diagnosis: Mapping[str, Any]) -> int:
    rows = diagnosis.get("patching") or []
    return int(rows[0]["caption"]["n"]) if rows else 0


def _best(diagnosis: Mapping[str, Any], key: str, shown: str | None = None) -> str:
    row = diagnosis_verdict.best_patch(diagnosis, key)
    if row is None:
        return "n/a"
    if shown:
        return rate_text(row[shown])
    where = f" (state {row['layer']})" if share(row[key]) else ""
    return f"{rate_text(row[key])}{where}"


def _first_rate(diagnosis: Mapping[str, Any], key: str) -> str:
    rows = [row for row in diagnosis.get("patching_text") or [] if row["layer"] == 0]
    return rate_text(rows[0][key]) if rows else "n/a"


def _scenes(diagnosis: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = diagnosis["scene_correlation"]
    return [
        {
            "scene": scene.replace("_", " "),
            "words": diagnosis["text_refusal_by_scene"][scene],
            "pictures": diagnosis["image_refusal_by_scene"][scene],
            "cosine": found["centered_cosine"][at],
            "nearest": found["caption_retrieval"][at],
        }
        for at, scene in enumerate(found["scenes"])
    ]


def _gallery(diagnosis: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    best = diagnosis_verdict.best_patch(diagnosis)
    cards = []
    for card in diagnosis.get("gallery") or []:
        answers = [("told in words", card["text"]), ("shown", card["image"])]
        for patched in card["patched"]:
            if best is not None and patched["layer"] == best["layer"]:
                title = f"shown, with the caption\u2019s states at state {best['layer']}"
                answers.append((title, patched))
        cards.append(
            {
                **card,
                "picture": page.picture_uri(folder, card["image_file"]),
                "cells": _cells(card.get("attention")),
                "answers": [
                    {
                        "title": title,
                        "text": it["text"],
                        "label": it["label"],
                        "mark": MARKS[tone(it["label"], toxic=True)],
                        "tone": tone(it["label"], toxic=True),
                    }
                    for title, it in answers
                ],
            }
        )
    return cards


def _cells(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Attention over a picture as cells of its grid: how much each is dimmed, the strongest not."""
    if not found:
        return None
    rows, columns = found["grid"]
    largest = max(found["values"]) or 1.0
    return {
        "rows": rows,
        "columns": columns,
        "cells": [
            {"x": at % columns, "y": at // columns, "dim": round(0.8 * (1 - value / largest), 3)}
            for at, value in enumerate(found["values"])
        ],
    }
