"""``tgalign demo``: train the arms on the lab, measure them, and write table, JSON and report."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from rich.console import Console

from tgalign.demo_results import assemble_results, markdown, print_results, versions
from tgalign.errors import UserError
from tgalign.files import claim, read_json, write_json, write_text

if TYPE_CHECKING:
    from tgalign.lab.alignment_data import DataSize
    from tgalign.lab.suite import LabSuite

SCHEMA_VERSION = 2


def run_demo(
    out: Path,
    *,
    num_seeds: int,
    condition: str,
    toxic_share: float | None = None,
    style: str = "emoji",
    arms: Sequence[str] | None = None,
    smoke: bool = False,
) -> dict[str, Any]:
    """Train and measure every arm for every seed; finished parts found in ``out`` are kept.

    Args:
        out: Receives ``results.json``, ``table.md``, ``report.html``, ``pictures/`` and, per seed,
            the data, the runs and their checkpoints.
        num_seeds: Seeds 0 to ``num_seeds`` - 1; a finished run can be extended by more.
        condition: ``absent``, ``guided`` or ``captioned``.
        toxic_share: Share of the pictures that show something toxic; by default 0.1, in
            ``captioned`` 0.05, in ``absent`` always 0.
        style: How the pictures are drawn: ``emoji``, or ``icons``, on which nothing was tuned.
        arms: Which arms, ``ce`` among them; by default ``DEFAULT_ARMS``.
        smoke: A few steps and items only.

    Returns:
        The content of ``results.json``.

    Raises:
        UserError: An unknown condition or arm, a share out of range, ``out`` cannot be written or
            holds another run.
    """
    from tgalign.lab.alignment_data import toxic_share_of
    from tgalign.lab.arms import ARMS, DEFAULT_ARMS
    from tgalign.lab.assets import load_lab
    from tgalign.lab.objects import Style

    share = toxic_share_of(condition, toxic_share, _size(smoke).pictures)
    if style not in get_args(Style):
        raise UserError(f"unknown style {style!r}; expected one of: {', '.join(get_args(Style))}")
    arms = list(dict.fromkeys(arms or DEFAULT_ARMS))
    unknown = [arm for arm in arms if arm not in ARMS]
    if unknown or "ce" not in arms:
        raise UserError(
            f"arms {', '.join(arms)}: expected ce, which the others are compared with, and any of: "
            f"{', '.join(arm for arm in ARMS if arm != 'ce')}"
        )
    out = out.resolve()
    settings = {"condition": condition, "toxic_share": share, "style": style, "smoke": smoke}
    claim(out, "demo.json", {"schema_version": SCHEMA_VERSION, **settings}, "demo")
    from tgalign.report.demo_report import write_demo_report

    terminal = Console()
    console = terminal if terminal.is_terminal else Console(width=140)
    llm, clip, tokenizer = load_lab()
    measured: dict[int, dict[str, dict[str, Any]]] = {}
    for seed in range(num_seeds):
        measured[seed] = {}
        for number, arm in enumerate(["base", *arms]):
            console.print(
                f"[bold]seed {seed} ({seed + 1} of {num_seeds}), {arm} "
                f"({number + 1} of {len(arms) + 1})"
            )
            run = _Run(out / f"seed{seed}", seed, condition, share, style, smoke, console)
            measured[seed][arm] = _run_arm(arm, run, (llm, clip, tokenizer))
    gallery = _save_gallery(out, _suite(0, style, smoke), measured[0])
    results = assemble_results(measured, gallery, settings)
    write_json(out / "results.json", results)
    write_text(out / "table.md", markdown(results))
    report = write_demo_report(results, out)
    print_results(console, results)
    console.print(f"\nresults  {out / 'results.json'}\nreport   {report}", soft_wrap=True)
    return results


@dataclass(frozen=True)
class _Run:
    """All arms of one seed: where they go and what they share."""

    folder: Path
    seed: int
    condition: Any
    toxic_share: float
    style: Any
    smoke: bool
    console: Console


def _run_arm(arm: str, run: _Run, lab: tuple[Any, Any, Any]) -> dict[str, Any]:
    """Train and measure one arm (``base``: measure the untrained LLaVA), or read what is there."""
    from tgalign.checkpoint import load_llava, save_checkpoint
    from tgalign.lab.alignment_data import build_alignment_data
    from tgalign.lab.arms import arm_config
    from tgalign.lab.assets import check_assets, lab_llava, sha256
    from tgalign.lab.measure import measure
    from tgalign.train import train

    folder, seed = run.folder, run.seed
    size = replace(_size(run.smoke), toxic_share=run.toxic_share, style=run.style)
    config = arm_config(
        "ce" if arm == "base" else arm,
        model=folder / "base" / "checkpoint",
        data=folder / "data",
        out=folder / arm,
        seed=seed,
        smoke=run.smoke,
    )
    made_with = {
        "versions": versions(),
        "assets": check_assets()["files"],
        "data": asdict(size),
        "training": config.model_dump(
            mode="json",
            exclude={
                "model": True,
                "records": True,
                "out": True,
                "synthetic": {"clip", "texts"},
            },
        ),
    }
    done = folder / arm / "measurement.json"
    if done.is_file():
        content: dict[str, Any] = read_json(done)
        if content["made_with"] != made_with:
            raise UserError(
                f"{done} was made with other settings, models or versions than these: give "
                "another --out, or remove it"
            )
        return content
    start = time.monotonic()
    base = folder / "base" / "checkpoint"
    if not base.is_dir():
        base.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(*lab_llava(*lab, seed=seed), base)
    if not (folder / "data").is_dir():
        run.console.print(f"  drawing {size.pictures} pictures and retrieving a text for each")
    build_alignment_data(folder / "data", seed, run.condition, lab[1], lab[2], size)
    found: dict[str, Any] = {"made_with": made_with, "curve": [], "step_seconds": None}
    checkpoint = base
    if arm != "base":
        checkpoint = train(config)
        found |= _training_curve(folder / arm, [stage.name for stage in config.stages])
    model, processor = load_llava(checkpoint)
    suite = _suite(seed, run.style, run.smoke)
    asked = len(suite.toxic) + len(suite.benign)
    run.console.print(f"  asking about {asked} pictures and {len(suite.texts)} texts")
    found |= measure(model, processor, suite).as_dict()
    found["weights_sha256"] = sha256(checkpoint / "model.safetensors")
    found["seconds"] = time.monotonic() - start
    write_json(done, found)
    return found


def _size(smoke: bool) -> DataSize:
    from tgalign.lab.alignment_data import DataSize

    return DataSize(pictures=60, texts=20, corpus=100) if smoke else DataSize()


def _suite(seed: int, style: Any, smoke: bool) -> LabSuite:
    from tgalign.lab.suite import lab_suite

    if smoke:
        return lab_suite(seed, per_scene=2, num_benign=8, num_texts=8, style=style)
    return lab_suite(seed, style=style)


def _training_curve(folder: Path, stages: list[str]) -> dict[str, Any]:
    """The lines of all stages' metrics, and the seconds a step takes."""
    curve: list[dict[str, Any]] = []
    seconds = steps = 0.0
    for stage in stages:
        path = folder / stage / "metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        # The median is that of undisturbed steps, whatever else the machine did.
        median = sorted(line["step_seconds"] for line in lines)[len(lines) // 2]
        seconds += median * lines[-1]["step"]
        for line in lines:
            kept = ("stage", "ce", "guide", "align", "rank", "cosine", "caption_retrieval")
            curve.append({"step": steps + line["step"]} | {k: line[k] for k in kept if k in line})
        steps += lines[-1]["step"]
    return {"curve": curve, "step_seconds": seconds / steps}


def _save_gallery(
    out: Path, suite: LabSuite, measured: dict[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    """Save some pictures of every scene and benign ones, with the arms' answers."""
    by_scene: dict[str | None, int] = {}
    gallery = []
    (out / "pictures").mkdir(exist_ok=True)
    for item in suite.toxic + suite.benign:
        by_scene[item.scene] = by_scene.get(item.scene, 0) + 1
        if by_scene[item.scene] > (3 if item.scene else 12):
            continue
        name = f"pictures/{item.id}.png"
        item.picture.save(out / name)
        answers = {
            arm: found["answers"][item.id] for arm, found in measured.items() if arm != "base"
        }
        gallery.append(
            {"image": name, "scene": item.scene, "shown": item.shown, "answers": answers}
        )
    return gallery
