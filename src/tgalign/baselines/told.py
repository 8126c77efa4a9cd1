"""The picture in words: the model's own caption, put where the picture stood.

Shape suffixes: B rows, T tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tgalign.baselines.defence import Calibration, Generate, Inputs


def own_captions(
    model: Any, processor: Any, calibration: Calibration, generate: Generate, inputs: Inputs
) -> list[str]:
    """Let the undefended model caption each picture of a batch.

    Args:
        model: A LLaVA.
        processor: Its processor.
        calibration: Says what makes it caption.
        generate: The model's own ``generate``.
        inputs: Of the defended call.
    """
    items = [{"type": "image"}, {"type": "text", "text": calibration.caption_question}]
    turn = [{"role": "user", "content": items}]
    text = processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    num_image = int((inputs["input_ids"][0] == model.config.image_token_id).sum())
    ids = []
    for token in processor.tokenizer.encode(text, add_special_tokens=False):
        ids += [token] * (num_image if token == model.config.image_token_id else 1)
    pixels = inputs["pixel_values"]
    ids_BT = torch.tensor(ids).to(inputs["input_ids"]).expand(len(pixels), -1)
    asked = inputs | {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)}
    new_BT = generate(**asked)[:, ids_BT.shape[1] :]
    said = processor.tokenizer.batch_decode(new_BT, skip_special_tokens=True)
    return [text.strip() for text in said]


def told_inputs(
    model: Any, processor: Any, inputs: Inputs, captions: list[str]
) -> dict[str, Tensor]:
    """Prompts with a caption in each picture's place: ids and mask, left-padded."""
    tokenizer, ids_BT = processor.tokenizer, inputs["input_ids"]
    mask_BT = inputs.get("attention_mask")
    if mask_BT is None:  # as generate allows
        mask_BT = torch.ones_like(ids_BT)
    rows = []
    for ids, mask, caption in zip(ids_BT, mask_BT, captions, strict=True):
        row = ids[mask.bool()].tolist()
        start = row.index(model.config.image_token_id)
        end = start + row.count(model.config.image_token_id)
        said = tokenizer.encode(caption, add_special_tokens=False)
        rows.append(row[:start] + said + row[end:])
    batch = tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt")
    return {name: batch[name].to(ids_BT.device) for name in ("input_ids", "attention_mask")}
