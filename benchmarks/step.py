"""A training step with the guide against one without, and against one in the released style.

    python -m benchmarks.step --json
    python -m benchmarks.step --shape 7b --json     # on a GPU of 80 GB: tokens/s and MFU

A step is the making of the batch, forward, backward and AdamW. Weights and data are random.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import Ratio, clock, peak_bytes, ratio, take_turns
from benchmarks.released_style import released_step
from benchmarks.shapes import SHAPES, Shape, build_collator, build_model, build_rows
from tgalign.config import LoraConfig, ObjectiveConfig, StageConfig
from tgalign.data.collate import Collator
from tgalign.data.encode import EncodedRecord
from tgalign.lora import add_adapters
from tgalign.stage import freeze
from tgalign.task import AlignmentTask
from tgalign.text_cache import TextCache

PLAIN = ObjectiveConfig(weight=0)
PAPER = ObjectiveConfig(form="paper")
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}
"""Dense bfloat16 products a second, from the makers' data sheets."""


class Bench:
    """One model and its optimizer; the arms take turns on them.

    Args:
        shape: Of model and rows.
        parts: What is trained: ``projector``, ``llm``.
        lora: Whether the LLM is trained through adapters.
        device: What computes; on accelerators in bfloat16.
    """

    def __init__(self, shape: Shape, parts: list[Any], lora: bool, device: torch.device) -> None:
        self.shape, self.device = shape, device
        self.half = device.type != "cpu"
        self.model = build_model(shape, torch.bfloat16 if self.half else torch.float32, device)
        if lora:
            add_adapters(self.model, LoraConfig())
        freeze(
            self.model,
            StageConfig(
                name="x", train=parts, steps=1, batch_size=1, projector_lr=1e-5, llm_lr=1e-5
            ),
        )
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        for weight in trained:
            weight.data = weight.data.float()
        self.optimizer = torch.optim.AdamW(trained, lr=1e-6)
        self.collator = build_collator(shape, pack=True)
        self.unpacked = build_collator(shape, pack=False)

    def standing_bytes(self) -> int:
        """Weights, and once a step was made the optimizer's state."""
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        tensors = [*self.model.parameters(), *self.model.buffers(), *states]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def products(self) -> AbstractContextManager[Any]:
        """Autocast on accelerators."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.half else nullcontext()

    def step(
        self,
        loss_of: Callable[[dict[str, Tensor]], Tensor],
        rows: list[EncodedRecord],
        collator: Collator | None = None,
    ) -> None:
        """Make a batch, forward, backward, and one step of the optimizer."""
        batch = {k: v.to(self.device) for k, v in (collator or self.collator)(rows).items()}
        with self.products():
            loss = loss_of(batch)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def arm(
        self,
        objective: ObjectiveConfig,
        batches: list[list[EncodedRecord]],
        collator: Collator | None = None,
    ) -> Callable[[int], None]:
        """The step of an ``AlignmentTask``."""
        task = AlignmentTask(
            self.model,
            objective,
            states_are_kept=collator is not None and collator.load_states is not None,
        ).train()
        return lambda turn: self.step(
            lambda batch: task(**batch)["loss"], batches[turn % len(batches)], collator
        )


def split(shape: Shape, number: int, *, retrieved_in_prompt: bool) -> list[list[EncodedRecord]]:
    """Rows in batches."""
    size = shape.batch_size
    rows = build_rows(shape, number * size, retrieved_in_prompt=retrieved_in_prompt)
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def tokens(rows: list[EncodedRecord]) -> tuple[int, int]:
    """Tokens of the conversations, and of the texts besides; no padding."""
    texts = [span for row in rows for span in (row.caption, row.retrieved) if span is not None]
    return sum(len(row.input_ids) for row in rows), sum(len(text.input_ids) for text in texts)


def against_plain(bench: Bench, turns: int, say: Callable[[str], None]) -> dict[str, float]:
    """Time and memory of the guide over cross-entropy alone."""
    batches = split(bench.shape, 4, retrieved_in_prompt=False)
    arms = {"ce": bench.arm(PLAIN, batches), "tga": bench.arm(PAPER, batches)}
    seconds = take_turns(arms, turns, bench.device)
    found = ratio(seconds, "tga", "ce")
    say(f"time, guide / cross-entropy alone: {found}")
    standing = bench.standing_bytes()
    peaks = {
        name: standing + peak_bytes(lambda step=step: step(0), bench.device)  # type: ignore[misc]
        for name, step in arms.items()
    }
    flops = {}
    for name, step in arms.items():
        with FlopCounterMode(display=False) as counter:
            step(0)
        flops[name] = counter.get_total_flops()
    conversations, texts = tokens([row for rows in batches for row in rows])
    memory = peaks["tga"] / peaks["ce"]
    # A text is passed forward only, a conversation forward and backward, which costs twice as much.
    floor = 1 + texts / (3 * conversations)
    say(f"peak memory: {memory:.3f} ({peaks['ce'] / 1e9:.3g} and {peaks['tga'] / 1e9:.3g} GB)")
    say(f"floor of the time, by tokens: {floor:.3f}; by products: {flops['tga'] / flops['ce']:.3f}")
    results = {"time_ratio": found.median, "memory_ratio": memory, "floor_ratio": floor}
    peak = next((v for k, v in PEAK_FLOPS.items() if k in device_name(bench.device)), None)
    for name, each in seconds.items():
        middle = statistics.median(each)
        a_second = (conversations + (texts if name == "tga" else 0)) / len(batches) / middle
        speeds = {f"{name}_tokens_per_second": a_second}
        if peak is not None:
            speeds[f"{name}_mfu"] = flops[name] / middle / peak
        say(f"{name}: {1e3 * middle:.4g} ms a step, " + json.dumps(speeds))
        results |= speeds if bench.shape is SHAPES["7b"] else {}
    return results


def against_released(bench: Bench, turns: int) -> Ratio:
    """Time of a step in the released style over ours, on the same rows and losses."""
    batches = split(bench.shape, 4, retrieved_in_prompt=True)
    depth = bench.shape.text["num_hidden_layers"]
    layers = list(range(round(depth * 10 / 32), round(depth * 18 / 32) + 1))
    ours = bench.arm(ObjectiveConfig(form="released", layers=layers), batches)

    def released(turn: int) -> None:
        bench.model.set_attn_implementation("eager")
        bench.step(
            lambda batch: released_step(bench.model, batch, layers, bench.shape.template)["loss"],
            batches[turn % len(batches)],
            bench.unpacked,
        )
        bench.model.set_attn_implementation("sdpa")

    return ratio(
        take_turns({"ours": ours, "released": released}, turns, bench.device), "released", "ours"
    )


def cached_epoch(bench: Bench, turns: int, folder: Path, say: Callable[[str], None]) -> Ratio:
    """Time of a stage-1 step whose texts' states are on disk, over cross-entropy alone."""
    batches = split(bench.shape, 8, retrieved_in_prompt=False)
    objective = ObjectiveConfig(reference="frozen")
    states = TextCache(batches, folder, bf16=bench.half)
    start = clock(bench.device)
    with bench.products():
        states.fill(AlignmentTask(bench.model, objective), bench.collator)
    spent = clock(bench.device) - start
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    say(f"states on disk: {size / 1e6:.4g} MB, computed once in {spent:.3g} s")
    kept = Collator(0, bench.collator.load_pixels, states)
    arms = {
        "ce": bench.arm(PLAIN, batches),
        "kept": bench.arm(objective, batches, kept),
        "computed": bench.arm(objective, batches),
    }
    seconds = take_turns(arms, turns, bench.device)
    say(
        f"time, guide without kept states / cross-entropy alone: {ratio(seconds, 'computed', 'ce')}"
    )
    return ratio(seconds, "kept", "ce")


def device_name(device: torch.device) -> str:
    """The accelerator's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def run(shape_name: str, turns: int, say: Callable[[str], None]) -> dict[str, float]:
    """Measure a shape: everything; of ``7b``, the guide over cross-entropy, by what is trained."""
    shape = SHAPES[shape_name]
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    if shape_name == "7b" and device.type == "cpu":
        raise SystemExit("shape 7b needs a GPU of 80 GB; here is none")
    torch.set_num_threads(1 if device.type == "cpu" else torch.get_num_threads())
    say(
        f"shape {shape_name} on {device_name(device)}: {shape.text['num_hidden_layers']} layers of "
        f"{shape.text['hidden_size']}, {shape.image_tokens} image tokens, {shape.batch_size} rows"
    )
    if shape_name == "7b":
        results: dict[str, float] = {}
        for name, parts in (("projector", ["projector"]), ("lora", ["projector", "llm"])):
            say(f"trained: {name}")
            found = against_plain(Bench(shape, parts, name == "lora", device), turns, say)
            results |= {f"{name}_{key}": value for key, value in found.items()}
        return results
    say("stage 2: projector and LLM are trained")
    bench = Bench(shape, ["projector", "llm"], False, device)
    results = against_plain(bench, turns, say)
    released = against_released(bench, turns)
    say("stage 1: the projector alone is trained")
    bench = Bench(shape, ["projector"], False, device)
    with tempfile.TemporaryDirectory() as folder:
        cached = cached_epoch(bench, turns, Path(folder), say)
    say(f"time, guide with kept states / cross-entropy alone: {cached}")
    return results | {
        "speedup_over_released_style": released.median,
        "cached_epoch_ratio": cached.median,
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--turns", type=int, default=15, help="Measured steps of every arm.")
    parser.add_argument("--json", action="store_true", help="Print the results as a last line.")
    arguments = parser.parse_args()
    results = run(arguments.shape, arguments.turns, print)
    if arguments.json:
        print(json.dumps({name: round(value, 4) for name, value in results.items()}))


if __name__ == "__main__":
    main()
