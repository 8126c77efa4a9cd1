"""Train a stock LLaVA checkpoint through the stages of a config, and save a stock checkpoint."""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch import Tensor

from tgalign.checkpoint import load_llava, pixel_loader, save_checkpoint
from tgalign.config import StageConfig, TrainConfig
from tgalign.data.collate import Collator
from tgalign.data.encode import EncodedRecord, Encoder
from tgalign.data.records import Problem, Record, read_records, require_all_good
from tgalign.errors import UserError
from tgalign.execution import compile_layers, half_products, packs, set_up
from tgalign.files import is_free, read_json, write_text
from tgalign.lora import adapters_of, add_adapters, merge_adapters
from tgalign.parallel import connect, trained_weights
from tgalign.pooling import parse_layers
from tgalign.synthetic import Corpus
from tgalign.task import AlignmentTask
from tgalign.text_cache import TextCache
from tgalign.text_gate import Verdicts, gated, verdicts_of, with_companions
from tgalign.trainer import TGATrainer
from tgalign.vision_cache import VisionCache, cached_vision


def train(config: TrainConfig, *, progress_bar: bool = True) -> Path:
    """Train through all stages; a killed run goes on where it was when called again.

    Several processes (``torchrun``, ``accelerate launch``) that call it share every step. They need
    ``out`` on one file system.

    Args:
        config: The run. Its ``out`` receives ``checkpoint/`` (stock LLaVA) and, per stage,
            ``metrics.jsonl``.
        progress_bar: Whether to draw one per stage.

    Returns:
        The folder of the trained checkpoint.

    Raises:
        UserError: Anything wrong with the checkpoint or a row of the data, before training;
            ``out`` holds something else; or the processes do not fit the config.
    """
    checkpoint = config.out / "checkpoint"
    processes = connect(config)
    _claim(config)
    trained = checkpoint.is_dir()
    processes.wait_for_everyone()  # all have looked before any writes
    while not trained:
        trained = _train_stages(config, checkpoint, processes, progress_bar)
        if not trained:
            gc.collect()  # the sharded model, which refers to itself
    if processes.is_main_process:
        for stage in config.stages:
            for state in (config.out / stage.name).glob("checkpoint-*"):
                shutil.rmtree(state)
            shutil.rmtree(config.out / stage.name / "incomplete", ignore_errors=True)
            (config.out / stage.name / "end.safetensors").unlink(missing_ok=True)
    processes.wait_for_everyone()
    return checkpoint


def _train_stages(
    config: TrainConfig, checkpoint: Path, processes: PartialState, progress_bar: bool
) -> bool:
    """Train from where the run is.

    Returns:
        Whether the checkpoint is written. If not, another stage is to be trained, from the weights
        of those before, as FSDP2 has left this model in shards.
    """
    root = config.image_root or config.records.parent
    records, problems = read_records(config.records, root)
    require_all_good(problems)
    stored = config.frozen_weights == "bf16"  # half the memory, if they are stored so
    model, processor = load_llava(config.model, dtype="auto" if stored else "float32")
    # Everything that a later stage would refuse is said before the first, which may take days.
    set_up(model, config)
    _check_model(model, config)
    encoder = _encoder(model, processor, config)
    probes = _probe_rows(model, processor, config)
    corpus = Corpus.load(config.synthetic, records, model, encoder) if config.synthetic else None
    if torch.accelerator.is_available():
        moved: Any = model
        moved.to(torch.accelerator.current_accelerator())
    refused: list[Record] = []
    verdicts = Verdicts([], [])
    if config.text_gate:
        texts = corpus.texts if corpus else []
        show = progress_bar and processes.is_main_process
        with half_products(config):
            verdicts = verdicts_of(config.out, records, texts, model, processor, show)
        records, refused = gated(records, verdicts)
    rows = [_stage_rows(model, processor, config, stage, records) for stage in config.stages]
    processes.wait_for_everyone()  # all have read the verdicts that were there
    if processes.is_main_process:
        _write_config(config)
        if config.text_gate:
            verdicts.write(config.out)
    load_pixels = pixel_loader(processor)
    images = [record.image for record in records if record.image is not None]
    images += [row.image for rows in probes.values() for row in rows if row.image is not None]
    caching = (
        cached_vision(model, images, load_pixels)
        if config.cache_vision
        else nullcontext(load_pixels)
    )
    with caching as load:
        companions = [encoder.encode(record) for record in refused]
        if corpus is not None:
            assert isinstance(load, VisionCache), "the config wants cache_vision"
            companions += corpus.pictures(verdicts.texts, records, load, config.seed)
        rows = [with_companions(each, companions, config.companions) for each in rows]
        with half_products(config):
            pack = packs(model.model.language_model)
        collator = Collator(processor.tokenizer.pad_token_id, load, pack=pack)
        states = TextCache(
            [row for each in rows for row in each],
            config.cache_text if isinstance(config.cache_text, Path) else None,
            bf16=config.precision == "bf16",
            progress_bar=progress_bar,
        )
        batches = {name: collator(probe) for name, probe in probes.items()}
        if config.compile:
            compile_layers(model)
        for stage, stage_rows in zip(config.stages, rows, strict=True):
            whole = _train_stage(
                model, config, stage, stage_rows, collator, states, batches, progress_bar
            )
            processes.wait_for_everyone()
            if not whole:
                return False
            if "llm" in stage.train:
                states.clear()  # another LLM gives other states
    if processes.is_main_process:
        save_checkpoint(model, processor, checkpoint)
    processes.wait_for_everyone()
    return True


def _check_model(model: Any, config: TrainConfig) -> None:
    """Check what can be checked of the config without any row.

    Raises:
        UserError: Several vision layers to keep, or layers of an objective out of range.
    """
    if config.cache_vision and not isinstance(model.config.vision_feature_layer, int):
        raise UserError(
            f"cache_vision needs one vision feature layer, and {config.model} reads "
            f"{model.config.vision_feature_layer}: set cache_vision to false"
        )
    for stage in config.stages:
        parse_layers(stage.objective.layers, model.config.text_config.num_hidden_layers)


def _stage_rows(
    model: Any, processor: Any, config: TrainConfig, stage: StageConfig, records: list[Record]
) -> list[EncodedRecord]:
    """Check a stage against the model and encode the rows it trains on.

    Raises:
        UserError: No row to learn from, or naming every row that is too long or teaches nothing.
    """
    if "llm" not in stage.train:
        # A text-only row reaches no trained weight while the LLM is frozen.
        records = [record for record in records if record.image is not None]
        if not records:
            raise UserError(
                f"stage {stage.name} trains the projector alone, and no row has an image"
            )
    encoder = _encoder(model, processor, config, stage.retrieved_in_prompt)
    rows, problems = encoder.encode_all(records, config.records.name)
    require_all_good(problems)
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
        adapters = adapters_of(model.model.language_model)
        for adapter in adapters:
            adapter.lora_A.requires_grad_(True)
            adapter.lora_B.requires_grad_(True)
        if not adapters:
            model.model.language_model.requires_grad_(True)
            model.lm_head.requires_grad_(True)


def _train_stage(
    model: Any,
    config: TrainConfig,
    stage: StageConfig,
    rows: list[EncodedRecord],
    collator: Collator,
    states: TextCache,
    probes: dict[str, dict[str, Tensor]],
    progress_bar: bool,
) -> bool:
    """Train a stage, or load what it ended with.

    Returns:
        Whether the model is whole and has the weights of the stage's end: not if FSDP2 trained it.
    """
    folder = config.out / stage.name
    end = folder / "end.safetensors"
    torch.manual_seed(config.seed)
    if config.lora is not None and "llm" in stage.train:
        add_adapters(model, config.lora)
    freeze(model, stage)
    if end.is_file():
        model.load_state_dict(load_file(end), strict=False)
        merge_adapters(model)
        return True
    states_are_kept = bool(config.cache_text) and not probes
    task = AlignmentTask(model, stage.objective, states_are_kept=states_are_kept)
    with half_products(config):
        estimate_center(task, rows, collator)
        if config.cache_text and stage.objective.weight > 0 and not task.reference_moves:
            states.fill(task, collator)
            collator = Collator(collator.pad_token_id, collator.load_pixels, states)
    sharded = config.parallel == "fsdp2" and PartialState().num_processes > 1
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
        fsdp2=sharded,
        workers=config.workers,
        progress_bar=progress_bar,
    )
    trainer.train_or_resume()
    main = trainer.accelerator.is_main_process
    weights = trained_weights(model, keep=main)
    if main:
        beside = end.with_suffix(".incomplete")
        save_file(weights, beside)
        beside.replace(end)
    if not sharded:
        merge_adapters(model)
    return not sharded


def estimate_center(
    task: AlignmentTask, rows: list[EncodedRecord], collator: Collator, *, num_captions: int = 1024
) -> None:
    """Set the centre of ``centered_cosine``: the mean caption state at the start of the stage.

    A fixed centre, not a running one, so that the loss of a row does not depend on which rows
    share its batch. Captions are taken in an order given by their hash, not by the file's.
    """
    if task.objective.similarity != "centered_cosine" or task.objective.weight == 0:
        return
    captioned = sorted(
        (row for row in rows if row.caption is not None),
        key=lambda row: hashlib.sha256(repr(row.caption).encode()).digest(),
    )[:num_captions]
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
