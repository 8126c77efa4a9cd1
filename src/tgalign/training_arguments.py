"""A stage's settings in the words of transformers' Trainer."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import TrainingArguments

from tgalign.config import StageConfig


def training_arguments(
    stage: StageConfig,
    folder: Path,
    *,
    seed: int,
    save_steps: int,
    logging_steps: int,
    bf16: bool,
    workers: int,
    progress_bar: bool,
) -> TrainingArguments:
    """The arguments of a stage but for accumulation and sharding, which depend on the processes.

    Args:
        stage: The stage's settings.
        folder: Where intermediate state goes.
        seed: Of whatever transformers draws.
        save_steps: Steps between two points to resume from.
        logging_steps: Steps between two lines of metrics.
        bf16: Whether matrix products are computed in bfloat16.
        workers: Processes that make batches.
        progress_bar: Whether to draw one.
    """
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=stage.steps,
        per_device_train_batch_size=stage.batch_size,
        learning_rate=stage.projector_lr,
        lr_scheduler_type="cosine",
        warmup_steps=stage.warmup,
        weight_decay=stage.weight_decay,
        max_grad_norm=stage.max_grad_norm,
        bf16=bf16,
        use_cpu=not torch.accelerator.is_available(),
        seed=seed,
        data_seed=seed,
        save_strategy="steps",
        save_steps=save_steps,
        save_total_limit=1,
        logging_steps=logging_steps,
        report_to="none",
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=False,
        dataloader_num_workers=workers,
        # The collator's closures and the rows' open file go to a fork alone.
        dataloader_multiprocessing_context="fork" if workers else None,
        ddp_find_unused_parameters=False,  # every trained weight has a gradient in every pass
        ddp_broadcast_buffers=False,
        disable_tqdm=not progress_bar,
    )
