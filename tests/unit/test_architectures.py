"""Which language models stock LLaVA carries: the composed model says of texts what they say.

`python tests/unit/test_architectures.py --write` renews the table in docs/compose.md.
"""

import re
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_models import clip_processor, new_llm, new_tokenizer, new_vision, save_llm, save_vision
from transformers import (
    AutoModelForCausalLM,
    AutoProcessor,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
)

from tgalign.compose import compose, compose_models
from tgalign.errors import UserError

DOC = Path(__file__).parents[2] / "docs/compose.md"
GATE = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi3", "olmo2", "granite", "gpt2")
GATE += ("opt", "gpt_neox")
MOE = {"num_experts_per_tok": 2}
# model_type, options of its config, and what they are called.
CARRIED = [
    ("llama", {}, ""),
    ("mistral", {"sliding_window": 4}, "sliding window"),
    ("qwen2", {}, ""),
    ("qwen3", {"head_dim": 8}, ""),
    ("gemma3_text", {"head_dim": 8, "sliding_window": 4}, "embeddings scaled as they enter"),
    ("phi3", {}, ""),
    ("olmo2", {}, ""),
    ("granite", {"embedding_multiplier": 12.0, "residual_multiplier": 0.2}, "logits_scaling=1"),
    ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4}, "learnt positions"),
    ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}, "learnt positions"),
    ("gpt_neox", {}, ""),
    ("gemma", {"head_dim": 8}, "embeddings scaled as they enter"),
    ("gemma2", {"head_dim": 8, "final_logit_softcapping": None}, "without final soft-capping"),
    ("olmo3", {}, ""),
    ("smollm3", {}, ""),
    ("stablelm", {}, ""),
    ("starcoder2", {}, ""),
    ("glm4", {"head_dim": 8}, ""),
    ("falcon", {"alibi": False}, "without ALiBi"),
    ("gpt_neo", {"num_layers": 2, "attention_types": [[["global", "local"], 1]]}, ""),
    ("mixtral", {"num_local_experts": 4} | MOE, "experts: their balance loss is not trained"),
]
REFUSED = [
    ("phi", {}, "LM head bias", ""),
    ("gptj", {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}, "LM head bias", ""),
    ("gemma2", {"head_dim": 8}, "final-logit soft-capping", "as published"),
    ("gemma3_text", {"head_dim": 8, "final_logit_softcapping": 30.0}, "final-logit soft-capping",
     "if set"),
    ("granite", {"logits_scaling": 8.0}, "logit scaling", "as published"),
    ("cohere", {}, "logit scaling", ""),
    ("bloom", {"n_head": 4, "n_layer": 2}, "ALiBi", ""),
    ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2}, "ALiBi", ""),
    ("falcon", {"alibi": True}, "ALiBi", "if set"),
    ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 16}, "odd embedding path", "opt-350m"),
    ("gemma3n_text", {"head_dim": 8, "num_kv_shared_layers": 0, "vocab_size_per_layer_input": 100,
                      "final_logit_softcapping": 0.0, "activation_sparsity_pattern": None},
     "per-layer embeddings", ""),
    ("mamba", {}, "differ from the language model's|cannot run", "its state is no key-value cache"),
    ("bart", {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4,
              "decoder_ffn_dim": 64, "encoder_layers": 1}, "another decoder", ""),
    ("bert", {"is_decoder": True}, "LM head bias", "an encoder"),
]  # fmt: skip


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    path = tmp_path_factory.mktemp("vision")
    save_vision(path)
    return path


def gate_cases():
    cases = []
    for kind, options, _ in CARRIED:
        ties = (True, False) if kind in GATE else (None,)
        for tied in ties:
            tie = {} if tied is None else {"tie_word_embeddings": tied}
            name = f"{kind}-{'as published' if tied is None else 'tied' if tied else 'untied'}"
            cases.append(pytest.param(kind, options | tie, tied, id=name))
    return cases


@pytest.mark.parametrize(("kind", "options", "tied"), gate_cases())
def test_text_only_logits_are_the_language_models(kind, options, tied, vision, tmp_path):
    save_llm(tmp_path / "llm", kind, **options)
    out = compose(tmp_path / "llm", vision, tmp_path / "out")
    assert out == tmp_path / "out"
    llm = AutoModelForCausalLM.from_pretrained(tmp_path / "llm").eval()
    model = LlavaForConditionalGeneration.from_pretrained(out).eval()
    processor = AutoProcessor.from_pretrained(out)
    if tied is not None:  # the source is what the test says it is
        shared = llm.get_output_embeddings().weight is llm.get_input_embeddings().weight
        assert shared == tied
    texts = ["w1 w2 w3 w4 w5 w6 w7 w8 w9", "w30 w3 ? w7 . w8"]
    batch = processor(text=texts, padding=True, return_tensors="pt")
    ids_BT, mask_BT = batch["input_ids"], batch["attention_mask"]
    theirs_BTV = llm(input_ids=ids_BT, attention_mask=mask_BT).logits
    ours_BTV = model(input_ids=ids_BT, attention_mask=mask_BT).logits[..., : theirs_BTV.shape[-1]]
    on_text = mask_BT.bool()
    torch.testing.assert_close(ours_BTV[on_text], theirs_BTV[on_text], atol=1e-4, rtol=0)
    assert theirs_BTV[on_text].abs().max() > 1  # a gate over zeros would prove nothing
    greedy = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    prompt = {"input_ids": ids_BT[:1], "attention_mask": mask_BT[:1]}
    answers = [it.generate(**prompt, **greedy)[0, ids_BT.shape[1] :] for it in (llm, model)]
    assert answers[0].tolist() == answers[1].tolist()
    # A picture goes through, and the layers that are aligned come out.
    seen = processor(text=["<image>\nw1"], images=[Image.new("RGB", (50, 40))], return_tensors="pt")
    assert int((seen["input_ids"] == model.config.image_token_id).sum()) == 4
    images = {"image": model.get_image_features(seen.pop("pixel_values"), return_dict=True)}
    states = model(**seen, mm_encoder_outputs=images, output_hidden_states=[0, 2]).hidden_states
    assert states[0].isfinite().all() and states[2].isfinite().all()


@pytest.mark.parametrize(
    ("kind", "options", "cause"),
    [pytest.param(*it[:3], id=f"{it[0]}-{it[2][:20]}") for it in REFUSED],
)
def test_what_stock_llava_cannot_carry_is_refused(kind, options, cause, vision, tmp_path):
    save_llm(tmp_path / "llm", kind, **options)
    with pytest.raises(UserError, match=cause) as refusal:
        compose(tmp_path / "llm", vision, tmp_path / "out")
    assert repr(kind) in str(refusal.value)
    assert [path.name for path in tmp_path.iterdir()] == ["llm"]


def test_the_gate_s_architectures_are_all_there():
    assert set(GATE) <= {kind for kind, _, _ in CARRIED}


def test_alibi_is_refused_by_decision_and_not_by_the_gate(vision, tmp_path, monkeypatch):
    """As docs/compose.md says."""
    monkeypatch.setattr("tgalign.text_logits._has_alibi", lambda config: False)
    for kind, options, cause, note in REFUSED:
        if cause == "ALiBi" and not note:
            save_llm(tmp_path / kind, kind, **options)
            compose(tmp_path / kind, vision, tmp_path / "out" / kind)


class LouderLlama(LlamaForCausalLM):
    """An architecture with a part that no config names."""

    def forward(self, *args, **options):
        outputs = super().forward(*args, **options)
        outputs.logits = outputs.logits * 1.5
        return outputs


class HurriedLlama(LlamaForCausalLM):
    """One that reads texts like any, and decodes them otherwise."""

    def forward(self, *args, use_cache=None, **options):
        outputs = super().forward(*args, use_cache=use_cache, **options)
        if use_cache is not False:
            outputs.logits = outputs.logits + 1e-2
        return outputs


@pytest.mark.parametrize("unknown", [LouderLlama, HurriedLlama])
def test_an_unknown_part_is_found_by_the_logits(unknown):
    llm = unknown(new_llm("llama").config).eval()
    with pytest.raises(UserError, match=r"differ from the language model's by up to \d.*'llama'"):
        compose_models(llm, new_tokenizer(), new_vision(), clip_processor())


def test_a_language_model_of_no_numbers_is_refused():
    llm = new_llm("llama")
    with torch.no_grad():
        llm.lm_head.weight[3] = torch.nan
    with pytest.raises(UserError, match="own logits are not finite"):
        compose_models(llm, new_tokenizer(), new_vision(), clip_processor())


def table() -> str:
    lines = ["| model_type | | why, or what to know |", "|---|---|---|"]
    for kind, _, note in CARRIED:
        tested = "tied and untied" if kind in GATE else ""
        lines.append(f"| {kind} | carried | {'; '.join(it for it in (tested, note) if it)} |")
    for kind, _, cause, note in REFUSED:
        why = "found by the logits" if cause.startswith("differ") else cause
        lines.append(f"| {kind} | refused | {why}{f' ({note})' if note else ''} |")
    return "\n".join(lines)


def renewed() -> str:
    block = re.compile(
        r"(<!-- architectures: [^>]*-->\n)(.*?)(<!-- end of architectures -->)", re.S
    )
    text = DOC.read_text()
    assert block.search(text)
    return block.sub(lambda found: f"{found[1]}\n{table()}\n\n{found[3]}", text)


def test_the_table_of_the_docs_is_what_is_tested_here():
    assert renewed() == DOC.read_text()


if __name__ == "__main__":
    assert sys.argv[1:] == ["--write"], __doc__
    DOC.write_text(renewed())
