"""The lab computes in bfloat16 only where the CPU multiplies it: emulated, it is far slower."""

import pytest
import torch

from tgalign.lab.base_llm import train_llm
from tgalign.lab.precision import fast_precision, fast_products


@pytest.mark.parametrize(
    ("instructions", "precision", "dtype"),
    [
        ("_is_avx512_bf16_supported", "bf16", torch.bfloat16),
        ("_is_amx_tile_supported", "bf16", torch.bfloat16),
        (None, "fp32", torch.float32),
    ],
)
def test_products_are_in_what_the_cpu_has(monkeypatch, instructions, precision, dtype):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda known=name == instructions: known)
    assert fast_precision() == precision
    ones = torch.ones(2, 2)
    with fast_products():
        assert (ones @ ones).dtype == dtype
    assert (ones @ ones).dtype == torch.float32


@pytest.mark.parametrize("native", [False, True])
def test_the_base_language_model_is_trained_so(monkeypatch, native):
    from tgalign.lab.assets import load_lab

    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    seen = set()

    def note(_module, _inputs, output):
        seen.add(output.dtype)

    steps = train_llm(load_lab()[2], 0, width=32, steps=(1, 20))
    _, _, model = next(steps)
    model.model.layers[0].mlp.down_proj.register_forward_hook(note)
    next(steps)
    assert seen == {torch.bfloat16 if native else torch.float32}
