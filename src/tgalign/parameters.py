"""How many parameters the parts of a LLaVA have, and which of them the stages of training move."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration


def parameters(model: LlavaForConditionalGeneration) -> list[dict[str, Any]]:
    """Parameters of each part, and whether the stages of training move it.

    Returns:
        A row ``{"part", "parameters", "stage1", "stage2"}`` per part; a tied LM head counts 0.
    """
    from tgalign.config import StageConfig
    from tgalign.stage import freeze

    parts: dict[str, Any] = {
        "vision tower": model.model.vision_tower,
        "projector": model.model.multi_modal_projector,
        "language model": model.model.language_model,
        "LM head": model.lm_head,
    }
    table: list[dict[str, Any]] = []
    seen: set[int] = set()
    for part, module in parts.items():
        new = [weight for weight in module.parameters() if id(weight) not in seen]
        seen |= {id(weight) for weight in new}
        table.append({"part": part, "parameters": sum(weight.numel() for weight in new)})
    stages: dict[str, Any] = {"stage1": ["projector"], "stage2": ["projector", "llm"]}
    for stage, train in stages.items():
        settings: Any = {"steps": 1, "batch_size": 1, "projector_lr": 1.0, "llm_lr": 1.0}
        freeze(model, StageConfig(name=stage, train=train, **settings))
        for row, module in zip(table, parts.values(), strict=True):
            row[stage] = any(weight.requires_grad for weight in module.parameters())
    model.requires_grad_(True)
    return table
