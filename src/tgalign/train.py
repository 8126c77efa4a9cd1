"""Train a stock LLaVA checkpoint through the stages of a config, and save a stock checkpoint."""

from __future__ import annotations

import hashlib
import heapq
import json
import os
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tgalign.checkpoint import load_llava, pixel_loader, save_checkpoint
from tgalign.config import StageConfig, TrainConfig
from tgalign.data.collate import Collator
from tgalign.data.encode import EncodedRecord, Encoder
from tgalign.data.load import UNPACKED, TrainingData
from tgalign.data.records import Problem, Record, read_records, require_all_good
from tgalign.data.sources import image_root_of
from tgalign.errors import UserError
from tgalign.files import is_free, read_json, write_text
from tgalign.pooling import parse_layers
from tgalign.synthetic import Corpus
from tgalign.task import AlignmentTask
from tgalign.text_cache import TextCache
from tgalign.text_gate import Verdicts, gated, verdicts_of, with_companions
from tgalign.trainer import TGATrainer
from tgalign.vision_cache import VisionCache, cached_vision

_PLANNED = (
    "frozen_weights",
    "compile",
    "activation_checkpointing",
    "parallel",
    "lora",
    "workers",
)
"""Settings of the schema that a dry run reads and training refuses."""


def train(config: TrainConfig, *, progress_bar: bool = True) -> Path:
    """Train through all stages; a killed run goes on where it was when called again.

    Args:
        config: The run. Its ``out`` receives ``checkpoint/`` (stock LLaVA) and, per stage,
            ``metrics.jsonl``.
        progress_bar: Whether to draw one per stage.

    Returns:
        The folder of the trained checkpoint.

    Raises:
        UserError: Anything wrong with the checkpoint or a row of the data, before training;
            ``out`` holds something else; or there are several processes.
    """
    checkpoint = config.out / "checkpoint"
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("training on several processes is not supported yet: start one")
    early = [
        name for name in _PLANNED if getattr(config, name) != TrainConfig.model_fields[name].default
    ]
    if early:
        raise UserError(
            f"{', '.join(early)}: --dry-run counts with it, and training does not support it yet: "
            "leave it out"
        )
    _claim(config)
    if not checkpoint.is_dir():
        _train_stages(config, checkpoint, progress_bar)
    for stage in config.stages:
        for state in (config.out / stage.name).glob("checkpoint-*"):
            shutil.rmtree(state)
        shutil.rmtree(config.out / stage.name / "incomplete", ignore_errors=True)
        (config.out / stage.name / "end.safetensors").unlink(missing_ok=True)
    shutil.rmtree(config.out / UNPACKED, ignore_errors=True)
    return checkpoint


def _train_stages(config: TrainConfig, checkpoint: Path, progress_bar: bool) -> None:
    data = TrainingData(
        config.records,
        config.image_root or image_root_of(config.records),
        out=config.out,
        max_bad_share=config.max_bad_share,
        progress_bar=progress_bar,
    )
    records = data.records
    model, processor = load_llava(config.model)
    # Everything that a later stage would refuse is said before the first, which may take days.
    _check_model(model, config)
    encoder = _encoder(model, processor, config)
    probes = _probe_rows(model, processor, config)
    corpus = Corpus.load(config.synthetic, records, model, encoder) if config.synthetic else None
    if torch.accelerator.is_available():
        moved: Any = model
        moved.to(torch.accelerator.current_accelerator())
    refused: Sequence[Record] = []
    verdicts = Verdicts([], [])
    if config.text_gate:
        texts = corpus.texts if corpus else []
        verdicts = verdicts_of(config.out, records, texts, model, processor, progress_bar)
        records, refused = gated(records, verdicts)
    rows = [_stage_rows(model, processor, config, stage, records, data) for stage in config.stages]
    _write_config(config)
    data.write(config.out)
    if config.text_gate:
        verdicts.write(config.out)
    load_pixels = pixel_loader(processor)
    caching: Any = nullcontext(load_pixels)
    if config.cache_vision:
        images = [record.image for record in records if record.image is not None]
        images += [row.image for each in probes.values() for row in each if row.image is not None]
        caching = cached_vision(model, images, load_pixels)
    with caching as load:
        # What cannot be encoded is left out of the stages too, and named there.
        companions, _ = encoder.encode_all(refused, config.records.name)
        if corpus is not None:
            assert isinstance(load, VisionCache), "the config wants cache_vision"
            companions += corpus.pictures(verdicts.texts, records, load, config.seed)
        rows = [with_companions(each, companions, config.companions) for each in rows]
        collator = Collator(processor.tokenizer.pad_token_id, load)
        states = TextCache(rows)
        batches = {name: collator(probe) for name, probe in probes.items()}
        for stage, stage_rows in zip(config.stages, rows, strict=True):
            _train_stage(model, config, stage, stage_rows, collator, states, batches, progress_bar)
            if "llm" in stage.train:
                states.clear()  # another LLM gives other states
    save_checkpoint(model, processor, checkpoint)


def _check_model(model: Any, config: TrainConfig) -> None:
    """Set the attention, and check what can be checked of the config without any row.

    Raises:
        UserError: Attention that is not to be had, several vision layers to keep, or layers of an
            objective out of range.
    """
    try:
        model.set_attn_implementation(config.attention)
    except (ImportError, ValueError) as fault:
        raise UserError(f"attention {config.attention!r} is not to be had here: {fault}") from None
    if config.cache_vision and not isinstance(model.config.vision_feature_layer, int):
        raise UserError(
            f"cache_vision needs one vision feature layer, and {config.model} reads "
            f"{model.config.vision_feature_layer}: set cache_vision to false"
        )
    for stage in config.stages:
        parse_layers(stage.objective.layers, model.config.text_config.num_hidden_layers)


def _stage_rows(
    model: Any,
    processor: Any,
    config: TrainConfig,
    stage: StageConfig,
    records: Sequence[Record],
    data: TrainingData,
) -> Sequence[EncodedRecord]:
    """Check a stage against the model and encode the rows it trains on.

    Raises:
        UserError: No row to learn from, or too many that are too long or teach nothing.
    """
    encoder = _encoder(model, processor, config, stage.retrieved_in_prompt)
    # A text-only row reaches no trained weight while the LLM is frozen.
    used = (it for it in records if "llm" in stage.train or it.image is not None)
    rows = data.encode(encoder, used, stage.name)
    if not rows:
        alone = "" if "llm" in stage.train else " trains the projector alone, on pictures, and"
        raise UserError(f"stage {stage.name}{alone} has no row to learn from")
    centered = stage.objective.weight > 0 and stage.objective.similarity == "centered_cosine"
    if centered and all(row.caption is None for row in rows):
        raise UserError(f"stage {stage.name}: centered_cosine needs captions, and no row has one")
    return rows


def _probe_rows(model: Any, processor: Any, config: TrainConfig) -> dict[str, list[EncodedRecord]]:
    """The encoded rows of every probe file, each with image, caption and answer."""
    probes = {}
    for name, path in config.probes.items():
        records, problems = read_records(path, config.image_root or path.parent)
        problems += [
            Problem(path.name, it.row, "a probe needs an image, a caption and an answer")
            for it in records
            if it.image is None or it.caption is None or len(it.messages) < 2
        ]
        rows, more = _encoder(model, processor, config).encode_all(records, path.name)
        require_all_good(problems + more)
        probes[name] = rows
    return probes


def _encoder(
    model: Any, processor: Any, config: TrainConfig, retrieved_in_prompt: float = 0.0
) -> Encoder:
    return Encoder(
        processor.tokenizer,
        model.config.image_seq_length,
        max_length=config.max_length,
        retrieved_in_prompt=retrieved_in_prompt,
    )


def _claim(config: TrainConfig) -> None:
    """Make ``out``, or check that the run found there has the same config."""
    path = config.out / "config.json"
    try:
        if path.is_file():
            if read_json(path) != json.loads(config.model_dump_json()):
                raise UserError(
                    f"{config.out} holds a run with another config: name another folder as out, or "
                    "remove it"
                )
            return
        if not is_free(config.out):
            raise UserError(
                f"{config.out} is not empty and holds no training run: name another folder as out"
            )
        config.out.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise UserError(f"cannot write to {config.out}: {fault}") from None


def _write_config(config: TrainConfig) -> None:
    """Write the config into ``out``: from here on it holds this run."""
    try:
        write_text(config.out / "config.json", config.model_dump_json(indent=1))
    except OSError as fault:
        raise UserError(f"cannot write to {config.out}: {fault}") from None


def freeze(model: Any, stage: StageConfig) -> None:
    """Let gradients reach the parts that a stage trains, and nothing else."""
    model.requires_grad_(False)
    if "projector" in stage.train:
        model.model.multi_modal_projector.requires_grad_(True)
    if "llm" in stage.train:
        model.model.language_model.requires_grad_(True)
        model.lm_head.requires_grad_(True)


def _train_stage(
    model: Any,
    config: TrainConfig,
    stage: StageConfig,
    rows: Sequence[EncodedRecord],
    collator: Collator,
    states: TextCache,
    probes: dict[str, dict[str, Tensor]],
    progress_bar: bool,
) -> None:
    folder = config.out / stage.name
    end = folder / "end.safetensors"
    freeze(model, stage)
    if end.is_file():
        model.load_state_dict(load_file(end), strict=False)
        return
    torch.manual_seed(config.seed)
    task = AlignmentTask(model, stage.objective)
    estimate_center(task, rows, collator)
    if config.cache_text and stage.objective.weight > 0 and not task.reference_moves:
        states.fill(task, collator)
        collator = Collator(collator.pad_token_id, collator.load_pixels, states)
    trainer = TGATrainer(
        task,
        stage,
        rows,
        collator,
        folder,
        seed=config.seed,
        save_steps=config.save_steps,
        logging_steps=config.logging_steps,
        probes=probes,
        bf16=config.precision == "bf16",
        progress_bar=progress_bar,
    )
    trainer.train_or_resume()
    beside = end.with_suffix(".incomplete")
    trained = {n: w.detach().contiguous() for n, w in model.named_parameters() if w.requires_grad}
    save_file(trained, beside)
    beside.replace(end)


def estimate_center(
    task: AlignmentTask,
    rows: Sequence[EncodedRecord],
    collator: Collator,
    *,
    num_captions: int = 1024,
) -> None:
    """Set the centre of ``centered_cosine``: the mean caption state at the start of the stage.

    A fixed centre, not a running one, so that the loss of a row does not depend on which rows
    share its batch. Captions are taken in an order given by their hash, not by the file's.
    """
    if task.objective.similarity != "centered_cosine" or task.objective.weight == 0:
        return
    captioned = heapq.nsmallest(
        num_captions,
        (row for row in rows if row.caption is not None),
        key=lambda row: hashlib.sha256(repr(row.caption).encode()).digest(),
    )
    assert captioned, "checked before the first stage"
    total_LD = torch.zeros_like(task.center_LD)
    for start in range(0, len(captioned), 128):
        spans = [row.caption for row in captioned[start : start + 128] if row.caption]
        texts = collator.texts(spans)
        device = task.center_LD.device  # an earlier stage may have moved the model there
        states_LBD = task.text_states(
            texts["text_input_ids"].to(device),
            texts["text_attention_mask"].to(device),
            texts["text_span"].to(device),
        )
        total_LD += states_LBD.sum(dim=1)
    task.center_LD.copy_(total_LD / len(captioned))
