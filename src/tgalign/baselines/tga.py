"""TGA as this project trains it."""

from tgalign.baselines.method import Training

METHOD = Training(
    paper="This project, after Xu et al., ICLR 2025, arXiv 2410.12662",
    what="The paper's guide on centred states against a frozen language model; answers that the "
    "language model refuses in words are not learnt, and such pictures are shown more often.",
    departure="Centred cosine, state 0, frozen reference, weight 0.8 fading in stage 2, text gate, "
    "companions, pictures made of texts (docs/what-holds.md). Settings were tuned on the lab's "
    "development things; no other method here was.",
    arm="tga",
)
