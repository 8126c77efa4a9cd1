"""``tgalign compare --ablation``: run the variants of one ablation and show what they say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tgalign.baselines.ablations import ABLATIONS, SIMILARITY, Ablation, Variant
from tgalign.demo_results import show_pooled, show_rate
from tgalign.errors import UserError
from tgalign.evaluate.seeds import counts_of, noted, pool
from tgalign.files import write_json, write_text
from tgalign.locks import sole_writer
from tgalign.report.tables import markdown_table
from tgalign.report.wording import points
from tgalign.terminal import wide_console
from tgalign.workers import Job, available_cores, workers

COLUMNS = {
    "dsr": "DSR",
    "over_refusal": "over-refusal",
    "named": "objects named",
    "text_dsr": "text DSR",
    "text_named": "objects named in text",
}
SHARED = {"stage1.steps": 800, "stage2.steps": 450, "data.pictures": 20_000}
"""Of every variant alike: the steps of the lab log, shorter than the demo, and its pictures."""

_SMOKE = ("stage.steps=2", "data.pictures=80", "data.texts=20", "data.corpus=100")


def run_ablation(
    out: Path,
    name: str,
    *,
    num_seeds: int,
    scale: float = 1.0,
    jobs: int | None = None,
    smoke: bool = False,
    progress_bar: bool = True,
) -> dict[str, Any]:
    """Train and measure every variant for every seed on the development things.

    Args:
        out: Receives ``ablation-NAME.json``, ``.md``, ``.html`` and, where the rates are plotted
            against something measured, ``.svg``; the experiments lie in ``seedN/`` and serve all
            ablations of the folder.
        name: A key of ``ABLATIONS``.
        num_seeds: Seeds 0 to ``num_seeds`` - 1.
        scale: Factor of ``SHARED``.
        jobs: Processes side by side; by default one a core, at most one a seed.
        smoke: A few steps only.
        progress_bar: Whether to draw one; lines that say what is done are printed always.

    Returns:
        The content of ``ablation-NAME.json``.

    Raises:
        UserError: An unknown ablation, or ``out`` cannot be written, or another run writes there.
    """
    if name not in ABLATIONS:
        raise UserError(f"unknown ablation {name!r}; expected one of: {', '.join(ABLATIONS)}")
    if not 0 < scale <= 100:
        raise UserError(f"scale {scale}: expected a factor above 0, such as 0.25")
    ablation, out = ABLATIONS[name], out.resolve()
    console = wide_console()
    # Seeds turn by turn, so that the jobs side by side are of different seeds.
    todo: list[Job] = [
        (f"{variant.label}, seed {seed}", run_variant, (out, seed, variant, scale, smoke))
        for variant in ablation.variants
        for seed in range(num_seeds)
    ]
    widths = [variant.llm_width for variant in ablation.variants if variant.llm_width is not None]
    # Before all else, as several seeds need each; the widest, which takes longest, first.
    llms: list[Job] = [
        (f"language model of {width} channels", language_model, (out, width, smoke))
        for width in reversed(widths)
    ]
    from tgalign.report.ablation_report import draw, render

    with sole_writer(out):
        number = min(jobs or available_cores(), num_seeds)
        with workers(number, console, progress_bar=progress_bar) as crew:
            if llms:
                crew.run("language models", llms)
            results = crew.run(name, todo)
        by_variant = [
            [results[f"{variant.label}, seed {seed}"] for seed in range(num_seeds)]
            for variant in ablation.variants
        ]
        content = assemble_ablation(name, ablation, by_variant, scale=scale, smoke=smoke)
        write_json(out / f"ablation-{name}.json", content)
        write_text(out / f"ablation-{name}.md", markdown(content))
        write_text(out / f"ablation-{name}.html", render(content))
        if ablation.size or ablation.against:
            write_text(out / f"ablation-{name}.svg", draw(content))
    console.print(markdown(content), soft_wrap=True, highlight=False)
    return content


def shared_changes(scale: float) -> tuple[str, ...]:
    """``SHARED`` times ``scale``, as changes of ``run_experiment``."""
    return tuple(f"{key}={max(1, round(scale * count))}" for key, count in SHARED.items())


def language_model(out: Path, width: int, smoke: bool = False) -> Path:
    """The base LLM of another width, trained if need be; one serves all seeds, as the shipped one.

    Returns:
        Its folder in ``out``.
    """
    from tgalign.lab.build import build_llm

    folder = out / f"llm{width}{'-smoke' if smoke else ''}"
    build_llm(folder, 0, width=width, steps=(2, 2) if smoke else None, progress_bar=False)
    return folder


def run_variant(
    out: Path, seed: int, variant: Variant, scale: float = 1.0, smoke: bool = False
) -> dict[str, Any]:
    """Run one variant as an experiment; those of a seed take turns, as they share its data."""
    from filelock import FileLock

    from tgalign.lab.experiment import run_experiment

    folder, width = out / f"seed{seed}", variant.llm_width
    folder.mkdir(parents=True, exist_ok=True)
    llm = None if width is None else language_model(out, width, smoke)
    with FileLock(folder / "lock"):
        return run_experiment(
            folder,
            variant.arm,
            condition=variant.condition,
            toxic_share=variant.toxic_share,
            seed=seed,
            changes=[*shared_changes(scale), *variant.changes, *(_SMOKE if smoke else ())],
            llm=llm,
            progress_bar=False,
        )


def assemble_ablation(
    name: str,
    ablation: Ablation,
    results: list[list[dict[str, Any]]],
    *,
    scale: float = 1.0,
    smoke: bool = False,
) -> dict[str, Any]:
    """Pool every variant over its seeds, and fit the growth where there is a size.

    Args:
        name: Of the ablation.
        ablation: Its question and variants.
        results: By variant and seed, what the experiment gave.
        scale: As of ``run_ablation``.
        smoke: Whether the figures mean nothing.
    """
    rows = []
    for variant, found in zip(ablation.variants, results, strict=True):
        rates = {key: _pooled([it["rates"][key] for it in found]) for key in COLUMNS}
        row: dict[str, Any] = {"label": variant.label, "changes": list(variant.changes), **rates}
        row |= {"arm": variant.arm, "size": variant.size, "scene": variant.scene}
        if ablation.against is not None:
            row |= {"family": variant.family, "similarity": _mean_similarity(found)}
        row["scenes"] = {
            scene: _pooled([it["dsr_by_scene"][scene] for it in found])
            for scene in found[0]["dsr_by_scene"]
        }
        row["seeds"] = [{"seed": it["seed"]} | {k: it["rates"][k] for k in COLUMNS} for it in found]
        rows.append(row)
    content = {"schema_version": 1, "ablation": name, "question": ablation.question}
    content |= {"size": ablation.size, "smoke": smoke, "seeds": [it["seed"] for it in results[0]]}
    own = {change.partition("=")[0] for it in ablation.variants for change in it.changes}
    shared = [it for it in shared_changes(scale) if it.partition("=")[0] not in own]
    changes = list(_SMOKE) if smoke else shared
    content |= {"against": ablation.against, "changes": changes, "variants": rows}
    if ablation.size is not None and not smoke:
        one_llm = any(it.llm_width is not None for it in ablation.variants)
        content["fit"] = {key: growth(rows, key, shared=one_llm) for key in ("dsr", "named")}
    return content


def _mean_similarity(results: list[dict[str, Any]]) -> dict[str, float | None]:
    """By similarity its mean over seeds; None where there is no R to be similar to."""
    found = {key: [it["similarity"][key] for it in results] for key in SIMILARITY}
    return {
        key: None if None in values else math.fsum(values) / len(values)
        for key, values in found.items()
    }


def _pooled(rates: list[dict[str, Any]]) -> dict[str, Any]:
    return pool(counts_of(rates)).as_dict()


def growth(rows: list[dict[str, Any]], key: str, *, shared: bool = False) -> dict[str, Any]:
    """What each doubling of a size adds to a rate: a straight line over the size's logarithm.

    A description of the sizes measured, not a law: a rate cannot rise for ever.

    Args:
        rows: Variants with their ``size`` and rates by seed.
        key: The rate.
        shared: Whether the seeds of a size share their language model, so that they say nothing
            about how language models of a size differ. Then a size is one point, their mean;
            otherwise every seed is one.

    Returns:
        ``per_doubling`` with its 95 % interval ``low`` to ``high`` (Student's t over the points),
        ``intercept`` (the rate at size 1), ``runs`` (how many points) and ``unit`` (of what).
    """
    from scipy.stats import linregress, t

    runs = []
    for row in rows:
        rates = [seed[key]["rate"] for seed in row["seeds"]]
        rates = [math.fsum(rates) / len(rates)] if shared else rates
        runs += [(math.log2(row["size"]), rate) for rate in rates]
    line = linregress(*zip(*runs, strict=True))
    margin = float(t.ppf(0.975, len(runs) - 2)) * float(line.stderr)
    slope = float(line.slope)
    found = {"per_doubling": slope, "low": slope - margin, "high": slope + margin}
    unit = "language models, each the mean of its seeds" if shared else "runs"
    return found | {"intercept": float(line.intercept), "runs": len(runs), "unit": unit}


def markdown(content: dict[str, Any]) -> str:
    """Question, table and fit in Markdown."""
    scenes = any(row["scene"] for row in content["variants"])
    similarity = SIMILARITY if content["against"] else {}
    header = ["", *similarity.values(), *COLUMNS.values(), "DSR by seed"]
    header += ["DSR of the scene left out", "with it"] if scenes else []
    lines = []
    whole = content["variants"][0]["scenes"]
    for row in content["variants"]:
        cosines = [row["similarity"][key] for key in similarity]
        cells = ["" if it is None else f"{it:.3f}" for it in cosines]
        cells += [show_pooled(row, key, with_n=False) for key in COLUMNS]
        cells.append(" ".join(f"{seed['dsr']['rate']:.2f}" for seed in row["seeds"]))
        if scenes:
            scene = row["scene"]
            pair = (row["scenes"][scene], whole[scene]) if scene else ()
            cells += [show_rate(rate, with_n=False) for rate in pair] or ["", ""]
        lines.append([row["label"], *cells])
    shown = markdown_table(header, lines)
    warning = "SMOKE RUN, figures mean nothing. " if content["smoke"] else ""
    counts = content["variants"][0]
    n = ", ".join(f"{heading} {counts[key]['n']}" for key, heading in COLUMNS.items())
    text = f"{warning}{content['question']}\n\n{shown}\n"
    arms = ", ".join(dict.fromkeys(row["arm"] for row in content["variants"]))
    text += (
        f"Rate [95 % Wilson interval], arm {arms}, development things, "
        f"{' '.join(content['changes'])}, seeds "
        f"{', '.join(map(str, content['seeds']))}. n: {n}.\n"
    )
    for key, fit in content.get("fit", {}).items():
        text += (
            f"\nEach doubling of the number of {content['size']} adds "
            f"{points(fit['per_doubling'])} points [{points(fit['low'])}, "
            f"{points(fit['high'])}] of {COLUMNS[key]} ({fit['runs']} {fit.get('unit', 'runs')}).\n"
        )
    return noted(text)
