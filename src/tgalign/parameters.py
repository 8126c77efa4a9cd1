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
    parts: list[tuple[str, Any, bool, bool]] = [
        ("vision tower", model.model.vision_tower, False, False),
        ("projector", model.model.multi_modal_projector, True, True),
        ("language model", model.model.language_model, False, True),
        ("LM head", model.lm_head, False, True),
    ]
    table: list[dict[str, Any]] = []
    seen: set[int] = set()
    for part, module, stage1, stage2 in parts:
        new = [weight for weight in module.parameters() if id(weight) not in seen]
        seen |= {id(weight) for weight in new}
        count = sum(weight.numel() for weight in new)
        table.append({"part": part, "parameters": count, "stage1": stage1, "stage2": stage2})
    return table
