"""Mean states of texts on disk: computed once, checked, found again by any run of the same model.

A folder holds one sub-folder per model and choice of layers, with a ``manifest.json`` (what the
states are of, and the size and SHA-256 of every file) and safetensors files of some thousand texts
each. A file is listed once it is whole, so a killed run loses at most the files it was at.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tgalign.errors import UserError
from tgalign.files import (
    blamed_on,
    data_sha256,
    file_at_once,
    read_versioned,
    sha256,
    write_json,
)
from tgalign.locks import LOCK
from tgalign.terminal import tracked

# Shape legend: N texts, L layers, D channels, X bytes of a key.

_MANIFEST = "manifest.json"
SCHEMA_VERSION = 1
"""Of the folder's manifest."""


def folder_of(root: Path, identity: dict[str, Any]) -> Path:
    """Where the states with an identity lie in the folder for the states of all models."""
    return root / data_sha256(identity)[:16]


@contextmanager
def turn_to_fill(folder: Path) -> Iterator[None]:
    """Wait for other runs that fill a store, and keep them from it; all processes call this.

    The main process holds the lock for all, from before any reads the manifest. The lock goes with
    it, however it ends; the file stays, as others may wait for it.

    Raises:
        UserError: Nobody can write there.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK)
    fault: str | None = None
    try:
        if PartialState().is_main_process:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                try:
                    lock.acquire(timeout=0)
                except Timeout:
                    logging.getLogger(__name__).warning(
                        "%s: another run fills this store: waiting for its end", folder
                    )
                    lock.acquire()
            except OSError as refused:
                fault = f"cannot write to {folder}: {refused}"
        (fault,) = broadcast_object_list([fault])
        if fault:
            raise UserError(fault)
        yield
    finally:
        lock.release()


class TextStore:
    """The kept states of one model at some of its layers; called with keys, it gives (N, L, D).

    Args:
        root: The folder for the states of all models.
        identity: What makes them other states: JSON data.
        progress_bar: Whether to draw one while files are checked.

    Raises:
        UserError: What is found there is damaged or of something else.
    """

    def __init__(self, root: Path, identity: dict[str, Any], *, progress_bar: bool = False) -> None:
        self.folder = folder_of(root, identity)
        self._manifest: dict[str, Any] = {"schema_version": SCHEMA_VERSION}
        self._manifest |= {"identity": identity, "files": {}}
        self._index: dict[bytes, tuple[str, int]] = {}
        self._open: dict[str, Any] = {}
        path = self.folder / _MANIFEST
        if path.is_file():
            self._manifest = read_versioned(path, SCHEMA_VERSION, "kept states of texts")
            if self._manifest.get("identity") != identity:
                raise UserError(f"{path} is not about the model and layers asked for: remove it")
            with blamed_on(path, f"remove {self.folder}"):
                files = self._manifest["files"].items()
                size = sum(about["bytes"] for _, about in files)
                title = f"checking {_size(size)} of kept states"
                for file, about in tracked(files, title, shown=progress_bar):
                    self._check(file, about)
                    self._add_to_index(file)

    def __contains__(self, key: bytes) -> bool:
        return key in self._index

    def __call__(self, keys: Iterable[bytes]) -> Tensor:
        """The states of texts by their keys."""
        rows = []
        for key in keys:
            file, row = self._index[key]
            if file not in self._open:
                self._open[file] = safe_open(self.folder / file, framework="pt")
            rows.append(self._open[file].get_slice("states_NLD")[row])
        return torch.stack(rows)

    def write(self, keys: list[bytes], states_NLD: Tensor) -> dict[str, Any]:
        """Write one file, which ``list_files`` has to be told of.

        Returns:
            What the manifest says of it.
        """
        name = f"states-{hashlib.sha256(b''.join(keys)).hexdigest()[:16]}.safetensors"
        keys_NX = torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8)
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = {"states_NLD": states_NLD, "keys_NX": keys_NX.view(len(keys), -1).clone()}
        path = self.folder / name
        with file_at_once(path) as beside:
            save_file(kept, beside)
        return {name: {"texts": len(keys), "bytes": path.stat().st_size, "sha256": sha256(path)}}

    def list_files(self, about: dict[str, Any]) -> None:
        """Take files into the manifest, and their states into use; all processes are told all."""
        self._manifest["files"] |= about
        if PartialState().is_main_process:
            write_json(self.folder / _MANIFEST, self._manifest)
        for name in about:
            self._add_to_index(name)

    def _check(self, name: str, about: dict[str, Any]) -> None:
        path = self.folder / name
        if not path.is_file() or path.stat().st_size != about["bytes"]:
            raise UserError(f"{path} is missing or cut short: remove {self.folder}")
        if PartialState().is_main_process and sha256(path) != about["sha256"]:
            raise UserError(f"{path} is damaged (SHA-256 differs): remove {self.folder}")

    def _add_to_index(self, name: str) -> None:
        with safe_open(self.folder / name, framework="pt") as file:
            keys_NX = file.get_tensor("keys_NX")
        for row, key in enumerate(keys_NX.numpy()):
            self._index[key.tobytes()] = (name, row)


def unversioned(config: Any) -> dict[str, Any]:
    """What a config of transformers says, but for the version that wrote it."""
    said: dict[str, Any] = config.to_diff_dict()
    return said | {"transformers_version": None}


def weights_sha256(model: nn.Module) -> str:
    """The SHA-256 of a model's weights and their names, those of adapters left out."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        if "lora_" not in name:
            digest.update(f"{name.replace('base_layer.', '')} {weight.dtype}".encode())
            flat = weight.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.3g} GB"
