"""What the lab computes in: whichever of bfloat16 and float32 this CPU multiplies faster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch


def fast_precision() -> Literal["fp32", "bf16"]:
    """Bfloat16 where this CPU multiplies it in hardware (twice as fast), else float32.

    A CPU without it makes bfloat16 products many times slower than float32.
    """
    import torch

    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if native else "fp32"


def fast_products() -> torch.autocast:
    """Within, matrix products are in ``fast_precision``; weights stay float32."""
    import torch

    return torch.autocast("cpu", torch.bfloat16, enabled=fast_precision() == "bf16")
