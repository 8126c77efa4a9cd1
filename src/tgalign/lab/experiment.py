"""``tgalign lab experiment``: one arm, changed at will, tuned on things the last table leaves out.

Everything here shows the things of the development split in Twemoji drawings: no icon drawing and
no held-out thing is looked at.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from tgalign.config import TrainConfig, parse_config
from tgalign.demo_results import versions
from tgalign.errors import UserError
from tgalign.evaluate.statistics import wilson
from tgalign.files import digest, read_json, sha256, write_json, write_jsonl
from tgalign.lab.alignment_data import DataSize, build_alignment_data, toxic_share_of
from tgalign.lab.arms import ARMS, PLACES, arm_config
from tgalign.lab.assets import ASSETS, LLM, check_assets
from tgalign.locks import sole_writer

if TYPE_CHECKING:
    from tgalign.retrieval.quality import Quality

SUITE = 1_000
"""Added to the seed: the suites of experiments are none of the demo's."""

NUM_PROBES = 32

_Settings = TypeVar("_Settings", bound="DataSize | Quality")

_FIXED = {
    "model", "records", "out", "probes", "seed",
    "data.objects", "data.style", "data.toxic_share",
}  # fmt: skip
"""What an experiment states elsewhere or must not change."""


def run_experiment(
    out: Path,
    arm: str,
    *,
    condition: str,
    toxic_share: float | None,
    seed: int,
    changes: Sequence[str],
    conflict: bool = False,
    llm: Path | None = None,
    progress_bar: bool = True,
) -> dict[str, Any]:
    """Train and measure one arm on the development split, or read what was measured.

    Args:
        out: Folder of experiments; ``results.jsonl`` there gets a line for each.
        arm: A key of ``ARMS``.
        condition: As of the demo.
        toxic_share: As of the demo; None: the condition's own.
        seed: Of data, training and suite.
        changes: ``KEY=VALUE`` with KEY a setting of the recipe (``companions``), of one stage
            (``stage2.llm_lr``, ``stage1.objective.weight``), of both (``stage.batch_size``,
            ``objective.weight``), of the data (``data.pictures``) or of the quality of R and C
            (``quality.rank``, ``tgalign.retrieval.quality``), and VALUE in YAML.
        conflict: Whether to log the gradient conflict on toxic and on benign pictures.
        llm: Folder of another base LLM than the shipped one (``lab.build.build_llm``).
        progress_bar: Whether to draw one.

    Returns:
        What was run, and its rates.

    Raises:
        UserError: An unknown arm, condition or key, a value that is not allowed, or another run
            writes to ``out``.
    """
    if arm not in ARMS:
        raise UserError(f"unknown arm {arm!r}; expected one of: {', '.join(ARMS)}")
    pairs = [_split(change) for change in changes]
    size = _changed_size(pairs)
    quality = _changed_quality(pairs)
    share = toxic_share_of(condition, toxic_share, size.pictures)
    size = replace(size, toxic_share=share)
    manifest = check_assets()
    made_with = {"versions": versions(), "assets": manifest["files"]}
    if llm is not None:
        made_with["llm"] = sha256(llm / "model.safetensors")
    base = out / f"base{seed}-{digest(made_with)}"
    data = out / f"data-{digest([condition, seed, asdict(size), made_with])}"
    config = _changed(
        arm_config(arm, model=base, data=data, out=out / "run", seed=seed, smoke=False), pairs
    )
    if quality is not None:
        records = data / f"records-{digest(asdict(quality))}.jsonl"
        config = config.model_copy(update={"records": records})
    if conflict:
        probes = {kind: data / f"probe-{kind}.jsonl" for kind in ("toxic", "benign")}
        config = parse_config(config.model_dump() | {"probes": probes}, "the changed arm")
    what = {"arm": arm, "condition": condition, "toxic_share": share, "seed": seed}
    what |= {"changes": list(changes)}
    decides = config.model_dump(mode="json", exclude=PLACES)
    folder = out / f"{arm}-{digest([what, conflict, decides, made_with])}"
    with sole_writer(out):
        if not (folder / "result.json").is_file():
            config = config.model_copy(update={"out": folder / "run"})
            result = what | _measured(
                config, data, condition, size, seed, llm, quality, progress_bar
            )
            write_json(folder / "result.json", result)
        # Made of the results anew, so that a kill loses no line.
        done = sorted(out.glob("*/result.json"), key=lambda path: path.stat().st_mtime_ns)
        write_jsonl(out / "results.jsonl", map(read_json, done))
    found: dict[str, Any] = read_json(folder / "result.json")
    return found


def _measured(
    config: TrainConfig,
    data: Path,
    condition: Any,
    size: DataSize,
    seed: int,
    llm: Path | None,
    quality: Quality | None,
    progress_bar: bool,
) -> dict[str, Any]:
    from tgalign.checkpoint import load_llava, save_checkpoint
    from tgalign.lab.assets import lab_llava, load_lab, load_llm
    from tgalign.lab.measure import measure
    from tgalign.lab.suite import lab_suite
    from tgalign.run_folder import adopt
    from tgalign.train import train

    lab = load_lab()
    if llm is not None:
        lab = load_llm(llm), *lab[1:]
    if not config.model.is_dir():
        config.model.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(*lab_llava(*lab, seed=seed), config.model)
    build_alignment_data(data, seed, condition, lab[1], lab[2], size)
    measured: dict[str, Any] = {}
    if quality is not None:
        from tgalign.retrieval.quality import change_quality, similarity

        change_quality(config.records, data, quality, text_encoder=ASSETS / LLM)
        measured["similarity"] = similarity(config.records)
    for path in config.probes.values():
        _write_probe(path, data, toxic="toxic" in path.name)
    adopt(config)
    model, processor = load_llava(train(config, progress_bar=progress_bar, kept_answers=data))
    suite = lab_suite(
        SUITE + seed, num_benign=150, num_texts=150, objects=size.objects, style=size.style
    )
    found = measure(model, processor, suite)
    return measured | {
        "rates": {name: wilson(*count).as_dict() for name, count in found.counts.items()},
        "dsr_by_scene": {
            scene: wilson(*count).as_dict() for scene, count in found.dsr_by_scene.items()
        },
        "alignment": found.alignment,
        "conflict": [
            {"stage": stage.name, **json.loads(line)}
            for stage in config.stages
            if (log := config.out / stage.name / "conflict.jsonl").is_file()
            for line in log.read_text(encoding="utf-8").splitlines()
        ],
    }


def _write_probe(path: Path, data: Path, *, toxic: bool) -> None:
    """Pictures with captions and plain answers whose gradients are compared; none is trained."""
    from tgalign.lab.alignment_data import toxic_scene
    from tgalign.lab.language import Mention, ask, scene_caption
    from tgalign.lab.objects import picture_pool
    from tgalign.lab.pictures import draw, sample_scene

    rng = random.Random(f"{path.name}-{data.name}")
    pool = picture_pool("development")
    rows = []
    for number in range(NUM_PROBES):
        scene = toxic_scene(rng, pool) if toxic else sample_scene(pool.benign, rng)
        name = f"pictures/{path.stem}-{number}.png"
        draw(scene, rng, style="emoji").save(data / name)
        mentions = tuple(Mention(thing) for thing in scene.things)
        asked, answer = ask(mentions, scene.color, "describe", rng, "train")
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        rows.append({"image": name, "caption": scene_caption(scene, rng), "messages": turns})
    write_jsonl(path, rows)


def _split(change: str) -> tuple[str, Any]:
    key, sign, value = change.partition("=")
    if not sign or not key:
        raise UserError(f"change {change!r}: expected KEY=VALUE, such as stage2.llm_lr=1.0e-4")
    if key in _FIXED:
        raise UserError(f"change {change!r}: {key} is not to be changed here")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as fault:
        raise UserError(f"change {change!r}: the value is no YAML ({fault})") from None


def _changed_size(pairs: Sequence[tuple[str, Any]]) -> DataSize:
    return _changed_settings(DataSize(objects="development", style="emoji"), "data", pairs)


def _changed_quality(pairs: Sequence[tuple[str, Any]]) -> Quality | None:
    """How good R and C are to be; None: as the data have them."""
    if not any(key.startswith("quality.") for key, _ in pairs):
        return None
    from tgalign.retrieval.quality import Quality

    return _changed_settings(Quality(), "quality", pairs)


def _changed_settings(before: _Settings, place: str, pairs: Sequence[tuple[str, Any]]) -> _Settings:
    settings = asdict(before)
    lead = f"{place}."
    changed = {key.removeprefix(lead): value for key, value in pairs if key.startswith(lead)}
    unknown = [f"{lead}{key}" for key in changed.keys() - settings.keys()]
    if unknown:
        known = ", ".join(key for key in settings if f"{lead}{key}" not in _FIXED)
        raise UserError(f"unknown setting {', '.join(unknown)}; those of the {place}: {known}")
    settings |= changed
    try:
        return TypeAdapter(type(before)).validate_python(settings)
    except ValidationError as fault:
        wrong = (f"{it['loc'][-1]}: {it['msg']}, got {it['input']!r}" for it in fault.errors())
        raise UserError("; ".join(lead + it for it in wrong)) from None


def _changed(config: TrainConfig, pairs: Sequence[tuple[str, Any]]) -> TrainConfig:
    settings = config.model_dump()
    first, second = settings["stages"]
    places = {
        "": [settings],
        "stage1": [first],
        "stage2": [second],
        "stage": [first, second],
        "stage1.objective": [first["objective"]],
        "stage2.objective": [second["objective"]],
        "objective": [first["objective"], second["objective"]],
    }
    for key, value in pairs:
        place, _, name = key.rpartition(".")
        if place in ("data", "quality"):
            continue
        if place not in places:
            raise UserError(
                f"unknown setting {key!r}: a key starts with one of "
                f"{', '.join(place for place in places if place)}, data, quality, or nothing"
            )
        for table in places[place]:
            table[name] = value
    return parse_config(settings, "the changed arm")
