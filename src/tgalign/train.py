"""Train a stock LLaVA checkpoint through the stages of a config, and save a stock checkpoint."""

from __future__ import annotations

import gc
import logging
import shutil
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState

from tgalign.checkpoint import load_config, load_llava, pixel_loader, save_checkpoint
from tgalign.config import StageConfig, TrainConfig
from tgalign.data.collate import Collator
from tgalign.data.companions import with_companions
from tgalign.data.encode import EncodedRecord, Encoder
from tgalign.data.load import UNPACKED, TrainingData
from tgalign.data.records import Problem, Record, read_records, require_all_good
from tgalign.data.sources import image_root_of
from tgalign.errors import UserError
from tgalign.execution import compile_layers, half_products, packs, set_up
from tgalign.metrics import REMEDY
from tgalign.parallel import all_finite, connect, sole_writer_of_all
from tgalign.pooling import parse_layers
from tgalign.run_folder import claim_run, text_folder, write_config
from tgalign.stage import train_stage
from tgalign.synthetic import Corpus
from tgalign.text_cache import TextCache
from tgalign.text_gate import GATE_FILE, Verdicts, gated, verdicts_of
from tgalign.vision_cache import VisionCache, cached_vision

if TYPE_CHECKING:
    from transformers import LlavaConfig


def train(
    config: TrainConfig, *, progress_bar: bool = True, kept_answers: Path | None = None
) -> Path:
    """Train through all stages; a killed run goes on where it was when called again.

    Several processes (``torchrun``, ``accelerate launch``) that call it share every step. They need
    ``out`` on one file system.

    Args:
        config: The run. Its ``out`` receives ``checkpoint/`` (stock LLaVA) and, per stage,
            ``metrics.jsonl``.
        progress_bar: Whether to draw one per stage.
        kept_answers: Folder where runs find what the text gate of another one was answered; None:
            that of ``cache_text``, if it is one.

    Returns:
        The folder of the trained checkpoint.

    Raises:
        UserError: Anything wrong with the checkpoint or a row of the data, before training;
            ``out`` holds something else; or the processes do not fit the config.
    """
    processes = connect(config)
    with sole_writer_of_all(config.out, processes):
        return _train_all(config, processes, progress_bar, kept_answers or text_folder(config))


def _train_all(
    config: TrainConfig, processes: PartialState, progress_bar: bool, kept_answers: Path | None
) -> Path:
    """The same for a run that has ``out`` for itself."""
    checkpoint = config.out / "checkpoint"
    claim_run(config)
    trained = (checkpoint / "config.json").is_file()
    if trained and processes.is_main_process:
        logger = logging.getLogger(__name__)
        logger.warning("%s: finished already", config.out)
        done = (checkpoint / "config.json").stat().st_mtime
        if config.records.exists() and config.records.stat().st_mtime > done:
            logger.warning(
                "%s was written after it, and was not trained on as it is now: name another out "
                "to do so",
                config.records,
            )
    processes.wait_for_everyone()  # all have looked before any writes
    while not trained:
        trained = _train_stages(config, checkpoint, processes, progress_bar, kept_answers)
        if not trained:
            gc.collect()  # the sharded model, which refers to itself
    if processes.is_main_process:
        for stage in config.stages:
            for state in (config.out / stage.name).glob("checkpoint-*"):
                shutil.rmtree(state)
            shutil.rmtree(config.out / stage.name / "incomplete", ignore_errors=True)
            (config.out / stage.name / "end.safetensors").unlink(missing_ok=True)
        shutil.rmtree(config.out / UNPACKED, ignore_errors=True)
    processes.wait_for_everyone()
    return checkpoint


def _train_stages(
    config: TrainConfig,
    checkpoint: Path,
    processes: PartialState,
    progress_bar: bool,
    kept_answers: Path | None,
) -> bool:
    """Train from where the run is.

    Returns:
        Whether the checkpoint is written. If not, another stage is to be trained, from the weights
        of those before, as FSDP2 has left this model in shards.
    """
    show = progress_bar and processes.is_main_process
    load_config(config.model)  # not after all rows were read that it is not there
    data = TrainingData(
        config.records,
        config.image_root or image_root_of(config.records),
        out=config.out,
        max_bad_share=config.max_bad_share,
        progress_bar=show,
    )
    stored = config.frozen_weights == "bf16"  # half the memory, if they are stored so
    model, processor = load_llava(config.model, dtype="auto" if stored else "float32")
    # Everything that a later stage would refuse is said before the first, which may take days.
    set_up(model, config)
    check_model(model, config)
    encoder = encoder_of(model.config, processor, config)
    if config.text_gate:
        data.leave_out_unaskable(encoder)
    records = data.records
    probes = probe_rows(model, processor, config)
    corpus = Corpus.load(config.synthetic, records, model, encoder) if config.synthetic else None
    if torch.accelerator.is_available():
        moved: Any = model
        moved.to(torch.accelerator.current_accelerator())
    refused: Sequence[Record] = []
    verdicts = Verdicts([], [])
    if config.text_gate:
        texts = corpus.texts if corpus else []
        with half_products(config):
            names = config.records.name, config.synthetic.texts.name if config.synthetic else ""
            verdicts = verdicts_of(
                config.out, records, texts, model, processor, show, names, kept_answers
            )
        records, refused = gated(records, verdicts)
    rows = [_stage_rows(model, processor, config, stage, records, data) for stage in config.stages]
    processes.wait_for_everyone()  # all have read the verdicts that were there
    if processes.is_main_process:
        write_config(config)
        data.write(config.out)
        _warn_of_gaps(config, data)
        if config.text_gate and verdicts.write(config.out):
            print(f"{verdicts}: {config.out / GATE_FILE}", file=sys.stderr)
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
        with half_products(config):
            pack = packs(model.model.language_model)
        collator = Collator(processor.tokenizer.pad_token_id, load, pack=pack)
        states = TextCache(
            rows,
            text_folder(config),
            bf16=config.precision == "bf16",
            progress_bar=progress_bar,
        )
        batches = {name: collator(probe) for name, probe in probes.items()}
        if config.compile:
            compile_layers(model)
        for stage, stage_rows in zip(config.stages, rows, strict=True):
            whole = train_stage(
                model, config, stage, stage_rows, collator, states, batches, progress_bar
            )
            processes.wait_for_everyone()
            if not whole:
                return False
            if "llm" in stage.train:
                states.clear()  # another LLM gives other states
    if not all_finite(model):  # finite adapters may have an infinite product
        raise UserError(f"the trained weights are NaN or infinite. {REMEDY}")
    if processes.is_main_process:
        save_checkpoint(model, processor, checkpoint)
    processes.wait_for_everyone()
    return True


def _warn_of_gaps(config: TrainConfig, data: TrainingData) -> None:
    """Say what the data as a whole lacks; rows are checked one by one elsewhere."""
    logger = logging.getLogger(__name__)
    if not data.retrieved and any(stage.objective.guides for stage in config.stages):
        logger.warning(
            "no row has a retrieved text R, so the guide aligns and does not rank: "
            "`tgalign retrieve attach` gives R"
        )
    if not data.text_only and any("llm" in stage.train for stage in config.stages):
        logger.warning("the llm is trained and no row is text alone: safety in words may be lost")


def check_model(model: Any, config: TrainConfig) -> None:
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
    encoder = encoder_of(model.config, processor, config, stage.retrieved_in_prompt)
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


def probe_rows(model: Any, processor: Any, config: TrainConfig) -> dict[str, list[EncodedRecord]]:
    """The encoded rows of every probe file, each with image, caption and answer.

    Raises:
        UserError: A file is missing, or a row of it lacks one of these.
    """
    probes = {}
    for name, path in config.probes.items():
        records, problems = read_records(path, config.image_root or path.parent)
        problems += [
            Problem(path.name, it.row, "a probe needs an image, a caption and an answer")
            for it in records
            if it.image is None or it.caption is None or len(it.messages) < 2
        ]
        rows, more = encoder_of(model.config, processor, config).encode_all(records, path.name)
        require_all_good(problems + more)
        probes[name] = rows
    return probes


def encoder_of(
    llava: LlavaConfig, processor: Any, config: TrainConfig, retrieved_in_prompt: float = 0.0
) -> Encoder:
    """What makes tokens of the records of a run, or of a stage of it."""
    return Encoder(
        processor.tokenizer,
        llava.image_seq_length,
        max_length=config.max_length,
        retrieved_in_prompt=retrieved_in_prompt,
        guide_span=config.guide_span,
    )
