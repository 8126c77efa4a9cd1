"""``tgalign diagnose``: read, attend, patch, and write ``diagnosis.json`` and ``report.html``."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tgalign.data.records import DEFAULT_QUESTION
from tgalign.diagnose import figures
from tgalign.diagnose.anatomy import anatomy
from tgalign.diagnose.attending import attend
from tgalign.diagnose.causality import Outcome, patch
from tgalign.diagnose.correlation import picture_association, scene_correlation
from tgalign.diagnose.diagnosed_layers import DIAGNOSIS_SCHEMA
from tgalign.diagnose.probes import MIN_PAIRS, Probe, ProbeSet
from tgalign.diagnose.reading import Reading, Subject, read
from tgalign.diagnose.separability import separability
from tgalign.errors import UserError
from tgalign.files import claim, read_json, write_json
from tgalign.locks import sole_writer
from tgalign.pooling import parse_layers

FILE = "diagnosis.json"
GALLERY = 12
THUMBNAIL = 288
"""Largest side of a picture of the gallery."""


def diagnose(
    model: Any,
    processor: Any,
    probes: ProbeSet,
    out: Path,
    *,
    question: str = DEFAULT_QUESTION,
    clip: tuple[Any, Any, Any] | None = None,
    patch_layers: str = "all",
    batch_size: int = 16,
    max_new_tokens: int = 32,
    progress: bool = True,
    about: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Diagnose a model: where it refuses in words, where pictures lose that, and proof by patching.

    A run that was killed goes on after its last batch of patching; a finished one is read.

    Args:
        model: An ``AutoModelForImageTextToText``.
        processor: Its processor.
        probes: What to ask about.
        out: Receives ``diagnosis.json``, ``report.html`` and ``pictures/``.
        question: What is asked about every picture.
        clip: A CLIP, its tokenizer and its image processor, whose similarity is put beside.
        patch_layers: Which states to patch: ``all`` (0 to N - 1) or a range such as ``"8-16"``.
        batch_size: Prompts per forward.
        max_new_tokens: Length at which an answer is cut.
        progress: Whether to draw progress bars.
        about: What tells this run from another, as the model's path; goes into the result.

    Returns:
        The content of ``diagnosis.json``.

    Raises:
        UserError: The model cannot be read (``tgalign.diagnose.anatomy``), the layers are out of
            range, or ``out`` holds something else.
    """
    parts = anatomy(model)
    if len(probes.toxic) < MIN_PAIRS:
        raise UserError(f"{len(probes.toxic)} pairs of probes; expected at least {MIN_PAIRS}")
    patched = _patched(patch_layers, parts.num_layers)
    settings = {
        "about": about or {},
        "probes": probes.source,
        "probes_sha256": probes.sha256(),
        "pairs": len(probes.toxic),
        "question": question,
        "clip": clip is not None,
        "patch_layers": patched,
        "max_new_tokens": max_new_tokens,
        "versions": {name: version(name) for name in ("tgalign", "torch", "transformers")},
    }
    with sole_writer(out):
        claim(out, "parts/settings.json", settings, "diagnosis")
        if (out / FILE).is_file():
            return _report(read_json(out / FILE), out)
        start = time.monotonic()
        subject = Subject(model, processor, parts, question, batch_size, max_new_tokens, progress)
        reading = read(subject, probes)
        found = figures.refusals(reading, probes)
        found |= figures.safety_layers(parts, reading, processor.tokenizer)
        rule, states = figures.chosen_layers(found, parts.num_layers)
        found["alignment"] = figures.alignment(reading)
        found["alignment_gap"] = figures.gap(reading, rule, states)
        found["encoder_alignment"] = figures.encoder_alignment(*clip, probes) if clip else None
        found |= _correlations(reading, probes, states)
        last = {kind: heard.states.last_LBD for kind, heard in reading.heard.items()}
        refusal_ids = [token["id"] for token in found["refusal_tokens"]]
        found["separability"] = separability(parts, last, refusal_ids or None)
        shown = _gallery_probes(probes)
        attention = attend(subject, probes, states, [it.id for it in shown])
        maps = attention.pop("maps")
        found["attention"] = attention
        found |= patch(subject, probes, reading, patched, _keeper(out))
        answers = found.pop("patched_answers")
        found["gallery"] = _gallery(out, probes, shown, reading, maps, answers)
        result = {
            "schema_version": DIAGNOSIS_SCHEMA,
            "model_type": model.config.model_type,
            "num_layers": parts.num_layers,
            "scenes": probes.scenes,
            **settings,
            "batch_size": batch_size,
            **found,
            "seconds": time.monotonic() - start,
        }
        write_json(out / FILE, result)
        for part in (out / "parts").glob("patching-*.json"):
            part.unlink()
        return _report(result, out)


def _report(result: dict[str, Any], out: Path) -> dict[str, Any]:
    from tgalign.report.diagnosis_report import write_diagnosis_report

    write_diagnosis_report(result, out)
    return result


def _patched(spec: str, num_layers: int) -> list[int]:
    if spec == "all":
        return list(range(num_layers))
    layers = parse_layers(spec, num_layers)
    if num_layers in layers:
        raise UserError(
            f"patch layers {spec!r}: nothing reads the image's place of state {num_layers}, the "
            f"last; expected states from 0 to {num_layers - 1}"
        )
    return layers


def _keeper(out: Path) -> Callable[[str, Callable[[], list[Outcome]]], list[Outcome]]:
    """Keeps each finished part beside the result until that is written."""

    def keep(name: str, compute: Callable[[], list[Outcome]]) -> list[Outcome]:
        path = out / "parts" / f"{name}.json"
        if not path.is_file():
            write_json(path, compute())
        found: list[Outcome] = read_json(path)
        return found

    return keep


def _correlations(reading: Reading, probes: ProbeSet, states: list[int]) -> dict[str, Any]:
    """Refusals of toxic pictures against their alignment at the safety layers."""
    by_probe = figures.per_probe_alignment(reading, states)["toxic"]
    refused_B = reading.heard["image_toxic"].where("refused")
    members = {
        scene: [number for number, it in enumerate(probes.toxic) if it.scene == scene]
        for scene in probes.scenes
    }
    dsr = [float(refused_B[ids].float().mean()) for ids in members.values()]
    by_scene: dict[str, Any] = {"scenes": list(members), "dsr": dsr}
    by_picture: dict[str, Any] = {}
    for measure in figures.MEASURES:
        value_B = by_probe[measure]
        means = [float(value_B[ids].mean()) for ids in members.values()]
        by_scene[measure] = means
        by_scene[f"{measure}_correlation"] = scene_correlation(means, dsr)
        by_picture[measure] = picture_association(value_B.tolist(), refused_B.tolist())
    return {"scene_correlation": by_scene, "picture_association": by_picture}


def _gallery_probes(probes: ProbeSet) -> list[Probe]:
    """A few toxic probes, of every scene in turn."""
    by_scene = [[it for it in probes.toxic if it.scene == scene] for scene in probes.scenes]
    longest = max(map(len, by_scene))
    turns = [it[turn] for turn in range(longest) for it in by_scene if turn < len(it)]
    return turns[:GALLERY]


def _gallery(
    out: Path,
    probes: ProbeSet,
    shown: list[Probe],
    reading: Reading,
    maps: dict[str, Any],
    patched: dict[str, Any],
) -> list[dict[str, Any]]:
    (out / "pictures").mkdir(exist_ok=True)
    order = {probe.id: number for number, probe in enumerate(probes.toxic)}
    cards = []
    for number, probe in enumerate(shown):
        picture = probe.load().convert("RGB")
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        name = f"pictures/{number}.png"
        picture.save(out / name)
        at = order[probe.id]
        card: dict[str, Any] = {
            "image_file": name, "id": probe.id, "scene": probe.scene, "caption": probe.caption,
            "toxic_text": probe.toxic_text, "box": probe.box and list(probe.box),
            "attention": maps.get(probe.id), "patched": patched.get(probe.id, []),
        }  # fmt: skip
        for side in ("text", "image"):
            heard = reading.heard[f"{side}_toxic"]
            card[side] = {"text": heard.answers[at], "label": heard.labels[at]}
        cards.append(card)
    return cards
