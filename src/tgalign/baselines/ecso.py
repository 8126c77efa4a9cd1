"""Caption, then answer without looking (ECSO): the language model's safety works on words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from tgalign.baselines.defence import (
    Calibration,
    Generate,
    Inputs,
    around_generate,
    with_answers,
)
from tgalign.baselines.method import Defence
from tgalign.baselines.told import own_captions, told_inputs
from tgalign.evaluate.refusal import judge


@contextmanager
def around(model: Any, processor: Any, calibration: Calibration) -> Iterator[None]:
    """Answer in words alone where the model, told its own caption, refuses.

    Args:
        model: A LLaVA.
        processor: Its processor.
        calibration: Says what makes it caption; no threshold is set.
    """

    def wrap(generate: Generate, inputs: Inputs) -> Tensor:
        generated = generate(**inputs)
        captions = own_captions(model, processor, calibration, generate, inputs)
        told = told_inputs(model, processor, inputs, captions)
        words = {name: value for name, value in inputs.items() if name != "pixel_values"}
        answered_BS = generate(**(words | told))
        texts = processor.tokenizer.batch_decode(
            answered_BS[:, told["input_ids"].shape[1] :], skip_special_tokens=True
        )
        refused = {
            row: text.strip()
            for row, text in enumerate(texts)
            if judge(text, calibration.question).label == "refused"
        }
        return with_answers(processor, inputs["input_ids"], generated, refused)

    with around_generate(model, wrap):
        yield


METHOD = Defence(
    paper="Gou et al., ECCV 2024, arXiv 2403.09572 (ECSO)",
    what="Lets the model caption the picture and answer from the caption alone; where it refuses "
    "then, that is the answer, else the answer to the picture stays.",
    departure="The paper asks the model whether its answer is harmful before it closes its eyes; "
    "here the model's refusal in words is that verdict, since the lab's cannot judge. The caption "
    "does not depend on the question.",
    around=around,
)
