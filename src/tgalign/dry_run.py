"""``tgalign train --dry-run``: validate a recipe and say what it would train, without weights."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from tgalign.checkpoint import load_config, load_processor
from tgalign.config import StageConfig, TrainConfig
from tgalign.data.records import Record, read
from tgalign.data.sources import image_root_of, open_source
from tgalign.errors import UserError
from tgalign.lora import adapted
from tgalign.memory import FORMULA, part_sizes, stage_memory, trained_sizes
from tgalign.parallel import share_of_accumulation
from tgalign.pooling import parse_layers
from tgalign.run_folder import check_run
from tgalign.synthetic import check_clip, read_texts
from tgalign.train import check_model, encoder_of, probe_rows

if TYPE_CHECKING:
    from transformers import LlavaConfig

MEASURED_ROWS = 1_000
"""Of the data, where it and the tokenizer are there, to say how long its rows are."""


def plan(config: TrainConfig, processes: int = 1) -> dict[str, Any]:
    """What a run would train and need.

    Args:
        config: The run. Where its ``model`` is not there, ``architecture`` stands for it.
        processes: How many would share every step.

    Returns:
        ``model``: where the config comes from; ``sizes``: weights by part; ``stages``: for each
        its name, ``trained`` and ``frozen`` weights, ``steps``, ``rows`` a step, ``tokens`` a step
        at most, and of these ``image_tokens``, ``measured_tokens`` a step of the rows at hand or
        None, ``rows_read`` and of these ``bad_rows`` (no picture is opened), and ``bytes`` by use.

    Raises:
        UserError: There is neither model nor architecture, or the recipe does not fit it.
    """
    llava, source = _llava_config(config)
    model = meta_model(llava)
    sizes = part_sizes(model, config)
    text: Any = llava.text_config
    if config.max_length <= llava.image_seq_length:
        raise UserError(
            f"max_length {config.max_length} leaves no token beside the {llava.image_seq_length} "
            "of a picture"
        )
    stages = []
    for stage in config.stages:
        parse_layers(stage.objective.layers, text.num_hidden_layers)
        share_of_accumulation(stage.accumulation, stage.name, processes)
        rows = stage.batch_size * stage.accumulation
        trained = trained_sizes(sizes, config, stage)
        mean, rows_read, bad_rows = _measured(config, stage)
        stages.append(
            {
                "name": stage.name,
                "trained": sum(trained.values()),
                "frozen": sum(sizes[part] for part in ("vision", "projector", "llm"))
                - sum(trained[part] for part in trained if part != "adapters"),
                "steps": stage.steps,
                "rows": rows,
                "tokens": rows * config.max_length,
                "image_tokens": rows * llava.image_seq_length,
                "measured_tokens": None if mean is None else round(rows * mean),
                "rows_read": rows_read,
                "bad_rows": bad_rows,
                "bytes": stage_memory(model, config, stage, processes),
            }
        )
    return {"model": source, "sizes": sizes, "stages": stages}


def meta_model(llava: LlavaConfig) -> Any:
    """A LLaVA that has shapes and no weights."""
    from transformers import LlavaForConditionalGeneration

    with torch.device("meta"):
        model = LlavaForConditionalGeneration(llava)
    return model


def _llava_config(config: TrainConfig) -> tuple[LlavaConfig, str]:
    from transformers import LlavaConfig

    if config.model.is_dir():
        return load_config(config.model), str(config.model)
    path = config.architecture
    if path is None:
        raise UserError(
            f"no checkpoint at {config.model}, and the recipe names no architecture to stand for it"
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.get("model_type") != "llava":
            raise ValueError(f"model_type is {data.get('model_type')!r}, expected 'llava'")
        return LlavaConfig.from_dict(data), f"{config.model} (not there: {path.name} stands for it)"
    except Exception as fault:  # transformers checks configs in many ways
        raise UserError(f"the architecture at {path} cannot be read: {fault}") from None


def _measured(config: TrainConfig, stage: StageConfig) -> tuple[float | None, int, int]:
    """Of the first rows the mean tokens, how many were read, and how many of these are bad.

    Both data and tokenizer must be there.
    """
    if not config.model.is_dir() or not config.records.exists():
        return None, 0, 0
    processor, llava = load_processor(config.model)
    encoder = encoder_of(llava, processor, config, stage.retrieved_in_prompt)
    root = config.image_root or image_root_of(config.records)
    rows = read(open_source(config.records), root, verify=False)
    read_rows = list(itertools.islice(rows, MEASURED_ROWS))
    records = [it for it in read_rows if isinstance(it, Record)]
    bad = len(read_rows) - len(records)
    if "llm" not in stage.train:
        records = [it for it in records if it.image is not None]
    encoded, problems = encoder.encode_all(records, config.records.name)
    mean = sum(len(it.input_ids) for it in encoded) / len(encoded) if encoded else None
    return mean, len(read_rows), bad + len(problems)


def check_start(config: TrainConfig) -> None:
    """Check by its own functions what ``train`` refuses at once and takes no weights to tell.

    Where an architecture stands for the model, the data need not be there either.

    Raises:
        UserError: As ``train``.
    """
    check_run(config)
    model = meta_model(_llava_config(config)[0])
    check_model(model, config)
    if config.lora is not None:
        adapted(model.model.language_model, config.lora)
    if not config.model.is_dir():
        return
    open_source(config.records)
    probe_rows(model, load_processor(config.model)[0], config)
    if config.synthetic is not None:
        check_clip(config.synthetic.clip, model.config)
        read_texts(config.synthetic.texts)


def print_plan(config: TrainConfig, processes: int = 1) -> None:
    """Print what ``plan`` says.

    Raises:
        UserError: As ``plan`` and ``check_start``.
    """
    check_start(config)
    found = plan(config, processes)
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"model: {found['model']}", markup=False)
    for name, path in (("records", config.records), ("out", config.out)):
        console.print(f"{name}: {path}{'' if path.exists() else ' (not there)'}", markup=False)
    console.print(
        "weights: " + ", ".join(f"{part} {n:,}" for part, n in found["sizes"].items() if n)
    )
    table = Table(title=f"Stages, on {processes} process(es); memory is an estimate, per process")
    table.add_column("")
    for stage in found["stages"]:
        table.add_column(stage["name"], justify="right")
    for label, key in (
        ("weights trained", "trained"),
        ("weights frozen", "frozen"),
        ("steps", "steps"),
        ("rows a step", "rows"),
        ("tokens a step, at most", "tokens"),
        ("of these, pictures'", "image_tokens"),
        ("tokens a step, measured", "measured_tokens"),
        ("rows read for this", "rows_read"),
        ("of these, bad", "bad_rows"),
    ):
        cells = [
            f"{stage[key]:,}"
            if stage[key] is not None
            else ("no good row" if stage["rows_read"] else "no data")
            for stage in found["stages"]
        ]
        table.add_row(label, *cells)
    table.add_section()
    for use in found["stages"][0]["bytes"]:
        table.add_row(f"{use}, GB", *(f"{it['bytes'][use] / 1e9:.1f}" for it in found["stages"]))
    totals = [sum(stage["bytes"].values()) / 1e9 for stage in found["stages"]]
    table.add_row("memory, GB", *(f"{total:.1f}" for total in totals), style="bold")
    console.print(table)
    console.print(
        "- rows: no picture of theirs was opened; `tgalign check` checks them all", markup=False
    )
    for line in FORMULA:
        console.print(f"- {line}", markup=False)
