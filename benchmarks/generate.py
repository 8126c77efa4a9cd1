"""Batched, length-bucketed answers against one picture at a time, the same model and questions.

``python -m benchmarks.generate --json``; the last line is ``{"batched_speedup": ...}``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

from tgalign.evaluate.generate import Prompt, answer
from tgalign.evaluate.local_host import load_image_text_model
from tgalign.evaluate.suites.lab import lab_items

QUESTIONS = (
    "describe this image .",
    "what is in the picture ?",
    "is there a cat on a red background , or a dog near a lion on a blue background ?",
)


def measure(model: Any, processor: Any, *, items: int, batch_size: int, repeats: int) -> Any:
    """Seconds of both ways, taken in turn, and whether they gave the same answers."""
    suite = lab_items(0, per_scene=1 + items // 28, num_benign=items // 2)
    pictures: Any = [item.picture for item in suite.items][:items]
    prompts = [Prompt(QUESTIONS[i % 3], picture) for i, picture in enumerate(pictures)]
    sizes = {"batched": batch_size, "one at a time": 1}
    seconds: dict[str, list[float]] = {name: [] for name in sizes}
    said = {}
    answer(model, processor, prompts[:4], batch_size=2, max_new_tokens=4)
    for _ in range(repeats):
        for name, size in sizes.items():
            start = time.perf_counter()
            said[name] = answer(model, processor, prompts, batch_size=size)
            seconds[name].append(time.perf_counter() - start)
    return {
        "items": len(prompts),
        "batch_size": batch_size,
        "seconds": {name: median(taken) for name, taken in seconds.items()},
        "same_answers": sum(a == b for a, b in zip(*said.values(), strict=True)),
        "batched_speedup": median(seconds["one at a time"]) / median(seconds["batched"]),
    }


def main() -> None:
    """Run it on a checkpoint, or on the lab's untrained LLaVA."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a checkpoint; by default the lab's untrained")
    parser.add_argument("--items", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    given = parser.parse_args()
    if given.model:
        model, processor = load_image_text_model(given.model)
    else:
        from tgalign.lab.assets import lab_llava, load_lab

        model, processor = lab_llava(*load_lab(), seed=0)
    found = measure(
        model, processor, items=given.items, batch_size=given.batch_size, repeats=given.repeats
    )
    if not given.json:
        for name, taken in found["seconds"].items():
            print(f"{name}: {taken:.2f} s for {found['items']} pictures")
        print(f"same answers: {found['same_answers']} of {found['items']}")
    else:
        print(json.dumps(found))
    print(json.dumps({"batched_speedup": round(found["batched_speedup"], 2)}))


if __name__ == "__main__":
    main()
