"""TGA where the picture is read: the guide pulls the states of the question after it."""

from tgalign.baselines.method import Training

METHOD = Training(
    paper="This project, after Xu et al., ICLR 2025, arXiv 2410.12662",
    what="As `tga`, but the states pulled are those of the question read after the picture, "
    "towards those of the same question read after the caption.",
    departure="As `tga`, and the span: states 1 to N of the question's tokens and of what the chat "
    "template adds up to the answer. The last of them is the one that the answer begins from, so "
    "this comes near to distilling the language model's own answer to the caption, refusals "
    "included; no refusal text is learnt. Chosen on one seed of the development things.",
    arm="tga_question",
)
