"""Keep the states of captions and retrieved texts, where the model they come from does not move."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor

from tgalign.data.collate import Collator
from tgalign.data.encode import EncodedRecord, Span
from tgalign.errors import UserError
from tgalign.task import AlignmentTask
from tgalign.terminal import tracked
from tgalign.text_store import TextStore, folder_of, turn_to_fill, unversioned, weights_sha256

# Shape legend: N texts, L layers, D channels.

TEXTS_PER_FILE = 4096


class TextCache:
    """States of texts; called with texts, it gives their states (N, L, D).

    Args:
        rows: The rows of every stage, whose captions and retrieved texts and whose companions' are
            kept: always the same ones in the same batches, so that a resumed run computes with the
            numbers of a straight one.
        folder: Where they are kept on disk; None: in memory, in float32.
        bf16: Whether those on disk are kept in bfloat16.
        progress_bar: Whether to draw one while they are computed for the disk.
    """

    def __init__(
        self,
        rows: Sequence[Sequence[EncodedRecord]],
        folder: Path | None = None,
        *,
        bf16: bool = False,
        progress_bar: bool = False,
    ) -> None:
        self._rows = rows
        self._folder, self._bf16, self._progress_bar = folder, bf16, progress_bar
        self._index: dict[bytes, int] = {}
        self._layers: list[int] = []
        self._states_NLD = torch.empty(0)
        self._store: TextStore | None = None

    def clear(self) -> None:
        """Forget the states, as the model they came from has changed."""
        self._layers = []

    def fill(self, task: AlignmentTask, collator: Collator, *, batch_size: int = 256) -> None:
        """Compute the states of all texts, unless those of the task's layers are there.

        Several processes share the work for the disk; runs on one folder wait for each other.

        Args:
            task: Gives the states (``AlignmentTask.text_states``); its reference must not move.
            collator: Makes batches of texts.
            batch_size: Texts per forward pass, of similar length.

        Raises:
            UserError: The disk is too small, or the folder holds something damaged.
        """
        if task.layers == self._layers:
            return
        distinct = {_key(span): span for rows in self._rows for span in _spans(rows)}
        if not distinct:
            return
        spans = dict(sorted(distinct.items(), key=lambda item: len(item[1].input_ids)))
        if self._folder is not None:
            self._fill_disk(self._folder, task, collator, spans, batch_size)
        else:
            parts = self._compute(task, collator, list(spans.values()), batch_size)
            self._states_NLD = torch.cat(list(parts))
            self._index = {key: number for number, key in enumerate(spans)}
        self._layers = task.layers

    def __call__(self, texts: list[Span]) -> Tensor:
        """The states of texts, once they are there."""
        keys = [_key(span) for span in texts]
        if self._store is not None:
            return self._store(keys)
        return self._states_NLD[[self._index[key] for key in keys]]

    def _compute(
        self, task: AlignmentTask, collator: Collator, spans: list[Span], batch_size: int
    ) -> Iterator[Tensor]:
        device = task.center_LD.device
        for start in range(0, len(spans), batch_size):
            texts = collator.texts(spans[start : start + batch_size])
            ids, mask, span = (
                texts[f"text_{name}"].to(device) for name in ("input_ids", "attention_mask", "span")
            )
            yield task.text_states(ids, mask, span).transpose(0, 1).cpu()

    def _fill_disk(
        self,
        folder: Path,
        task: AlignmentTask,
        collator: Collator,
        spans: dict[bytes, Span],
        batch_size: int,
    ) -> None:
        processes = PartialState()
        show = self._progress_bar and processes.is_main_process
        dtype = torch.bfloat16 if self._bf16 else torch.float32
        decoder = task.lvlm.model.language_model
        identity = {
            "llm": weights_sha256(decoder),
            "llm_config": unversioned(decoder.config),
            "layers": task.layers,
            "dtype": str(dtype),
        }
        with turn_to_fill(folder_of(folder, identity)):
            store = TextStore(folder, identity, progress_bar=show)
            processes.wait_for_everyone()  # all have read the manifest before any writes it
            # The same texts share a file whether all are missing or some, so that a killed run goes
            # on with the numbers of a straight one.
            keys = list(spans)
            files = [keys[i : i + TEXTS_PER_FILE] for i in range(0, len(keys), TEXTS_PER_FILE)]
            missing = [file for file in files if not all(key in store for key in file)]
            num_texts = sum(len(file) for file in missing)
            num_bytes = num_texts * task.center_LD.numel() * dtype.itemsize
            free = shutil.disk_usage(folder).free
            if num_bytes > free:
                raise UserError(
                    f"the states of {num_texts} texts at {len(task.layers)} layers take "
                    f"{num_bytes / 1e9:.3g} GB, and {folder} has {free / 1e9:.3g} GB: choose fewer "
                    "layers or another folder for cache_text"
                )
            title = f"states of {num_texts} texts, {num_bytes / 1e9:.3g} GB"
            rounds = range(0, len(missing), processes.num_processes)
            for first in tracked(rounds, title, shown=show):
                about = {}
                for file in missing[first + processes.process_index :][:1]:
                    texts = [spans[key] for key in file]
                    parts = list(self._compute(task, collator, texts, batch_size))
                    about = store.write(file, torch.cat(parts).to(dtype))
                written = {k: v for each in gather_object([about]) for k, v in each.items()}
                store.list_files(written)
            processes.wait_for_everyone()
            self._store = store


def _spans(rows: Sequence[EncodedRecord]) -> Iterator[Span]:
    for row in rows:
        for it in (row, row.companion):
            if it is not None:
                yield from (span for span in (it.caption, it.retrieved) if span is not None)


def _key(span: Span) -> bytes:
    text = f"{span.input_ids} {span.start} {span.end}"
    return hashlib.sha256(text.encode()).digest()
