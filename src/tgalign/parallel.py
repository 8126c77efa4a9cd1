"""Several processes on one training: how they meet, and what FSDP2 shards.

Data parallelism alone: every process takes its share of an optimizer step's forward passes, so that
a recipe trains the same on any number of processes.
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn

from tgalign.errors import UserError
from tgalign.execution import layer_classes
from tgalign.finite import ruined_weight
from tgalign.locks import sole_writer

if TYPE_CHECKING:
    from tgalign.config import TrainConfig

ENGINES_ASKED = [
    engine
    for engine in ("FSDP", "DEEPSPEED")
    if os.environ.get(f"ACCELERATE_USE_{engine}", "false").lower() == "true"
]
"""By the launcher: read once, as accelerate sets the same variable when it shards."""


def connect(config: TrainConfig) -> PartialState:
    """Meet the other processes that ``torchrun`` or ``accelerate launch`` started, if any.

    Returns:
        Who this process is; ``wait_for_everyone`` is the barrier.

    Raises:
        UserError: The launcher asks for an engine, which the recipe has to name, or the processes
            cannot share a step evenly.
    """
    for engine in ENGINES_ASKED:
        raise UserError(
            f"the launcher asks for {engine}: launch with torchrun or accelerate launch "
            "--multi_gpu, and set `parallel: ddp` or `parallel: fsdp2` in the recipe (what is "
            "sharded is computed from the model)"
        )
    processes = PartialState(
        cpu=not torch.accelerator.is_available(), timeout=timedelta(hours=12)
    )  # one process may write 100 GB while the others wait
    for stage in config.stages:
        share_of_accumulation(stage.accumulation, stage.name, processes.num_processes)
    return processes


@contextmanager
def sole_writer_of_all(out: Path, processes: PartialState) -> Iterator[None]:
    """Have the first process hold the lock of ``out`` for all, once all have met.

    Raises:
        UserError: Another run writes there, or nobody can: in the first process.
        SystemExit: The same in the others, with the status of a ``UserError``; one says why.
    """
    with ExitStack() as lock:
        refused = None
        if processes.is_main_process:
            try:
                lock.enter_context(sole_writer(out))
            except UserError as fault:
                refused = fault
        (ends,) = broadcast_object_list([refused is not None])
        if refused is not None:
            raise refused
        if ends:
            sys.exit(2)
        yield


def share_of_accumulation(accumulation: int, stage: str, num_processes: int) -> int:
    """Forward passes of one optimizer step that one process makes.

    Raises:
        UserError: The processes do not divide them.
    """
    if accumulation % num_processes:
        raise UserError(
            f"stage {stage}: {num_processes} processes cannot share {accumulation} forward passes "
            f"a step evenly; make accumulation a multiple of {num_processes}, and batch_size "
            "smaller by as much for the same step"
        )
    return accumulation // num_processes


def fsdp_arguments(model: Any, bf16: bool) -> dict[str, Any]:
    """The settings of accelerate's FSDP plugin for a LLaVA.

    The LLM's layers are sharded one by one. What is left (embeddings, head, projector, vision
    tower) is one more unit: a process whose batch has no picture runs no vision layer, and all
    processes must gather the same units.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy

    # Not accelerate's own policy, which returns losses and reduces gradients in bfloat16.
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    return {
        "fsdp_version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_cls_names_to_wrap": layer_classes(model.model.language_model),
        "state_dict_type": "SHARDED_STATE_DICT",
        "cpu_ram_efficient_loading": False,
        "mixed_precision_policy": policy if bf16 else None,
    }


def trained_weights(model: nn.Module, *, keep: bool = True) -> dict[str, Tensor]:
    """The trained weights, whole, on the CPU; every process must ask.

    Args:
        model: May be sharded.
        keep: Whether this process wants them; else it only helps and gets none.
    """
    from torch.distributed.tensor import DTensor

    whole = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            value = weight.detach()
            value = value.full_tensor() if isinstance(value, DTensor) else value
            if keep:
                whole[name] = value.cpu().contiguous()
    return whole


def all_finite(model: nn.Module) -> bool:
    """Whether no weight is NaN or infinite, in any process; every process must ask."""
    return not any(gather_object([ruined_weight(model)]))


def over_processes(
    sums: dict[str, Tensor], counts: dict[str, int]
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Add up what every process has counted; one that had no caption lacks some of it."""
    all_sums: dict[str, Tensor] = {}
    all_counts: dict[str, int] = defaultdict(int)
    mine = ({name: total.cpu() for name, total in sums.items()}, dict(counts))
    for their_sums, their_counts in gather_object([mine]):
        for name, total in their_sums.items():
            all_sums[name] = all_sums.get(name, 0.0) + total
            all_counts[name] += their_counts[name]
    return all_sums, all_counts
