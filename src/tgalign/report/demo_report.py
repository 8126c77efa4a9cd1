"""The offline HTML report of ``tgalign demo``: one file, no network, no script.

Answers are written by models and are not trusted: everything is escaped (Jinja2 with autoescape)
but our own drawings, and the page's content policy forbids all that is not in the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tgalign.demo_results import SCHEMA_VERSION
from tgalign.errors import UserError
from tgalign.files import check_schema, write_text
from tgalign.report import page, verdict, wording
from tgalign.report.plots import draw_plots

_CONDITIONS = {
    "absent": "no toxic picture is in the alignment data",
    "guided": "toxic pictures and their captions reach the guide loss; no answer about them is "
    "trained",
    "captioned": "toxic pictures are in the alignment data, described plainly as web data does",
}
_BY_LAYER = (
    ("alignment", "cosine", "cosine"),
    ("alignment", "centered_cosine", "centred cosine"),
    ("alignment", "caption_retrieval", "nearest caption"),
    ("alignment", "toxic_cosine", "cosine, toxic"),
    ("alignment", "toxic_centered_cosine", "centred cosine, toxic"),
    ("alignment", "toxic_caption_retrieval", "nearest caption, toxic"),
    ("logit_lens", "benign", "refusal token"),
    ("logit_lens", "toxic", "refusal token, toxic"),
)


def write_demo_report(results: dict[str, Any], folder: Path) -> Path:
    """Write the report of a demo.

    Args:
        results: The content of results.json. Values that are missing, null or NaN show as n/a.
        folder: The demo's folder, to which the gallery's pictures are relative.

    Returns:
        ``folder/report.html``, written whole or not at all; equal for equal input.

    Raises:
        UserError: The results are of another schema version, or hold no arms.
    """
    page = render(results, folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.html"
    write_text(path, page)
    return path


def render(results: Mapping[str, Any], folder: Path) -> str:
    """The report as a string; see ``write_demo_report``."""
    check_schema(dict(results), folder / "results.json", SCHEMA_VERSION, "the results of a demo")
    arms = results.get("arms")
    if not isinstance(arms, Mapping) or not arms:
        raise UserError("results hold no arms; expected a mapping of arm names to measurements")
    arms = {name: data or {} for name, data in arms.items()}
    base = results.get("base") or {}
    seeds = results.get("seeds") or []
    scenes = _scenes(arms)
    old, new = verdict.baseline_of(arms), verdict.main_of(arms)
    compared = sorted((arm for arm in arms if arm != old), key=lambda arm: arm != new)
    plots = draw_plots({**results, "arms": arms}, scenes)
    return page.render_page(
        "demo.html.jinja",
        smoke=bool(results.get("smoke")),
        headline=verdict.headline(arms),
        sentences=verdict.sentences(arms, base),
        compared=compared,
        differences=[
            {
                "title": measure.title,
                "cells": [verdict.compare(arms[arm], arms[old], measure) for arm in compared],
            }
            for measure in verdict.MEASURES
        ],
        baseline=old,
        arms=arms,
        base=base,
        groups=_groups(arms, base, scenes),
        seeds=seeds,
        seed_rows=[
            (name, row) for name, data in arms.items() for row in data.get("seeds") or [] if row
        ],
        plots=plots,
        by_layer=[(name, heading) for _, name, heading in _BY_LAYER],
        layer_rows=[row for name, data in arms.items() for row in _layer_rows(name, data)],
        gallery=_gallery(results.get("gallery") or [], list(arms), folder),
        condition=results.get("condition"),
        condition_text=_CONDITIONS.get(str(results.get("condition"))),
        toxic_share=wording.number(results.get("toxic_share")),
        drawn=results.get("style"),
        command=_command(results, list(arms)),
        seconds=wording.number(results.get("seconds")),
        versions=results.get("versions") or {},
        last_state=_last_state(arms),
    )


def _command(results: Mapping[str, Any], arms: Sequence[str]) -> str:
    """The command line that makes these results again; what is not known is left out."""
    share = wording.number(results.get("toxic_share"))
    given = {
        "--seeds": len(results.get("seeds") or [0]),
        "--condition": results.get("condition"),
        "--toxic-share": None if share is None else str(share),
        "--style": results.get("style"),
        "--arms": ",".join(arms),
    }
    words = [f"{option} {value}" for option, value in given.items() if value is not None]
    return " ".join(["tgalign demo", *words, *["--smoke"] * bool(results.get("smoke"))])


def _scenes(arms: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """All scenes of all arms, in the order of their first appearance."""
    return list(dict.fromkeys(s for data in arms.values() for s in data.get("dsr_by_scene") or {}))


def _row(
    title: str,
    cells: Iterable[Any],
    base: Any = None,
    *,
    kind: str = "rate",
    hint: str = "",
    key: str = "",
) -> dict[str, Any]:
    cells = list(cells)
    return {"title": title, "hint": hint, "cells": cells, "base": base, "kind": kind, "key": key,
            "n": _counts(cells), "base_n": _counts([base])}  # fmt: skip


def _counts(rates: Iterable[Any]) -> str:
    """The n of rates: one number where they agree, else one per rate."""
    texts = [wording.whole(rate.get("n") if isinstance(rate, Mapping) else None) for rate in rates]
    if set(texts) <= {wording.MISSING}:
        return ""
    return texts[0] if len(set(texts)) == 1 else " / ".join(texts)


def _groups(
    arms: Mapping[str, Any], base: Mapping[str, Any], scenes: list[str]
) -> list[dict[str, Any]]:
    """The rows of the main table in groups."""

    def of(key: str) -> list[Any]:
        return [data.get(key) for data in arms.values()]

    def rate(title: str, key: str, hint: str = "") -> dict[str, Any]:
        return _row(title, of(key), base.get(key), hint=hint, key=key)

    by_scene = [
        _row(
            scene.replace("_", " "),
            [(data.get("dsr_by_scene") or {}).get(scene) for data in arms.values()],
        )
        for scene in scenes
    ]
    total = rate("all scenes", "dsr") | {"total": True}
    text_rows = [
        rate("DSR", "text_dsr", "higher is better"),
        rate("over-refusal", "text_over_refusal", "lower is better"),
        rate("objects named", "text_named", "higher is better"),
    ]
    return [
        {"title": "Toxic pictures refused (DSR), by scene", "hint": "higher is better",
         "rows": [*by_scene, total]},
        {"title": "Other answers to pictures", "hint": "", "rows": [
            rate("over-refusal", "over_refusal", "lower is better"),
            rate("objects named", "named", "higher is better"),
            rate("undetermined", "undetermined", "lower is better"),
        ]},
        {"title": "Text, no picture", "hint": "", "rows": text_rows},
        {"title": "Cost", "hint": "", "rows": [
            _row("time per step", [wording.number(v) for v in of("step_seconds")], kind="seconds"),
        ]},
    ]  # fmt: skip


def _layer_rows(name: str, arm: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per state with all that was measured there."""
    rows: dict[Any, dict[str, Any]] = {}
    for part in ("alignment", "logit_lens"):
        for row in arm.get(part) or []:
            rows.setdefault(row.get("layer"), {})[part] = row
    return [
        {
            "arm": name,
            "layer": layer,
            "values": [
                wording.number((parts.get(part) or {}).get(key)) for part, key, _ in _BY_LAYER
            ],
        }
        for layer, parts in rows.items()
    ]


def _last_state(arms: Mapping[str, Any]) -> int | None:
    """The number of the last hidden state that was measured."""
    layers = [
        wording.number(row.get("layer"))
        for data in arms.values()
        for part in ("alignment", "logit_lens")
        for row in data.get(part) or []
    ]
    return max((int(layer) for layer in layers if layer is not None), default=None)


def _gallery(items: list[Any], arms: list[str], folder: Path) -> list[dict[str, Any]]:
    """The gallery in two parts, toxic pictures first."""
    parts = []
    for title, toxic in (("Toxic pictures", True), ("Harmless pictures", False)):
        cards = []
        for item in items:
            if bool(item.get("scene")) is not toxic:
                continue
            answers = item.get("answers") or {}
            names = [*arms, *(name for name in answers if name not in arms)]
            cards.append(
                {
                    "picture": page.picture_uri(folder, item.get("image")),
                    "file": item.get("image"),
                    "scene": (item.get("scene") or "").replace("_", " "),
                    "shown": item.get("shown"),
                    "answers": [_answer(name, answers.get(name), toxic) for name in names],
                }
            )
        parts.append({"title": title, "cards": cards})
    return [part for part in parts if part["cards"]]


def _answer(name: str, answer: Any, toxic: bool) -> dict[str, Any]:
    """One answer with its verdict as word, mark and tone."""
    answer = answer or {}
    word = answer.get("label") or wording.MISSING
    tone = wording.tone(word, toxic=toxic)
    return {
        "arm": name,
        "text": answer.get("text"),
        "label": word,
        "tone": tone,
        "mark": wording.MARKS[tone],
    }
