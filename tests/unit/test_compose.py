"""Composing a LLaVA: its text side is the language model's, and what cannot be carried is refused.

Shape suffixes: B rows, T tokens, V vocabulary, D channels.
"""

import copy

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    LlavaForConditionalGeneration,
    PhiConfig,
)

from tgalign.checkpoint import load_llava, pixel_loader, save_checkpoint
from tgalign.compose import check_text_logits, compose
from tgalign.errors import UserError
from tgalign.lab.base_clip import image_processor

SIZES = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "initializer_range": 0.3,  # logits far from 0, so that what bends them shows
}
# What stock LLaVA leaves out, and the config key that does it.
LOSSY = {
    "logit scaling": (GraniteConfig, {"logits_scaling": 3.0}),
    "soft-capping": (Gemma2Config, {"final_logit_softcapping": 5.0, "head_dim": 12}),
    "head bias": (PhiConfig, {}),
}


def new_model(kind, tokenizer, **options):
    torch.manual_seed(5)
    special = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")
    }
    config = kind(vocab_size=len(tokenizer), **SIZES, **special, **options)
    model = AutoModelForCausalLM.from_config(config).eval()
    head = model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        torch.nn.init.normal_(head.bias)
    return model


def text_ids(tokenizer):
    texts = ["<bos><user> a beer mug <assistant>", "<bos><user> describe this image . <assistant>"]
    return [torch.tensor([tokenizer.encode(text, add_special_tokens=False)]) for text in texts]


def worst_difference(model, llm, tokenizer):
    with torch.no_grad():
        return max(
            float((model(input_ids=ids_BT).logits - llm(input_ids=ids_BT).logits).abs().max())
            for ids_BT in text_ids(tokenizer)
        )


def test_text_only_logits_are_the_language_models(composed, llm, tokenizer):
    assert worst_difference(composed[0], llm, tokenizer) < 1e-5
    assert check_text_logits(composed[0], llm) < 1e-5


def test_text_only_logits_survive_saving_and_loading(checkpoint, llm, tokenizer):
    model, _ = load_llava(checkpoint)
    assert type(model) is LlavaForConditionalGeneration
    assert worst_difference(model, llm, tokenizer) < 1e-5


def test_tied_embeddings_survive_too(tokenizer, vision, tmp_path):
    llm = new_model(LlamaConfig, tokenizer, tie_word_embeddings=True)
    model, processor = compose(llm, tokenizer, vision, image_processor())
    save_checkpoint(model, processor, tmp_path / "tied")
    loaded, _ = load_llava(tmp_path / "tied")
    assert worst_difference(loaded, llm, tokenizer) < 1e-5


def test_the_source_models_are_left_as_they_were(llm, tokenizer, vision):
    before = copy.deepcopy(llm.state_dict()), copy.deepcopy(vision.state_dict())
    compose(llm, tokenizer, vision, image_processor())
    for old, model in zip(before, (llm, vision), strict=True):
        assert all(torch.equal(old[name], weight) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("cause", LOSSY)
def test_what_stock_llava_cannot_carry_is_refused(cause, tokenizer, vision):
    kind, options = LOSSY[cause]
    llm = new_model(kind, tokenizer, **options)
    with pytest.raises(UserError, match=f"{kind.model_type}.*{cause}"):
        compose(llm, tokenizer, vision, image_processor())


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (GraniteConfig, {"logits_scaling": 1.0}),
        (Gemma2Config, {"final_logit_softcapping": None, "head_dim": 12}),
    ],
)
def test_the_same_families_pass_without_it(kind, options, tokenizer, vision):
    llm = new_model(kind, tokenizer, **options)
    model, _ = compose(llm, tokenizer, vision, image_processor())
    assert worst_difference(model, llm, tokenizer) < 1e-4


def test_an_image_token_of_several_tokens_is_refused(llm, vision):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"<unk>": 0, "<": 1, "image": 2, ">": 3}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    plain = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", chat_template="x")
    with pytest.raises(UserError, match=r"splits <image> into 3 tokens; add it"):
        compose(llm, plain, vision, image_processor())


def test_a_missing_chat_template_is_refused(llm, tokenizer, vision):
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        compose(llm, bare, vision, image_processor())


def test_an_image_token_without_an_embedding_is_refused(tokenizer, vision):
    """As when ``<image>`` was added to the tokenizer and the model's embeddings were not grown."""
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    llm = new_model(LlamaConfig, tokenizer)
    llm.resize_token_embeddings(image_id)
    with pytest.raises(UserError, match="resize_token_embeddings"):
        compose(llm, tokenizer, vision, image_processor())


def test_the_projector_writes_at_the_scale_of_the_embeddings(composed, processor, rows):
    model = composed[0]
    images = [record.image for record in rows.records if record.image]
    with torch.no_grad():
        features = model.get_image_features(pixel_loader(processor)(images)).pooler_output
    rms = torch.stack(list(features)).pow(2).mean().sqrt()
    embeddings_rms = model.get_input_embeddings().weight.pow(2).mean().sqrt()
    assert 0.3 < (rms / embeddings_rms).item() < 3


def test_the_seed_decides_the_projector(llm, tokenizer, vision):
    first, second, third = (
        compose(llm, tokenizer, vision, image_processor(), seed=seed)[0] for seed in (1, 1, 2)
    )
    weights = [
        model.model.multi_modal_projector.linear_1.weight for model in (first, second, third)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_processor_makes_one_token_per_patch(composed, processor, rows):
    record = next(record for record in rows.records if record.image)
    with Image.open(record.image) as picture:
        inputs = processor(text=["<image> describe"], images=[picture], return_tensors="pt")
    model = composed[0]
    shown = int((inputs["input_ids"] == model.config.image_token_id).sum())
    assert shown == model.config.image_seq_length
    with torch.no_grad():
        assert model(**inputs).logits.isfinite().all()
