"""Compose a causal language model and a vision encoder into a stock LLaVA checkpoint.

The gate: with text alone, the composed model gives the logits of the language model it was made
from, as composed and as loaded from disk again. What stock LLaVA cannot carry is refused, never
composed wrongly (``tgalign.text_logits``).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from tgalign import __version__
from tgalign.data.records import IMAGE_TOKEN
from tgalign.errors import UserError
from tgalign.files import folder_at_once, named, write_json
from tgalign.image_slot import add_image_slot, add_image_token
from tgalign.locks import sole_writer
from tgalign.parameters import parameters
from tgalign.patch_layout import PatchLayout, patch_layout, square_pad_processor
from tgalign.projector import reset_projector, scale_projector
from tgalign.source_models import load_llm, load_vision
from tgalign.text_logits import TextProbe, require_carried

if TYPE_CHECKING:
    from transformers import (
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedModel,
        PreTrainedTokenizerBase,
    )

# Shape legend: V vocabulary, D channels.

REPORT = "compose.json"
"""Beside the checkpoint: what was composed of what, and what the gate measured."""
ROWS_MULTIPLE = 64
"""Where embeddings grow, they grow to a multiple of this, as llava-hf's did: kernels want it."""


def compose(
    llm: Path | str,
    vision: Path | str,
    out: Path | str,
    *,
    projector_seed: int = 0,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    vision_feature_layer: int = -2,
    square_pad: bool = True,
    trust_remote_code: bool = False,
) -> Path:
    """Compose two local checkpoints into one, and check it as it lies on disk.

    Args:
        llm: Folder of a causal language model and its tokenizer, safetensors only.
        vision: Folder of a CLIP, SigLIP or DINOv2 (whole or the vision part) and its image
            processor, safetensors only.
        out: The new folder: a stock LLaVA checkpoint, and ``compose.json``.
        projector_seed: Seed of the projector's random weights.
        dtype: Of all weights; ``"auto"``: the language model's.
        vision_feature_layer: Hidden state of the encoder that the projector reads; -2 as LLaVA-1.5.
        square_pad: Whether pictures are padded to a square, as in LLaVA-1.5 and the paper; if not,
            the encoder's own image processor crops or squeezes them.
        trust_remote_code: Whether to run code that comes with the language model or the encoder.
            The composed model is stock all the same.

    Returns:
        ``out``.

    Raises:
        UserError: Anything wrong with the sources, a part that stock LLaVA cannot carry (named), a
            difference in the text-only logits, or an ``out`` that holds something already.
    """
    import transformers

    llm, vision, out = Path(llm), Path(vision), named(Path(out))
    with sole_writer(out, beside=True):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(
                f"{out} exists and is not empty: name another folder as out, or remove it"
            )
        source, tokenizer = load_llm(llm, dtype, trust_remote_code)
        encoder, image_processor = load_vision(vision, source.dtype, trust_remote_code)
        if square_pad:
            image_processor = square_pad_processor(image_processor)
        composed = _compose(
            source, tokenizer, encoder, image_processor, projector_seed, vision_feature_layer
        )
        report = {
            "tgalign": __version__,
            "transformers": transformers.__version__,
            "llm": str(llm),
            "vision": str(vision),
            "projector_seed": projector_seed,
            "square_pad": square_pad,
            "dtype": str(source.dtype).removeprefix("torch."),
            "changes": composed.changes,
            "parameters": parameters(composed.model),
        }
        probe = composed.probe
        with folder_at_once(out) as beside:
            composed.model.save_pretrained(beside)
            composed.processor.save_pretrained(beside)
            del source, encoder, composed  # room for what is loaded
            loaded = transformers.LlavaForConditionalGeneration.from_pretrained(
                beside, local_files_only=True, use_safetensors=True, dtype=probe.dtype
            )
            report["text_logits"] = {"difference": probe.compare(loaded), "allowed": probe.allowed}
            write_json(beside / REPORT, report)
    return out


def compose_models(
    llm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    vision: PreTrainedModel,
    image_processor: Any,
    *,
    projector_seed: int = 0,
    vision_feature_layer: int = -2,
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Compose loaded models; see ``compose``.

    The projector is fresh; its output is scaled to the RMS of the word embeddings, so that the
    first gradients are of a sane size.

    Args:
        llm: A causal language model. The LLaVA shares its weights.
        tokenizer: Its tokenizer, not changed.
        vision: A vision encoder. The LLaVA shares its weights.
        image_processor: Its image processor.
        projector_seed: Seed of the projector.
        vision_feature_layer: Hidden state of the encoder that the projector reads.

    Returns:
        The model and its processor.

    Raises:
        UserError: A part that stock LLaVA cannot carry (named), an encoder whose tokens are not one
            per patch, or text-only logits that differ from the language model's.
    """
    composed = _compose(
        llm, tokenizer, vision, image_processor, projector_seed, vision_feature_layer
    )
    return composed.model, composed.processor


@dataclass(frozen=True)
class _Composed:
    model: Any
    processor: Any
    probe: TextProbe
    changes: dict[str, Any]


def _compose(
    llm: Any,
    tokenizer: Any,
    vision: Any,
    image_processor: Any,
    projector_seed: int,
    vision_feature_layer: int,
) -> _Composed:
    from transformers import LlavaProcessor

    require_carried(llm)
    words = len(tokenizer)
    tokenizer = copy.deepcopy(tokenizer)
    image_id = add_image_token(tokenizer)
    template = add_image_slot(tokenizer)
    layout = patch_layout(vision, image_processor, vision_feature_layer)
    positions = getattr(llm.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and layout.image_seq_length >= positions:
        raise UserError(
            f"a picture takes {layout.image_seq_length} tokens and the language model has "
            f"{positions} positions: give an encoder with fewer or larger patches"
        )
    probe = TextProbe.of(llm, set(tokenizer.all_special_ids))
    with torch.random.fork_rng(devices=[]):  # some modules draw even where nothing is kept
        model = _assemble(llm, vision, layout, image_id, max(len(tokenizer), image_id + 1))
    model.generation_config = _generation_config(llm, tokenizer)
    probe.compare(model)
    reset_projector(model, projector_seed)
    scale_projector(model, projector_seed, layout.size)
    processor = LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=layout.patch,
        vision_feature_select_strategy=layout.strategy,
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=layout.extra,
        chat_template=tokenizer.chat_template,
    )
    rows = model.get_input_embeddings().num_embeddings
    changes = {
        "tokens_added": tokenizer.convert_ids_to_tokens(list(range(words, len(tokenizer)))),
        "embeddings_added": rows - llm.get_input_embeddings().num_embeddings,
        "head_untied": _is_tied(llm) and not _is_tied(model),
        "chat_template": template,
    }
    return _Composed(model, processor, probe, changes)


def _assemble(llm: Any, vision: Any, layout: PatchLayout, image_id: int, words: int) -> Any:
    """A stock LLaVA around the given weights, its embeddings grown if there are more words.

    Raises:
        UserError: LLaVA's decoder is not the language model's.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModel, LlavaConfig, LlavaForConditionalGeneration

    embeddings, head = llm.get_input_embeddings(), llm.get_output_embeddings()
    rows: int = embeddings.num_embeddings
    if words > rows:
        rows = -(-words // ROWS_MULTIPLE) * ROWS_MULTIPLE
    text = llm.config.get_text_config(decoder=True).to_dict()
    text |= {"vocab_size": rows, "tie_word_embeddings": False}
    for key in ("auto_map", "_name_or_path"):
        text.pop(key, None)
    try:
        config: Any = LlavaConfig(
            text_config=text,
            vision_config=vision.config.to_dict(),
            image_token_index=image_id,
            image_seq_length=layout.image_seq_length,
            vision_feature_layer=layout.layer,
            vision_feature_select_strategy=layout.strategy,
        )
        with init_empty_weights(include_buffers=False):
            wanted = AutoModel.from_config(config.text_config).state_dict().keys()
        decoders = (llm.base_model, llm.get_decoder())
        source = next((it for it in decoders if it.state_dict().keys() == wanted), None)
        if source is None:
            raise ValueError("stock LLaVA would load another decoder for it")
        # Stock LLaVA ties at this name alone; elsewhere (gpt2's wte) the head becomes a copy.
        tied = _is_tied(llm) and getattr(source, "embed_tokens", None) is embeddings
        config.tie_word_embeddings = config.text_config.tie_word_embeddings = tied
        with init_empty_weights(include_buffers=False):
            model: Any = LlavaForConditionalGeneration(config)
        name = next(name for name, module in source.named_modules() if module is embeddings)
        state = source.state_dict()
        state[f"{name}.weight"] = _grown(embeddings.weight, rows)
        model.model.language_model.load_state_dict(state, assign=True)
    except Exception as fault:  # whatever an architecture raises that LLaVA does not fit
        kind = text["model_type"]
        raise UserError(f"stock LLaVA cannot carry a {kind!r} model: {fault}") from fault
    if tied:
        model.tie_weights()
    else:
        model.lm_head.load_state_dict({"weight": _grown(head.weight, rows)}, assign=True)
    model.model.vision_tower.load_state_dict(vision.state_dict(), assign=True)
    return model.eval()


def _is_tied(model: Any) -> bool:
    return model.get_input_embeddings().weight is model.get_output_embeddings().weight


def _grown(weight_VD: Tensor, rows: int) -> Tensor:
    """A matrix with more rows, each the mean of the old ones; the old ones are not touched."""
    weight_VD = weight_VD.detach()
    mean_1D = weight_VD.mean(dim=0, keepdim=True, dtype=torch.float32).to(weight_VD.dtype)
    more = rows - len(weight_VD)
    return torch.cat([weight_VD, mean_1D.expand(more, -1)]) if more else weight_VD


def _generation_config(llm: Any, tokenizer: Any) -> Any:
    """The language model's own, with the special tokens it does not name taken of the tokenizer."""
    config = copy.deepcopy(llm.generation_config)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(config, name) is None:
            setattr(config, name, getattr(tokenizer, name))
    try:
        config.validate(strict=True)
    except (
        ValueError
    ):  # as Vicuna's: settings of sampling with do_sample off, which cannot be saved
        config.temperature = config.top_p = config.top_k = config.min_p = config.typical_p = None
    return config
