"""Low-rank adapters: they start as nothing, train alone, and merge into a stock checkpoint."""

import copy

import pytest
import torch
from safetensors.torch import load_file

from tgalign.checkpoint import load_llava, save_checkpoint
from tgalign.config import LoraConfig, ObjectiveConfig, StageConfig, parse_config
from tgalign.errors import UserError
from tgalign.lora import adapters_of, add_adapters, merge_adapters
from tgalign.stage import freeze
from tgalign.task import AlignmentTask
from tgalign.train import train

LORA = LoraConfig(r=4, alpha=8)
STAGE = StageConfig(
    name="stage2", train=["projector", "llm"], steps=1, batch_size=1, projector_lr=1, llm_lr=1
)


@pytest.fixture
def batch(rows, encode, collator):
    return collator(encode(rows.records, 0.5))


def inputs(batch):
    return {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}


@torch.no_grad()
def move(model):
    """Give the adapters something to say."""
    generator = torch.Generator().manual_seed(5)
    for adapter in adapters_of(model.model.language_model):
        weight = adapter.lora_B.default.weight
        weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))


@torch.no_grad()
def test_merged_logits_equal_unmerged_ones(llava, processor, batch, tmp_path):
    before = llava(**inputs(batch)).logits
    keys = llava.state_dict().keys()
    add_adapters(llava, LORA)
    torch.testing.assert_close(llava(**inputs(batch)).logits, before)
    move(llava)
    unmerged = llava(**inputs(batch)).logits
    assert (unmerged - before).abs().max() > 0.1
    merge_adapters(llava)
    assert llava.state_dict().keys() == keys
    torch.testing.assert_close(llava(**inputs(batch)).logits, unmerged, rtol=1e-4, atol=1e-4)
    save_checkpoint(llava, processor, tmp_path / "merged")
    assert not list((tmp_path / "merged").glob("adapter*"))
    loaded, _ = load_llava(tmp_path / "merged")
    torch.testing.assert_close(loaded(**inputs(batch)).logits, unmerged, rtol=1e-4, atol=1e-4)


def test_every_linear_layer_of_the_llm_and_no_other_gets_one(llava):
    add_adapters(llava, LORA)
    decoder = llava.model.language_model
    assert len(adapters_of(decoder)) == 7 * llava.config.text_config.num_hidden_layers
    assert not adapters_of(llava.model.vision_tower)
    assert not hasattr(llava.lm_head, "lora_A")


def test_only_the_layers_asked_for_get_one(llava):
    add_adapters(llava, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    decoder = llava.model.language_model
    assert len(adapters_of(decoder)) == 2 * llava.config.text_config.num_hidden_layers


def test_a_layer_that_is_not_there_is_named(llava):
    with pytest.raises(UserError, match=r"target_modules names c_attn; the linear layers.*q_proj"):
        add_adapters(llava, LoraConfig(target_modules=["q_proj", "c_attn"]))


def test_adapters_and_projector_are_trained_and_nothing_else(llava, batch):
    add_adapters(llava, LORA)
    freeze(llava, STAGE)
    AlignmentTask(llava, ObjectiveConfig(reference="frozen"))(**batch)["loss"].backward()
    moved = {name for name, weight in llava.named_parameters() if weight.grad is not None}
    assert moved == {n for n, _ in llava.named_parameters() if "lora_" in n or "projector" in n}


@pytest.mark.parametrize("training", [True, False])
def test_the_frozen_reference_is_the_llm_without_its_adapters(training, llava, batch):
    texts = batch["text_input_ids"], batch["text_attention_mask"], batch["text_span"]
    before_LBD = AlignmentTask(llava, ObjectiveConfig()).text_states(*texts)
    add_adapters(llava, LORA)
    freeze(llava, STAGE)
    frozen = AlignmentTask(llava, ObjectiveConfig(reference="frozen")).train(training)
    live = AlignmentTask(llava, ObjectiveConfig(reference="live"))
    assert not frozen._reference, "a copy of the LLM, which is dear"
    move(llava)
    assert torch.equal(frozen.text_states(*texts), before_LBD)
    assert not torch.equal(live.text_states(*texts), before_LBD)
    requires = {n for n, weight in llava.named_parameters() if weight.requires_grad}
    assert requires == {n for n, _ in llava.named_parameters() if "lora_" in n or "projector" in n}


def test_adapters_of_half_precision_weights_are_kept_whole(llava):
    llava.model.language_model.to(torch.bfloat16)
    add_adapters(llava, LORA)
    for adapter in adapters_of(llava.model.language_model):
        assert adapter.lora_A.default.weight.dtype == torch.float32
        assert adapter.get_base_layer().weight.dtype == torch.bfloat16


def test_a_run_ends_in_a_stock_checkpoint_of_merged_weights(checkpoint, rows, tmp_path):
    common = {"steps": 2, "batch_size": 4, "projector_lr": 1e-3, "llm_lr": 1e-2}
    data = {
        "model": str(checkpoint),
        "records": str(rows.path),
        "out": str(tmp_path / "run"),
        "attention": "eager",
        "logging_steps": 1,
        "lora": {"r": 4, "alpha": 8},
        "stages": [
            common | {"name": "stage1", "train": ["projector"]},
            common
            | {"name": "stage2", "train": ["projector", "llm"]}
            | {"objective": {"reference": "frozen"}},
        ],
    }
    path = train(parse_config(copy.deepcopy(data), "test"), progress_bar=False)
    base, trained = (load_file(p / "model.safetensors") for p in (checkpoint, path))
    assert trained.keys() == base.keys()
    moved = {name for name in base if not torch.equal(base[name], trained[name])}
    linear = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert moved == {
        name
        for name in base
        if "projector" in name or ("language_model" in name and name.split(".")[-2] in linear)
    }
    for name in moved - {name for name in base if "projector" in name}:
        rank = torch.linalg.matrix_rank((trained[name] - base[name]).double(), rtol=1e-3)
        assert 0 < rank <= 4
    load_llava(path)
