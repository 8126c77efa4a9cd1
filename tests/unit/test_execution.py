"""How a model computes: its layers, found from the model itself, and packed texts."""

import pytest
import torch
from transformers import AutoConfig, AutoModel

from tgalign.errors import UserError
from tgalign.execution import layer_classes, packs

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OLD = {key: SMALL[key] for key in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")}
DECODERS = {
    "llama": SMALL,
    "mistral": SMALL | {"sliding_window": 5},
    "qwen2": SMALL,
    "qwen3": SMALL,
    "gemma3_text": SMALL | {"query_pre_attn_scalar": 8},
    "phi3": SMALL,
    "olmo2": SMALL,
    "granite": SMALL,
    "gpt2": OLD | {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "opt": OLD
    | {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"word_embed_proj_dim": 32},
    "gpt_neox": SMALL,
}


def decoder(kind, attention):
    torch.manual_seed(7)
    config = AutoConfig.for_model(kind, **DECODERS[kind])
    model = AutoModel.from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:  # so that attention says much beside the embeddings
                weight.mul_(8)
    return model


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", DECODERS)
def test_decoders_that_tell_packed_texts_apart_are_known(kind, attention):
    assert packs(decoder(kind, attention)) == (kind != "opt")  # which masks by rows alone


def test_packing_is_checked_in_whole_precision_where_products_are_in_half():
    model, rounded = decoder("llama", "sdpa"), []
    model.register_forward_pre_hook(lambda *_: rounded.append(torch.is_autocast_enabled("cpu")))
    with torch.autocast("cpu", torch.bfloat16):
        assert packs(model)
    assert rounded
    assert not any(rounded)


def test_a_decoder_that_mixes_texts_up_is_found_out(monkeypatch):
    model = decoder("llama", "eager")
    forward = model.forward

    def without_positions(position_ids=None, **arguments):
        return forward(**arguments)

    monkeypatch.setattr(model, "forward", without_positions)
    assert not packs(model)


LAYERS = {
    "llama": ["LlamaDecoderLayer"],
    "mistral": ["MistralDecoderLayer"],
    "qwen2": ["Qwen2DecoderLayer"],
    "qwen3": ["Qwen3DecoderLayer"],
    "gemma3_text": ["Gemma3DecoderLayer"],
    "phi3": ["Phi3DecoderLayer"],
    "olmo2": ["Olmo2DecoderLayer"],
    "granite": ["GraniteDecoderLayer"],
    "gpt2": ["GPT2Block"],
    "opt": ["OPTDecoderLayer"],
    "gpt_neox": ["GPTNeoXLayer"],
}


@pytest.mark.parametrize("kind", DECODERS)
def test_the_layers_are_found_in_the_model(kind):
    assert layer_classes(decoder(kind, "eager")) == LAYERS[kind]


def test_llava_names_a_layer_that_it_lacks(llava):
    """Why the layers are not taken from LLaVA's own list."""
    there = {type(module).__name__ for module in llava.modules()}
    assert not there.issuperset(llava._no_split_modules)
    assert layer_classes(llava.model.language_model) == ["LlamaDecoderLayer"]


def test_a_decoder_that_does_not_name_its_layers_is_refused():
    with pytest.raises(UserError, match=r"Sequential does not name its layers.*parallel to ddp"):
        layer_classes(torch.nn.Sequential(torch.nn.Linear(1, 1)))
