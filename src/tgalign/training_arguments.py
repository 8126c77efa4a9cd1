"""A stage's settings in the words of transformers' Trainer."""

from __future__ import annotations

import torch
from transformers import TrainingArguments

from tgalign.config import StageConfig, TrainConfig


def training_arguments(
    config: TrainConfig, stage: StageConfig, progress_bar: bool
) -> TrainingArguments:
    """The arguments of a stage.

    Accumulation and sharding, which depend on the processes, are set by ``TGATrainer``, which makes
    the optimizer and the order of rows, and removes old state, itself.
    """
    return TrainingArguments(
        output_dir=str(config.out / stage.name),
        max_steps=stage.steps,
        per_device_train_batch_size=stage.batch_size,
        lr_scheduler_type="cosine",
        warmup_steps=stage.warmup,
        max_grad_norm=stage.max_grad_norm,
        bf16=config.precision == "bf16",
        use_cpu=not torch.accelerator.is_available(),
        seed=config.seed,
        save_strategy="steps",
        save_steps=config.save_steps,
        logging_steps=config.logging_steps,
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        dataloader_num_workers=config.workers,
        # The collator's closures and the rows' open file go to a fork alone.
        dataloader_multiprocessing_context="fork" if config.workers else None,
        ddp_find_unused_parameters=False,  # every trained weight has a gradient in every pass
        ddp_broadcast_buffers=False,
        disable_tqdm=not progress_bar,
    )
