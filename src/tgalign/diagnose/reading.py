"""What a model answers to probes, in words and in pictures, and what it holds of them by layer.

One pass over every probe: the states are taken from the very forward that begins its answer.

Shape suffixes: L the N+1 hidden states, B probes, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tgalign.diagnose.anatomy import Anatomy, check_lens
from tgalign.diagnose.probe import LayerProbe, answer_and_probe, probe
from tgalign.diagnose.probes import Probe, ProbeSet
from tgalign.diagnose.prompts import Prompts, caption_prompts, picture_prompts
from tgalign.errors import UserError
from tgalign.evaluate.refusal import Label, judge
from tgalign.terminal import tracked


@dataclass(frozen=True)
class Subject:
    """A model and how it is asked.

    Attributes:
        model: An ``AutoModelForImageTextToText``.
        processor: Its processor.
        parts: Its anatomy.
        question: What is asked about every picture.
        batch_size: Prompts per forward.
        max_new_tokens: Length at which an answer is cut.
        progress: Whether to draw progress bars.
    """

    model: Any
    processor: Any
    parts: Anatomy
    question: str
    batch_size: int
    max_new_tokens: int
    progress: bool

    def pictures(self, probes: Sequence[Probe]) -> Prompts:
        """Their pictures, each followed by the question."""
        shown = [it.load() for it in probes]
        return picture_prompts(self.model, self.processor, shown, self.question)

    def captions(self, captions: Sequence[str]) -> Prompts:
        """Captions in the pictures' place."""
        return caption_prompts(self.model, self.processor, captions, self.question)

    def batches(self, probes: Sequence[Probe], title: str, size: int | None = None) -> Any:
        """Probes by the batch, under a progress bar."""
        size = size or self.batch_size
        found = [list(probes[start : start + size]) for start in range(0, len(probes), size)]
        return tracked(found, title, shown=self.progress)

    def verdicts(self, answers: Sequence[str]) -> list[Label]:
        """The judge's label of every answer."""
        return [judge(text, self.question).label for text in answers]


@dataclass(frozen=True)
class Heard:
    """Answers to one kind of prompt, and the states behind them.

    Attributes:
        answers: The answers.
        labels: Their verdicts.
        states: Span means and answer positions.
    """

    answers: list[str]
    labels: list[Label]
    states: LayerProbe

    def where(self, label: Label) -> Tensor:
        """Which of the prompts have a verdict, bool of shape (B,)."""
        return torch.tensor([it == label for it in self.labels])


@dataclass(frozen=True)
class Reading:
    """All that one pass over the probes gives.

    Attributes:
        heard: By ``text_toxic``, ``text_benign``, ``image_toxic`` and ``image_benign``; row i of
            each belongs to pair i.
        paraphrase: Span means of the paraphrased captions (L, B, D), toxic ones first and then
            the harmless; None where a probe has none.
    """

    heard: dict[str, Heard]
    paraphrase: Tensor | None


def read(subject: Subject, probes: ProbeSet) -> Reading:
    """Ask about every picture and every caption.

    Raises:
        UserError: The logit lens does not fit the model, or its image tokens hold no picture.
    """
    alone = subject.captions([probes.toxic[0].caption])
    check_lens(subject.model, subject.parts, alone.inputs)
    heard = {}
    for kind, found in (("toxic", probes.toxic), ("benign", probes.benign)):
        heard[f"image_{kind}"] = _ask(subject, found, subject.pictures, f"{kind} pictures")
        heard[f"text_{kind}"] = _ask(
            subject,
            found,
            lambda some: subject.captions([it.caption for it in some]),
            f"{kind} captions",
        )
    _check_pictures(subject, heard["image_toxic"].states, heard["image_benign"].states)
    every = probes.toxic + probes.benign
    paraphrase = None
    if all(it.paraphrase for it in every):
        paraphrase = torch.cat(
            [
                probe(
                    subject.model,
                    subject.parts,
                    caption_prompts(
                        subject.model,
                        subject.processor,
                        [it.paraphrase or "" for it in some],
                        subject.question,
                        "right",
                    ),
                ).span_LBD
                for some in subject.batches(every, "paraphrases")
            ],
            dim=1,
        )
    return Reading(heard, paraphrase)


def _ask(
    subject: Subject,
    probes: Sequence[Probe],
    prompts_of: Callable[[Sequence[Probe]], Prompts],
    title: str,
) -> Heard:
    answers: list[str] = []
    states: list[LayerProbe] = []
    for some in subject.batches(probes, title):
        said, found = answer_and_probe(
            subject.model,
            subject.processor,
            subject.parts,
            prompts_of(some),
            subject.max_new_tokens,
        )
        answers += said
        states.append(found)
    return Heard(answers, subject.verdicts(answers), LayerProbe.joined(states))


def _check_pictures(subject: Subject, toxic: LayerProbe, benign: LayerProbe) -> None:
    """Image tokens must hold the picture, or all that follows would be about placeholders."""
    if torch.equal(toxic.span_LBD[0], benign.span_LBD[0]):
        raise UserError(
            f"the image tokens of a {type(subject.model).__name__} hold the same state whatever "
            "the picture, so pictures do not run through its decoder as tokens"
        )
