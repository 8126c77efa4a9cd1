"""Safety tuning of the language model in words alone, after the LLaVA is trained."""

from __future__ import annotations

from tgalign.baselines.method import Drawing, Row, Training
from tgalign.config import ObjectiveConfig, StageConfig
from tgalign.lab.language import text_example

ROWS = 2_000
"""Exchanges it is tuned on, a half of them refusals of toxic words."""


def records(rows: list[Row], drawing: Drawing) -> tuple[list[Row], list[Row]]:
    """Exchanges in words alone: toxic ones refused, harmless ones answered.

    Args:
        rows: The alignment data; none of it is used.
        drawing: Its ``rng`` draws the exchanges.

    Returns:
        The exchanges, and no row with a picture.
    """
    made = []
    for number in range(min(ROWS, len(rows))):
        example = text_example(drawing.rng, toxic=number % 2 == 0)
        turns = [
            {"role": "user", "content": example.prompt},
            {"role": "assistant", "content": example.answer},
        ]
        made.append({"messages": turns})
    return made, []


METHOD = Training(
    paper="Chakraborty et al., Findings of EMNLP 2024, arXiv 2406.02575",
    what="Tunes the language model of the finished cross-entropy model on refusals of toxic words "
    "and answers to harmless ones; no picture is seen.",
    departure="Of the paper's three losses the two that are cross-entropies on text stay (refuse "
    "the harmful, keep the harmless); ascent on harmful answers is left out, as the language model "
    "gives none in words.",
    start="ce",
    stages=(
        StageConfig(
            name="unlearning",
            train=["llm"],
            steps=300,
            batch_size=32,
            projector_lr=1e-3,
            llm_lr=3e-4,
            objective=ObjectiveConfig(weight=0.0),
        ),
    ),
    records=records,
)
