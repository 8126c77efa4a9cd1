"""What a diagnosis shows, in words, from its figures alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tgalign.report.wording import MISSING, UNIT, number, percent, rate_text, share

LITTLE = 0.5
"""Below this share of toxic words refused there is little safety to carry over."""


def headline(diagnosis: Mapping[str, Any]) -> str:
    """The verdict's first clause."""
    words, pictures = (share(diagnosis.get(f"{it}_refusal")) for it in ("text", "image"))
    return (
        f"Refuses {percent(words)}{UNIT} of toxic text and {percent(pictures)}{UNIT} of the same "
        "in pictures"
    )


def sentences(diagnosis: Mapping[str, Any]) -> list[str]:
    """The verdict's other sentences, most telling first."""
    said = [
        f"Of toxic captions {rate_text(diagnosis.get('text_refusal'))} are refused, of the same "
        f"things in pictures {rate_text(diagnosis.get('image_refusal'))}; of harmless captions "
        f"{rate_text(diagnosis.get('text_over_refusal'))}, of harmless pictures "
        f"{rate_text(diagnosis.get('image_over_refusal'))}.",
        _layers(diagnosis),
        _aligned(diagnosis),
        _patched(diagnosis),
        conclusion(diagnosis),
    ]
    return [it for it in said if it]


def span(layers: Sequence[int] | None) -> str:
    """A range of states in words."""
    if not layers:
        return "none"
    first, last = layers[0], layers[-1]
    return f"state {first}" if first == last else f"states {first}\u2013{last}"


def _layers(diagnosis: Mapping[str, Any]) -> str:
    layers = diagnosis.get("safety_layers") or {}
    paper, released = layers.get("paper"), layers.get("released")
    if not paper and not released:
        if not diagnosis.get("refusal_tokens"):
            return "No refusal token could be found, so no safety layer: too little is refused."
        return "Neither rule finds a layer where refusal arises."
    counts = diagnosis.get("safety_layer_counts") or {}
    if paper:
        found = rate_text((counts.get("paper") or {}).get("found"))
        text = f"Refusal arises at {span(paper)} by the paper\u2019s rule (found in {found} of the "
        text += "refused captions)"
        return f"{text}, at {span(released)} by the released code\u2019s."
    found = rate_text((counts.get("paper") or {}).get("found"))
    return (
        f"Refusal arises at {span(released)} by the released code\u2019s rule; the paper\u2019s "
        f"finds a layer in {found} of the refused captions, too few for one."
    )


def _aligned(diagnosis: Mapping[str, Any]) -> str:
    gap = diagnosis.get("alignment_gap") or {}
    nearest, cosine = gap.get("caption_retrieval") or {}, gap.get("centered_cosine") or {}
    if number(nearest.get("toxic")) is None:
        return ""
    where = "There" if gap.get("rule") != "all" else "Over all states"
    text = (
        f"{where} the own caption is the nearest for {percent(nearest['toxic'])}{UNIT} of toxic "
        f"and {percent(nearest['benign'])}{UNIT} of harmless pictures (centred cosine "
        f"{cosine['toxic']:.2f} and {cosine['benign']:.2f}"
    )
    encoder = number((diagnosis.get("encoder_alignment") or {}).get("caption_retrieval"))
    if encoder is None:
        return text + ")."
    return f"{text}); in CLIP\u2019s own space it is for {percent(encoder)}{UNIT} of all."


def best_patch(diagnosis: Mapping[str, Any], key: str = "caption") -> Mapping[str, Any] | None:
    """The row of ``patching`` that restores most, the last such; None if nothing was patched."""
    rows = [row for row in diagnosis.get("patching") or [] if share(row.get(key)) is not None]
    return max(reversed(rows), key=lambda row: row[key]["rate"], default=None)


def _patched(diagnosis: Mapping[str, Any]) -> str:
    best = best_patch(diagnosis)
    if best is None:
        return ""
    text = (
        f"Of {best['caption']['n']} toxic pictures that it does not refuse, it refuses "
        f"{rate_text(best['caption'])} once their states are replaced by their captions\u2019 at "
        f"state {best['layer']} ({rate_text(best['benign'])} with a harmless caption\u2019s)"
    )
    shifted = best_patch(diagnosis, "mean_caption")
    if shifted is not None:
        at_most = "at most " if share(shifted["mean_caption"]) else ""
        where = f"at state {shifted['layer']}" if at_most else "at any state patched"
        text += (
            f", and {at_most}{rate_text(shifted['mean_caption'])} once their mean alone is, {where}"
        )
    return text + "."


def conclusion(diagnosis: Mapping[str, Any]) -> str:
    """What patching says about the mechanism."""
    words = share(diagnosis.get("text_refusal"))
    if words is None or words < LITTLE:
        return (
            "It refuses too little in words: there is hardly any safety that pictures could get by "
            "alignment."
        )
    if best_patch(diagnosis) is None:
        return "It refuses every toxic picture, so nothing was left to patch."
    causal = diagnosis.get("causal_layers") or []
    if not causal:
        return (
            "So no layer shows that captions\u2019 states would make it refuse: that refusals are "
            "lost in the image\u2019s states is not shown."
        )
    text = (
        f"So it would refuse if its pictures\u2019 states were their captions\u2019 at "
        f"{_listed(causal)}: safety is there and the image\u2019s states miss it"
    )
    shifted = best_patch(diagnosis, "mean_caption")
    low = number((shifted or {}).get("mean_caption", {}).get("low"))
    control = number((shifted or {}).get("mean_benign", {}).get("high"))
    if low is None or control is None or low <= control:
        text += "; a mean that agrees is not shown to be enough"
    return text + "."


def _listed(layers: Sequence[int]) -> str:
    whole = list(range(layers[0], layers[-1] + 1))
    return span(layers) if list(layers) == whole else "states " + ", ".join(map(str, layers))


def associations(diagnosis: Mapping[str, Any]) -> str:
    """Whether better aligned scenes and pictures are refused more often."""
    by_scene = diagnosis.get("scene_correlation") or {}
    scenes = by_scene.get("centered_cosine_correlation") or {}
    one = (diagnosis.get("picture_association") or {}).get("centered_cosine") or {}
    if scenes.get("rho") is None:
        many = scenes.get("n", MISSING)
        text = f"Over {many} scene{'' if many == 1 else 's'} no correlation can be told: "
        if len(by_scene.get("dsr") or []) < 3:
            text += "it takes three."
        elif len(set(by_scene["dsr"])) == 1:
            text += "all are refused equally often."
        else:
            text += "all are aligned equally well."
    else:
        text = (
            f"Over {scenes['n']} scenes, DSR and centred cosine at the safety layers correlate "
            f"with \u03c1 = {scenes['rho']:.2f} [{scenes['low']:.2f}, {scenes['high']:.2f}], p = "
            f"{scenes['p']:.2f} by permutation."
        )
    if one.get("auroc") is not None:
        text += (
            f" A refused picture is better aligned than one that is not with probability "
            f"{one['auroc']:.2f} [{one['low']:.2f}, {one['high']:.2f}] ({one['refused']} refused, "
            f"{one['others']} not; 0.5 is chance)."
        )
    return text
