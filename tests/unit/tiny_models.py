"""Tiny random language models and vision encoders of many architectures, as checkpoints on disk."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    CLIPImageProcessor,
    PreTrainedTokenizerFast,
)

WORDS = [f"w{number}" for number in range(90)] + list("Aa.,!?:\n")
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,  # logits far from 0, so that what bends them shows
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TEXT_SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 50}
TEXT_SIZES |= {"num_attention_heads": 4}  # of a CLIP's text side
PICTURE = 32


def new_tokenizer(**options):
    """A word-level tokenizer without ``<image>``."""
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    vocabulary = {word: number for number, word in enumerate(special + WORDS)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **(named | options))


def new_llm(kind, rows=None, **options):
    """A causal language model whose biases and norms are random too."""
    size = {"vocab_size": rows or len(new_tokenizer())}
    config = AutoConfig.for_model(kind, **(SIZES | size | options))
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(torch.randn_like(weight) * 0.2)
    return model


def save_llm(path, kind="llama", tokenizer=None, rows=None, **options):
    """Save one beside its tokenizer.

    Returns:
        The model.
    """
    model = new_llm(kind, rows, **options)
    model.save_pretrained(path)
    (tokenizer or new_tokenizer()).save_pretrained(path)
    return model


def new_vision(kind="clip_vision_model", **options):
    """A vision encoder of four patches."""
    shape = {"image_size": PICTURE, "patch_size": PICTURE // 2, "num_hidden_layers": 3}
    config = AutoConfig.for_model(kind, **(SIZES | shape | options))
    torch.manual_seed(6)
    model = AutoModel.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return model


def clip_processor():
    """CLIP's image processor for them."""
    square = {"height": PICTURE, "width": PICTURE}
    return CLIPImageProcessor(size={"shortest_edge": PICTURE}, crop_size=square)


def save_vision(path: Path, kind="clip_vision_model", image_processor=None, **options):
    """Save one beside its image processor.

    Returns:
        The model.
    """
    model = new_vision(kind, **options)
    model.save_pretrained(path)
    (image_processor or clip_processor()).save_pretrained(path)
    return model
