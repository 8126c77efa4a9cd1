"""The index on disk: vectors in shards, texts beside them, and a manifest that both must match.

A folder of

- ``vectors-00000.npy`` …: unit embeddings (N, D), float32, without pickles;
- ``texts-00000.parquet`` …: the side table, a row for each vector: ``text``, ``toxic`` (whether it
  comes from the toxic corpus) and ``line`` (its line there, from 1);
- ``index.faiss``: an approximate index over all of them, if one was asked for;
- ``manifest.json``: encoder, counts and checksums.

The ``id`` of a text is its row, counted through all shards from 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tgalign.errors import UserError
from tgalign.files import sha256
from tgalign.retrieval.embed import revision
from tgalign.retrieval.exact import search
from tgalign.retrieval.manifest import Manifest, read_manifest

# Shape legend: N texts of a shard, Q queries, K found, D channels.

FAISS = "index.faiss"


def vectors_path(folder: Path, shard: int) -> Path:
    """Where a shard's vectors are."""
    return folder / f"vectors-{shard:05d}.npy"


def texts_path(folder: Path, shard: int) -> Path:
    """Where a shard's texts are."""
    return folder / f"texts-{shard:05d}.parquet"


def pyarrow_module() -> Any:
    """The pyarrow package, which reads and writes the side tables.

    Raises:
        UserError: It is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError("pyarrow is not installed: pip install 'tgalign[retrieval]'") from None
    return pyarrow


def read_vectors(path: Path) -> Tensor:
    """A shard's vectors (N, D), mapped into memory: only what is looked at is read.

    Raises:
        UserError: The file is no array of float32 vectors.
    """
    try:
        vectors_ND = np.lib.format.open_memmap(path, mode="c")
    except Exception as fault:  # numpy's reader of headers fails in any way
        raise UserError(f"{path} is damaged ({fault}): build the index again") from None
    if vectors_ND.ndim != 2 or vectors_ND.dtype != np.float32:
        raise UserError(
            f"{path} holds {vectors_ND.dtype} of shape {vectors_ND.shape}; expected float32 (N, D)"
        )
    return torch.from_numpy(vectors_ND)


@dataclass(frozen=True)
class Index:
    """An index, opened.

    Attributes:
        folder: Where it is.
        manifest: What it says of itself.
    """

    folder: Path
    manifest: Manifest
    _starts: list[int] = field(repr=False)

    @staticmethod
    def open(folder: Path, *, verify: bool = True) -> Index:
        """Open an index and check its data against its manifest.

        Args:
            folder: Where it is.
            verify: Whether to check every file's checksum; shapes are checked in any case.

        Raises:
            UserError: It is missing or damaged, or its files are not those of the manifest.
        """
        manifest = read_manifest(folder)
        starts = [0]
        for number, shard in enumerate(manifest.shards):
            paths = {vectors_path(folder, number): shard.vectors_sha256}
            paths[texts_path(folder, number)] = shard.texts_sha256
            for path, said in paths.items():
                _check_file(path, said if verify else None)
            shape = tuple(read_vectors(vectors_path(folder, number)).shape)
            if shape != (shard.rows, manifest.dimension):
                raise UserError(
                    f"{vectors_path(folder, number)} has vectors of shape {shape}, and the "
                    f"manifest says {(shard.rows, manifest.dimension)}: build the index again"
                )
            starts.append(starts[-1] + shard.rows)
        if manifest.faiss is not None:
            _check_file(folder / FAISS, manifest.faiss.sha256 if verify else None)
        if starts[-1] != manifest.count or not manifest.count:
            raise UserError(
                f"{folder}: the manifest counts {manifest.count} texts, its shards {starts[-1]}: "
                "build the index again"
            )
        return Index(folder, manifest, starts)

    def check_encoder(self, path: str | Path) -> None:
        """Refuse an encoder that did not make this index.

        Raises:
            UserError: It is missing, another one, or its files have changed.
        """
        made, given = self.manifest.encoder, revision(path)
        if made.revision != given:
            raise UserError(
                f"the index {self.folder} was made by the {made.model_type} at {made.path} "
                f"(revision {made.revision[:12]}), and the encoder at {path} has revision "
                f"{given[:12]}: give the encoder that made it as --encoder, or build the index "
                "again"
            )

    def blocks(self) -> Iterator[Tensor]:
        """The vectors shard by shard, each released when the next is asked for."""
        for number in range(len(self.manifest.shards)):
            yield read_vectors(vectors_path(self.folder, number))

    def search(self, query_QD: Tensor, k: int) -> Tensor:
        """Rows (Q, K) of the texts nearest to each query, best first, by faiss if there is one.

        An approximate index may find fewer than K; -1 stands in their place.

        Raises:
            UserError: The queries have another dimension, or are not finite.
        """
        self._check_queries(query_QD)
        k = min(k, self.manifest.count)
        if self._approximate is None:
            return search(query_QD, self.blocks(), k)[1]
        return torch.from_numpy(self._approximate.search(query_QD.numpy(), k)[1])

    def search_exactly(self, query_QD: Tensor, k: int) -> Tensor:
        """The same without faiss."""
        self._check_queries(query_QD)
        return search(query_QD, self.blocks(), min(k, self.manifest.count))[1]

    def vectors(self, rows: Tensor) -> Tensor:
        """The vectors of rows of any shape, in a further dimension D; zeros for -1."""
        found = torch.zeros(rows.numel(), self.manifest.dimension)
        for shard, places, local in self._by_shard(rows.flatten()):
            found[places] = read_vectors(vectors_path(self.folder, shard))[local]
        return found.view(*rows.shape, -1)

    def side(self, rows: Tensor) -> dict[int, tuple[str, bool]]:
        """By row the text, and whether it comes from the toxic corpus."""
        parquet = pyarrow_module().parquet
        found: dict[int, tuple[str, bool]] = {}
        rows = rows.unique()
        for shard, places, local in self._by_shard(rows):
            path = texts_path(self.folder, shard)
            table = parquet.read_table(path, columns=["text", "toxic"]).take(local.numpy())
            texts, toxic = table["text"].to_pylist(), table["toxic"].to_pylist()
            found |= dict(zip(rows[places].tolist(), zip(texts, toxic, strict=True), strict=True))
        return found

    @cached_property
    def _approximate(self) -> Any:
        said = self.manifest
        if said.faiss is None:
            return None
        from tgalign.retrieval.approximate import read

        return read(
            self.folder / FAISS,
            count=said.count,
            dimension=said.dimension,
            effort=said.faiss.effort,
        )

    def _by_shard(self, rows: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Shard, places among ``rows`` and rows within the shard, for every shard that is met."""
        shards = torch.bucketize(rows, torch.tensor(self._starts), right=True) - 1
        for shard in shards[rows >= 0].unique().tolist():
            places = ((shards == shard) & (rows >= 0)).nonzero().flatten()
            yield shard, places, rows[places] - self._starts[shard]

    def _check_queries(self, query_QD: Tensor) -> None:
        if query_QD.shape[1] != self.manifest.dimension:
            raise UserError(
                f"queries of {query_QD.shape[1]} channels, and the index {self.folder} has vectors "
                f"of {self.manifest.dimension}: use the encoder that made it"
            )
        if not query_QD.isfinite().all():
            raise UserError("a query is NaN or infinite: the encoder's weights are damaged")


def _check_file(path: Path, said: str | None) -> None:
    if not path.is_file():
        raise UserError(f"{path} is missing: build the index again")
    if said is not None and sha256(path) != said:
        raise UserError(f"{path} is not the file that the manifest names: build the index again")
