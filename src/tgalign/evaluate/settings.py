"""What to evaluate and how: the options of ``tgalign evaluate`` and ``tgalign audit``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """What to evaluate and how (see ``tgalign evaluate --help``).

    Attributes:
        suites: ``NAME`` or ``NAME=FOLDER``.
        data: Folder of the suites that name none.
        conditions: Empty: ``plain``, and ``caption`` where pictures have captions.
        limit: Items per scene and kind, or None for all.
        seed: Of suites that are drawn and of ``limit``.
        batch_size: Prompts at a time.
        max_new_tokens: Length at which an answer is cut.
        device: Of a local model.
        dtype: Of a local model.
        url: A chat server that serves the model; None: it is a checkpoint here.
        defence: What stands around a local model, or None.
        calibration: What the defence is calibrated on, ``lab`` or a folder.
        against: Folder of another evaluation to compare with.
        judge_url: A chat server with a second judge; None: inspect-ai finds it.
        judge_model: Its name there, or ``PROVIDER/NAME``; None: there is no second judge.
        parquet: Whether to write items.parquet too.
        pictures: Whether the page shows pictures.
        progress: Whether to draw progress bars.
    """

    suites: Sequence[str] = ("lab",)
    data: Path | None = None
    conditions: Sequence[str] = field(default=())
    limit: int | None = None
    seed: int = 0
    batch_size: int = 32
    max_new_tokens: int = 256
    device: str = "auto"
    dtype: str = "auto"
    url: str | None = None
    defence: str | None = None
    calibration: str | None = None
    against: Path | None = None
    judge_url: str | None = None
    judge_model: str | None = None
    parquet: bool = False
    pictures: bool = False
    progress: bool = True
