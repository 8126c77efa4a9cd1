"""The paper's released code as it runs: its guide loss carries no gradient."""

from tgalign.baselines.method import Training

METHOD = Training(
    paper="Xu et al., ICLR 2025, arXiv 2410.12662, code xsc1234/VLM_Safety_Transfer",
    what="The released code's guide loss, where math.exp on a tensor cuts the gradient: it trains "
    "plain cross-entropy.",
    departure="The layers stand at the same depths (10-18 of 32 become 2-3 of 6), R is before the "
    "picture in a quarter of the prompts instead of all.",
    arm="released_nograd",
)
