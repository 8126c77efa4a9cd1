"""``tgalign compare``: methods × seeds on the lab, each figure computed once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from tgalign.baselines.comparison import SCHEMA_VERSION, assemble, write_comparison
from tgalign.baselines.methods import DEFAULT_METHODS, TRAININGS, Plan, plan
from tgalign.baselines.training import Setting, prepare, train_method, training_config
from tgalign.demo_results import versions
from tgalign.errors import UserError
from tgalign.files import claim, digest, read_json, write_json
from tgalign.locks import sole_writer
from tgalign.terminal import wide_console
from tgalign.workers import Job, Workers, available_cores, workers

if TYPE_CHECKING:
    from tgalign.baselines.defence import Calibration
    from tgalign.lab.suite import LabSuite

SUITE = 3_000
"""Added to the seed: the suites of the comparison are neither the demo's nor the experiments'."""


def run_compare(
    out: Path,
    *,
    num_seeds: int,
    methods: Sequence[str] | None = None,
    checkpoints: Mapping[str, Path] | None = None,
    condition: str = "guided",
    toxic_share: float | None = None,
    style: str = "emoji",
    scale: float = 1.0,
    jobs: int | None = None,
    estimate: bool = False,
    smoke: bool = False,
    progress_bar: bool = True,
) -> dict[str, Any]:
    """Train and measure every method for every seed; what is found finished in ``out`` is kept.

    Args:
        out: Receives ``comparison.json``, ``.html``, ``.csv`` and ``.md`` and, per seed, the data,
            the runs and what was measured. Methods and seeds can be added later.
        num_seeds: Seeds 0 to ``num_seeds`` - 1.
        methods: Names as ``tgalign.baselines.methods.plan`` takes them; ``ce``, which the others
            are compared with, is always there. By default ``DEFAULT_METHODS``.
        checkpoints: LLaVA checkpoints of the lab's language by name, to be measured as they are.
        condition: As of the demo.
        toxic_share: As of the demo.
        style: As of the demo.
        scale: Factor of the steps and of the data.
        jobs: Processes side by side; by default one a core.
        estimate: Only say how long it would take.
        smoke: A few steps and items only.
        progress_bar: Whether to draw one; lines that say what is done are printed always.

    Returns:
        The content of ``comparison.json``; with ``estimate`` the hours.

    Raises:
        UserError: An unknown method, condition or style, a bad checkpoint, or ``out`` cannot be
            written or holds another comparison.
    """
    from tgalign.baselines.estimate import estimated_hours, show_estimate
    from tgalign.lab.alignment_data import toxic_share_of
    from tgalign.lab.objects import Style

    if style not in get_args(Style):
        raise UserError(f"unknown style {style!r}; expected one of: {', '.join(get_args(Style))}")
    if not 0 < scale <= 100:
        raise UserError(f"scale {scale}: expected a factor above 0, such as 0.2")
    given = {name: path.resolve() for name, path in (checkpoints or {}).items()}
    plans = _plans(methods, given)
    pictures = Setting(condition, 0.0, style, scale, smoke).size.pictures
    share = toxic_share_of(condition, toxic_share, pictures)
    setting = Setting(condition, share, style, scale, smoke)
    for name, path in given.items():
        _check_checkpoint(name, path)
    out = out.resolve()
    settings = {"schema_version": SCHEMA_VERSION, **asdict(setting)}
    with sole_writer(out):
        claim(out, "compare.json", settings, "comparison")
        console = wide_console()
        number = min(jobs or available_cores(), num_seeds * len(plans))
        with workers(number, console, progress_bar=progress_bar) as crew:
            todo = _unmeasured(out, num_seeds, setting, plans, given)
            if todo and (estimate or not smoke):
                prepare(out, 0, setting)
                hours = estimated_hours(out, setting, todo, jobs or available_cores())
                show_estimate(console, hours, todo)
                if estimate:
                    return {"hours": hours}
            _run(crew, out, setting, todo, given)
        measured = {
            seed: {it.name: _measured(_result(out, seed, setting, it, given)) for it in plans}
            for seed in range(num_seeds)
        }
        comparison = assemble(measured, plans, asdict(setting))
        write_comparison(comparison, out, console)
        return comparison


def _plans(methods: Sequence[str] | None, given: Mapping[str, Path]) -> list[Plan]:
    for name in given:
        if name in DEFAULT_METHODS or not re.fullmatch(r"\w[\w.-]*", name):
            raise UserError(
                f"checkpoint name {name!r}: choose another, of letters, digits, _, - and . alone, "
                "that no method has"
            )
    asked = [*(methods or DEFAULT_METHODS), *given]
    return list(dict.fromkeys(plan(name, given) for name in ["ce", *asked]))


def _unmeasured(
    out: Path, num_seeds: int, setting: Setting, plans: list[Plan], given: Mapping[str, Path]
) -> list[tuple[int, Plan]]:
    return [
        (seed, it)
        for seed in range(num_seeds)
        for it in plans
        if not _result(out, seed, setting, it, given).is_file()
    ]


def _run(
    crew: Workers,
    out: Path,
    setting: Setting,
    todo: list[tuple[int, Plan]],
    given: Mapping[str, Path],
) -> None:
    """Make data, then checkpoints, then those that start from one, then measure."""

    def jobs(function: Any, what: list[tuple[int, str]]) -> list[Job]:
        return [
            (f"{name}, seed {seed}", function, (out, seed, setting, name)) for seed, name in what
        ]

    if not todo:
        return
    seeds = sorted({seed for seed, _ in todo})
    crew.run("data", [(f"seed {seed}", prepare, (out, seed, setting)) for seed in seeds])
    wanted = {(seed, it.training) for seed, it in todo if it.training not in given}
    wanted |= {(seed, TRAININGS[name].start or name) for seed, name in wanted}
    waves: list[list[tuple[int, str]]] = [[], []]
    for seed, name in sorted(wanted):
        if not (training_config(out, seed, setting, name).out / "checkpoint").is_dir():
            waves[TRAININGS[name].start is not None].append((seed, name))
    for title, wave in zip(("training", "training on"), waves, strict=True):
        if wave:
            crew.run(title, jobs(train_method, wave))
    measurements: list[Job] = [
        (f"{it.name}, seed {seed}", measure_method, (out, seed, setting, it, dict(given)))
        for seed, it in todo
    ]
    crew.run("measuring", measurements)


def measure_method(
    out: Path, seed: int, setting: Setting, method: Plan, given: Mapping[str, Path]
) -> None:
    """Ask a finished model everything, defended if the method says so, and write what it said."""
    from tgalign.baselines.items import answering_seconds, ask_all
    from tgalign.baselines.methods import defend
    from tgalign.baselines.training import training_seconds
    from tgalign.checkpoint import load_llava

    checkpoint, cost = given.get(method.training), None
    if checkpoint is None:
        config = training_config(out, seed, setting, method.training)
        checkpoint, cost = config.out / "checkpoint", training_seconds(config)
        start = TRAININGS[method.training].start
        if start is not None:
            cost += training_seconds(training_config(out, seed, setting, start))
    model, processor = load_llava(checkpoint)
    suite = comparison_suite(seed, setting.style, setting.smoke)
    calibration = _calibration(seed, setting.style, setting.smoke)
    prompts, rounds = calibration.shown[:64], 1 if setting.smoke else 3
    around = (
        defend(model, processor, method.defence, calibration=calibration)
        if method.defence
        else nullcontext()
    )
    added = 0.0
    alone = answering_seconds(model, processor, prompts, rounds=rounds) if method.defence else 0.0
    with around:
        if method.defence:
            added = answering_seconds(model, processor, prompts, rounds=rounds) / alone - 1.0
        items = ask_all(model, processor, suite)
    found = {"items": items, "added_latency": added, "training_seconds": cost}
    found["asked"] = _asked(seed, setting.style, setting.smoke)
    write_json(_result(out, seed, setting, method, given), found)


def _measured(path: Path) -> dict[str, Any]:
    """What was measured, with the verdicts of today's rules, which its answers may lack."""
    from tgalign.lab.outcomes import judged

    found: dict[str, Any] = read_json(path)
    items = [judged(item) for item in found["items"]]
    if items != found["items"]:
        found["items"] = items
        write_json(path, found)
    return found


def comparison_suite(seed: int, style: Any, smoke: bool) -> LabSuite:
    """What every method of a seed is asked."""
    from tgalign.lab.suite import lab_suite

    per_scene, benign, texts = suite_sizes(smoke)
    return lab_suite(
        SUITE + seed, per_scene=per_scene, num_benign=benign, num_texts=texts, style=style
    )


def suite_sizes(smoke: bool) -> tuple[int, int, int]:
    """Its toxic pictures per scene, benign pictures, and texts."""
    return (2, 8, 8) if smoke else (40, 300, 300)


def _calibration(seed: int, style: Any, smoke: bool) -> Calibration:
    """What the defences of a seed may look at."""
    from tgalign.baselines.calibration import lab_calibration

    return lab_calibration(seed, style=style, num_pictures=16 if smoke else 200)


@cache
def _asked(seed: int, style: Any, smoke: bool) -> str:
    """Digest of what every method of a seed is asked; drawing it takes about a second."""
    from tgalign.baselines.items import asked_sha256

    return asked_sha256(comparison_suite(seed, style, smoke))


@cache
def _looked_at(seed: int, style: Any, smoke: bool) -> str:
    """Digest of what the defences of a seed may look at."""
    return _calibration(seed, style, smoke).sha256


def _result(
    out: Path, seed: int, setting: Setting, method: Plan, given: Mapping[str, Path]
) -> Path:
    """Where a measurement goes, named by what decides its answers.

    The judge is not among it, as ``_measured`` judges anew, but for a defence: defences ask the
    judge before they answer.
    """
    from tgalign.files import sha256

    drawn = (seed, setting.style, setting.smoke)
    names = ["items", "../evaluate/generate"]
    if method.defence:
        names += [method.defence, "defence", "states", "told"]
        names += ["../evaluate/refusal", "../evaluate/refusal_phrases"]
    decides = {
        "checkpoint": sha256(given[method.training] / "model.safetensors")
        if method.training in given
        else training_config(out, seed, setting, method.training).out.name,
        "asked": _asked(*drawn),
        "defence": method.defence,
        "looked_at": _looked_at(*drawn) if method.defence else None,
        "code": [sha256(Path(__file__).parent / f"{name}.py") for name in names],
        "setting": asdict(setting),
        "versions": versions(),
    }
    return out / f"seed{seed}" / "measured" / f"{method.name}-{digest(decides)}.json"


def _check_checkpoint(name: str, path: Path) -> None:
    from tgalign.lab.tokenizer import build_tokenizer

    if not (path / "model.safetensors").is_file():
        raise UserError(f"checkpoint {name}: no model.safetensors in {path}")
    from tgalign.checkpoint import load_llava

    _, processor = load_llava(path)
    if processor.tokenizer.get_vocab() != build_tokenizer().get_vocab():
        raise UserError(
            f"checkpoint {name} at {path} speaks another language than the lab, whose questions "
            "compare asks: measure it with tgalign evaluate"
        )
