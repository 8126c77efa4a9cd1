"""From what was read to the figures of a diagnosis: plain data, with counts and intervals.

Shape suffixes: L the N+1 hidden states, B probes, D channels, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from tgalign.diagnose.alignment import alignment_of_rows, cosine_to_others, linear_cka
from tgalign.diagnose.anatomy import Anatomy
from tgalign.diagnose.probes import ProbeSet
from tgalign.diagnose.reading import Heard, Reading
from tgalign.diagnose.safety_layers import (
    activation_layers,
    layer_range,
    refusal_tokens,
    summary,
)
from tgalign.evaluate.refusal import Label
from tgalign.evaluate.statistics import bootstrap_mean, wilson

MEASURES = ("cosine", "centered_cosine", "caption_retrieval")
RULES = ("paper", "released")


def rate(labels: Sequence[Label], wanted: Label = "refused") -> dict[str, Any]:
    """The share of a verdict."""
    return wilson(sum(label == wanted for label in labels), len(labels)).as_dict()


def refusals(reading: Reading, probes: ProbeSet) -> dict[str, Any]:
    """Refusals in words and in pictures, by kind and by scene, and the objects named."""
    found: dict[str, Any] = {}
    for side in ("text", "image"):
        toxic, benign = reading.heard[f"{side}_toxic"], reading.heard[f"{side}_benign"]
        found[f"{side}_refusal"] = rate(toxic.labels)
        found[f"{side}_over_refusal"] = rate(benign.labels)
        found[f"{side}_undetermined"] = rate(toxic.labels + benign.labels, "undetermined")
        named = [
            re.search(rf"\b{re.escape(name)}\b", said, re.IGNORECASE) is not None
            for probe, said in zip(probes.benign, benign.answers, strict=True)
            for name in probe.names
        ]
        found[f"{side}_named"] = wilson(sum(named), len(named)).as_dict()
        found[f"{side}_refusal_by_scene"] = {
            scene: rate(
                [it for p, it in zip(probes.toxic, toxic.labels, strict=True) if p.scene == scene]
            )
            for scene in probes.scenes
        }
    return found


@torch.no_grad()
def safety_layers(parts: Anatomy, reading: Reading, tokenizer: Any) -> dict[str, Any]:
    """Refusal tokens, the layers by both rules, and the logit lens by kind of prompt.

    The layers are those of toxic captions that the model refuses: elsewhere no refusal arises.
    """
    toxic, benign = reading.heard["text_toxic"], reading.heard["text_benign"]
    found: dict[str, Any] = {
        "refusal_tokens": [],
        "shared_tokens": [],
        "safety_layers": dict.fromkeys(RULES),
        "safety_layer_counts": dict.fromkeys(RULES),
        "lens": [],
    }
    refused_B = toxic.where("refused")
    if not refused_B.any():
        return found
    kept, shared = refusal_tokens(
        _next(parts, toxic, refused_B), _next(parts, benign, benign.where("answered")), tokenizer
    )
    found["refusal_tokens"] = [asdict(token) for token in kept]
    found["shared_tokens"] = [asdict(token) for token in shared]
    if not kept:
        return found
    ids = [token.id for token in kept]
    by_rule = activation_layers(parts, toxic.states.last_LBD[:, refused_B], ids)
    for rule, layers in by_rule.items():
        summed = summary(layers, parts.num_layers)
        found["safety_layer_counts"][rule] = summed
        found["safety_layers"][rule] = layer_range(summed)
    found["lens"] = _lens(parts, reading, ids)
    return found


def _next(parts: Anatomy, heard: Heard, chosen_B: Tensor) -> Tensor:
    return (
        parts.log_probabilities(heard.states.last_LBD[-1][chosen_B], parts.num_layers).exp().cpu()
    )


def _lens(parts: Anatomy, reading: Reading, ids: list[int]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"layer": layer} for layer in range(parts.num_layers + 1)]
    for kind, heard in reading.heard.items():
        for row in rows:
            state_BD = heard.states.last_LBD[row["layer"]]
            said_BV = parts.log_probabilities(state_BD, row["layer"]).exp()
            _put(row, kind, said_BV[:, ids].sum(dim=-1).cpu())
    return rows


def _put(row: dict[str, Any], name: str, value_B: Tensor) -> None:
    """The mean over probes and its bootstrap interval."""
    low, high = bootstrap_mean(value_B.double().numpy())
    row |= {name: float(value_B.mean()), f"{name}_low": float(low), f"{name}_high": float(high)}


def alignment(reading: Reading) -> list[dict[str, Any]]:
    """Alignment of pictures and captions by state: of all probes, of toxic and of harmless ones.

    Cosine and centred cosine come with bootstrap intervals, retrieval with Wilson's. ``floor`` is
    the mean cosine between states of *different* pictures, ``mismatched`` that of a picture and
    other pictures' captions, ``ceiling`` that of a caption and its paraphrase (``centered_ceiling``
    and ``retrieval_ceiling`` alike, None without paraphrases).
    """
    spans = {kind: heard.states.span_LBD for kind, heard in reading.heard.items()}
    image_LBD = torch.cat([spans["image_toxic"], spans["image_benign"]], dim=1)
    text_LBD = torch.cat([spans["text_toxic"], spans["text_benign"]], dim=1)
    rows: list[dict[str, Any]] = [{"layer": layer} for layer in range(len(image_LBD))]
    for prefix, x_LBD, y_LBD in (
        ("", image_LBD, text_LBD),
        ("toxic_", spans["image_toxic"], spans["text_toxic"]),
        ("benign_", spans["image_benign"], spans["text_benign"]),
    ):
        _put_alignment(rows, prefix, alignment_of_rows(x_LBD, y_LBD))
        for row, cka in zip(rows, linear_cka(x_LBD, y_LBD).tolist(), strict=True):
            row[f"{prefix}cka"] = cka
    others_LB = {"floor": cosine_to_others(image_LBD)}
    others_LB["mismatched"] = cosine_to_others(image_LBD, text_LBD)
    ceiling = None
    if reading.paraphrase is not None:
        ceiling = alignment_of_rows(reading.paraphrase, text_LBD)
    names = {"cosine": "ceiling", "centered_cosine": "centered_ceiling"}
    names |= {"caption_retrieval": "retrieval_ceiling"}
    for row in rows:
        for name, value_LB in others_LB.items():
            row[name] = float(value_LB[row["layer"]].mean())
        for name, title in names.items():
            row[title] = None if ceiling is None else float(ceiling[name][row["layer"]].mean())
    return rows


def _put_alignment(rows: list[dict[str, Any]], prefix: str, found: dict[str, Tensor]) -> None:
    for row in rows:
        for measure in MEASURES[:2]:
            _put(row, f"{prefix}{measure}", found[measure][row["layer"]])
        hit_B = found["caption_retrieval"][row["layer"]]
        share = wilson(int(hit_B.sum()), len(hit_B))
        name = f"{prefix}caption_retrieval"
        row |= {name: share.rate, f"{name}_low": share.low, f"{name}_high": share.high}


def chosen_layers(layers: dict[str, Any], num_layers: int) -> tuple[str, list[int]]:
    """The states at which alignment is summed up: the paper's, else the released rule's, else all.

    Returns:
        The rule (``all`` for none), and the states.
    """
    for rule in RULES:
        if layers["safety_layers"][rule]:
            first, last = layers["safety_layers"][rule]
            return rule, list(range(first, last + 1))
    return "all", list(range(1, num_layers + 1))


def per_probe_alignment(reading: Reading, states: list[int]) -> dict[str, dict[str, Tensor]]:
    """Each picture's alignment with its caption, averaged over some states.

    Returns:
        By ``toxic`` and ``benign``, each centred within its own kind, the measures, (B,).
    """
    found = {}
    for kind in ("toxic", "benign"):
        image, text = (reading.heard[f"{side}_{kind}"].states for side in ("image", "text"))
        by_row = alignment_of_rows(image.span_LBD[states], text.span_LBD[states])
        found[kind] = {measure: value_LB.mean(dim=0) for measure, value_LB in by_row.items()}
    return found


def gap(reading: Reading, rule: str, states: list[int]) -> dict[str, Any]:
    """How much better harmless pictures are aligned than toxic ones at the safety layers."""
    kinds = per_probe_alignment(reading, states)
    found: dict[str, Any] = {"rule": rule, "layers": states, "n": len(kinds["toxic"]["cosine"])}
    for measure in MEASURES:
        toxic_B, benign_B = kinds["toxic"][measure], kinds["benign"][measure]
        row: dict[str, Any] = {}
        _put(row, "toxic", toxic_B)
        _put(row, "benign", benign_B)
        _put(row, "gap", benign_B - toxic_B)
        found[measure] = row
    return found


def encoder_alignment(clip: Any, tokenizer: Any, images: Any, probes: ProbeSet) -> dict[str, Any]:
    """The similarity of pictures and captions that the paper compares with: a CLIP's own.

    Args:
        clip: A CLIP with both towers.
        tokenizer: Its tokenizer.
        images: Its image processor.
        probes: The probes.
    """
    from tgalign.retrieval.exact import encode_pictures, encode_texts

    found: dict[str, Any] = {}
    for prefix, some in (
        ("", probes.toxic + probes.benign),
        ("toxic_", probes.toxic),
        ("benign_", probes.benign),
    ):
        pixels = images([it.load() for it in some], return_tensors="pt")["pixel_values"]
        image_LBD = encode_pictures(clip, pixels).unsqueeze(0)
        text_LBD = encode_texts(clip, tokenizer, [it.caption for it in some]).unsqueeze(0)
        rows: list[dict[str, Any]] = [{"layer": 0}]
        _put_alignment(rows, prefix, alignment_of_rows(image_LBD, text_LBD))
        found |= rows[0]
    del found["layer"]
    return found
