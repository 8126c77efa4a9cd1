"""A training that goes to NaN or infinity ends with a clear error, and nothing of it is saved."""

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tgalign.finite import ruined_weight


@pytest.fixture
def ruined(tgalign, checkpoint, rows, tmp_path):
    """A function that trains with absurd learning rates and gives stderr and the run's folder."""

    def train(projector_lr=1e30, llm_lr=1e30, steps=6, weight_decay=0.0, **options):
        stage = {
            "name": "stage2",
            "train": ["projector", "llm"],
            "steps": steps,
            "batch_size": 4,
            "projector_lr": projector_lr,
            "llm_lr": llm_lr,
            "warmup": 0.0,
            "weight_decay": weight_decay,
        }
        data = {
            "model": str(checkpoint),
            "records": str(rows.path),
            "out": str(tmp_path / "out"),
            "attention": "eager",
            "stages": [stage],
        }
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(data | options), encoding="utf-8")
        status, said, err = tgalign("train", recipe, "--no-progress")
        assert (status, said) == (2, ""), err
        assert not (tmp_path / "out" / "checkpoint").exists()
        return err, tmp_path / "out" / "stage2"

    return train


def test_a_loss_of_nan_ends_the_training_at_the_next_line_of_the_log(ruined):
    err, stage = ruined(logging_steps=2)
    assert "stage stage2, steps 1 to 2: loss is nan" in err
    assert "Lower projector_lr" in err and "another out" in err
    assert not list(stage.glob("checkpoint-*")) and not (stage / "metrics.jsonl").exists()


def test_no_state_of_nan_is_saved_between_lines_of_the_log(ruined):
    err, stage = ruined(logging_steps=100, save_steps=2)
    assert "steps 1 to 2: loss is nan" in err
    assert not list(stage.glob("checkpoint-*"))


def test_weights_that_the_last_step_ruined_are_not_saved(ruined):
    err, _ = ruined(steps=1, weight_decay=1e10)
    assert "stage stage2, step 1: weights are NaN or infinite" in err


def test_adapters_whose_product_is_infinite_are_not_saved(ruined, monkeypatch):
    def merge(model):
        model.lm_head.weight.data.fill_(float("inf"))

    monkeypatch.setattr("tgalign.stage.merge_adapters", merge)
    err, _ = ruined(1e-3, 1e-3, steps=1, lora={"r": 4, "alpha": 8})
    assert "the trained weights are NaN or infinite" in err


def test_the_state_saved_before_is_kept(ruined):
    err, stage = ruined(1e3, 1e3, steps=200, weight_decay=1e3, save_steps=1, logging_steps=1)
    assert "NaN" in err or "nan" in err or "inf" in err
    (state,) = stage.glob("checkpoint-*")
    weights = load_file(state / "trained.safetensors")
    assert all(weight.isfinite().all() for weight in weights.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_single_ruined_number_is_found(dtype, value):
    model = torch.nn.Sequential(torch.nn.Linear(3, 5)).to(dtype)
    model.register_parameter("empty", torch.nn.Parameter(torch.zeros(0, dtype=dtype)))
    assert ruined_weight(model) is None
    model[0].weight.data[4, 1] = float(value)
    assert ruined_weight(model) == "0.weight"
