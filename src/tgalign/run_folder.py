"""Whose folder it is: a run's config, written into it, decides what may go on there."""

from __future__ import annotations

from pathlib import Path

from tgalign.config import TrainConfig, parse_config
from tgalign.errors import UserError
from tgalign.files import is_free, listed_differences, read_versioned, write_json

SCHEMA_VERSION = 1
"""Of a run's folder: config.json and the intermediate state beside it."""


def text_folder(config: TrainConfig) -> Path | None:
    """The folder that ``cache_text`` names, if it names one."""
    return config.cache_text if isinstance(config.cache_text, Path) else None


def check_run(config: TrainConfig) -> None:
    """Check that ``out`` holds this run, or nothing yet; nothing is written.

    Raises:
        UserError: It holds something else, or ``cache_text`` names no folder.
    """
    path = config.out / "config.json"
    if path.is_file():
        found = read_versioned(path, SCHEMA_VERSION, "a training run")
        if "model_type" in found:
            raise UserError(f"{config.out} holds a model: name another folder as out")
        del found["schema_version"]
        there = parse_config(found, str(path))
        if there != config:
            both = (it.model_dump(mode="json") for it in (there, config))
            raise UserError(
                f"{config.out} holds a run with another config ({listed_differences(*both)}): "
                "name another folder as out, or remove it"
            )
    elif not is_free(config.out, but=text_folder(config)):
        raise UserError(
            f"{config.out} is not empty and holds no training run: name another folder as out"
        )
    for name, folder in (("out", config.out), ("cache_text", text_folder(config))):
        if folder is not None and folder.exists() and not folder.is_dir():
            raise UserError(f"{name} {folder} is a file: name a folder")


def claim_run(config: TrainConfig) -> None:
    """Make ``out``, or check that the run found there has the same config.

    Raises:
        UserError: As ``check_run``, or nothing can be written there.
    """
    try:
        check_run(config)
        config.out.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise UserError(f"cannot write to {config.out}: {fault}") from None


def adopt(config: TrainConfig) -> None:
    """Have the run found at ``config.out``, if any, go on with other paths: the folder was moved.

    For callers whose names of folders stand for all else that decides a run.

    Raises:
        UserError: What is there is of another schema version, or cannot be read or written.
    """
    path = config.out / "config.json"
    if path.is_file():
        read_versioned(path, SCHEMA_VERSION, "a training run")
        write_config(config)


def write_config(config: TrainConfig) -> None:
    """Write the config into ``out``: from here on it holds this run."""
    try:
        said = {"schema_version": SCHEMA_VERSION, **config.model_dump(mode="json")}
        write_json(config.out / "config.json", said)
    except OSError as fault:
        raise UserError(f"cannot write to {config.out}: {fault}") from None
