"""Which lines of a diagnosis each plot shows, and how to read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Line:
    """What one line of a panel shows.

    Attributes:
        name: Of the line.
        rows: Where its rows stand in a diagnosis.
        key: Its value in a row: a number, with ``_low`` and ``_high`` beside it, or a rate.
        alone: Whether it has a line of its own where several diagnoses are compared; the others
            are left out there.
    """

    name: str
    rows: Callable[[Mapping[str, Any]], Any]
    key: str
    alone: bool = True


def _of(name: str) -> Callable[[Mapping[str, Any]], Any]:
    return lambda diagnosis: diagnosis.get(name)


def attention_of(side: str) -> Callable[[Mapping[str, Any]], Any]:
    """Where the rows of the attention to one side stand, ``text`` or ``image``."""
    return lambda diagnosis: ((diagnosis.get("attention") or {}).get(side) or {}).get("layers")


_WORDS, _PICTURES = attention_of("text"), attention_of("image")
_LENS, _ALIGN, _PATCH = _of("lens"), _of("alignment"), _of("patching")
_BACK, _SEPARATE = _of("patching_text"), _of("separability")
_STATE = "hidden state"
PANELS: dict[str, list[tuple[str, str, bool, list[Line]]]] = {
    "lens": [
        ("Probability of a refusal token", _STATE, True, [
            Line("toxic words", _LENS, "text_toxic"),
            Line("toxic pictures", _LENS, "image_toxic"),
            Line("harmless words", _LENS, "text_benign", alone=False),
            Line("harmless pictures", _LENS, "image_benign", alone=False),
        ]),
    ],
    "patching": [
        ("Pictures that refuse: states replaced by", _STATE, True, [
            Line("own caption", _PATCH, "caption"),
            Line("any other caption", _PATCH, "random", alone=False),
            Line("matched harmless caption", _PATCH, "benign"),
        ]),
        ("Pictures that refuse: mean shifted to that of", _STATE, True, [
            Line("own caption", _PATCH, "mean_caption"),
            Line("any other caption", _PATCH, "mean_random", alone=False),
            Line("matched harmless caption", _PATCH, "mean_benign", alone=False),
            Line("nothing: random direction", _PATCH, "mean_noise", alone=False),
        ]),
        ("Captions that no longer refuse: states replaced by", _STATE, True, [
            Line("own picture", _BACK, "image"),
            Line("any other picture", _BACK, "random", alone=False),
            Line("matched harmless picture", _BACK, "benign", alone=False),
        ]),
        ("Captions that no longer refuse: mean shifted to that of", _STATE, True, [
            Line("own picture", _BACK, "mean_image"),
            Line("any other picture", _BACK, "mean_random", alone=False),
            Line("matched harmless picture", _BACK, "mean_benign", alone=False),
            Line("nothing: random direction", _BACK, "mean_noise", alone=False),
        ]),
    ],
    "alignment": [
        ("Own caption is the nearest", _STATE, True, [
            Line("toxic pictures", _ALIGN, "toxic_caption_retrieval"),
            Line("harmless pictures", _ALIGN, "benign_caption_retrieval"),
        ]),
        ("Centred cosine", _STATE, False, [
            Line("toxic pictures", _ALIGN, "toxic_centered_cosine"),
            Line("harmless pictures", _ALIGN, "benign_centered_cosine"),
            Line("caption and paraphrase", _ALIGN, "centered_ceiling", alone=False),
        ]),
        ("Cosine, all pictures", _STATE, False, [
            Line("picture and caption", _ALIGN, "cosine"),
            Line("picture and another's caption", _ALIGN, "mismatched"),
            Line("floor: two different pictures", _ALIGN, "floor", alone=False),
            Line("ceiling: caption and paraphrase", _ALIGN, "ceiling", alone=False),
        ]),
        ("Linear CKA", _STATE, False, [
            Line("toxic pictures", _ALIGN, "toxic_cka"),
            Line("harmless pictures", _ALIGN, "benign_cka"),
        ]),
    ],
    "direction": [
        ("Toxic told from harmless (AUROC)", _STATE, True, [
            Line("words, along their direction", _SEPARATE, "text", alone=False),
            Line("pictures, along the words' direction", _SEPARATE, "image"),
            Line("pictures, along their own", _SEPARATE, "image_own", alone=False),
        ]),
        ("By the refusal tokens (AUROC)", _STATE, True, [
            Line("words", _SEPARATE, "tokens_text", alone=False),
            Line("pictures", _SEPARATE, "tokens_image"),
        ]),
        ("Way along the words' direction (0 harmless, 1 toxic words)", _STATE, False, [
            Line("toxic pictures", _SEPARATE, "reach"),
            Line("harmless pictures", _SEPARATE, "reach_benign", alone=False),
        ]),
        ("Cosine of the pictures' and the words' direction", _STATE, False, [
            Line("cosine", _SEPARATE, "cosine"),
        ]),
    ],
    "attention": [
        ("Density on what is toxic (1: no preference)", "layer", False, [
            Line("toxic words of the caption", _WORDS, "lift", alone=False),
            Line("toxic patches of the picture", _PICTURES, "lift"),
        ]),
        ("Share of all attention", "layer", True, [
            Line("toxic words of the caption", _WORDS, "mass", alone=False),
            Line("toxic patches of the picture", _PICTURES, "mass"),
        ]),
    ],
}  # fmt: skip
"""By plot its panels: title, what x is, whether y is a share, and the lines."""

TEXTS = {
    "lens": (
        "Where a refusal arises: logit lens",
        "Mean probability of a refusal token at the answer's position, read from each state "
        "through the final norm and the output head.",
    ),
    "patching": (
        "Would it refuse if the states were the caption's? Activation patching",
        "At one hidden state of the prefill, the states of the image's tokens are replaced by "
        "those of a caption, or shifted until the means agree. Above: toxic pictures that the "
        "model does not refuse by itself, and how many it refuses then. Below, the reverse: "
        "toxic captions that it refuses, given a picture's states, and how many it refuses no "
        "longer. The controls say what any such change does.",
    ),
    "alignment": (
        "Alignment of pictures and captions",
        "Mean states of a picture and of its caption in its place. The share of pictures whose own "
        "caption has the nearest state is among those of the same kind. Raw cosine nears 1 where "
        "all states share one large component: read it between floor and ceiling.",
    ),
    "direction": (
        "Refusal direction, and what of it pictures have",
        "Difference of the mean states of toxic and harmless captions at the answer's position, "
        "from one half of the pairs and measured on the other. AUROC 0.5 is chance. By the refusal "
        "tokens: cosine of the lens' logits with them, as HiddenDetect scores.",
    ),
    "attention": (
        "What the answer attends to",
        "Attention of the answer's position to the toxic words of a caption and to the patches of "
        "a picture that show the toxic thing, mean over heads; then head by head.",
    ),
}
"""By plot its title and caption."""
