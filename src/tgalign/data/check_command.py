"""``tgalign check``: what it prints and when it fails."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from tgalign.data.check import NEEDS_TOKENIZER, Report, check
from tgalign.data.encode import Encoder, GuideSpan
from tgalign.data.preview import painted
from tgalign.data.records import IMAGE_TOKEN
from tgalign.data.sources import image_root_of, open_source, with_bar
from tgalign.errors import UserError
from tgalign.pretrained import read_part

SHOWN = 20
"""Bad rows that are named on the terminal unless all are asked for."""


def run_check(
    data: Path,
    images: Path | None,
    *,
    as_json: bool,
    show_all: bool,
    num_previews: int,
    model: Path | None,
    tokenizer: Path | None,
    image_tokens: int,
    max_length: int,
    retrieved_in_prompt: float,
    guide_span: GuideSpan,
    progress_bar: bool,
) -> int:
    """Check data and print what was found.

    Args:
        data: A file or folder (``tgalign.data.sources``).
        images: The image root; by default the folder of the data.
        as_json: Whether to print one JSON object in place of lines; it names every bad row.
        show_all: Whether lines, too, name every bad row and not only the first ``SHOWN``.
        num_previews: Of how many rows to show what is learnt.
        model: A LLaVA checkpoint, of which all but the weights is read.
        tokenizer: In its place, a folder with a tokenizer and a chat template.
        image_tokens: Tokens of a picture, with ``tokenizer``.
        max_length: Most tokens of a row.
        retrieved_in_prompt: As of the stage to be trained (``StageConfig``).
        guide_span: As of the run (``TrainConfig``).
        progress_bar: Whether to draw one, on stderr.

    Returns:
        0 if all rows are good, else 1.

    Raises:
        UserError: There is nothing to check, or the options do not go together.
    """
    parts = None
    if model is not None:
        parts = _from_model(model)
    elif tokenizer is not None:
        parts = _from_tokenizer(tokenizer, image_tokens)
    elif num_previews:
        raise UserError("a preview shows tokens: give --model or --tokenizer with it")
    encoder = parts and Encoder(
        *parts,
        max_length=max_length,
        retrieved_in_prompt=retrieved_in_prompt,
        guide_span=guide_span,
    )
    root = images or image_root_of(data)
    source = with_bar(open_source(data), f"check {data.name}" if progress_bar else None)
    report = check(source, root, encoder, num_previews=num_previews)
    if as_json:
        print(json.dumps(_as_json(report)))
    else:
        _print(Console(soft_wrap=True, highlight=False), report, show_all)
    return 1 if report.problems else 0


def _from_model(path: Path) -> tuple[Any, int]:
    """The tokenizer of a LLaVA checkpoint, and its tokens per picture."""
    from tgalign.checkpoint import load_processor

    processor, config = load_processor(path)
    return processor.tokenizer, config.image_seq_length


def _from_tokenizer(path: Path, image_tokens: int) -> tuple[Any, int]:
    """A tokenizer alone.

    Raises:
        UserError: It cannot be read, or its chat template has no place for an image.
    """
    from transformers import AutoTokenizer

    tokenizer = read_part(AutoTokenizer, path, "tokenizer")
    turn: Any = [{"role": "user", "content": [{"type": "image"}]}]
    template = tokenizer.chat_template
    rendered = tokenizer.apply_chat_template(turn, tokenize=False) if template else ""
    image_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    if tokenizer(rendered, add_special_tokens=False)["input_ids"].count(image_id) != 1:
        raise UserError(
            f"the tokenizer at {path} has no chat template that makes one {IMAGE_TOKEN} token of "
            "an image: give the folder that `tgalign compose` writes"
        )
    return tokenizer, image_tokens


def _unchecked(report: Report) -> list[str]:
    return [] if report.tokens else list(NEEDS_TOKENIZER)


def _as_json(report: Report) -> dict[str, Any]:
    return {
        "rows": report.rows,
        "good": report.good,
        "bad": len(report.problems),
        "problems": [asdict(problem) for problem in report.problems],
        "not_checked": _unchecked(report),
        "kinds": report.kinds,
        "repeated": report.repeated,
        "tokens": report.tokens,
        "previews": report.previews,
    }


def _print(console: Console, report: Report, show_all: bool) -> None:
    bad = len(report.problems)
    shown = bad if show_all else min(bad, SHOWN)
    for problem in report.problems[:shown]:
        console.print(str(problem), markup=False)
    if shown < bad:
        console.print(f"… and {bad - shown:,} more bad rows: --all or --json names every one")
    for found in report.previews:
        console.print(painted(found))
        console.print()
    console.print(f"{report.rows:,} rows: {report.good:,} good, {bad:,} bad")
    kinds = report.kinds
    console.print(
        f"of the good: {kinds['picture']:,} with a picture, {kinds['caption']:,} with a caption, "
        f"{kinds['retrieved']:,} with R, {kinds['text_only']:,} of text alone"
    )
    if report.repeated:
        console.print(f"warning: {report.repeated:,} rows repeat an earlier one, all of it")
    if not kinds["retrieved"]:
        console.print("warning: no row has R, so the guide cannot rank (`tgalign retrieve attach`)")
    if not kinds["text_only"]:
        console.print("warning: no row is text alone: training the LLM may cost safety in words")
    if report.tokens and report.tokens["unknown_rows"]:
        console.print(
            f"warning: in {report.tokens['unknown_rows']:,} rows a word that is learnt, averaged "
            "or read by what is averaged is unknown to the tokenizer (--preview shows how such "
            "rows are read)"
        )
    if report.tokens and report.good:
        mean = report.tokens["all"] / report.good
        console.print(
            f"tokens of a good row: {mean:,.0f} on average, {report.tokens['longest']:,} at most; "
            f"{report.tokens['learnt'] / max(1, report.tokens['all']):.0%} of them are learnt"
        )
    for name in _unchecked(report):
        console.print(f"not checked, for want of --model or --tokenizer: {name}")
