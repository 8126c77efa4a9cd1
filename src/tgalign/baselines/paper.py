"""TGA by the paper's formula."""

from tgalign.baselines.method import Training

METHOD = Training(
    paper="Xu et al., ICLR 2025, arXiv 2410.12662",
    what="Pulls the mean state of a picture, at every layer, towards that of its caption, and "
    "closer than a retrieved text is.",
    departure="Retrieval is by the lab's CLIP, R is before the picture in a quarter of the prompts "
    "instead of all.",
    arm="paper",
)
