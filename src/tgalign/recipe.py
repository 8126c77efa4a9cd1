"""Read a recipe: the settings of a training run as a YAML file."""

from __future__ import annotations

from pathlib import Path

from tgalign.config import TrainConfig, parse_config
from tgalign.errors import UserError
from tgalign.yaml_text import parse_yaml


def load_recipe(path: Path) -> TrainConfig:
    """Read a YAML recipe; relative paths in it are relative to its folder.

    Raises:
        UserError: The file is missing, not YAML, or not a valid config.
    """
    if not path.is_file():
        raise UserError(f"no training config at {path}: expected a YAML file (see recipes/)")
    try:
        data = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise UserError(f"{path} is not readable YAML: {fault}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path} must hold a mapping of settings, got {type(data).__name__}")
    stages = data.get("stages")
    objectives = [
        it.get("objective")
        for it in (stages if isinstance(stages, list) else [])
        if isinstance(it, dict)
    ]
    for table, keys in (
        *((it, ("diagnosis",)) for it in objectives),
        (data, ("model", "architecture", "records", "image_root", "out", "cache_text")),
        (data.get("synthetic"), ("clip", "texts")),
        (data.get("probes"), None),
    ):
        if not isinstance(table, dict):
            continue
        for key in keys or list(table):
            if isinstance(table.get(key), str):
                try:
                    table[key] = (path.parent / table[key]).resolve()
                except (OSError, ValueError) as fault:
                    raise UserError(f"{path}: {key} is no path: {fault}") from None
    return parse_config(data, str(path))
