"""The commands that faults are injected into, in their smallest settings."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

FINISHED = sys.maxsize
"""More units than any run has: nothing is left that could be lost."""


@dataclass(frozen=True)
class Command:
    """A command under test.

    Attributes:
        name: Its verb.
        arguments: All but ``tgalign``.
        place: The folder that all it writes lies in.
        result: What appears last.
        units: Globs, below ``place``, of the files that keep finished work.
        lost: Units that a kill may cost: the work since the last checkpoint.
        what: A unit, in words.
    """

    name: str
    arguments: tuple[str, ...]
    place: Path
    result: str
    units: tuple[str, ...]
    lost: int
    what: str

    def finished(self) -> int:
        """Units of work that are kept at the moment: lines of journals, else files."""
        if (self.place / self.result).exists():
            return FINISHED
        count = 0
        for glob in self.units:
            for path in self.place.glob(glob):
                journal = path.suffix in (".jsonl", ".progress")
                try:
                    count += path.read_bytes().count(b"\n") if journal else 1
                except FileNotFoundError:
                    continue
        return count


def write_world(world: Path) -> None:
    """Draw a small world of the lab: model, pictures, records, corpus, index."""
    from tgalign.checkpoint import save_checkpoint
    from tgalign.lab.alignment_data import DataSize, build_alignment_data
    from tgalign.lab.assets import lab_llava, load_lab
    from tgalign.retrieval.build import build_index

    llm, clip, tokenizer = load_lab()
    save_checkpoint(*lab_llava(llm, clip, tokenizer, seed=0), world / "model")
    size = DataSize(pictures=60, texts=20, corpus=100)
    records = build_alignment_data(world / "data", 0, "captioned", clip, tokenizer, size)
    shown = [it for it in records.read_text().splitlines() if "image" in json.loads(it)]
    many = world / "data" / "many.jsonl"  # more than one shard of retrieve attach
    many.write_text("".join(line + "\n" for line in shown * 35))
    build_index(world / "data" / "corpus.jsonl", world / "index", progress_bar=False)


def name_commands(world: Path) -> list[Command]:
    """The commands, with a place for each in the world."""
    from tgalign.lab.arms import arm_config

    model, data = world / "model", world / "data"

    def place(name: str) -> Path:
        folder = world / "places" / name
        folder.mkdir(parents=True)
        return folder

    train, build, attach = place("train"), place("build"), place("attach")
    caption, evaluate, compare = place("caption"), place("evaluate"), place("compare")
    demo, diagnose = place("demo"), place("diagnose")
    config = arm_config("tga", model=model, data=data, out=train / "out", seed=0, smoke=True)
    stages = [stage.model_copy(update={"steps": 6}) for stage in config.stages]
    config = config.model_copy(update={"stages": stages, "save_steps": 2, "logging_steps": 1})
    recipe = world / "recipe.yaml"  # JSON is YAML
    recipe.write_text(config.model_dump_json())
    return [
        Command(
            "train", ("train", str(recipe), "--no-progress"), train,
            "out/checkpoint", ("out/stage*/metrics.jsonl",), 2, "steps",
        ),
        Command(
            "retrieve build",
            ("retrieve", "build", str(data / "corpus.jsonl"), "--out", str(build / "out"),
             "--shard-rows", "10", "--no-progress"), build,
            "out", ("out.incomplete/vectors-*.npy",), 0, "shards",
        ),
        Command(
            "retrieve attach",
            ("retrieve", "attach", str(data / "many.jsonl"), "--index", str(world / "index"),
             "--out", str(attach / "out.jsonl"), "--no-progress"), attach,
            "out.jsonl", ("*.shards.incomplete/counts-*.json",), 0, "shards",
        ),
        Command(
            "caption",
            ("caption", str(data / "pictures"), "--model", str(model), "--out",
             str(caption / "out.jsonl"), "--batch-size", "2", "--max-new-tokens", "16",
             "--no-progress"), caption,
            "out.jsonl", ("out.jsonl.progress",), 1, "batches",
        ),
        Command(
            "evaluate",
            ("evaluate", str(model), "--limit", "4", "--batch-size", "4", "--out",
             str(evaluate / "out")), evaluate,
            "out/report.html", ("out/items.jsonl",), 1, "answers",
        ),
        Command(
            "compare",
            ("compare", "--smoke", "--methods", "ce,safety_prompt", "--jobs", "1",
             "--out", str(compare / "out")), compare,
            "out/comparison.html",
            ("out/seed0/measured/*.json", "out/seed0/runs/*/checkpoint/model.safetensors"), 0,
            "models",
        ),
        Command(
            "demo", ("demo", "--smoke", "--arms", "ce", "--jobs", "1", "--out", str(demo / "out")),
            demo, "out/report.html", ("out/seed0/*/measurement.json",), 0, "arms",
        ),
        Command(
            "diagnose",
            ("diagnose", str(model), "--per-scene", "2", "--patch-layers", "2-2", "--no-progress",
             "--out", str(diagnose / "out")), diagnose,
            "out/report.html", ("out/parts/patching-*.json",), 1, "parts",
        ),
    ]  # fmt: skip
