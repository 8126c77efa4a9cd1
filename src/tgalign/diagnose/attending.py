"""Figures of attention: by layer and head, and over the pictures of the gallery.

Shape suffixes: L decoder layers, H heads, B probes, T tokens, P image tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tgalign.diagnose.attention import (
    answer_attention,
    centred,
    eager_attention,
    mass,
    patches_in,
    token_grid,
)
from tgalign.diagnose.probes import Probe, ProbeSet
from tgalign.diagnose.prompts import Prompts
from tgalign.diagnose.reading import Subject
from tgalign.evaluate.statistics import bootstrap_mean

SHRINK = 4
"""Explicit attention maps take memory: batches are this much smaller."""


def attend(
    subject: Subject, probes: ProbeSet, layers: Sequence[int], shown: Sequence[str]
) -> dict[str, Any]:
    """What the answer position attends to in toxic captions and in toxic pictures.

    Args:
        subject: The model and how it is asked.
        probes: The probes; those without ``toxic_text`` or ``box`` are left out of either side.
        layers: The safety layers, over which the gallery's maps are averaged.
        shown: Ids of the gallery's probes.

    Returns:
        ``text`` and ``image``, each None where nothing can be told (no probe says where to look, or
        the picture's tokens lie on no single grid), else ``n`` and ``layers``: rows of ``mass``,
        the share of all attention that goes to the toxic tokens, and ``lift``, its density against
        the rest of the span (1: no preference), both averaged over heads, with intervals over
        probes; ``heads`` and ``head_lifts``, the same of every head. ``maps``: by probe the
        picture's grid and its tokens' share of the image's attention.
    """
    size = max(1, subject.batch_size // SHRINK)
    text: list[tuple[Tensor, Tensor]] = []
    image: list[tuple[Tensor, Tensor]] = []
    maps: dict[str, Any] = {}
    told = [it for it in probes.toxic if it.toxic_text]
    boxed = [it for it in probes.toxic if it.box]
    with eager_attention(subject.model):
        for some in subject.batches(told, "attention to words", size):
            prompts = subject.captions([it.caption for it in some])
            target_BT = _toxic_tokens(prompts, some)
            line_LHBT = answer_attention(subject.model, subject.parts, prompts)
            text.append(mass(line_LHBT, target_BT, prompts.span_BT.cpu()))
        for some in subject.batches(boxed, "attention to patches", size):
            prompts = subject.pictures(some)
            line_LHBT = answer_attention(subject.model, subject.parts, prompts)
            target_BT, kept = _toxic_patches(subject, prompts, some)
            if kept:
                span_BT = prompts.span_BT.cpu()
                image.append(mass(line_LHBT[:, :, kept], target_BT[kept], span_BT[kept]))
            for row in kept:
                if some[row].id in shown:
                    maps[some[row].id] = _map(subject, prompts, line_LHBT, row, layers)
    return {"text": _by_layer(text), "image": _by_layer(image), "maps": maps}


def _toxic_tokens(prompts: Prompts, probes: Sequence[Probe]) -> Tensor:
    """The tokens of the caption that hold its toxic words."""
    assert prompts.offsets_BT2 is not None
    start_B, end_B = [], []
    for probe in probes:
        start = probe.caption.casefold().find((probe.toxic_text or "").casefold())
        start_B.append(start)
        end_B.append(start + len(probe.toxic_text or ""))
    low_BT, high_BT = prompts.offsets_BT2.unbind(dim=-1)
    inside_BT = (low_BT < torch.tensor(end_B)[:, None]) & (high_BT > torch.tensor(start_B)[:, None])
    return inside_BT & prompts.span_BT.cpu()


def _toxic_patches(
    subject: Subject, prompts: Prompts, probes: Sequence[Probe]
) -> tuple[Tensor, list[int]]:
    """The image tokens in each probe's box, and the rows where they are known."""
    target_BT = torch.zeros_like(prompts.span_BT, device="cpu")
    crops = getattr(subject.processor.image_processor, "do_center_crop", False)
    kept = []
    for row, grid in enumerate(token_grid(subject.processor, prompts)):
        box = probes[row].box
        if grid is None or box is None:
            continue
        if crops:
            box = centred(box, probes[row].load().size)
        target_BT[row, prompts.span_BT[row].cpu()] = patches_in(box, grid)
        kept.append(row)
    return target_BT, kept


def _map(
    subject: Subject, prompts: Prompts, line_LHBT: Tensor, row: int, layers: Sequence[int]
) -> dict[str, Any]:
    """Where the image's attention goes at the safety layers, mean over heads; sums to 1."""
    chosen = [layer - 1 for layer in layers]
    line_T = line_LHBT[chosen, :, row].mean(dim=(0, 1))
    share_P = line_T[prompts.span_BT[row].cpu()]
    share_P = share_P / share_P.sum().clamp_min(1e-9)
    grid = token_grid(subject.processor, prompts)[row]
    return {
        "grid": grid and list(grid),
        "values": [round(value, 5) for value in share_P.tolist()],
    }


def _by_layer(found: list[tuple[Tensor, Tensor]]) -> dict[str, Any] | None:
    if not found:
        return None
    mass_LHB, lift_LHB = (torch.cat(part, dim=-1) for part in zip(*found, strict=True))
    rows = []
    for index in range(len(mass_LHB)):
        row: dict[str, Any] = {"layer": index + 1}
        for name, value_HB in (("mass", mass_LHB[index]), ("lift", lift_LHB[index])):
            low, high = bootstrap_mean(value_HB.mean(dim=0).double().numpy())
            row |= {
                name: float(value_HB.mean()), f"{name}_low": float(low), f"{name}_high": float(high)
            }  # fmt: skip
        row["heads"] = mass_LHB[index].mean(dim=-1).tolist()
        row["head_lifts"] = lift_LHB[index].mean(dim=-1).tolist()
        rows.append(row)
    return {"n": mass_LHB.shape[-1], "layers": rows}
