"""One stage of training: freeze, keep the texts' states, centre, train, keep what it ends with."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Sequence
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tgalign.config import StageConfig, TrainConfig
from tgalign.data.collate import Collator
from tgalign.data.encode import EncodedRecord
from tgalign.execution import half_products
from tgalign.files import file_at_once
from tgalign.lora import adapters_of, add_adapters, merge_adapters
from tgalign.parallel import trained_weights
from tgalign.task import AlignmentTask
from tgalign.text_cache import TextCache
from tgalign.trainer import TGATrainer

CENTER_CAPTIONS = 1024
"""Captions at most whose mean is the centre of ``centered_cosine``."""


def train_stage(
    model: Any,
    config: TrainConfig,
    stage: StageConfig,
    rows: Sequence[EncodedRecord],
    collator: Collator,
    states: TextCache,
    probes: dict[str, dict[str, Tensor]],
    progress_bar: bool,
) -> bool:
    """Train a stage, or load what it ended with.

    Returns:
        Whether the model is whole and has the weights of the stage's end: not if FSDP2 trained it.
    """
    end = config.out / stage.name / "end.safetensors"
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
    trainer = TGATrainer(
        task, config, stage, rows, collator, probes=probes, progress_bar=progress_bar
    )
    trainer.train_or_resume()
    main = trainer.accelerator.is_main_process
    weights = trained_weights(model, keep=main)
    if main:
        with file_at_once(end) as beside:
            save_file(weights, beside)
    if not trainer.sharded:
        merge_adapters(model)
    return not trainer.sharded


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


def estimate_center(task: AlignmentTask, rows: Sequence[EncodedRecord], collator: Collator) -> None:
    """Set the centre of ``centered_cosine``: the mean caption state at the start of the stage.

    A fixed centre, not a running one, so that the loss of a row does not depend on which rows
    share its batch. Captions are taken in an order given by their hash, not by the file's.
    """
    if task.objective.similarity != "centered_cosine" or task.objective.weight == 0:
        return
    captioned = heapq.nsmallest(
        CENTER_CAPTIONS,
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
