"""A zero-shot detector on the vision encoder (SafeCLIP): CLIP's own words for the picture."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tgalign.baselines.defence import Calibration, Inputs, refusing
from tgalign.baselines.method import Defence
from tgalign.errors import UserError

# Shape suffixes: B pictures, K descriptors, E channels of CLIP's joint space.


@contextmanager
def around(model: Any, processor: Any, calibration: Calibration) -> Iterator[None]:
    """Refuse where the vision tower's CLS token, in CLIP's text space, is near a descriptor.

    The score of a picture is its best cosine with a descriptor; the threshold comes from the
    harmless calibration pictures.

    Args:
        model: A LLaVA.
        processor: Its processor.
        calibration: Its ``clip``, ``descriptors`` and pictures are used.

    Raises:
        UserError: There is no CLIP or no descriptor, or the CLIP has another vision tower.
    """
    from tgalign.retrieval.exact import encode_texts
    from tgalign.synthetic import load_clip

    if calibration.clip is None or not calibration.descriptors:
        raise UserError(
            "a zero-shot detector needs the folder of the CLIP that the vision tower came from, "
            "and descriptors of what is to be refused: give both in the calibration"
        )
    clip, tokenizer = load_clip(calibration.clip)
    tower = model.model.vision_tower
    if clip.config.vision_config.hidden_size != tower.config.hidden_size:
        raise UserError(
            f"the CLIP at {calibration.clip} has vision states of "
            f"{clip.config.vision_config.hidden_size} channels, the model's tower "
            f"{tower.config.hidden_size}: give the CLIP that the tower came from"
        )
    toxic_KE = encode_texts(clip, tokenizer, list(calibration.descriptors)).to(model.device)
    project = clip.visual_projection.to(model.device)

    @torch.no_grad()
    def scores(pixels: Tensor) -> Tensor:
        seen_BE = project(tower(pixels.to(tower.dtype)).pooler_output.to(project.weight.dtype))
        best_B: Tensor = (torch.nn.functional.normalize(seen_BE, dim=-1) @ toxic_KE.T).amax(dim=1)
        return best_B

    pixels = processor.image_processor(list(calibration.pictures), return_tensors="pt")
    threshold = calibration.threshold(scores(pixels["pixel_values"].to(model.device)))

    def flag(inputs: Inputs) -> Tensor:
        return scores(inputs["pixel_values"]) > threshold

    with refusing(model, processor, calibration.refusal, flag):
        yield


METHOD = Defence(
    paper="Zhao et al., Findings of EMNLP 2025, arXiv 2503.00037 (SafeCLIP)",
    what="Projects the vision tower's CLS token into CLIP's text space and refuses where it comes "
    "near a toxic descriptor.",
    departure="The descriptors are the names of the lab's toxic things, all of them; a threshold "
    "from harmless pictures takes the place of neutral categories, and a refusal that of the "
    "paper's correction of the answer.",
    around=around,
    uses_second_model=True,
)
