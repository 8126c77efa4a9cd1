"""Cross-entropy alone: the LLaVA recipe, which all others are compared with."""

from tgalign.baselines.method import Training

METHOD = Training(
    paper="Liu et al., NeurIPS 2023, arXiv 2304.08485 (LLaVA)",
    what="Trains projector, then projector and language model, by cross-entropy on plain answers.",
    departure="Learning rates, steps and text-only rows are the lab's (`lab/arms.py`).",
    arm="ce",
)
