"""``tgalign retrieve query``: the texts of an index that are nearest to some pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from tgalign.data.pictures import read_picture
from tgalign.errors import UserError
from tgalign.retrieval.embed import Embedder
from tgalign.retrieval.exact import Retrieved
from tgalign.retrieval.index import Index
from tgalign.retrieval.nearest import Rules, nearest


def query(
    folder: Path, images: Sequence[Path], *, k: int = 5, encoder: str | Path | None = None
) -> list[list[Retrieved]]:
    """The k texts nearest to each picture, best first.

    Args:
        folder: The index.
        images: Pictures.
        k: How many texts.
        encoder: The encoder, if it is no longer where the index was built with it.

    Raises:
        UserError: The index does not match its manifest or encoder, or a picture cannot be read.
    """
    index = Index.open(folder)
    where = encoder or index.manifest.encoder.path
    index.check_encoder(where)
    try:
        pictures = [read_picture(path) for path in images]
    except ValueError as fault:
        raise UserError(str(fault)) from None
    query_QD = Embedder.load(where).pictures(pictures)
    found = nearest(index, query_QD, torch.zeros_like(query_QD), range(len(pictures)), Rules(k=k))
    return [it.texts for it in found]
