"""How long a comparison takes here, from a timed trial of a few steps and answers."""

from __future__ import annotations

import itertools
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tgalign.baselines.compare import suite_sizes
from tgalign.baselines.methods import TRAININGS, Plan
from tgalign.baselines.training import Setting, training_config, training_seconds
from tgalign.config import TrainConfig
from tgalign.lab.jailbreaks import ATTACKS
from tgalign.lab.objects import picture_pool

TRIAL_STEPS = 8
TRIAL_ROWS = 256
TRIAL_PICTURES = 32

ROUNDS = 2.0
"""How many answers a defended one costs, on average over the defences."""


def estimated_hours(
    out: Path, setting: Setting, todo: Sequence[tuple[int, Plan]], jobs: int
) -> float:
    """Hours that what is left of a comparison takes on this machine, as busy as it is now.

    Args:
        out: Folder of the comparison; the data of seed 0 is there.
        setting: What all methods share.
        todo: What is still to be measured.
        jobs: Processes side by side.
    """
    wanted = {(seed, it.training) for seed, it in todo if it.training in TRAININGS}
    wanted |= {(seed, TRAININGS[name].start or name) for seed, name in wanted}
    configs = [training_config(out, seed, setting, name) for seed, name in sorted(wanted)]
    left = [config for config in configs if not (config.out / "checkpoint").is_dir()]
    seconds = 0.0
    if left:
        plain, guided = (_step_seconds(out, setting, name) for name in ("ce", "paper"))
        seconds += sum(_cost(config, plain, guided) for config in left)
    answers = sum(ROUNDS if it.defence else 1.0 for _, it in todo)
    seconds += answers * num_questions(setting) * _answer_seconds(out, setting)
    return seconds / jobs / 3600


def num_questions(setting: Setting) -> int:
    """Questions of one measurement: pictures, plain and under attack, and texts."""
    per_scene, benign, texts = suite_sizes(setting.smoke)
    pictures = per_scene * len(picture_pool("all", setting.style).scenes) + benign
    return pictures * (1 + len(ATTACKS)) + texts


def _cost(config: TrainConfig, plain: float, guided: float) -> float:
    return sum(
        stage.steps * (guided if stage.objective.weight > 0 else plain) * (1 + config.companions)
        for stage in config.stages
    )


def _step_seconds(out: Path, setting: Setting, name: str) -> float:
    """Seconds a step of a method takes, on average over its stages."""
    from tgalign.train import train

    config, steps = training_config(out, 0, setting, name), 2 if setting.smoke else TRIAL_STEPS
    with tempfile.TemporaryDirectory() as folder, config.records.open(encoding="utf-8") as lines:
        records = Path(folder) / "records.jsonl"
        records.write_text("".join(itertools.islice(lines, TRIAL_ROWS)), encoding="utf-8")
        stages = [it.model_copy(update={"steps": steps}) for it in config.stages]
        changed = {"records": records, "image_root": config.records.parent, "stages": stages}
        changed |= {"out": Path(folder) / "run", "logging_steps": 1}
        trial = config.model_copy(update=changed)
        logging.disable(logging.WARNING)  # a part of the data lacks what the whole has
        try:
            train(trial, progress_bar=False)
        finally:
            logging.disable(logging.NOTSET)
        return training_seconds(trial) / (steps * len(stages))


def _answer_seconds(out: Path, setting: Setting) -> float:
    """Seconds the untrained model takes for an answer in a batch."""
    from tgalign.baselines.calibration import lab_calibration
    from tgalign.baselines.items import answering_seconds
    from tgalign.checkpoint import load_llava

    model, processor = load_llava(training_config(out, 0, setting, "ce").model)
    prompts = lab_calibration(0, style=setting.style, num_pictures=TRIAL_PICTURES).shown
    return answering_seconds(model, processor, prompts, rounds=1) / len(prompts)


def show_estimate(console: Console, hours: float, todo: Sequence[tuple[int, Plan]]) -> None:
    """Say what is left to do and how long it takes."""
    methods = list(dict.fromkeys(it.name for _, it in todo))
    seeds = len({seed for seed, _ in todo})
    console.print(
        f"{len(todo)} measurements ({len(methods)} methods, {seeds} seeds) are left: about "
        f"{hours:.1f} hours, from a trial of a few steps on this machine as busy as it is",
        highlight=False,
    )
