"""How a training computes and keeps its weights, by the options of a config."""

import json
import multiprocessing

import pytest
import torch
from safetensors.torch import load_file

from tgalign.config import parse_config
from tgalign.errors import UserError
from tgalign.train import train


@pytest.fixture
def run(checkpoint, rows, tmp_path):
    """A function that trains a few steps and gives the weights."""

    def train_it(name="run", *, parts=("projector", "llm"), objective=None, steps=3, **options):
        stage = {
            "name": "stage2",
            "train": list(parts),
            "steps": steps,
            "batch_size": 8,
            "projector_lr": 1e-3,
            "llm_lr": 1e-3,
            "objective": objective or {},
        }
        data = {
            "model": str(checkpoint),
            "records": str(rows.path),
            "out": str(tmp_path / name),
            "attention": "eager",
            "stages": [stage],
        }
        path = train(parse_config(data | options, "test"), progress_bar=False)
        return load_file(path / "model.safetensors")

    return train_it


def farthest(first, second):
    return max(float((first[name].float() - second[name].float()).abs().max()) for name in first)


HALF = {"precision": "bf16", "frozen_weights": "bf16"}
KEPT = {
    "projector": (("projector",), {}, {"multi_modal_projector"}),
    "all": (("projector", "llm"), {}, {"multi_modal_projector", "language_model", "lm_head"}),
    "adapters": (("projector", "llm"), {"lora": {"r": 4, "alpha": 8}}, {"multi_modal_projector"}),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_is_not_trained_is_kept_in_half_precision(name, run, tmp_path):
    parts, options, whole = KEPT[name]
    options = options | {"cache_text": str(tmp_path / "kept")}
    objective = {"reference": "frozen", "similarity": "centered_cosine"}
    weights = run(parts=parts, objective=objective, **HALF, **options)
    found = {key for key, weight in weights.items() if weight.dtype == torch.float32}
    assert found == {key for key in weights if not whole.isdisjoint(key.split("."))}
    assert all(weight.isfinite().all() for weight in weights.values())
    assert farthest(weights, run("whole", parts=parts, objective=objective, **options)) < 0.05


@pytest.mark.parametrize("name", ["projector", "adapters"])
def test_gradients_are_compared_in_half_precision_too(name, run, rows, tmp_path):
    parts, options, _ = KEPT[name]
    probe = rows.path.with_name("probe.jsonl")
    kept = [it for it in rows.data if it.get("caption") and len(it.get("messages", [])) > 1]
    probe.write_text("".join(json.dumps(it) + "\n" for it in kept[:4]))
    run(parts=parts, steps=1, probes={"one": str(probe)}, **HALF, **options)
    line = json.loads((tmp_path / "run/stage2/conflict.jsonl").read_text())
    assert all(norm > 0 for norm in line["guide_norm"])
    assert all(norm > 0 for norm in line["ce_norm"][:-1])


def test_workers_are_forked_whatever_the_system_does_by_itself(run):
    method = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("forkserver", force=True)
    try:
        weights = run(workers=1)
    finally:
        multiprocessing.set_start_method(method, force=True)
    assert farthest(weights, run("alone")) == 0


def test_workers_are_refused_where_there_is_no_fork(run, monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    with pytest.raises(UserError, match="set workers to 0"):
        run(workers=1)


@pytest.fixture
def traced(monkeypatch):
    """Trace as for compilation, but call no compiler, which takes minutes; the layers traced."""
    layers, compiled = [], torch.nn.Module.compile

    def compile_(self, **options):
        layers.append(self)
        compiled(self, backend="eager", **options)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_)
    return layers


def test_layers_traced_for_compilation_train_as_plain_ones(run, traced):
    objective = {"reference": "frozen"}
    options = {"steps": 1, "attention": "sdpa", "objective": objective}
    plain = run("plain", **options)
    assert not traced
    compiled = run("compiled", compile=True, **options)
    assert len(traced) == 4
    assert farthest(compiled, plain) < 1e-5


TOGETHER = {
    "half": ({"frozen_weights": "bf16"}, "frozen_weights bf16 needs precision bf16"),
    "flash": ({"attention": "flash_attention_2"}, "flash attention needs precision bf16"),
    "lora": ({"lora": {}, "parts": ("projector",)}, "lora trains the llm, and no stage names it"),
    "probes": (
        {"parallel": "fsdp2", "probes": {"some": "rows.jsonl"}},
        "probes need whole weights in every process",
    ),
    "compile": ({"parallel": "fsdp2", "compile": True}, "compile is not supported with fsdp2"),
    "flash here": (
        {"attention": "flash_attention_2", "precision": "bf16"},
        "attention 'flash_attention_2' is not to be had here",
    ),
    "flex here": ({"attention": "flex_attention"}, "flex_attention has no gradient on CPUs"),
}


@pytest.mark.parametrize("name", TOGETHER)
def test_what_does_not_go_together_or_is_not_here_is_said(name, run, tmp_path):
    options, message = TOGETHER[name]
    if name.endswith("here") and torch.accelerator.is_available():
        pytest.skip("it may be here")
    with pytest.raises(UserError, match=message):
        run(**options)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_without_a_compiler_that_is_said(run, monkeypatch):
    if torch.accelerator.is_available():
        pytest.skip("triton compiles there")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"compile needs a C\+\+ compiler on CPUs"):
        run(compile=True)


def test_sdpa_trains_as_eager(run):
    assert farthest(run("sdpa", attention="sdpa"), run("eager", attention="eager")) < 1e-5


def test_batches_made_beside_are_the_same(run):
    plain, beside = run("plain"), run("beside", workers=1)
    assert all(torch.equal(plain[name], beside[name]) for name in plain)
