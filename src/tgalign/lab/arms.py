"""The arms of the demo: the same data, stages, steps and learning rates, another objective each."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tgalign.config import ObjectiveConfig, StageConfig, TrainConfig

_CE = ObjectiveConfig(weight=0.0)
# The published code aligns states 10 to 18 of 32; these are the same depths of 6.
_RELEASED_NOGRAD = ObjectiveConfig(form="released_nograd", layers="2-3")
_TGA = ObjectiveConfig(
    form="paper",
    similarity="centered_cosine",
    reference="frozen",
    layers="0-6",
    weight=0.4,
)
ARMS: dict[str, tuple[ObjectiveConfig, ObjectiveConfig]] = {
    "ce": (_CE, _CE),
    "released_nograd": (_RELEASED_NOGRAD, _RELEASED_NOGRAD),
    # In stage 2 the guide fades out, as in the published code.
    "tga": (_TGA, _TGA.model_copy(update={"schedule": "linear_decay"})),
}
"""The objectives of stage 1 and of stage 2."""

_STAGE_1 = StageConfig(
    name="stage1",
    train=["projector"],
    steps=900,
    batch_size=64,
    projector_lr=3e-3,
)
_STAGE_2 = StageConfig(
    name="stage2",
    train=["projector", "llm"],
    steps=600,
    batch_size=64,
    projector_lr=1e-3,
    llm_lr=6e-4,
    retrieved_in_prompt=0.25,
)


def arm_config(
    arm: str, *, model: Path, records: Path, out: Path, seed: int, smoke: bool
) -> TrainConfig:
    """The training run of one arm.

    Args:
        arm: A key of ``ARMS``.
        model: The untrained LLaVA.
        records: The alignment data.
        out: Where the run goes.
        seed: Its seed.
        smoke: Only a few steps.
    """
    steps = {"steps": 3} if smoke else {}
    first, second = ARMS[arm]
    return TrainConfig(
        model=model,
        records=records,
        out=out,
        seed=seed,
        max_length=128,
        precision=fast_precision(),
        attention="eager",
        cache_vision=True,
        save_steps=100,
        logging_steps=1 if smoke else 20,
        stages=[
            _STAGE_1.model_copy(update=steps | {"objective": first}),
            _STAGE_2.model_copy(update=steps | {"objective": second}),
        ],
    )


def fast_precision() -> Literal["fp32", "bf16"]:
    """Bfloat16 where this CPU multiplies it in hardware (twice as fast), else float32."""
    import torch

    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if native else "fp32"
