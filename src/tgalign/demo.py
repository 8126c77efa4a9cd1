"""``tgalign demo``: train the arms on the lab, measure them, and write table, JSON and report."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from rich.console import Console
from rich.progress import Progress, TaskID

from tgalign.demo_results import (
    SCHEMA_VERSION,
    assemble_results,
    markdown,
    print_results,
    versions,
)
from tgalign.errors import UserError
from tgalign.files import claim, listed_differences, read_json, sha256, write_json, write_text
from tgalign.locks import sole_writer
from tgalign.metrics import read_metrics, stage_seconds
from tgalign.terminal import wide_console
from tgalign.workers import Job, available_cores, workers

if TYPE_CHECKING:
    from tgalign.config import TrainConfig
    from tgalign.lab.alignment_data import DataSize
    from tgalign.lab.suite import LabSuite

MEASUREMENT = "measurement.json"


def run_demo(
    out: Path,
    *,
    num_seeds: int,
    condition: str,
    toxic_share: float | None = None,
    style: str = "emoji",
    arms: Sequence[str] | None = None,
    jobs: int | None = None,
    smoke: bool = False,
    progress_bar: bool = True,
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
        jobs: Arms trained side by side; by default one a core.
        smoke: A few steps and items only.
        progress_bar: Whether to draw bars; lines that say what is done are printed always.

    Returns:
        The content of ``results.json``.

    Raises:
        UserError: An unknown condition or arm, a share out of range, ``out`` cannot be written or
            holds another run.
    """
    from tgalign.lab.alignment_data import toxic_share_of
    from tgalign.lab.arms import ARMS, DEFAULT_ARMS
    from tgalign.lab.objects import Style

    share = toxic_share_of(condition, toxic_share, _size(smoke).pictures)
    if style not in get_args(Style):
        raise UserError(f"unknown style {style!r}; expected one of: {', '.join(get_args(Style))}")
    arms = list(dict.fromkeys(arms or DEFAULT_ARMS))
    for arm in arms:
        if arm not in ARMS:
            raise UserError(f"unknown arm {arm!r}; expected one of: {', '.join(ARMS)}")
    if "ce" not in arms:
        raise UserError(
            f"arms {', '.join(arms)}: expected ce among them, which the others are compared with"
        )
    out = out.resolve()
    settings = {"condition": condition, "toxic_share": share, "style": style, "smoke": smoke}
    with sole_writer(out):
        claim(out, "demo.json", {"schema_version": SCHEMA_VERSION, **settings}, "demo")
        from tgalign.report.demo_report import write_demo_report

        console = wide_console()
        jobs = min(jobs or available_cores(), len(arms) + 1)
        measured: dict[int, dict[str, dict[str, Any]]] = {}
        with workers(jobs, console, progress_bar=progress_bar) as crew:
            for seed in range(num_seeds):
                console.print(f"[bold]seed {seed} ({seed + 1} of {num_seeds})")
                run = _Run(out / f"seed{seed}", seed, condition, share, style, smoke)
                found = {arm: run.measured(arm) for arm in ["base", *arms]}
                # The longest first: what is left for the end is short.
                left = [arm for arm in found if not found[arm]]
                todo = sorted(left, key=lambda arm: not arm.startswith("tga"))
                if todo:
                    _prepare(run, console)
                    watch = _bars(run, todo) if jobs > 1 else None
                    own_bar = progress_bar and jobs == 1
                    work: list[Job] = [(arm, _run_arm, (arm, run, own_bar)) for arm in todo]
                    found |= crew.run(f"seed {seed}: models done", work, watch)
                measured[seed] = found
        gallery = _save_gallery(out, demo_suite(0, style, smoke), measured[0])
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

    @property
    def size(self) -> DataSize:
        return replace(_size(self.smoke), toxic_share=self.toxic_share, style=self.style)

    @property
    def base(self) -> Path:
        return self.folder / "base" / "checkpoint"

    def config(self, arm: str) -> TrainConfig:
        """The training of an arm; ``base`` stands for the untrained LLaVA and counts as ``ce``."""
        from tgalign.lab.arms import arm_config

        return arm_config(
            "ce" if arm == "base" else arm,
            model=self.base,
            data=self.folder / "data",
            out=self.folder / arm,
            seed=self.seed,
            smoke=self.smoke,
        )

    def made_with(self, arm: str) -> dict[str, Any]:
        """What a measurement of an arm depends on."""
        from tgalign.lab.assets import check_assets

        paths: Any = {"model": True, "records": True, "out": True, "synthetic": {"clip", "texts"}}
        return {
            "versions": versions(),
            "assets": check_assets()["files"],
            "data": asdict(self.size),
            "training": self.config(arm).model_dump(mode="json", exclude=paths),
        }

    def measured(self, arm: str) -> dict[str, Any]:
        """What was measured of a finished arm; empty if it is not finished.

        Raises:
            UserError: It was made with other settings, models or versions.
        """
        done = self.folder / arm / MEASUREMENT
        if not done.is_file():
            return {}
        content: dict[str, Any] = read_json(done)
        made_with = self.made_with(arm)
        if content["made_with"] != made_with:
            raise UserError(
                f"{done} was made with other settings, models or versions than these "
                f"({listed_differences(content['made_with'], made_with)}): give another --out, or "
                "remove it"
            )
        return content


def _prepare(run: _Run, console: Console) -> None:
    """Write what the arms share, unless it is there: the untrained LLaVA and the data."""
    from tgalign.checkpoint import save_checkpoint
    from tgalign.lab.alignment_data import build_alignment_data
    from tgalign.lab.assets import lab_llava, load_lab

    llm, clip, tokenizer = load_lab()
    if not run.base.is_dir():
        run.base.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(*lab_llava(llm, clip, tokenizer, seed=run.seed), run.base)
    if not (run.folder / "data").is_dir():
        console.print(f"  drawing {run.size.pictures} pictures and retrieving a text for each")
    build_alignment_data(run.folder / "data", run.seed, run.condition, clip, tokenizer, run.size)


def _run_arm(arm: str, run: _Run, progress_bar: bool) -> dict[str, Any]:
    """Train and measure one arm (``base``: measure the untrained LLaVA), and keep the figures."""
    from tgalign.checkpoint import load_llava
    from tgalign.lab.measure import measure
    from tgalign.train import train

    folder, config = run.folder, run.config(arm)
    start = time.monotonic()
    found: dict[str, Any] = {"made_with": run.made_with(arm), "curve": [], "step_seconds": None}
    checkpoint = run.base
    if arm != "base":
        checkpoint = train(config, progress_bar=progress_bar)
        found |= _training_curve(folder / arm, [stage.name for stage in config.stages])
    model, processor = load_llava(checkpoint)
    found |= measure(model, processor, demo_suite(run.seed, run.style, run.smoke)).as_dict()
    found["weights_sha256"] = sha256(checkpoint / "model.safetensors")
    found["seconds"] = time.monotonic() - start
    write_json(folder / arm / MEASUREMENT, found)
    return found


def _bars(run: _Run, arms: Sequence[str]) -> Callable[[Progress], None]:
    """A function that draws a bar of the steps of every arm that another process is training."""
    stages = {arm: run.config(arm).stages for arm in arms if arm != "base"}
    bars: dict[str, TaskID] = {}

    def watch(progress: Progress) -> None:
        for arm, its in stages.items():
            logs = [read_metrics(run.folder / arm / stage.name) for stage in its]
            steps = sum(lines[-1]["step"] for lines in logs if lines)
            if steps and arm not in bars:
                total = sum(stage.steps for stage in its)
                bars[arm] = progress.add_task(f"  {arm}: steps", total=total)
            if arm in bars:
                progress.update(bars[arm], completed=steps)

    return watch


def _size(smoke: bool) -> DataSize:
    from tgalign.lab.alignment_data import DataSize

    return DataSize(pictures=60, texts=20, corpus=100) if smoke else DataSize()


def demo_suite(seed: int, style: Any, smoke: bool) -> LabSuite:
    """What the models of a seed are asked."""
    from tgalign.lab.suite import lab_suite

    if smoke:
        return lab_suite(seed, per_scene=2, num_benign=8, num_texts=8, style=style)
    return lab_suite(seed, style=style)


def _training_curve(folder: Path, stages: list[str]) -> dict[str, Any]:
    """The lines of all stages' metrics, and the seconds a step takes."""
    curve: list[dict[str, Any]] = []
    seconds = steps = 0.0
    for stage in stages:
        lines = read_metrics(folder / stage)
        seconds += stage_seconds(lines)
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
