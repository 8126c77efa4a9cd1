"""Tiny random models of every family that ``diagnose`` reads, each with its real processor."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    PreTrainedTokenizerFast,
)

from tgalign.diagnose.anatomy import Anatomy

WORDS = [
    *("a", "picture", "of", "cat", "dog", "beer", "mug", "knife", "describe", "this", "image", "."),
    *("here", "is", "user", "assistant", ":"),
]
IMAGE, FAKE = "<image>", "<fake_token_around_image>"
EXTRA = {
    "image_token": IMAGE,
    "boi_token": "<boi>",
    "eoi_token": "<eoi>",
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": IMAGE,
    "video_token": "<video>",
    "vision_start_token": "<vs>",
    "vision_end_token": "<ve>",
}
SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>", *dict.fromkeys(EXTRA.values())]
SPECIAL += [FAKE, "<global-img>", "<end_of_utterance>", *(f"<row_1_col_{i}>" for i in (1, 2))]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }} : {% for item in m['content'] %}"
    "{{ 'IMAGE' if item['type'] == 'image' else item['text'] }} {% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
CLIP = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}


def tokenizer(image: str = IMAGE) -> Any:
    """A word-level tokenizer with the special tokens of every family."""
    vocab = {word: index for index, word in enumerate([*SPECIAL, *dict.fromkeys(WORDS)])}
    core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
        pad_token="<pad>", extra_special_tokens=EXTRA, padding_side="right",
        chat_template=TEMPLATE.replace("IMAGE", image),
    )  # fmt: skip
    made.add_special_tokens({"additional_special_tokens": SPECIAL[-6:]})
    return made


def _without_video(processor: type) -> type:
    """The processor without its video part, which needs torchvision."""

    class Still(processor):  # type: ignore[misc]
        def check_argument_for_proper_class(self, name: str, argument: Any) -> Any:
            if name != "video_processor":
                return super().check_argument_for_proper_class(name, argument)
            return None

    return Still


def _model(kind: str, **config: Any) -> Any:
    torch.manual_seed(3)
    made = AutoConfig.for_model(kind, tie_word_embeddings=False, **config)
    model = AutoModelForImageTextToText.from_config(made, attn_implementation="sdpa")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and not weight.any():
                weight.normal_(std=0.1)  # Gemma 3's projector, which would hide the picture
            elif weight.ndim > 1:
                weight.mul_(20 if "embed_tokens" in name else 4)
    return model.eval()


def _size(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def llava() -> tuple[Any, Any]:
    """LLaVA-1.5: a Llama, a CLIP, one span of patches."""
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    words = tokenizer()
    model = _model(
        "llava", image_token_index=words.image_token_id, vision_feature_layer=-1,
        text_config={"model_type": "llama", "vocab_size": len(words), **TEXT},
        vision_config={"model_type": "clip_vision_model", "projection_dim": 32, **CLIP},
    )  # fmt: skip
    images = CLIPImageProcessorPil(size=_size(16), do_center_crop=False)
    return model, LlavaProcessor(
        images, words, patch_size=4, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=words.chat_template,
    )  # fmt: skip


def llava_next() -> tuple[Any, Any]:
    """LLaVA-NeXT: tiles besides the whole picture, and tokens for line ends."""
    from transformers import LlavaNextProcessor
    from transformers.models.llava_next.image_processing_pil_llava_next import (
        LlavaNextImageProcessorPil,
    )

    words = tokenizer()
    pinpoints = [[16, 32], [32, 16], [32, 32]]
    model = _model(
        "llava_next", image_token_index=words.image_token_id, vision_feature_layer=-1,
        image_grid_pinpoints=pinpoints,
        text_config={"model_type": "mistral", "vocab_size": len(words), **TEXT},
        vision_config={"model_type": "clip_vision_model", "projection_dim": 32, **CLIP},
    )  # fmt: skip
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 16}, crop_size=_size(16), image_grid_pinpoints=pinpoints
    )
    return model, LlavaNextProcessor(
        images, words, patch_size=4, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=words.chat_template,
    )  # fmt: skip


def _qwen(kind: str, processor: str, vision: dict[str, Any]) -> tuple[Any, Any]:
    import transformers
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    words = tokenizer(f"<vs>{IMAGE}<ve>")
    text = TEXT | {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}}
    model = _model(
        kind, image_token_id=words.image_token_id, video_token_id=words.video_token_id,
        vision_start_token_id=words.vision_start_token_id,
        vision_end_token_id=words.vision_end_token_id,
        text_config={"vocab_size": len(words), **text}, vision_config=vision,
    )  # fmt: skip
    images = Qwen2VLImageProcessorPil(
        size={"shortest_edge": 256, "longest_edge": 256 * 64},
        patch_size=vision["patch_size"],
        merge_size=2,
    )
    made = _without_video(getattr(transformers, processor))
    return model, made(images, words, None, chat_template=words.chat_template)


def qwen2_vl() -> tuple[Any, Any]:
    """Qwen2-VL: a grid that follows the picture's size, rotary positions in three axes."""
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "patch_size": 8}
    return _qwen("qwen2_vl", "Qwen2VLProcessor", vision | {"mlp_ratio": 2})


def qwen2_5_vl() -> tuple[Any, Any]:
    """Qwen2.5-VL: windows in the vision encoder."""
    vision = {"depth": 2, "hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 48}
    vision |= {"num_heads": 2, "patch_size": 8, "window_size": 32, "fullatt_block_indexes": [1]}
    return _qwen("qwen2_5_vl", "Qwen2_5_VLProcessor", vision)


def qwen3_vl() -> tuple[Any, Any]:
    """Qwen3-VL: the picture's features are added again after the first layers."""
    vision = {"depth": 2, "hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 48}
    vision |= {"num_heads": 2, "patch_size": 8, "num_position_embeddings": 64}
    return _qwen("qwen3_vl", "Qwen3VLProcessor", vision | {"deepstack_visual_indexes": [0, 1]})


def gemma3() -> tuple[Any, Any]:
    """Gemma 3: scaled embeddings, sliding windows, two-way attention within the picture."""
    from transformers import Gemma3Processor
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    words = tokenizer("<boi>")
    model = _model(
        "gemma3", image_token_index=words.image_token_id, boi_token_index=words.boi_token_id,
        eoi_token_index=words.eoi_token_id, mm_tokens_per_image=4,
        text_config={"vocab_size": len(words), "sliding_window": 64, **TEXT},
        vision_config={"model_type": "siglip_vision_model", **CLIP},
    )  # fmt: skip
    images = Gemma3ImageProcessorPil(size=_size(16))
    return model, Gemma3Processor(
        images, words, chat_template=words.chat_template, image_seq_length=4
    )


def internvl() -> tuple[Any, Any]:
    """InternVL: pixel shuffle, and tiles of large pictures."""
    from transformers import InternVLProcessor
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    words = tokenizer()
    vision = CLIP | {"image_size": [16, 16], "patch_size": [4, 4]}
    model = _model(
        "internvl", image_token_id=words.image_token_id, image_seq_length=4, downsample_ratio=0.5,
        text_config={"model_type": "qwen2", "vocab_size": len(words), **TEXT},
        vision_config={"model_type": "internvl_vision", **vision},
    )  # fmt: skip
    images = GotOcr2ImageProcessorPil(size=_size(16))
    made = _without_video(InternVLProcessor)
    return model, made(images, words, None, image_seq_length=4, chat_template=words.chat_template)


def _idefics(kind: str) -> tuple[Any, Any]:
    words = tokenizer()
    vision = {"model_type": f"{kind}_vision", **CLIP}
    return words, _model(
        kind, image_token_id=words.image_token_id, scale_factor=2, pad_token_id=0,
        text_config={"model_type": "llama", "vocab_size": len(words), **TEXT},
        vision_config=vision,
    )  # fmt: skip


def idefics3() -> tuple[Any, Any]:
    """Idefics3: tiles with row and column marks, no ``norm`` outside its text model."""
    from transformers import Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    words, model = _idefics("idefics3")
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 16}, max_image_size={"longest_edge": 16}
    )
    return model, Idefics3Processor(
        images, words, image_seq_len=4, chat_template=words.chat_template
    )


def smolvlm() -> tuple[Any, Any]:
    """SmolVLM, which descends from Idefics3."""
    from transformers import SmolVLMProcessor
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    words, model = _idefics("smolvlm")
    images = SmolVLMImageProcessorPil(
        size={"longest_edge": 16}, max_image_size={"longest_edge": 16}
    )
    video: Any = SimpleNamespace(num_frames=1, fps=1, video_sampling={"video_size": _size(16)})
    made = _without_video(SmolVLMProcessor)
    return model, made(images, words, video, image_seq_len=4, chat_template=words.chat_template)


def paligemma() -> tuple[Any, Any]:
    """PaliGemma: no chat template; its processor writes the image tokens itself."""
    from transformers import PaliGemmaProcessor
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    words = tokenizer()
    words.chat_template = None
    model = _model(
        "paligemma", image_token_index=words.image_token_id, projection_dim=32, hidden_size=32,
        text_config={"model_type": "gemma", "vocab_size": len(words), **TEXT},
        vision_config={"model_type": "siglip_vision_model", "projection_dim": 32, **CLIP},
    )  # fmt: skip
    images = SiglipImageProcessorPil(size=_size(16))
    images.image_seq_length = 16
    return model, PaliGemmaProcessor(images, words)


FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    made.__name__: made
    for made in (
        llava, llava_next, qwen2_vl, qwen2_5_vl, qwen3_vl, gemma3, internvl, idefics3, smolvlm,
        paligemma,
    )
}  # fmt: skip


def identity(num_layers: int, channels: int, softcap: float | None = None) -> Anatomy:
    """A model whose states are logits: norm and head leave them as they are."""
    head = nn.Linear(channels, channels, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.eye(channels))
    layers = nn.ModuleList(nn.Identity() for _ in range(num_layers))
    return Anatomy(layers, nn.Identity(), head, 0, softcap)
