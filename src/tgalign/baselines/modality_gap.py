"""The modality-gap regulariser: picture and text embeddings are brought together in stage 1."""

from tgalign.baselines.method import Training
from tgalign.config import ObjectiveConfig
from tgalign.lab.arms import Arm

WEIGHT = 1.0
"""Factor of the distance; `tgalign compare --ablation gap_weight` tries others."""

METHOD = Training(
    paper="Yang et al., arXiv 2505.24208",
    what="Adds to the cross-entropy of stage 1 the distance of the picture's and its caption's "
    "embeddings at the language model's input; stage 2 is plain.",
    departure="The distance is that of the mean embeddings, weight 1 (the paper's own could not be "
    "read), and the caption stands in a pass of its own.",
    arm=Arm(
        stage1=ObjectiveConfig(form="gap", layers=[0], weight=WEIGHT),
        stage2=ObjectiveConfig(weight=0.0),
    ),
)
