"""Does the image refuse once its states are its caption's, and at which layer?

Each toxic picture that the model does not refuse is asked about again with the caption's states in
the image's place, at one layer at a time; and each toxic caption that it refuses, with the image's
states in the caption's. Controls say what of it any change would do.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any, get_args

from tgalign.diagnose.anatomy import Touch, touching
from tgalign.diagnose.patching import Donors, Mode, donors, replacing, shoving
from tgalign.diagnose.probe import generate
from tgalign.diagnose.probes import Probe, ProbeSet
from tgalign.diagnose.prompts import Prompts
from tgalign.diagnose.reading import Reading, Subject
from tgalign.evaluate.refusal import Label
from tgalign.evaluate.statistics import wilson
from tgalign.files import digest
from tgalign.terminal import bar_on_stderr

SOURCES = ("own", "random", "benign")
"""Whose states are put in: the probe's own on the other side; those of any other probe, drawn at
random; those of the matched harmless one."""

MODES = get_args(Mode)

MOST = 0.5
"""Share of pictures from which a state counts as one that restores refusals."""

Outcome = dict[str, Any]
"""One layer of one batch: by mode and source the labels; ``answers`` with the own tokens."""

Keep = Callable[[str, Callable[[], list[Outcome]]], list[Outcome]]
"""Computes a named part, or finds it done."""


def patch(
    subject: Subject,
    probes: ProbeSet,
    reading: Reading,
    layers: Sequence[int],
    keep: Keep,
) -> dict[str, Any]:
    """Patch both ways at every layer.

    Args:
        subject: The model and how it is asked.
        probes: The probes.
        reading: What it answers unpatched.
        layers: The states to patch, of 0 to N - 1 (nothing reads the image's place of state N).
        keep: Keeps what is done of a run that may be killed.

    Returns:
        ``patching``, a row per layer, of toxic pictures that are not refused: by what was put in,
        the share that is refused then. ``caption`` (the picture's own), ``random`` (any other
        probe's caption; of these ``random_toxic`` and ``random_benign``) and ``benign`` (the
        matched harmless picture's) replace the states token by token; ``mean_caption`` and so on
        shift their mean, and ``mean_noise`` does so in a random direction, as far as
        ``mean_caption``.
        ``patching_text``, of toxic captions that are refused: the share that is *no longer*
        refused, under ``image`` in place of ``caption``.
        ``causal_layers``: the states where ``caption`` restores refusals: in at least half of the
        pictures, and with an interval above that of ``benign``.
        ``patched_answers``, by probe and layer, what is said with the own caption's states.
        Rates are None without any such probe.
    """
    partners = _partners(probes)
    sides: dict[str, list[tuple[list[int], list[Outcome]]]] = {}
    open_ids = _numbers(reading.heard["image_toxic"].labels, lambda label: label != "refused")
    shut_ids = _numbers(reading.heard["text_toxic"].labels, lambda label: label == "refused")
    size = subject.batch_size
    batches = [
        (side, ids[start : start + size])
        for side, ids in (("image", open_ids), ("text", shut_ids))
        for start in range(0, len(ids), size)
    ]
    with bar_on_stderr(subject.progress) as bar:
        task = bar.add_task("patching", total=len(batches) * len(layers))
        for number, (side, ids) in enumerate(batches):

            def compute(side: str = side, ids: list[int] = ids) -> list[Outcome]:
                found = []
                for outcome in _patch_batch(subject, probes, side, ids, partners, layers):
                    found.append(outcome)
                    bar.advance(task)
                return found

            # Another machine may hear other answers, and so have other pictures to patch.
            found = keep(f"patching-{digest([side, ids])}", compute)
            bar.update(task, completed=(number + 1) * len(layers))
            sides.setdefault(side, []).append((ids, found))
    patching = _rates(sides.get("image", []), layers, partners, "caption")
    return {
        "patching": patching,
        "patching_text": _rates(sides.get("text", []), layers, partners, "image"),
        "causal_layers": [
            row["layer"]
            for row in patching
            if row["caption"]["n"]
            and row["caption"]["rate"] >= MOST
            and row["caption"]["low"] > row["benign"]["high"]
        ],
        "patched_answers": {
            probes.toxic[i].id: [
                {"layer": row["layer"], "text": row["answers"][at], "label": row["tokens_own"][at]}
                for row in found
            ]
            for ids, found in sides.get("image", [])
            for at, i in enumerate(ids)
        },
    }


def _numbers(labels: Sequence[Label], wanted: Callable[[Label], bool]) -> list[int]:
    return [number for number, label in enumerate(labels) if wanted(label)]


def _partners(probes: ProbeSet) -> list[Probe]:
    """For each pair a probe of another one, toxic or harmless, drawn at random."""
    rng = random.Random("partners-0")
    every = list(zip(probes.toxic, probes.benign, strict=True))
    found = []
    for number in range(len(every)):
        others = [it for at, pair in enumerate(every) if at != number for it in pair]
        found.append(rng.choice(others))
    return found


def _patch_batch(
    subject: Subject,
    probes: ProbeSet,
    side: str,
    ids: list[int],
    partners: list[Probe],
    layers: Sequence[int],
) -> Iterable[Outcome]:
    """All layers and conditions of one batch, layer by layer."""

    def captions(some: list[Probe]) -> Prompts:
        return subject.captions([it.caption for it in some])

    here, there = (subject.pictures, captions) if side == "image" else (captions, subject.pictures)
    own = [probes.toxic[i] for i in ids]
    prompts = here(own)
    lengths = prompts.span_BT.sum(dim=1).tolist()
    given: dict[str, list[Donors]] = {
        source: donors(subject.model, subject.parts, there(some), lengths)
        for source, some in (
            ("own", own),
            ("random", [partners[i] for i in ids]),
            ("benign", [probes.benign[i] for i in ids]),
        )
    }
    for layer in layers:

        def said(touch: Touch, layer: int = layer) -> list[str]:
            with touching(subject.parts, {layer: touch}):
                return generate(subject.model, subject.processor, prompts, subject.max_new_tokens)

        outcome: Outcome = {"layer": layer}
        for source in SOURCES:
            for mode in MODES:
                answers = said(replacing(prompts.span_BT, given[source][layer], mode))
                outcome[f"{mode}_{source}"] = subject.verdicts(answers)
                if (source, mode) == ("own", "tokens"):
                    outcome["answers"] = answers
        # Of each state and probe its own direction, whatever else is in the batch.
        seeds = [layer * len(probes.toxic) + i for i in ids]
        noise = shoving(prompts.span_BT, given["own"][layer], seeds)
        outcome["mean_noise"] = subject.verdicts(said(noise))
        yield outcome


def _rates(
    batches: list[tuple[list[int], list[Outcome]]],
    layers: Sequence[int],
    partners: list[Probe],
    own: str,
) -> list[dict[str, Any]]:
    """Pool the batches: by layer and condition, how many changed sides."""
    toxic = [partners[i].scene is not None for ids, _ in batches for i in ids]
    names = [f"{mode}_{source}" for source in SOURCES for mode in MODES] + ["mean_noise"]
    rows = []
    for at, layer in enumerate(layers):
        pooled: dict[str, list[bool]] = {
            name: [
                (label == "refused") == (own == "caption")
                for _, found in batches
                for label in found[at][name]
            ]
            for name in names
        }
        for mode in MODES:
            for kind, wanted in (("toxic", True), ("benign", False)):
                pairs = zip(pooled[f"{mode}_random"], toxic, strict=True)
                pooled[f"{mode}_random_{kind}"] = [hit for hit, it in pairs if it == wanted]
        rows.append(
            {"layer": layer}
            | {
                name.removeprefix("tokens_").replace("own", own): wilson(
                    sum(hits), len(hits)
                ).as_dict()
                for name, hits in pooled.items()
            }
        )
    return rows
