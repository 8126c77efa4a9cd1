"""All methods by name, and the context in which a model is defended by one."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tgalign.baselines import (
    ce,
    cmrm,
    ecso,
    hiddendetect,
    modality_gap,
    paper,
    refusal_on_benign,
    released_nograd,
    safeclip,
    safety_prompt,
    shiftdc,
    textual_unlearning,
    tga,
    tga_question,
    vlguard,
)
from tgalign.baselines.defence import Calibration
from tgalign.baselines.method import Defence, Training
from tgalign.errors import UserError

TRAININGS: dict[str, Training] = {
    "ce": ce.METHOD,
    "released_nograd": released_nograd.METHOD,
    "paper": paper.METHOD,
    "tga": tga.METHOD,
    "tga_question": tga_question.METHOD,
    "refusal_on_benign": refusal_on_benign.METHOD,
    "textual_unlearning": textual_unlearning.METHOD,
    "modality_gap": modality_gap.METHOD,
    "vlguard": vlguard.METHOD,
}
DEFENCES: dict[str, Defence] = {
    "cmrm": cmrm.METHOD,
    "shiftdc": shiftdc.METHOD,
    "safeclip": safeclip.METHOD,
    "ecso": ecso.METHOD,
    "hiddendetect": hiddendetect.METHOD,
    "safety_prompt": safety_prompt.METHOD,
}
DEFAULT_METHODS = (*TRAININGS, *DEFENCES)


@dataclass(frozen=True)
class Plan:
    """One column of the comparison.

    Attributes:
        name: The shortest that asks for it: ``ecso`` for ``ce+ecso``.
        training: Name of the training that made the checkpoint.
        defence: Name of the defence around it, or None.
    """

    name: str
    training: str
    defence: str | None


def plan(name: str, given: Collection[str] = ()) -> Plan:
    """What a method's name asks for.

    Args:
        name: A training (``tga``), a defence, which then stands around the ``ce`` model
            (``ecso``), or both (``tga+ecso``).
        given: Names of checkpoints that stand for trainings too.

    Raises:
        UserError: Neither is known.
    """
    training, plus, defence = name.partition("+")
    if not plus and name in DEFENCES:
        training, defence = "ce", name
    known = training in TRAININGS or training in given
    if not known or ((defence or plus) and defence not in DEFENCES):
        raise UserError(
            f"unknown method {name!r}: expected one of {', '.join(TRAININGS)}; one of "
            f"{', '.join(DEFENCES)}, which stand around the model of ce; or both, such as tga+ecso"
        )
    around_ce = training == "ce" and defence
    return Plan(defence if around_ce else name, training, defence or None)


@contextmanager
def defend(model: Any, processor: Any, name: str, *, calibration: Calibration) -> Iterator[None]:
    """Defend a model while in the context: whoever calls ``model.generate`` gets safe answers.

    Args:
        model: A LLaVA; its weights are not touched.
        processor: Its processor.
        name: A key of ``DEFENCES``.
        calibration: What thresholds and directions are set on; never the items it is tested on.

    Raises:
        UserError: An unknown name, or a calibration that lacks what the defence needs.
    """
    if name not in DEFENCES:
        raise UserError(f"unknown defence {name!r}; expected one of: {', '.join(DEFENCES)}")
    model.eval()
    with DEFENCES[name].around(model, processor, calibration):
        yield
