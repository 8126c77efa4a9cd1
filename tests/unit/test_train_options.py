"""How a training computes and keeps its weights, by the options of a config."""

import pytest
import torch
from safetensors.torch import load_file

from tgalign.config import parse_config
from tgalign.train import train


@pytest.fixture
def run(checkpoint, rows, tmp_path):
    """A function that trains a few steps and gives the weights."""

    def train_it(name="run", *, parts=("projector", "llm"), objective=None, **options):
        stage = {
            "name": "stage2",
            "train": list(parts),
            "steps": 3,
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


@pytest.fixture
def traced(monkeypatch):
    """Compile without the C++ compiler, which takes a minute; the layers compiled."""
    layers, compiled = [], torch.nn.Module.compile

    def compile_(self, **options):
        layers.append(self)
        compiled(self, backend="aot_eager", **options)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_)
    return layers


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_layers_train_as_plain_ones(checkpointing, run, traced):
    options = {"attention": "sdpa", "activation_checkpointing": checkpointing}
    plain = run("plain", **options)
    assert not traced
    compiled = run("compiled", compile=True, **options)
    assert len(traced) == 4
    assert farthest(compiled, plain) < 1e-5
