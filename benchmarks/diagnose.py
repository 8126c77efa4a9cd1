"""What reading the layers costs beside plain inference: ``python -m benchmarks.diagnose --json``.

Baselines, of the same prompts in the same run: for the states taken while answering, answering
alone; for those of one forward, that forward without hooks; for attention, that forward too. Each
is the least of several turns, taken alternately. Kept bytes are per picture prompt, against those
of ``output_hidden_states=True`` and of all attention maps.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch

from tgalign.diagnose.anatomy import anatomy
from tgalign.diagnose.attention import answer_attention, eager_attention
from tgalign.diagnose.probe import answer_and_probe, generate, probe
from tgalign.diagnose.prompts import picture_prompts
from tgalign.lab.assets import lab_llava, load_lab
from tgalign.lab.probes import lab_probes
from tgalign.lab.suite import QUESTION

TURNS = 7
NEW_TOKENS = 16


@torch.no_grad()
def measure(pairs_per_scene: int = 4) -> dict[str, Any]:
    """Time and size of each reading against its baseline, on the lab's untrained LLaVA."""
    model, processor = lab_llava(*load_lab(), seed=0)
    parts = anatomy(model)
    pictures = [it.load() for it in lab_probes(0, per_scene=pairs_per_scene).toxic]
    prompts = picture_prompts(model, processor, pictures, QUESTION)

    def forward() -> Any:
        return model.base_model(**prompts.inputs, use_cache=False)

    def attend() -> torch.Tensor:
        with eager_attention(model):
            return answer_attention(model, parts, prompts)

    runs: dict[str, Callable[[], Any]] = {
        "answer": lambda: generate(model, processor, prompts, NEW_TOKENS),
        "answer_and_states": lambda: answer_and_probe(model, processor, parts, prompts, NEW_TOKENS),
        "forward": forward,
        "forward_and_states": lambda: probe(model, parts, prompts),
        "forward_and_attention": attend,
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(TURNS):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    least = {name: min(found) for name, found in seconds.items()}
    found = probe(model, parts, prompts)
    rows, length = prompts.span_BT.shape
    states = found.span_LBD.nbytes + found.last_LBD.nbytes
    channels = found.last_LBD.shape[-1]
    lines = attend()
    return {
        "prompts": rows,
        "tokens_per_prompt": length,
        "seconds": least,
        "answering_with_states_over_answering": least["answer_and_states"] / least["answer"],
        "forward_with_states_over_forward": least["forward_and_states"] / least["forward"],
        "forward_with_attention_over_forward": least["forward_and_attention"] / least["forward"],
        "bytes_kept_of_states": states // rows,
        "bytes_of_all_states": (parts.num_layers + 1) * length * channels * 4,
        "bytes_kept_of_attention": lines.nbytes // rows,
        "bytes_of_all_attention": lines.nbytes // rows * length,
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    wanted = parser.parse_args()
    found = measure()
    if wanted.json:
        print(json.dumps(found, indent=1))
        return
    for name, value in found.items():
        print(f"{name:40} {value}")


if __name__ == "__main__":
    main()
