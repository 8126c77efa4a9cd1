"""Composing a LLaVA: what goes in, what comes out, and what is refused.

Which language models are carried: test_architectures.py. Shape suffixes: B rows, T tokens,
V vocabulary, D channels.
"""

import copy
import json
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_models import (
    PICTURE,
    TEXT_SIZES,
    clip_processor,
    new_llm,
    new_tokenizer,
    new_vision,
    save_llm,
    save_vision,
)
from transformers import AutoModelForCausalLM, CLIPModel, LlavaForConditionalGeneration

from tgalign.checkpoint import load_llava, pixel_loader
from tgalign.compose import compose, compose_models
from tgalign.config import StageConfig
from tgalign.errors import UserError
from tgalign.lab import assets
from tgalign.lab.base_clip import image_processor
from tgalign.locks import sole_writer
from tgalign.parameters import parameters
from tgalign.source_models import load_llm
from tgalign.stage import freeze


@pytest.fixture(scope="module")
def llm_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("sources") / "llm"
    save_llm(path)
    return path


@pytest.fixture(scope="module")
def vision_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("sources") / "vision"
    save_vision(path)
    return path


def text_difference(model, llm, texts=("w1 w2 w3 w9 w4", "w80 w7 . w3 w3"), tokenizer=None):
    tokenizer = tokenizer or new_tokenizer()
    worst = 0.0
    with torch.no_grad():
        for text in texts:
            ids_BT = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
            theirs_BTV = llm(input_ids=ids_BT).logits
            ours_BTV = model(input_ids=ids_BT).logits[..., : theirs_BTV.shape[-1]]
            worst = max(worst, float((ours_BTV - theirs_BTV).abs().max()))
    return worst


LAB_TEXTS = ("<bos><user> a beer mug <assistant>", "<bos><user> describe this image . <assistant>")


def test_the_lab_s_models_compose(composed, checkpoint, llm, tokenizer):
    assert text_difference(composed[0], llm, LAB_TEXTS, tokenizer) < 1e-5
    loaded, processor = load_llava(checkpoint)
    assert type(loaded) is LlavaForConditionalGeneration
    assert text_difference(loaded, llm, LAB_TEXTS, tokenizer) < 1e-5
    assert processor.chat_template == tokenizer.chat_template  # it knew images


def test_the_sources_are_left_as_they_were(llm, tokenizer, vision):
    def state():
        weights = [copy.deepcopy(model.state_dict()) for model in (llm, vision)]
        return weights, llm.config.to_dict(), vision.config.to_dict(), tokenizer.get_vocab()

    (weights, *rest), random = state(), torch.get_rng_state()
    compose_models(llm, tokenizer, vision, image_processor())
    (after, *still), random_after = state(), torch.get_rng_state()
    assert rest == still
    assert random.equal(random_after)
    for old, new in zip(weights, after, strict=True):
        assert all(old[name].equal(new[name]) for name in old)


def test_the_command_line_composes_and_says_what_is_trained(
    llm_path, vision_path, tmp_path, tgalign
):
    out = tmp_path / "made" / "llava"
    status, said, _ = tgalign("compose", "--llm", llm_path, "--vision", vision_path, "--out", out)
    assert status == 0
    assert said.rstrip().endswith(str(out))
    model, processor = load_llava(out)
    parts = {
        "vision tower": (model.model.vision_tower, "frozen", "frozen"),
        "projector": (model.model.multi_modal_projector, "trained", "trained"),
        "language model": (model.model.language_model, "frozen", "trained"),
        "LM head": (model.lm_head, "frozen", "trained"),
    }
    for part, (module, *stages) in parts.items():
        row = next(line for line in said.splitlines() if part in line)
        count = f"{sum(weight.numel() for weight in module.parameters()):,}"
        assert [cell.strip() for cell in row.split("│")[1:-1]] == [part, count, *stages]
    assert f"{sum(weight.numel() for weight in model.parameters()):,}" in said
    assert "tokens added: <image> (embeddings: 26)" in said
    report = json.loads((out / "compose.json").read_text())
    assert report["text_logits"] == {"difference": 0.0, "allowed": 1e-4}
    assert report["changes"]["chat_template"] == "default"
    assert report["projector_seed"] == 0 and report["dtype"] == "float32"
    assert processor.image_processor.do_pad
    assert not list(out.parent.glob("*.incomplete"))


def test_what_out_holds_is_never_overwritten(llm_path, vision_path, tmp_path, tgalign):
    (tmp_path / "mine.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "mine.txt"):
        arguments = ("compose", "--llm", llm_path, "--vision", vision_path, "--out", out)
        status, said, fault = tgalign(*arguments)
        assert (status, said) == (2, "")
        assert "exists and is not empty: name another folder" in fault
    inside_a_file = tmp_path / "mine.txt" / "out"
    arguments = ("compose", "--llm", llm_path, "--vision", vision_path, "--out", inside_a_file)
    assert "cannot write to" in tgalign(*arguments)[2]
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_interrupted_compose_leaves_nothing(llm_path, vision_path, tmp_path, monkeypatch):
    out = tmp_path / "out"
    (tmp_path / "out.incomplete").mkdir()  # of a compose that was killed
    (tmp_path / "out.incomplete" / "model.safetensors").write_bytes(b"half")
    with monkeypatch.context() as patch:
        patch.setattr(transformers.LlavaProcessor, "save_pretrained", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compose(llm_path, vision_path, out)
    assert not list(tmp_path.iterdir())
    out.mkdir()
    compose(llm_path, vision_path, out)
    load_llava(out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_it_composes_into_the_empty_folder_that_it_is_called_in(
    llm_path, vision_path, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    out = compose(llm_path, vision_path, ".")
    assert (tmp_path / "config.json").is_file()
    assert out == tmp_path
    with sole_writer(tmp_path / "other", beside=True), monkeypatch.context() as patch:
        patch.setattr("tgalign.locks.PATIENCE", 0.1)
        with pytest.raises(UserError, match="another run is writing to"):
            compose(llm_path, vision_path, tmp_path / "other")


@pytest.mark.parametrize(("stage", "train"), [("stage1", ["projector"]),
                                              ("stage2", ["projector", "llm"])])  # fmt: skip
def test_the_table_of_parameters_says_what_the_stages_move(stage, train, llava):
    parts = (llava.model.vision_tower, llava.model.multi_modal_projector,
             llava.model.language_model, llava.lm_head)  # fmt: skip
    before = [weight.requires_grad for weight in llava.parameters()]
    table = parameters(llava)
    assert [weight.requires_grad for weight in llava.parameters()] == before
    rates = {"steps": 1, "batch_size": 1, "projector_lr": 1.0, "llm_lr": 1.0}
    freeze(llava, StageConfig(name=stage, train=train, **rates))
    moved = [any(weight.requires_grad for weight in part.parameters()) for part in parts]
    assert [row[stage] for row in table] == moved


def interrupted(*_args, **_options):
    raise KeyboardInterrupt


def test_a_difference_as_saved_is_refused(llm_path, vision_path, tmp_path, monkeypatch):
    """Composed well, saved badly: the check reads what lies on disk."""
    save = LlavaForConditionalGeneration.save_pretrained

    def save_otherwise(self, path, **options):
        save(self, path, **options)
        weights = load_file(path / "model.safetensors")
        weights["language_model.lm_head.weight"][7] += 1e-3
        save_file(weights, path / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(LlavaForConditionalGeneration, "save_pretrained", save_otherwise)
    with pytest.raises(UserError, match=r"text-only logits differ .* by up to"):
        compose(llm_path, vision_path, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_sharded_sources_compose(vision_path, tmp_path):
    llm = save_llm(tmp_path / "llm")
    shutil.rmtree(tmp_path / "llm")
    new_tokenizer().save_pretrained(tmp_path / "llm")
    llm.save_pretrained(tmp_path / "llm", max_shard_size="20KB")
    assert len(list((tmp_path / "llm").glob("*.safetensors"))) > 2
    model, _ = load_llava(compose(tmp_path / "llm", vision_path, tmp_path / "out"))
    assert text_difference(model, llm) < 1e-4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_short_dtypes(dtype, vision_path, tmp_path):
    llm = save_llm(tmp_path / "llm", tie_word_embeddings=True)
    out = compose(tmp_path / "llm", vision_path, tmp_path / "out", dtype=dtype)
    kinds = {str(weight.dtype) for weight in load_file(out / "model.safetensors").values()}
    assert kinds == {f"torch.{dtype}"}
    kind = getattr(torch, dtype)
    model = LlavaForConditionalGeneration.from_pretrained(out, dtype="auto").eval()
    assert text_difference(model, llm.to(kind)) < 0.05
    # As saved is the default.
    llm.save_pretrained(tmp_path / "llm")
    again = compose(tmp_path / "llm", vision_path, tmp_path / "again")
    assert json.loads((again / "compose.json").read_text())["dtype"] == dtype


def test_generation_settings_are_the_language_model_s(llm_path, vision_path, tmp_path):
    llm = shutil.copytree(llm_path, tmp_path / "llm")
    settings = {"eos_token_id": [2, 7], "bos_token_id": 1, "temperature": 0.9, "top_p": 0.6}
    # As Vicuna's, which cannot be saved when changed: sampling is off.
    (llm / "generation_config.json").write_text(json.dumps(settings))
    model, _ = load_llava(compose(llm, vision_path, tmp_path / "out"))
    found = model.generation_config
    assert (found.eos_token_id, found.pad_token_id) == ([2, 7], 0)
    assert not found.do_sample


class Marks:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["llm", "vision"])
def test_pickled_weights_are_refused_unread(name, llm_path, vision_path, tmp_path):
    sources = {"llm": llm_path, "vision": vision_path}
    sources[name] = shutil.copytree(sources[name], tmp_path / name)
    (sources[name] / "model.safetensors").unlink()
    (sources[name] / "pytorch_model.bin").write_bytes(pickle.dumps(Marks(tmp_path / "ran")))
    with pytest.raises(UserError, match=r"only pytorch_model.bin, a pickle.*expected safetensors"):
        compose(sources["llm"], sources["vision"], tmp_path / "out")
    (sources[name] / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match="has no weights; expected safetensors"):
        compose(sources["llm"], sources["vision"], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("model_type", ["llama", "unheard_of"])
def test_code_that_comes_with_a_model_runs_only_if_trusted(
    model_type, llm_path, vision_path, tmp_path, monkeypatch
):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", tmp_path / "modules")
    monkeypatch.setattr(sys, "path", [*sys.path])
    llm = shutil.copytree(llm_path, tmp_path / "llm")
    config = json.loads((llm / "config.json").read_text())
    config |= {
        "model_type": model_type,
        "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"},
    }
    (llm / "config.json").write_text(json.dumps(config))
    (llm / "own.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        f"class Config(LlamaConfig):\n    model_type = {model_type!r}\n"
        "class Model(LlamaForCausalLM):\n    config_class = Config\n"
    )
    known = model_type == "llama"
    if known:  # transformers' own code does for it
        compose(llm, vision_path, tmp_path / "out")
    else:
        with pytest.raises(UserError, match="trust_remote_code"):
            compose(llm, vision_path, tmp_path / "out")
    assert not (tmp_path / "ran").exists()
    trusted = {"trust_remote_code": True}
    if known:
        out = compose(llm, vision_path, tmp_path / "trusted", **trusted)
        assert "auto_map" not in (out / "config.json").read_text()
        load_llava(out)
    else:  # stock LLaVA has no code for it
        with pytest.raises(UserError, match="stock LLaVA cannot carry a 'unheard_of'"):
            compose(llm, vision_path, tmp_path / "trusted", **trusted)
    assert (tmp_path / "ran").exists()


def test_missing_weights_are_refused(llm_path, vision_path, tmp_path):
    llm = shutil.copytree(llm_path, tmp_path / "llm")
    weights = load_file(llm / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, llm / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 weight\(s\).*layers.1.mlp.up_proj"):
        compose(llm, vision_path, tmp_path / "out")


def test_bad_sources_are_named(llm_path, vision_path, tmp_path):
    def refused(match, llm=llm_path, vision=vision_path):
        with pytest.raises(UserError, match=match):
            compose(llm, vision, tmp_path / "out")

    refused("no language model at /nowhere", llm="/nowhere")
    refused("no vision encoder at /nowhere", vision="/nowhere")
    refused("is this the folder that was meant", llm=vision_path)  # no causal language model
    refused("the image processor at .* cannot be loaded|no square patches", vision=llm_path)
    bare = shutil.copytree(llm_path, tmp_path / "bare")
    for path in bare.glob("tokenizer*"):
        path.unlink()
    refused("the tokenizer at .*bare cannot be loaded", llm=bare)
    quantised = shutil.copytree(llm_path, tmp_path / "quantised")
    config = json.loads((quantised / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (quantised / "config.json").write_text(json.dumps(config))
    refused("is quantised", llm=quantised)
    broken = shutil.copytree(llm_path, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"nothing")
    refused("broken cannot be loaded", llm=broken)
    for config in ("{", "5", "null", '{"model_type": ["llama"]}'):
        (broken / "config.json").write_text(config)
        refused(r"broken.config.json cannot be read", llm=broken)
    assert not (tmp_path / "out").exists()


def test_a_picture_longer_than_the_positions_is_refused():
    with pytest.raises(UserError, match=r"a picture takes 4 tokens and .* has 4 positions"):
        short = new_llm("llama", max_position_embeddings=4)
        compose_models(short, new_tokenizer(), new_vision(), clip_processor())


def test_the_projector_writes_at_the_scale_of_the_embeddings(composed, processor, rows):
    model = composed[0]
    images = [record.image for record in rows.records if record.image]
    with torch.no_grad():
        features = model.get_image_features(pixel_loader(processor)(images)).pooler_output
    rms = torch.stack(list(features)).pow(2).mean().sqrt()
    embeddings_rms = model.get_input_embeddings().weight.pow(2).mean().sqrt()
    assert 0.3 < (rms / embeddings_rms).item() < 3


def test_that_scale_is_of_the_embeddings_as_they_enter():
    llm = new_llm("gemma3_text", head_dim=8)  # scales them by the root of its width
    model, _ = compose_models(llm, new_tokenizer(), new_vision(), clip_processor())
    pixels = torch.randn(8, 3, PICTURE, PICTURE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        rms = torch.stack(list(model.get_image_features(pixels).pooler_output)).pow(2).mean().sqrt()
        words = model.get_input_embeddings()(torch.arange(model.config.text_config.vocab_size))
    assert rms.item() == pytest.approx(words.pow(2).mean().sqrt().item(), rel=1e-3)
    assert rms > 3 * llm.get_input_embeddings().weight.pow(2).mean().sqrt()


def test_the_seed_decides_the_projector(llm, tokenizer, vision):
    first, second, third = (
        compose_models(llm, tokenizer, vision, image_processor(), projector_seed=seed)[0]
        for seed in (1, 1, 2)
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


def test_a_composed_model_trains(llm_path, tmp_path, tgalign):
    """On the template that a base model is given, out of a whole CLIP, through both stages."""
    tower = new_vision().config
    torch.manual_seed(3)
    clip = CLIPModel(transformers.CLIPConfig(vision_config=tower.to_dict(), text_config=TEXT_SIZES))
    clip.save_pretrained(tmp_path / "clip")
    clip_processor().save_pretrained(tmp_path / "clip")
    base = compose(llm_path, tmp_path / "clip", tmp_path / "base")
    model, _ = load_llava(base)
    theirs, ours = clip.vision_model.state_dict(), model.model.vision_tower.state_dict()
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    lines = []
    for number in range(4):
        Image.new("RGB", (40 + number, 30), (60 * number, 0, 0)).save(tmp_path / f"{number}.png")
        turns = [("user", "w5 ?"), ("assistant", f"w{number} .")]
        lines.append(
            {
                "image": f"{number}.png",
                "caption": f"w{number} w9",
                "retrieved": [{"text": "w30 w31"}],
                "messages": [{"role": role, "content": content} for role, content in turns],
            }
        )
    records = tmp_path / "records.jsonl"
    records.write_text("".join(json.dumps(line) + "\n" for line in lines))
    shared = {"steps": 2, "batch_size": 2, "projector_lr": 1e-3}
    stages = [
        {"name": "stage1", "train": ["projector"], **shared},
        {"name": "stage2", "train": ["projector", "llm"], "llm_lr": 1e-4, **shared},
    ]
    recipe = {"model": str(base), "records": str(records), "out": str(tmp_path / "run")}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"stages": stages}))
    status, _, fault = tgalign("train", tmp_path / "recipe.yaml", "--no-progress")
    assert status == 0, fault
    trained, _ = load_llava(tmp_path / "run/checkpoint")
    moved = {
        name.split(".")[1] if name.startswith("model.") else name.split(".")[0]
        for name, weight in trained.state_dict().items()
        if not weight.equal(model.state_dict()[name])
    }
    assert moved == {"multi_modal_projector", "language_model", "lm_head"}
    llm = AutoModelForCausalLM.from_pretrained(llm_path).eval()
    assert text_difference(trained, llm) > 1e-4


def test_a_vision_encoder_in_the_place_of_the_language_model_is_named_shortly():
    folder = Path(assets.__file__).parent / "assets/clip"
    with pytest.raises(UserError, match="does not load a CLIPConfig: is this the folder") as caught:
        load_llm(folder, "auto", trust_remote_code=False)
    assert f"language model at {folder} cannot be loaded: AutoModelFor" in str(caught.value)
