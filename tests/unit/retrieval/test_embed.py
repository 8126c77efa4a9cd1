"""Encoders: each is read as it was trained to be, alone or in a batch, and others are refused.

Shape suffixes: N texts, T tokens, D channels.
"""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
)

from tgalign.data.pictures import read_picture
from tgalign.errors import UserError
from tgalign.lab.assets import ASSETS, LLM
from tgalign.lab.base_clip import image_processor, to_pixels
from tgalign.lab.pictures import SIZE
from tgalign.retrieval.embed import Embedder, revision
from tgalign.retrieval.exact import encode_pictures, text_inputs

TEXTS = ["a dog .", "a red apple and a mug on a blue background .", "a cat", "a dog ."]
SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
SMALL |= {"num_attention_heads": 2}


def save(folder, model, tokenizer, *, processor=True):
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(20)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if processor:
        image_processor().save_pretrained(folder)
    return Embedder.load(folder)


def special(tokenizer):
    """The lab's tokenizer as others are: it adds BOS and EOS by itself."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    core = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    core.post_processor = TemplateProcessing(
        single="<bos> $A <eos>",
        special_tokens=[("<bos>", tokenizer.bos_token_id), ("<eos>", tokenizer.eos_token_id)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>",
        unk_token="<unk>", model_max_length=20,
    )  # fmt: skip


@pytest.fixture(scope="module")
def clip(tokenizer):
    torch.manual_seed(1)
    return CLIPModel(
        CLIPConfig(
            text_config={
                **SMALL, "vocab_size": len(tokenizer), "max_position_embeddings": 24,
                "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
            },
            vision_config={**SMALL, "image_size": SIZE, "patch_size": 36},
            projection_dim=16,
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def siglip(tokenizer):
    torch.manual_seed(2)
    return SiglipModel(
        SiglipConfig(
            text_config={
                **SMALL, "vocab_size": len(tokenizer), "max_position_embeddings": 24,
                "projection_size": 32,
            },
            vision_config={**SMALL, "image_size": SIZE, "patch_size": 36},
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def bert(tokenizer):
    torch.manual_seed(3)
    return BertModel(
        BertConfig(**SMALL, vocab_size=len(tokenizer), max_position_embeddings=24), False
    )


@pytest.fixture(params=["clip", "clip that adds", "siglip", "bert", "lab", "lab LLM"])
def embedder(request, tokenizer, tmp_path):
    if request.param == "lab":
        return Embedder.load()
    if request.param == "lab LLM":
        return Embedder.load(ASSETS / LLM)
    name = request.param.split()[0]
    model = request.getfixturevalue(name)
    tokens = special(tokenizer) if "adds" in request.param else tokenizer
    return save(tmp_path, model, tokens, processor=name != "bert")


def test_embeddings_are_unit_and_depend_on_nothing_but_the_text(embedder):
    whole_ND = embedder.texts(TEXTS)
    torch.testing.assert_close(whole_ND.norm(dim=1), torch.ones(len(TEXTS)))
    parts_ND = embedder.texts(TEXTS, batch_size=1)
    torch.testing.assert_close(whole_ND, parts_ND, rtol=1e-4, atol=1e-5)
    assert (whole_ND[0] - whole_ND[1]).abs().max() > 1e-3
    torch.testing.assert_close(whole_ND[0], whole_ND[3], rtol=1e-4, atol=1e-5)
    assert whole_ND.dtype == torch.float32
    assert not whole_ND.requires_grad


def test_a_text_of_a_hundred_thousand_characters_is_cut(embedder):
    long = "a dog and a cat " * 7_000
    whole_ND = embedder.texts([long, long + "and a mug", "a dog ."])
    assert whole_ND.isfinite().all()
    torch.testing.assert_close(whole_ND[0], whole_ND[1])


def test_an_image_text_model_embeds_pictures_of_any_size_in_the_same_space(embedder, rows):
    paths = [record.image for record in rows.records if record.image][:3]
    pictures = [read_picture(path) for path in paths]
    if embedder.identity.kind == "text":
        with pytest.raises(UserError, match="embeds no picture"):
            embedder.pictures(pictures)
        return
    found_QD = embedder.pictures(pictures, batch_size=2)
    assert found_QD.shape[1] == embedder.texts(TEXTS).shape[1]
    torch.testing.assert_close(
        found_QD, encode_pictures(embedder.model, to_pixels(pictures)), rtol=1e-3, atol=1e-4
    )
    wide = embedder.pictures([pictures[0].resize((3 * SIZE, SIZE))])
    torch.testing.assert_close(wide.norm(dim=1), torch.ones(1))


def test_clips_read_bos_and_eos_once_whoever_adds_them(clip, tokenizer, tmp_path):
    by_us = save(tmp_path / "plain", clip, tokenizer).texts(TEXTS)
    by_itself = Embedder.load(
        save(tmp_path / "adds", clip.__class__(clip.config), special(tokenizer)).identity.path
    )
    by_itself.model.load_state_dict(clip.state_dict())
    torch.testing.assert_close(by_itself.texts(TEXTS), by_us)
    inputs = text_inputs(tokenizer, TEXTS)
    wanted = normalize(clip.get_text_features(**inputs).pooler_output, dim=-1)
    torch.testing.assert_close(by_us, wanted)


def test_siglip_reads_texts_padded_to_its_full_length(siglip, tokenizer, tmp_path):
    embedder = save(tmp_path, siglip, tokenizer)
    inputs = tokenizer(TEXTS, padding="max_length", max_length=24, return_tensors="pt")
    wanted = siglip.eval().get_text_features(input_ids=inputs["input_ids"]).pooler_output
    torch.testing.assert_close(embedder.texts(TEXTS), normalize(wanted, dim=-1))


def test_a_text_model_is_read_by_the_mean_of_its_states(bert, tokenizer, tmp_path):
    embedder = save(tmp_path, bert, tokenizer, processor=False)
    assert embedder.identity.kind == "text"
    for text, found_D in zip(TEXTS, embedder.texts(TEXTS), strict=True):
        inputs = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            hidden = bert.eval()(input_ids=inputs["input_ids"]).last_hidden_state
        torch.testing.assert_close(found_D, normalize(hidden[0].mean(dim=0), dim=0))


def test_the_revision_goes_by_everything_that_decides(bert, tokenizer, tmp_path):
    save(tmp_path, bert, tokenizer, processor=False)
    first = revision(tmp_path)
    (tmp_path / "README.md").write_text("changes nothing")
    assert revision(tmp_path) == first
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    assert revision(tmp_path) != first


def test_what_is_no_encoder_is_named(bert, tokenizer, tmp_path, checkpoint):
    with pytest.raises(UserError, match="no encoder at"):
        Embedder.load(tmp_path / "none")
    with pytest.raises(UserError, match="expected an image-text model"):
        Embedder.load(checkpoint)
    vision = CLIPVisionModel(CLIPVisionConfig(**SMALL, image_size=SIZE, patch_size=36))
    vision.save_pretrained(tmp_path / "vision")
    tokenizer.save_pretrained(tmp_path / "vision")
    with pytest.raises(UserError, match="expected an image-text model"):
        Embedder.load(tmp_path / "vision")
    save(tmp_path / "cls", bert, tokenizer, processor=False)
    (tmp_path / "cls/1_Pooling").mkdir()
    pooling = tmp_path / "cls/1_Pooling/config.json"
    pooling.write_text(json.dumps({"pooling_mode_cls_token": True}))
    with pytest.raises(UserError, match="asks for another pooling than the mean"):
        Embedder.load(tmp_path / "cls")
    pooling.write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    assert Embedder.load(tmp_path / "cls").identity.kind == "text"
    weights = load_file(tmp_path / "cls/model.safetensors")
    weights.pop("embeddings.LayerNorm.weight")
    save_file(weights, tmp_path / "cls/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 weight.*embeddings\.LayerNorm\.weight"):
        Embedder.load(tmp_path / "cls")
    (tmp_path / "cls/model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(UserError, match="cannot be loaded"):
        Embedder.load(tmp_path / "cls")
    (tmp_path / "cls/model.safetensors").unlink()
    torch.save({}, tmp_path / "cls/pytorch_model.bin")
    with pytest.raises(UserError, match=r"only pytorch_model.bin, a pickle"):
        Embedder.load(tmp_path / "cls")
