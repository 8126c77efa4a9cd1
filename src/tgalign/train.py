"""Train a stock LLaVA checkpoint through the stages of a config, and save a stock checkpoint."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tgalign.config import StageConfig, TrainConfig
from tgalign.data.records import Problem, Record, read_records, require_all_good
from tgalign.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlavaForConditionalGeneration, ProcessorMixin

    from tgalign.data.encode import EncodedRecord
    from tgalign.task import AlignmentTask


def load_llava(path: Path) -> tuple[LlavaForConditionalGeneration, ProcessorMixin]:
    """Load a stock LLaVA checkpoint and its processor, offline and from safetensors only.

    Raises:
        UserError: There is no checkpoint, or it is not a LLaVA.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoProcessor, LlavaForConditionalGeneration

    if not (path / "config.json").is_file():
        raise UserError(f"no checkpoint at {path}: expected a folder with config.json")
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True)
    except (ValueError, OSError) as fault:
        raise UserError(f"{path}/config.json cannot be read: {fault}") from None
    if config.model_type != "llava":
        raise UserError(
            f"{path} holds a {config.model_type!r} model; expected a 'llava' checkpoint "
            "(LlavaForConditionalGeneration), as compose makes from an LLM and a vision encoder"
        )
    try:
        loaded: Any = LlavaForConditionalGeneration.from_pretrained(
            path, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        processor = AutoProcessor.from_pretrained(path, local_files_only=True)
    except (ValueError, OSError, RuntimeError, SafetensorError) as fault:
        raise UserError(f"the checkpoint at {path} cannot be loaded: {fault}") from None
    model, info = loaded
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise UserError(
            f"the checkpoint at {path} lacks {len(missing)} weight(s), which would be random: "
            f"{', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}"
        )
    if getattr(processor, "chat_template", None) is None:
        raise UserError(f"the processor at {path} has no chat template, so no prompt can be made")
    return model, processor


def train(config: TrainConfig, *, progress_bar: bool = True) -> Path:
    """Train through all stages; a killed run goes on where it was when called again.

    Args:
        config: The run. Its ``out`` receives ``checkpoint/`` (stock LLaVA) and, per stage,
            ``metrics.jsonl``.
        progress_bar: Whether to draw one per stage.

    Returns:
        The folder of the trained checkpoint.

    Raises:
        UserError: Anything wrong with the checkpoint or a row of the data, before training, or
            ``out`` holds a run with another config.
    """
    checkpoint = config.out / "checkpoint"
    _claim(config)
    if not checkpoint.is_dir():
        _train_stages(config, checkpoint, progress_bar)
    for stage in config.stages:
        for state in (config.out / stage.name).glob("checkpoint-*"):
            shutil.rmtree(state)
        shutil.rmtree(config.out / stage.name / "incomplete", ignore_errors=True)
        (config.out / stage.name / "end.safetensors").unlink(missing_ok=True)
    return checkpoint


def _train_stages(config: TrainConfig, checkpoint: Path, progress_bar: bool) -> None:
    root = config.image_root or config.records.parent
    records, problems = read_records(config.records, root)
    require_all_good(problems)
    model, processor = load_llava(config.model)
    _check_stages(model, processor, config, records)
    _write_config(config)
    model.set_attn_implementation(config.attention)
    load_pixels = pixel_loader(processor)
    images = [record.image for record in records if record.image is not None]
    caching = cached(model, images, load_pixels) if config.cache_vision else nullcontext(None)
    with caching as features:
        for stage in config.stages:
            _train_stage(model, processor, config, stage, records, features or load_pixels,
                         progress_bar)  # fmt: skip
    save_checkpoint(model, processor, checkpoint)


def _check_stages(model: Any, processor: Any, config: TrainConfig, records: list[Record]) -> None:
    """Say before the first stage, which may take days, what a later one would refuse."""
    from tgalign.pooling import parse_layers

    images = [record for record in records if record.image is not None]
    captioned = any(record.caption is not None for record in images)
    for stage in config.stages:
        parse_layers(stage.objective.layers, model.config.text_config.num_hidden_layers)
        if "llm" not in stage.train and not images:
            raise UserError(
                f"stage {stage.name} trains the projector alone, and no row has an image"
            )
        centered = stage.objective.weight > 0 and stage.objective.similarity == "centered_cosine"
        if centered and not captioned:
            raise UserError(
                f"stage {stage.name}: centered_cosine needs captions, and no row has one"
            )
    # A row has an R in its prompt in this stage if it has one there in any.
    longest = max(config.stages, key=lambda stage: stage.retrieved_in_prompt)
    encode_rows(processor, model.config.image_seq_length, config, longest, records)


def pixel_loader(processor: Any) -> Callable[[list[Path]], Tensor]:
    """A function that reads pictures and makes the vision tower's input of them."""
    from PIL import Image

    def load(paths: list[Path]) -> Tensor:
        pictures = []
        for path in paths:
            with Image.open(path) as picture:
                pictures.append(picture.convert("RGB"))
        pixels: Tensor = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
        return pixels

    return load


def cached(model: Any, images: list[Path], load_pixels: Any) -> Any:
    """See ``tgalign.vision_cache.cached_vision``; imported late, as it needs torch."""
    from tgalign.vision_cache import cached_vision

    return cached_vision(model, images, load_pixels)


def save_checkpoint(model: Any, processor: Any, path: Path) -> None:
    """Save model and processor beside ``path`` and move them there in one step."""
    beside = path.with_name(path.name + ".incomplete")
    shutil.rmtree(beside, ignore_errors=True)
    model.save_pretrained(beside)
    processor.save_pretrained(beside)
    beside.replace(path)


def _claim(config: TrainConfig) -> None:
    """Make ``out``, or check that the run found there has the same config."""
    path = config.out / "config.json"
    if path.is_file():
        if json.loads(path.read_text(encoding="utf-8")) != json.loads(config.model_dump_json()):
            raise UserError(
                f"{config.out} holds a run with another config: give another --out or remove it"
            )
        return
    try:
        config.out.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise UserError(f"cannot write to {config.out}: {fault}") from None


def _write_config(config: TrainConfig) -> None:
    """Write the config into ``out``: from here on it holds this run."""
    path = config.out / "config.json"
    beside = path.with_suffix(".incomplete")
    try:
        beside.write_text(config.model_dump_json(indent=1), encoding="utf-8")
        beside.replace(path)
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
    processor: Any,
    config: TrainConfig,
    stage: StageConfig,
    records: list[Record],
    load_pixels: Callable[[list[Path]], Tensor],
    progress_bar: bool,
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from tgalign.data.collate import Collator
    from tgalign.task import AlignmentTask
    from tgalign.trainer import TGATrainer

    folder = config.out / stage.name
    end = folder / "end.safetensors"
    freeze(model, stage)
    if end.is_file():
        model.load_state_dict(load_file(end), strict=False)
        return
    if "llm" not in stage.train:
        # A text-only row reaches no trained weight while the LLM is frozen.
        records = [record for record in records if record.image is not None]
    rows = encode_rows(processor, model.config.image_seq_length, config, stage, records)
    torch.manual_seed(config.seed)
    task = AlignmentTask(model, stage.objective)
    collator = Collator(processor.tokenizer.pad_token_id, load_pixels)
    estimate_center(task, rows, collator)
    trainer = TGATrainer(
        task,
        stage,
        rows,
        collator,
        folder,
        seed=config.seed,
        save_steps=config.save_steps,
        logging_steps=config.logging_steps,
        bf16=config.precision == "bf16",
        progress_bar=progress_bar,
    )
    trainer.train_or_resume()
    beside = end.with_suffix(".incomplete")
    trained = {n: w.detach().contiguous() for n, w in model.named_parameters() if w.requires_grad}
    save_file(trained, beside)
    beside.replace(end)


def encode_rows(
    processor: Any,
    image_seq_length: int,
    config: TrainConfig,
    stage: StageConfig,
    records: list[Record],
) -> list[EncodedRecord]:
    """Encode all records for a stage.

    Raises:
        UserError: Naming every row that is too long or teaches nothing.
    """
    from tgalign.data.encode import Encoder

    encoder = Encoder(
        processor.tokenizer,
        image_seq_length,
        max_length=config.max_length,
        retrieved_in_prompt=stage.retrieved_in_prompt,
    )
    rows: list[EncodedRecord]
    problems: list[Problem]
    rows, problems = encoder.encode_all(records, config.records.name)
    require_all_good(problems)
    return rows


def estimate_center(
    task: AlignmentTask, rows: list[EncodedRecord], collator: Any, *, num_captions: int = 1024
) -> None:
    """Set the centre of ``centered_cosine``: the mean caption state at the start of the stage.

    A fixed centre, not a running one, so that the loss of a row does not depend on which rows
    share its batch. Captions are taken in an order given by their hash, not by the file's.
    """
    import torch

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
        states_LBD = task.text_states(
            texts["text_input_ids"], texts["text_attention_mask"], texts["text_span"]
        )
        total_LD += states_LBD.sum(dim=1)
    task.center_LD.copy_(total_LD / len(captioned))
