"""Whatever is read of model folders: offline, safetensors only, no weight made up, clear errors."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tgalign.errors import UserError

OTHER_KIND = re.compile(r"Unrecognized configuration class <class '[\w.]*?(\w+)'>[^:]*: (\w+)")
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
NO_WORDS = "there is no tokenizer.json: copy it from where the model comes from"
POINTER = b"version https://git-lfs"
"""How a file begins that Git LFS has not fetched."""


def read_config(
    path: Path, what: str = "checkpoint", *, trust_remote_code: bool | None = None
) -> Any:
    """Read the config of any model in a stock format.

    Args:
        path: Its folder.
        what: The model is called so in messages.
        trust_remote_code: Whether code in the folder may run; a warning names it then. None: no,
            and the user has no way to allow it.

    Raises:
        UserError: There is none, or transformers cannot read it, or it is that of a training run.
    """
    from transformers import AutoConfig

    if not (path / "config.json").is_file():
        raise UserError(
            f"no {what} at {path}: expected a folder with config.json (nothing is downloaded)"
        )
    if trust_remote_code:
        named = ", ".join(sorted(it.name for it in path.glob("*.py"))) or "none is there"
        logging.getLogger(__name__).warning(
            "--trust-remote-code: code in %s may run with all your rights (%s)", path, named
        )
    try:
        return AutoConfig.from_pretrained(
            path, local_files_only=True, trust_remote_code=bool(trust_remote_code)
        )
    except Exception as fault:  # what others' files make of transformers is past listing
        if (path / "checkpoint/config.json").is_file():
            raise UserError(
                f"{path} is a training run: its checkpoint is {path / 'checkpoint'}"
            ) from None
        said = _reason(fault, path, trust_remote_code)
        if what == "checkpoint":
            said += " (if this is a training run, it has no checkpoint yet)"
        raise UserError(f"{path}/config.json cannot be read: {said}") from fault


def read_part(auto: Any, path: Path, what: str, *, trust_remote_code: bool | None = None) -> Any:
    """Read what has no weights: a tokenizer, an image processor, a processor.

    Args:
        auto: The class of transformers that reads it.
        path: Its folder.
        what: It is called so in messages.
        trust_remote_code: As of ``read_config``.

    Raises:
        UserError: It is not there, or cannot be read.
    """
    part = _read(auto, path, what, trust_remote_code)
    tokenizer = getattr(part, "tokenizer", part)
    files = getattr(tokenizer, "vocab_files_names", {}).values()
    if files and not any((path / name).is_file() for name in files):  # some make an empty one then
        raise UserError(f"the {what} at {path} cannot be loaded: {NO_WORDS}")
    return part


def read_model(
    auto: Any,
    path: Path,
    what: str = "checkpoint",
    *,
    may_lack: Callable[[Any, str], bool] = lambda model, name: False,
    trust_remote_code: bool | None = None,
    **options: Any,
) -> Any:
    """Read a model, in eval mode; none of its weights may be random.

    Args:
        auto: The class of transformers that reads it.
        path: Its folder.
        what: It is called so in messages.
        may_lack: Given the model, whether the weight of a name may be missing.
        trust_remote_code: As of ``read_config``.
        options: Of ``from_pretrained``, such as ``dtype`` and ``config``.

    Raises:
        UserError: There is none, or it is pickled, damaged or of another kind, lacks weights or
            has some that are NaN or infinite.
    """
    from tgalign.finite import ruined_weight

    if path.is_dir() and not any(path.glob("*.safetensors")):
        pickled = sorted(it.name for it in path.iterdir() if it.suffix in PICKLED)
        found = (
            f"only {pickled[0]}, a pickle, which runs code when read" if pickled else "no weights"
        )
        raise UserError(
            f"the {what} at {path} has {found}; expected safetensors: where you trust it, load it "
            "with transformers and save_pretrained it to another folder"
        )
    options |= {"use_safetensors": True, "output_loading_info": True}
    model, info = _read(auto, path, what, trust_remote_code, **options)
    lacking = sorted(name for name in info["missing_keys"] if not may_lack(model, name))
    if lacking:
        raise UserError(
            f"the {what} at {path} lacks {len(lacking)} weight(s), which would be random: "
            f"{', '.join(lacking[:3])}{', …' if len(lacking) > 3 else ''}"
        )
    ruined = ruined_weight(model)
    if ruined is not None:
        raise UserError(
            f"the {what} at {path} is ruined: {ruined} holds NaN or infinity; train it again with "
            "lower learning rates, or fetch it again"
        )
    return model.eval()


def _read(auto: Any, path: Path, what: str, trust: bool | None, **options: Any) -> Any:
    if not path.is_dir():
        raise UserError(f"no {what} at {path}: expected a folder (nothing is downloaded)")
    # False and not None, as transformers asks at the terminal whether to run the code then.
    options |= {"local_files_only": True, "trust_remote_code": bool(trust)}
    try:
        return auto.from_pretrained(path, **options)
    except Exception as fault:  # what others' files make of transformers is past listing
        said = _reason(fault, path, trust)
        raise UserError(f"the {what} at {path} cannot be loaded: {said}") from fault


def _reason(fault: Exception, path: Path, trust: bool | None) -> str:
    """What transformers said, without the names of all the classes it knows, and a way out."""
    said = str(fault) or type(fault).__name__
    for file in sorted(path.iterdir()):
        if file.is_file() and file.stat().st_size < 1024 and file.read_bytes().startswith(POINTER):
            return f"{file.name} is a pointer of Git LFS, not the file: git lfs pull fetches it"
    if "sentencepiece or tiktoken" in said:
        slow = ", or pip install sentencepiece" if (path / "tokenizer.model").is_file() else ""
        return NO_WORDS + slow
    other_kind = OTHER_KIND.search(said)
    if other_kind:
        kind, auto = other_kind.groups()
        return f"{auto} does not load a {kind}: is this the folder that was meant?"
    if trust is not None and "trust_remote_code" in said:
        return f"{said}; --trust-remote-code runs it"
    return said
