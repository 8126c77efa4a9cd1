"""Train one method of the comparison, in a folder named by all that decides its weights."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from tgalign.baselines.method import Drawing, Row
from tgalign.baselines.methods import TRAININGS
from tgalign.config import StageConfig, TrainConfig
from tgalign.demo_results import versions
from tgalign.files import digest, folder_at_once, write_jsonl
from tgalign.lab.alignment_data import DataSize, build_alignment_data
from tgalign.lab.arms import PLACES, arm_config
from tgalign.lab.assets import check_assets, lab_llava, load_lab
from tgalign.lab.objects import picture_pool
from tgalign.metrics import read_metrics, stage_seconds

LEAST = DataSize(pictures=60, texts=20, corpus=100)
"""What the smoke run makes, and the least that a small scale does."""


@dataclass(frozen=True)
class Setting:
    """What all methods of a comparison share.

    Attributes:
        condition: How toxic pictures enter the alignment data.
        toxic_share: Their share.
        style: How pictures are drawn.
        scale: Factor of the steps and of the data; 1 is the demo's.
        smoke: A few steps and items only.
    """

    condition: Any
    toxic_share: float
    style: Any
    scale: float = 1.0
    smoke: bool = False

    @property
    def size(self) -> DataSize:
        """How much data there is."""
        full, scale = DataSize(), 0.0 if self.smoke else self.scale
        return replace(
            full,
            pictures=max(LEAST.pictures, round(scale * full.pictures)),
            texts=max(LEAST.texts, round(scale * full.texts)),
            corpus=max(LEAST.corpus, round(scale * full.corpus)),
            toxic_share=self.toxic_share,
            style=self.style,
        )

    def stage(self, stage: StageConfig) -> StageConfig:
        """A stage at this scale."""
        steps = 3 if self.smoke else max(3, round(self.scale * stage.steps))
        return stage.model_copy(update={"steps": steps})


def prepare(out: Path, seed: int, setting: Setting) -> None:
    """Make what all methods of a seed start from: the untrained LLaVA and the alignment data."""
    from tgalign.checkpoint import save_checkpoint

    llm, clip, tokenizer = load_lab()
    base = _base(out, seed)
    if not base.is_dir():
        base.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(*lab_llava(llm, clip, tokenizer, seed=seed), base)
    data = _data(out, seed, setting)
    build_alignment_data(data, seed, setting.condition, clip, tokenizer, setting.size)


def _base(out: Path, seed: int) -> Path:
    return out / f"seed{seed}" / f"base-{digest(_made_with())}" / "checkpoint"


def _data(out: Path, seed: int, setting: Setting) -> Path:
    made = {"condition": setting.condition, "size": asdict(setting.size), **_made_with()}
    return out / f"seed{seed}" / f"data-{digest(made)}"


@cache
def _made_with() -> dict[str, Any]:
    return {"assets": check_assets()["files"], "versions": versions()}


def training_config(out: Path, seed: int, setting: Setting, name: str) -> TrainConfig:
    """The run of a method; its ``out`` is named by a digest of all that decides its weights.

    Args:
        out: Folder of the comparison.
        seed: Of data and training.
        setting: What all methods share.
        name: A key of ``TRAININGS``.
    """
    method = TRAININGS[name]
    folder = out / f"seed{seed}"
    data = _data(out, seed, setting)
    start = training_config(out, seed, setting, method.start) if method.start else None
    config = arm_config(
        method.arm,
        model=start.out / "checkpoint" if start else _base(out, seed),
        data=data,
        out=folder / "runs" / name,
        seed=seed,
        smoke=setting.smoke,
    )
    stages = [setting.stage(stage) for stage in method.stages or config.stages]
    config = config.model_copy(update={"stages": stages})
    decides = {
        "training": config.model_dump(mode="json", exclude=PLACES),
        "start": start.out.name if start else None,
        "method": hashlib.sha256(_source(name)).hexdigest(),
        "data": data.name,
        **_made_with(),
    }
    key = f"{name}-{digest(decides)}"
    changed: dict[str, Any] = {"out": folder / "runs" / key}
    if method.records is not None:
        changed |= {"records": folder / "records" / key / "records.jsonl", "image_root": folder}
    return config.model_copy(update=changed)


def _source(name: str) -> bytes:
    return (Path(__file__).parent / f"{name}.py").read_bytes()


def train_method(out: Path, seed: int, setting: Setting, name: str) -> Path:
    """Train a method, or go on where it was killed; what is finished is not repeated.

    Its start and the shared data must be there.

    Returns:
        The folder of its checkpoint.
    """
    from tgalign.run_folder import adopt
    from tgalign.train import train

    write_records(out, seed, setting, name)
    config = training_config(out, seed, setting, name)
    adopt(config)
    return train(config, progress_bar=False, kept_answers=out / f"seed{seed}")


def write_records(out: Path, seed: int, setting: Setting, name: str) -> None:
    """Write the records and pictures that a method has of its own, complete or not at all."""
    make = TRAININGS[name].records
    folder = training_config(out, seed, setting, name).records.parent
    if make is None or folder.is_dir():
        return
    root, data, size = out / f"seed{seed}", _data(out, seed, setting), setting.size
    pool = picture_pool(size.objects, size.style)
    lines = (data / "records.jsonl").read_text(encoding="utf-8").splitlines()
    with folder_at_once(folder) as beside:
        beside.mkdir(parents=True)
        drawing = Drawing(beside, random.Random(f"{name}-{seed}"), pool, size.style)
        kept, added = make([json.loads(line) for line in lines], drawing)
        rows = [_moved(row, data.relative_to(root)) for row in kept]
        rows += [_moved(row, folder.relative_to(root)) for row in added]
        write_jsonl(beside / "records.jsonl", rows)


def _moved(row: Row, folder: Path) -> Row:
    """A row whose image path is relative to the seed's folder."""
    return row | {"image": str(folder / row["image"])} if "image" in row else row


def training_seconds(config: TrainConfig) -> float:
    """Seconds of all steps of a finished run, at the median of each stage."""
    return sum(stage_seconds(read_metrics(config.out / stage.name)) for stage in config.stages)
