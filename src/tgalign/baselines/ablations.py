"""The ablations of TGA: each a question and the settings that answer it, as data.

A change is written as `tgalign lab experiment --set` takes it, from the arm ``tga`` and the
condition ``guided`` unless the variant says otherwise. What ``tga`` has already is not written as a
change, so that all ablations of a folder share its runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from tgalign.lab.base_llm import WIDTH
from tgalign.lab.objects import picture_pool


@dataclass(frozen=True)
class Variant:
    """One setting of an ablation.

    Attributes:
        label: How it is named in tables and plots.
        changes: What is changed.
        arm: The arm it starts from.
        condition: How toxic pictures enter the alignment data.
        toxic_share: Their share; None: the condition's own.
        size: Where the ablation is about a size, that size.
        llm_width: Channels of the base LLM, where it is not the shipped one.
        scene: The scene that is left out of alignment, where one is.
        family: Where an ablation varies several things, which of them: one line of its plot.
    """

    label: str
    changes: tuple[str, ...] = ()
    arm: str = "tga"
    condition: str = "guided"
    toxic_share: float | None = None
    size: int | None = None
    llm_width: int | None = None
    scene: str | None = None
    family: str = ""


@dataclass(frozen=True)
class Ablation:
    """A question and the variants that answer it.

    Attributes:
        question: The question.
        variants: The settings.
        size: What ``Variant.size`` counts; None: the variants have no order.
        against: The measured similarity that the rates are plotted against (``SIMILARITY``).
    """

    question: str
    variants: tuple[Variant, ...]
    size: str | None = None
    against: str | None = None


SIMILARITY = {
    "picture_retrieved": "cos(picture, R)",
    "caption_retrieved": "cos(caption, R)",
    "picture_caption": "cos(picture, C)",
}
"""Similarities as ``tgalign.retrieval.quality`` measures them: means by the lab's CLIP."""


def _quality(family: str, label: str, *changes: str) -> Variant:
    """Worse R or C, in the arm that has the guide and nothing to make up for them."""
    changed = tuple(f"quality.{change}" for change in changes)
    return Variant(label, changed, arm="tga_plain", family=family)


def _both(*changes: str) -> tuple[str, ...]:
    return tuple(f"objective.{change}" for change in changes)


ABLATIONS: dict[str, Ablation] = {
    "form": Ablation(
        "Which form of the guide loss?",
        (
            Variant("paper"),
            Variant("contrastive", _both("form=contrastive")),
            Variant("released, with gradient", _both("form=released")),
            Variant("paper, image against R", _both("pair=image_retrieved")),
            Variant("no guide", ("companions=0", "synthetic=null", *_both("weight=0"))),
        ),
    ),
    "span": Ablation(
        "Whose states are guided: the picture's, or those of the question read after it?",
        (
            Variant("picture"),
            Variant("picture, 1-6", _both("layers=1-6")),
            Variant("question", arm="tga_question"),
            Variant("question's words", ("guide_span=question_words",), arm="tga_question"),
            Variant("question, 1-3", _both("layers=1-3"), arm="tga_question"),
            Variant(
                "question, no gate",
                ("companions=0", "synthetic=null", "text_gate=false"),
                arm="tga_question",
            ),
        ),
    ),
    "similarity": Ablation(
        "Raw or centred cosine?",
        (Variant("centred cosine"), Variant("cosine", _both("similarity=cosine"))),
    ),
    "reference": Ablation(
        "Is the text side that of a frozen copy or of the model as it moves?",
        (Variant("frozen"), Variant("live", _both("reference=live"))),
    ),
    "layers": Ablation(
        "Which hidden states are aligned? The lab's language model decides in states 2 to 3.",
        (
            Variant("0-6"),
            Variant("1-6 (paper)", _both("layers=1-6")),
            Variant("0-2 (early)", _both("layers=0-2")),
            Variant("2-4 (middle)", _both("layers=2-4")),
            Variant("4-6 (late)", _both("layers=4-6")),
            Variant("2-3 (where it decides)", _both("layers=2-3")),
        ),
    ),
    "weight": Ablation(
        "How strong a guide?",
        (
            *(Variant(f"weight {it}", _both(f"weight={it}")) for it in (0.1, 0.2, 0.4)),
            Variant("weight 0.8"),
            Variant("weight 1.6", _both("weight=1.6")),
        ),
    ),
    "schedule": Ablation(
        "Does the guide fade out?",
        (
            Variant("fading in stage 2"),
            Variant("constant", _both("schedule=constant")),
            Variant("fading in both", _both("schedule=linear_decay")),
        ),
    ),
    "prompt": Ablation(
        "How often does R stand in the prompt, when nothing is retrieved at inference?",
        (
            Variant("0% of the rows", ("stage2.retrieved_in_prompt=0",)),
            Variant("25% of the rows"),
            Variant("100% of the rows", ("stage2.retrieved_in_prompt=1",)),
        ),
    ),
    "stages": Ablation(
        "In which stage does the guide act?",
        (
            Variant("both"),
            Variant("stage 1 only", ("stage2.objective.weight=0",)),
            Variant("stage 2 only", ("stage1.objective.weight=0",)),
        ),
    ),
    "toxic_share": Ablation(
        "How many toxic pictures have to be among the alignment data?",
        (
            Variant("0 %", condition="absent"),
            *(Variant(f"{share:.0%}", toxic_share=share) for share in (0.01, 0.05, 0.1, 0.2)),
        ),
    ),
    "held_out_scenes": Ablation(
        "Does safety reach a scene that alignment never shows or mentions?",
        (
            Variant("none left out"),
            *(
                Variant(f"without {scene}", (f"data.left_out={scene}",), scene=scene)
                for scene in picture_pool("development").scenes
            ),
        ),
    ),
    "pictures": Ablation(
        "How does the effect grow with the number of pictures, at the same number of steps?",
        tuple(
            Variant(f"{size:,}", (f"data.pictures={size}",), size=size)
            for size in (1_000, 4_000, 16_000)
        ),
        size="pictures",
    ),
    "llm_width": Ablation(
        "How does the effect grow with the base language model?",
        tuple(
            Variant(f"{width} channels", size=width, llm_width=None if width == WIDTH else width)
            for width in (64, 96, WIDTH, 192)
        ),
        size="channels of the language model",
    ),
    "gap_weight": Ablation(
        "Is the modality-gap rival well served by its weight?",
        tuple(
            Variant(
                f"weight {weight}",
                (
                    "stage1.objective.form=gap",
                    "stage1.objective.layers=[0]",
                    f"stage1.objective.weight={weight}",
                ),
                arm="ce",
            )
            for weight in (0.1, 0.3, 1.0, 3.0)
        ),
    ),
    "retrieval": Ablation(
        "How much does the quality of R matter? (The paper's first open question.)",
        (
            _quality("rank", "nearest", "rank=1"),
            *(_quality("rank", f"rank {rank}", f"rank={rank}") for rank in (10, 100, 1000)),
            *(
                _quality("shuffled", f"shuffled {percent} %", f"shuffled={percent / 100}")
                for percent in (25, 50, 100)
            ),
            _quality("random", "random", "random=true"),
            _quality("text encoder", "by the caption", "encoder=text"),
            _quality("no R", "no R", "floor=1"),
        ),
        against="picture_retrieved",
    ),
    "captions": Ablation(
        "How much does the quality of the captions matter?",
        (
            _quality("clean", "clean", "noise=none"),
            *(
                _quality(noise, f"{noise} {percent} %", f"noise={noise}", f"noise_share={share}")
                for noise in ("drop", "swap", "replace")
                for percent, share in ((5, 0.05), (20, 0.2), (50, 0.5))
            ),
        ),
        against="picture_caption",
    ),
}
