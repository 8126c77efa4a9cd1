"""Whether weights are numbers."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.tensor import DTensor

COMPARED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Of others, such as those of 8 bits, torch finds no extremes."""


def ruined_weight(model: nn.Module) -> str | None:
    """The name of a weight that is NaN or infinite, if there is one; of shards, in this process's.

    The extremes tell, as NaN is handed on: a second or two for 7B, a thirtieth of what ``isfinite``
    takes on one core.
    """
    for name, weight in model.named_parameters():
        value = weight.detach()
        value = value.to_local() if isinstance(value, DTensor) else value
        if (
            value.numel()
            and value.dtype in COMPARED
            and not torch.stack(torch.aminmax(value)).isfinite().all()
        ):
            return name
    return None
