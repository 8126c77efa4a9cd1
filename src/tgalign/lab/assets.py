"""The lab's shipped models: where they are, and loading them with their checksums checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tgalign.errors import UserError
from tgalign.files import check_schema, read_json, sha256

ASSETS = Path(__file__).parent / "assets"
LLM, CLIP = "llm", "clip"


def file_hashes(folder: Path) -> dict[str, str]:
    """Digest of every file of the two models under ``folder``, by relative path."""
    return {
        str(path.relative_to(folder)): sha256(path)
        for part in (LLM, CLIP)
        for path in sorted((folder / part).rglob("*"))
        if path.is_file()
    }


def check_assets(folder: Path = ASSETS) -> dict[str, Any]:
    """Check every file against the manifest.

    Returns:
        The manifest.

    Raises:
        UserError: A file is missing, added or changed.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        raise UserError(f"no lab models at {folder}: reinstall tgalign")
    manifest: dict[str, Any] = read_json(path)
    check_schema(manifest, path, 1, "the lab's models")
    found = file_hashes(folder)
    said = manifest["files"]
    wrong = sorted(name for name in said.keys() | found.keys() if said.get(name) != found.get(name))
    if wrong:
        raise UserError(
            f"the lab models at {folder} differ from their manifest in {', '.join(wrong)}: "
            "reinstall tgalign"
        )
    return manifest


def load_lab(folder: Path = ASSETS) -> tuple[Any, Any, Any]:
    """Load the base LLM, the CLIP and their tokenizer, in float32 and eval mode.

    Raises:
        UserError: The files do not match their manifest.
    """
    check_assets(folder)
    return load_models(folder)


def load_models(folder: Path) -> tuple[Any, Any, Any]:
    """The same without a manifest, as during a build."""
    from transformers import AutoTokenizer, CLIPModel

    tokenizer = AutoTokenizer.from_pretrained(folder / LLM, local_files_only=True)
    return load_llm(folder / LLM), _load(CLIPModel, folder / CLIP), tokenizer


def load_llm(folder: Path) -> Any:
    """A language model of the lab, in float32 and eval mode."""
    from transformers import LlamaForCausalLM

    return _load(LlamaForCausalLM, folder)


def _load(kind: Any, folder: Path) -> Any:
    import torch

    options = {"local_files_only": True, "use_safetensors": True, "dtype": torch.float32}
    return kind.from_pretrained(folder, **options).eval()


def lab_llava(llm: Any, clip: Any, tokenizer: Any, *, seed: int) -> tuple[Any, Any]:
    """Compose the lab's untrained LLaVA: base LLM, CLIP's vision tower, a fresh projector."""
    import torch
    from transformers import CLIPVisionModel, LlavaForConditionalGeneration

    from tgalign.compose import compose_models
    from tgalign.lab.base_clip import image_processor
    from tgalign.projector import scale_projector

    vision = CLIPVisionModel(clip.config.vision_config)
    vision.load_state_dict(clip.vision_model.state_dict())
    model, processor = compose_models(llm, tokenizer, vision, image_processor())
    # The lab's projector comes last of a whole model's draw: so were those that were measured.
    torch.manual_seed(seed)
    drawn = LlavaForConditionalGeneration(model.config)
    model.model.multi_modal_projector = drawn.model.multi_modal_projector
    scale_projector(model, seed, clip.config.vision_config.image_size)
    return model, processor
