"""The state of a sharded training: every process writes its share, as safetensors.

torch's distributed checkpoints, but neither its pickled format nor frozen weights. They load on any
number of processes.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state of a weight, beside the number of its steps."""


def save_sharded(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Write the trained weights and their optimizer state; every process must call it."""
    state = {name: weight.detach() for name, weight in _trained(model).items()}
    for name, weight in _trained(model).items():
        moments = optimizer.state[weight]
        state |= {f"{moment}.{name}": moments[moment] for moment in MOMENTS}
        state[f"step.{name}"] = moments["step"]
    save(state, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))


def load_sharded_weights(model: nn.Module, folder: Path) -> None:
    """Read the trained weights into a model, sharded or not."""
    _load({name: weight.detach() for name, weight in _trained(model).items()}, folder)


def load_sharded_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path
) -> None:
    """Read AdamW's state of a model's trained weights."""
    state: dict[str, Tensor] = {}
    for name, weight in _trained(model).items():
        moments = {moment: torch.zeros_like(weight.detach()) for moment in MOMENTS}
        optimizer.state[weight] = moments | {"step": torch.zeros(())}
        state |= {f"{key}.{name}": value for key, value in optimizer.state[weight].items()}
    _load(state, folder)


def _load(state: dict[str, Tensor], folder: Path) -> None:
    load(state, storage_reader=HuggingFaceStorageReader(str(folder)))


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
