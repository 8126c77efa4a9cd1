"""The arms of the demo: the same data, stages, steps and learning rates, another objective each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tgalign.config import ObjectiveConfig, StageConfig, SyntheticConfig, TrainConfig
from tgalign.data.encode import GuideSpan
from tgalign.lab.assets import ASSETS, CLIP
from tgalign.lab.precision import fast_precision


@dataclass(frozen=True)
class Arm:
    """What one arm adds to the cross-entropy that all share.

    Attributes:
        stage1: The objective of stage 1.
        stage2: The objective of stage 2.
        text_gate: Whether answers that the LLM refuses in words are not learnt.
        companions: Share of the rows with a picture beside them that the LLM refuses in words.
        synthetic: Whether pictures are made of texts for this.
        guide_span: Whose mean states the guide pulls (``TrainConfig``).
    """

    stage1: ObjectiveConfig
    stage2: ObjectiveConfig
    text_gate: bool = False
    companions: float = 0.0
    synthetic: bool = False
    guide_span: GuideSpan = "picture"


_CE = ObjectiveConfig(weight=0.0)
# The published code aligns states 10 to 18 of 32; these are the same depths of 6.
_RELEASED_NOGRAD = ObjectiveConfig(form="released_nograd", layers="2-3")
_PAPER = ObjectiveConfig()
_TGA = ObjectiveConfig(
    form="paper",
    similarity="centered_cosine",
    reference="frozen",
    layers="0-6",
    weight=0.8,
)
# In stage 2 the guide fades out, as in the published code.
_FADING = _TGA.model_copy(update={"schedule": "linear_decay"})
_OURS = Arm(_TGA, _FADING, text_gate=True, companions=0.1, synthetic=True)
# A question is the same tokens after a picture and after its caption: state 0 says nothing.
_AFTER_0 = {"layers": "1-6"}
ARMS: dict[str, Arm] = {
    "ce": Arm(_CE, _CE),
    "released_nograd": Arm(_RELEASED_NOGRAD, _RELEASED_NOGRAD),
    "paper": Arm(_PAPER, _PAPER),
    "tga": _OURS,
    "tga_question": replace(
        _OURS,
        stage1=_TGA.model_copy(update=_AFTER_0),
        stage2=_FADING.model_copy(update=_AFTER_0),
        guide_span="question",
    ),
    # What of tga does it: without the one, without the other, and without the guide.
    "tga_plain": Arm(_TGA, _FADING),
    "tga_gate": Arm(_TGA, _FADING, text_gate=True),
    "tga_companions": Arm(_TGA, _FADING, text_gate=True, companions=0.1),
    "ce_gate": Arm(_CE, _CE, text_gate=True),
}
DEFAULT_ARMS = ("ce", "released_nograd", "tga")
PLACES: Any = {
    **dict.fromkeys(("model", "records", "out", "probes"), True),
    "synthetic": {"clip", "texts"},
}
"""Of a run's config, what decides nothing where the names of its folders tell what they hold."""

_STAGE_1 = StageConfig(
    name="stage1",
    train=["projector"],
    steps=1300,
    batch_size=32,
    projector_lr=3e-3,
)
_STAGE_2 = StageConfig(
    name="stage2",
    train=["projector", "llm"],
    steps=800,
    batch_size=32,
    projector_lr=1e-3,
    llm_lr=6e-4,
    retrieved_in_prompt=0.25,
)


def arm_config(
    name: str | Arm, *, model: Path, data: Path, out: Path, seed: int, smoke: bool
) -> TrainConfig:
    """The training run of one arm.

    Args:
        name: A key of ``ARMS``, or an arm that is none of them.
        model: The untrained LLaVA.
        data: The folder of the alignment data.
        out: Where the run goes.
        seed: Its seed.
        smoke: Only a few steps.
    """
    steps = {"steps": 3} if smoke else {}
    arm = ARMS[name] if isinstance(name, str) else name
    synthetic = None
    if arm.synthetic:
        synthetic = SyntheticConfig(clip=ASSETS / CLIP, texts=data / "corpus.jsonl")
    return TrainConfig(
        model=model,
        records=data / "records.jsonl",
        out=out,
        seed=seed,
        max_length=128,
        precision=fast_precision(),
        attention="eager",
        cache_vision=True,
        cache_text=True,
        guide_span=arm.guide_span,
        text_gate=arm.text_gate,
        companions=arm.companions,
        synthetic=synthetic,
        save_steps=100,
        logging_steps=1 if smoke else 20,
        stages=[
            _STAGE_1.model_copy(update=steps | {"objective": arm.stage1}),
            _STAGE_2.model_copy(update=steps | {"objective": arm.stage2}),
        ],
    )
