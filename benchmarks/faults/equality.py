"""Whether two trees of results are equal, and whether a tree holds half a file."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from tgalign.locks import LOCK

TIMES = {"seconds", "step_seconds", "training_seconds", "added_latency"}
"""What a clock measured, by its name in a result: left out of the comparison."""
PAGES = {".html", ".md", ".csv"}
"""Made of the JSON beside them, times and all: they must be there."""
JOURNALS = ("metrics.jsonl", "items.jsonl", ".progress")
"""Files that grow by lines; who reads them drops a last line that was cut."""


def differences(first: Path, second: Path) -> list[str]:
    """The files in which two trees differ: in bytes; JSON in its values, but for times."""
    ours, theirs = _files(first), _files(second)
    wrong = sorted(ours.keys() ^ theirs.keys())
    for name in ours.keys() & theirs.keys():
        if Path(name).suffix not in PAGES and _content(ours[name]) != _content(theirs[name]):
            wrong.append(name)
    return wrong


def half_written(place: Path) -> list[str]:
    """The files that a reader would take as whole and cannot read; none is left by a kill."""
    return sorted(
        str(path.relative_to(place))
        for path in place.rglob("*")
        if path.is_file()
        and "incomplete" not in str(path.relative_to(place))
        and not path.name.endswith(JOURNALS)
        and not _is_whole(path)
    )


def left_over(place: Path) -> list[str]:
    """What a finished run should have cleaned away, but for locks that others may wait for."""
    found = (path for path in place.rglob("*") if "incomplete" in path.name)
    return sorted(str(path) for path in found if path.name != LOCK)


def _files(tree: Path) -> dict[str, Path]:
    found = (path for path in tree.rglob("*") if path.is_file() and not path.name.endswith(LOCK))
    return {str(path.relative_to(tree)): path for path in found}


def _content(path: Path) -> Any:
    if path.suffix == ".json":
        return _timeless(json.loads(path.read_bytes()))
    if path.suffix == ".jsonl":
        return [_timeless(json.loads(line)) for line in path.read_bytes().splitlines()]
    return path.read_bytes()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(it) for key, it in value.items() if key not in TIMES}
    return [_timeless(it) for it in value] if isinstance(value, list) else value


def _is_whole(path: Path) -> bool:
    try:
        match path.suffix:
            case ".json":
                json.loads(path.read_bytes())
            case ".jsonl":
                for line in path.read_text().splitlines():
                    json.loads(line)
            case ".safetensors":
                from safetensors import safe_open

                with safe_open(path, framework="pt") as tensors:
                    tensors.keys()
            case ".npy":
                import numpy as np

                np.load(path, mmap_mode="r", allow_pickle=False)
            case ".parquet":
                import pyarrow.parquet

                pyarrow.parquet.read_metadata(path)
            case ".png":
                from PIL import Image

                with Image.open(path) as picture:
                    picture.load()
            case ".pt" | ".pth" | ".bin":
                return zipfile.is_zipfile(path)
            case ".html":
                return path.read_text().rstrip().endswith("</html>")
    except Exception:
        return False
    return True
