"""Recipes: each is valid and dry-run; sizes are the published ones; memory is what is kept."""

import json
import re
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModel

from tgalign.compose import ROWS_MULTIPLE
from tgalign.config import (
    LoraConfig,
    ObjectiveConfig,
    StageConfig,
    SyntheticConfig,
    TrainConfig,
    parse_config,
)
from tgalign.dry_run import meta_model, plan
from tgalign.errors import UserError
from tgalign.lab.assets import lab_llava, load_lab
from tgalign.memory import count, kept_bytes, part_sizes, stage_memory
from tgalign.recipe import load_recipe
from tgalign.stage import freeze
from tgalign.task import AlignmentTask

RECIPES = Path(__file__).parents[2] / "recipes"
NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
EPOCHS = {"stage1": 558_128, "stage2": 665_298}  # rows of LLaVA's two files


PROCESSES = {name: 8 if name[:-1].endswith("_stage") else 1 for name in NAMES}
PAGE = Path(__file__).parents[2] / "docs/recipes.md"


@pytest.fixture(scope="module")
def plans():
    return plan_all()


def plan_all():
    return {name: plan(load_recipe(RECIPES / f"{name}.yaml"), PROCESSES[name]) for name in NAMES}


def page_with(plans):
    """The page about recipes, with what dry-runs say of them now."""
    lines = ["| recipe, stage | processes | trained | steps | rows a step | tokens a step | GB |"]
    lines.append("|---|---|---|---|---|---|---|")
    for name, found in plans.items():
        for it in found["stages"]:
            gigabytes = sum(it["bytes"].values()) / 1e9
            cells = (it["trained"], it["steps"], it["rows"], it["tokens"])
            lines.append(
                f"| {name}, {it['name']} | {PROCESSES[name]} | "
                + " | ".join(f"{cell:,}" for cell in cells)
                + f" | {gigabytes:.2g} |"
            )
    block = re.compile(r"(<!-- plans: [^>]*-->\n).*?(<!-- end of plans -->)", re.DOTALL)
    assert block.search(PAGE.read_text())
    return block.sub("\\1\n" + "\n".join(lines) + "\n\n\\2", PAGE.read_text())


def test_the_page_about_recipes_says_what_dry_runs_say(plans):
    table = re.compile(r"^\| (.*) \| (\S+) \|$", re.MULTILINE)
    now, written = table.findall(page_with(plans)), table.findall(PAGE.read_text())
    assert len(now) > len(NAMES)
    assert [row for row, _ in now] == [row for row, _ in written]
    for (row, ours), (_, theirs) in zip(now, written, strict=True):
        if ours != theirs:  # another transformers may keep a little more or less
            assert float(ours) == pytest.approx(float(theirs), rel=0.1), row


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_is_valid_and_dry_run(name, plans):
    config = load_recipe(RECIPES / f"{name}.yaml")
    found = plans[name]
    assert [stage["name"] for stage in found["stages"]] == [stage.name for stage in config.stages]
    every = sum(found["sizes"][part] for part in ("vision", "projector", "llm"))
    for stage, settings in zip(found["stages"], config.stages, strict=True):
        assert stage["steps"] == settings.steps
        assert stage["rows"] == settings.batch_size * settings.accumulation
        assert stage["image_tokens"] < stage["tokens"] == stage["rows"] * config.max_length
        adapters = found["sizes"]["adapters"] if config.lora and "llm" in settings.train else 0
        assert stage["trained"] + stage["frozen"] == every + adapters
        shared = PROCESSES[name] if config.parallel == "fsdp2" else 1
        assert stage["bytes"]["gradients"] == 4 * stage["trained"] / shared
        assert stage["bytes"]["optimizer"] == 8 * stage["trained"] / shared
        assert stage["bytes"]["activations"] > 0


def test_the_shipped_architectures_have_the_published_sizes(plans):
    """Of Mistral-7B, Llama-7B, Qwen3-4B, and the vision models, as their weights' files have them.

    Rows of embeddings and head more for <image>, where the vocabulary has none to spare: as many as
    `tgalign compose` adds.
    """
    sizes = {name: plans[name]["sizes"] for name in NAMES}
    assert sizes["paper_stage1"]["llm"] == 7_241_732_096 + 2 * ROWS_MULTIPLE * 4096
    assert sizes["llava15_stage1"]["llm"] == 6_738_415_616 + 2 * ROWS_MULTIPLE * 4096
    assert sizes["qwen3_siglip2_stage1"]["llm"] == 4_022_468_096
    assert sizes["paper_stage1"]["vision"] == 303_507_456
    assert sizes["qwen3_siglip2_stage1"]["vision"] == 428_225_600


def test_the_lab_s_architecture_is_the_lab_s_model(plans):
    model, _ = lab_llava(*load_lab(), seed=0)
    sizes = plans["lab"]["sizes"]
    assert sizes["llm"] == count([*model.model.language_model.parameters(), model.lm_head.weight])
    assert sizes["vision"] == count(model.model.vision_tower.parameters())
    assert sizes["projector"] == count(model.model.multi_modal_projector.parameters())


def test_two_stage_recipes_are_one_epoch_each_and_follow_one_another():
    for family in ("paper", "llava15", "qwen3_siglip2"):
        first, second = (load_recipe(RECIPES / f"{family}_{stage}.yaml") for stage in EPOCHS)
        assert second.model == first.out / "checkpoint"
        assert second.architecture == first.architecture
        for config in (first, second):
            (stage,) = config.stages
            rows = stage.steps * stage.batch_size * stage.accumulation
            short_of = rows - EPOCHS[stage.name]
            assert 0 <= short_of < stage.batch_size * stage.accumulation


def test_the_paper_s_recipe_is_the_paper_s_objective_and_the_released_settings():
    first, second = (load_recipe(RECIPES / f"paper_{stage}.yaml") for stage in EPOCHS)
    (one,), (two,) = first.stages, second.stages
    assert (one.train, one.projector_lr, first.max_length) == (["projector"], 1e-3, 2048)
    assert (two.train, two.projector_lr, two.llm_lr) == (["projector", "llm"], 2e-6, 2e-6)
    assert second.max_length == 1200
    assert (one.batch_size, two.batch_size) == (32, 4)
    assert (one.retrieved_in_prompt, two.retrieved_in_prompt) == (0.0, 1.0)
    for stage in (one, two):
        assert (stage.warmup, stage.weight_decay) == (0.03, 0.0)
        objective = stage.objective
        assert (objective.form, objective.similarity, objective.pair) == (
            "paper",
            "cosine",
            "caption",
        )
        assert (objective.reference, objective.layers) == ("live", "all")
        assert (objective.weight, objective.schedule) == (1.0, "constant")
    assert not (first.text_gate or second.text_gate)


def test_the_recipe_for_one_s_own_data_explains_every_key_and_its_default(tmp_path):
    text = (RECIPES / "own.yaml").read_text()
    whole = re.sub(r"^( *)# (\w+): ", r"\1\2: ", text, flags=re.MULTILINE)
    configs = []
    for content in (text, whole):
        (tmp_path / "own.yaml").write_text(content)
        configs.append(load_recipe(tmp_path / "own.yaml"))
    assert configs[0] == configs[1]
    explained = set(re.findall(r"^ *(?:- )?(\w+):.* # \S", whole, re.MULTILINE)) | {"stages"}
    for schema in (TrainConfig, StageConfig, ObjectiveConfig):
        assert schema.model_fields.keys() <= explained
    for schema in (LoraConfig, SyntheticConfig):
        assert all(f"{key}: " in text for key in schema.model_fields)


def test_recipes_fit_the_cards_they_are_for(plans):
    for name, found in plans.items():
        card = 24e9 if name == "lora_24gb" else 80e9
        assert max(sum(it["bytes"].values()) for it in found["stages"]) < 0.9 * card, name


def test_the_command_prints_the_plan_and_trains_nothing(tgalign, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    recipe = RECIPES / "paper_stage2.yaml"
    config = load_recipe(recipe)
    status, out, err = tgalign("train", recipe, "--dry-run", "--processes", 8)
    assert (status, err) == (0, "")
    assert "mistral_7b_clip_l.json stands for it" in out
    for said in ("7,263,236,096", "303,507,456", "20,791", "38,400", "18,432", "no data"):
        assert said in out
    assert "activations: what a forward pass of batch_size rows" in out
    assert not config.out.exists()


def recipe_of(tmp_path, checkpoint, **changes):
    stage = {"name": "s", "train": ["projector", "llm"], "steps": 3, "batch_size": 4}
    stage |= {"projector_lr": 1e-3, "llm_lr": 1e-4, "accumulation": 2}
    data = {
        "model": str(checkpoint),
        "records": str(tmp_path / "none"),
        "out": str(tmp_path / "out"),
    }
    data |= {"max_length": 64, "stages": [stage]}
    stage |= changes.pop("stage", {})
    return parse_config(data | changes, "test")


def test_what_does_not_fit_is_the_users_mistake(tmp_path, checkpoint, tgalign):
    def refused(said, processes=1, **changes):
        with pytest.raises(UserError, match=said):
            plan(recipe_of(tmp_path, checkpoint, **changes), processes)

    refused("no checkpoint at /nowhere, and the recipe names no architecture", model="/nowhere")
    broken = tmp_path / "broken.json"
    for content in ("{", "{}", '{"model_type": "llava", "text_config": {"model_type": "none"}}'):
        broken.write_text(content)
        refused(
            "the architecture at .*broken.json cannot be", model="/no", architecture=str(broken)
        )
    refused("3 processes cannot share 2 forward passes", processes=3)
    refused('expected "all"', stage={"objective": {"layers": "2-9"}})
    refused("leaves no token beside the", max_length=5)
    data = yaml.safe_load((RECIPES / "paper_stage1.yaml").read_text()) | {"precision": "fp8"}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(data))
    status, out, err = tgalign("train", path, "--dry-run")
    assert (status, out, "precision" in err) == (2, "", True)


@pytest.fixture
def dry(tgalign, tmp_path, checkpoint, rows):
    """A function that dry-runs a recipe, changed as asked, and gives what stands on stderr."""

    def run(status=2, **changes):
        config = recipe_of(tmp_path, checkpoint, **({"records": str(rows.path)} | changes))
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_none=True)))
        before = sorted(tmp_path.rglob("*"))
        found, _, err = tgalign("train", path, "--dry-run")
        assert found == status, err
        assert sorted(tmp_path.rglob("*")) == before
        return err

    return run


def test_what_train_refuses_at_once_a_dry_run_refuses_too(dry, tmp_path, checkpoint, rows):
    assert dry(0) == ""
    (tmp_path / "file").write_text("mine")
    file = str(tmp_path / "file")
    assert f"{rows.path.parent} is not empty and holds no" in dry(out=str(rows.path.parent))
    assert f"{checkpoint} holds a model: name another" in dry(out=str(checkpoint))
    assert f"out {file} is a file" in dry(out=file)
    assert f"cache_text {file} is a file" in dry(cache_text=file)
    assert "no records at /nowhere" in dry(records="/nowhere")
    assert "no records at /nowhere" in dry(probes={"toxic": "/nowhere"})
    assert "a probe needs an image" in dry(probes={"toxic": str(rows.path)}, max_length=200)
    assert "target_modules names nope" in dry(lora={"target_modules": ["nope"]})
    drawn = {"text_gate": True, "companions": 0.5, "cache_vision": True}
    llm = str(RECIPES.parent / "src/tgalign/lab/assets/llm")
    assert "no text and vision tower" in dry(**drawn, synthetic={"clip": llm, "texts": file})
    clip = str(RECIPES.parent / "src/tgalign/lab/assets/clip")
    assert "give the CLIP that the tower" in dry(**drawn, synthetic={"clip": clip, "texts": file})


def test_rows_at_hand_are_measured(tmp_path, checkpoint, rows, composed):
    config = recipe_of(tmp_path, checkpoint, records=str(rows.path), max_length=200)
    (stage,) = plan(config)["stages"]
    assert 0 < stage["measured_tokens"] < stage["tokens"]
    assert (stage["rows_read"], stage["bad_rows"]) == (len(rows.data), 0)
    lengths = recipe_of(tmp_path, checkpoint, records=str(rows.path), max_length=20)
    assert plan(lengths)["stages"][0]["bad_rows"] > 0
    bare = recipe_of(tmp_path, checkpoint, max_length=200)
    assert plan(bare)["stages"][0]["measured_tokens"] is None


@pytest.mark.parametrize("targets", [None, ["q_proj", "down_proj"]])
def test_adapters_are_counted_as_peft_makes_them(targets, tmp_path, checkpoint, llava):
    peft = pytest.importorskip("peft")
    lora = {"r": 4, "alpha": 8, "target_modules": targets}
    sizes = part_sizes(llava, recipe_of(tmp_path, checkpoint, lora=lora))
    decoder = llava.model.language_model
    before = count(decoder.parameters())
    targets = targets or "all-linear"
    made = peft.get_peft_model(decoder, peft.LoraConfig(r=4, target_modules=targets))
    assert sizes["adapters"] == count(made.parameters()) - before


def test_adapters_of_gpt2_s_own_linear_layers_are_counted(tmp_path, checkpoint):
    config = AutoConfig.for_model("gpt2", vocab_size=8, n_embd=8, n_layer=1, n_head=2)
    parts = {"language_model": AutoModel.from_config(config)}
    parts |= {"vision_tower": torch.nn.Identity(), "multi_modal_projector": torch.nn.Identity()}
    model = SimpleNamespace(model=SimpleNamespace(**parts), lm_head=torch.nn.Identity())
    sizes = part_sizes(model, recipe_of(tmp_path, checkpoint, lora={"r": 2}))
    assert sizes["adapters"] == 2 * (8 + 24 + 8 + 8 + 8 + 32 + 32 + 8)


WAYS = {
    "projector": {"stage": {"train": ["projector"]}},
    "llm": {},
    "bf16": {"precision": "bf16"},
    "frozen bf16": {
        "precision": "bf16",
        "frozen_weights": "bf16",
        "stage": {"train": ["projector"]},
    },
    "eager": {"attention": "eager"},
}


@pytest.mark.parametrize("way", WAYS)
def test_fake_tensors_keep_what_real_ones_keep(way, tmp_path, checkpoint, llava):
    config = recipe_of(tmp_path, checkpoint, **json.loads(json.dumps(WAYS[way])))
    for layers in (1, 2):
        fake = kept_bytes(llava.config, config, config.stages[0], num_layers=layers)
        real = kept_bytes(
            llava.config, config, config.stages[0], num_layers=layers, mode=nullcontext()
        )
        assert fake[1] == real[1]
        # A mask of tokens by tokens a layer, which real batches of rows of one length do without.
        mask = 4 * config.stages[0].batch_size * config.max_length**2
        assert 0 <= fake[0] - real[0] <= layers * mask


@pytest.mark.parametrize("way", WAYS)
def test_the_estimate_is_what_a_training_step_keeps(way, tmp_path, checkpoint, llava):
    """Bytes saved for the gradients by ``AlignmentTask`` itself, on rows of full length."""
    config = recipe_of(tmp_path, checkpoint, **json.loads(json.dumps(WAYS[way])))
    (stage,) = config.stages
    freeze(llava, stage)
    if config.frozen_weights == "bf16":
        for part in (llava.model.language_model, llava.lm_head):
            part.bfloat16()
    llava.set_attn_implementation(config.attention)
    task = AlignmentTask(llava, stage.objective).train()
    seats, rows = llava.config.image_seq_length, stage.batch_size
    ids = torch.full((rows, config.max_length), 7)
    ids[:, :seats] = llava.config.image_token_id
    vision = llava.config.vision_config
    weights = {weight.untyped_storage().data_ptr() for weight in llava.parameters()}
    kept = {}

    def keep(value):
        storage = value.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes(), storage
        return value

    with (
        torch.autocast("cpu", torch.bfloat16, config.precision == "bf16"),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value),
    ):
        loss = task(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            labels=ids.where(ids == 7, -100),
            caption_mask=torch.zeros(rows, dtype=torch.bool),
            retrieved_mask=torch.zeros(rows, dtype=torch.bool),
            pixel_values=torch.zeros(rows, 3, vision.image_size, vision.image_size),
        )["loss"]
    measured = sum(size for size, _ in kept.values())
    loss.backward()
    text = llava.config.text_config
    logits_gradient = 4 * rows * config.max_length * text.vocab_size
    estimated = stage_memory(meta_model(llava.config), config, stage, 1)["activations"]
    assert estimated - logits_gradient == pytest.approx(measured, rel=0.1)


def test_checkpointing_keeps_less_and_sharding_shares(tmp_path, checkpoint, llava):
    model = meta_model(llava.config)

    def memory(processes=1, **changes):
        config = recipe_of(tmp_path, checkpoint, **changes)
        return stage_memory(model, config, config.stages[0], processes)

    plain, less = memory(), memory(activation_checkpointing=True)
    assert less["activations"] < plain["activations"]
    assert {**less, "activations": 0} == {**plain, "activations": 0}
    shared = memory(2, parallel="fsdp2")
    for use in ("weights", "gradients", "optimizer"):
        assert shared[use] == plain[use] / 2 == memory(2)[use] / 2
    assert plain["loading"] == 0  # weights, gradients and optimizer take more
    many = memory(1000, parallel="fsdp2", activation_checkpointing=True)
    assert sum(many.values()) >= plain["weights"]
    frozen = {"stage": {"objective": {"reference": "frozen"}}}
    decoder = count(llava.model.language_model.parameters())
    assert memory(**frozen)["reference"] == 4 * decoder
    assert memory(**frozen, cache_text=True)["reference"] == 0
    assert memory(**frozen, cache_text=True, probes={"p": "p"})["reference"] == 4 * decoder
    assert memory(**frozen, lora={"r": 2})["reference"] == 0


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    PAGE.write_text(page_with(plan_all()))
