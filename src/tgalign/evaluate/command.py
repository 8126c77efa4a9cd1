"""``tgalign evaluate`` and ``tgalign audit``: from a model and suites to a folder of results."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tgalign.demo_results import show_rate
from tgalign.errors import UserError
from tgalign.evaluate.conditions import Request, all_requests
from tgalign.evaluate.items import Suite
from tgalign.evaluate.results import RESULTS, assemble
from tgalign.evaluate.run import (
    CHUNK,
    DIAGNOSIS,
    ITEMS,
    check_place,
    run_requests,
    write_items,
)
from tgalign.evaluate.settings import Settings
from tgalign.evaluate.statistics import Difference
from tgalign.files import file_at_once, write_json
from tgalign.locks import sole_writer

KEY = "TGALIGN_API_KEY"
"""Environment variable whose value is sent to a server as a bearer token."""

JUDGE_TOKENS = 512
"""Length at which a model judge is cut."""


def run_evaluation(
    model: str, out: Path, settings: Settings, *, diagnosis: str | None = None
) -> dict[str, Any]:
    """Evaluate a model; writes items.jsonl, results.json and report.html to ``out``.

    Args:
        model: Folder of a checkpoint, or the name under which ``settings.url`` serves it.
        out: Where to; an interrupted evaluation goes on there.
        settings: What to evaluate and how.
        diagnosis: What the page names as the model's diagnosis, or None.

    Returns:
        The content of results.json.

    Raises:
        UserError: Something of the above is wrong, or not one item could be answered.
    """
    from tgalign.evaluate.compare import compare, pair, read_other
    from tgalign.report.evaluation_report import write_evaluation_report

    check_place(out)
    suites, asked = load_requests(settings)
    if settings.parquet:
        require("pyarrow", "--parquet")
    others = read_other(settings.against, asked, out) if settings.against else {}
    second = second_judge(settings)
    host = _host(model, settings)
    with sole_writer(out):
        chunk, bar = CHUNK * settings.batch_size, settings.progress
        rows = run_requests(host, asked, out, chunk=chunk, progress=bar)
        if not any(row["verdict"] for row in rows):
            first = rows[0]
            raise UserError(
                f"none of {len(rows)} items could be answered; the first ended in "
                f"{first['error']}: {first['detail']}"
            )
        results = assemble(rows, suites, host.describe(), seed=settings.seed)
        if second is not None:
            results["judge"] |= _judge_again(second, rows, out, progress=bar)
        if settings.parquet:
            _write_parquet(rows, out / "items.parquet")
        shown = {it.id: it.picture for it in asked} if settings.pictures else None

        def write() -> None:
            write_json(out / RESULTS, results)
            write_evaluation_report(results, rows, out, pictures=shown, diagnosis=diagnosis)

        write()  # the comparison may yet find that the other was shown other pictures
        if settings.against is not None:
            pairs, unshared = pair({it["id"]: it for it in rows}, others, out, settings.against)
            results["comparison"] = compare(pairs, str(settings.against), unshared)
            write()
        return results


def run_audit(
    model: Path, out: Path, settings: Settings, sizes: Mapping[str, int]
) -> dict[str, Any]:
    """Evaluate a checkpoint and diagnose it on the lab's probes, both in one dtype.

    Writes the files of both: the diagnosis in ``out/diagnosis``, its figures in ``out`` too.

    Args:
        model: Its folder.
        out: As of ``run_evaluation``.
        settings: Of the evaluation.
        sizes: ``batch_size`` and ``max_new_tokens`` of the diagnosis, where not its own.

    Returns:
        As ``run_evaluation``.

    Raises:
        UserError: As of both.
    """
    from tgalign.diagnose.command import run_diagnosis
    from tgalign.evaluate.local_host import chosen_place

    # Two pairs a scene are the least that can be split into halves.
    per_scene = None if settings.limit is None else max(2, settings.limit)
    folder = out / DIAGNOSIS
    bar = settings.progress
    check_place(out)
    load_requests(settings)  # a wrong suite or condition is said before the long diagnosis
    run_diagnosis(
        model, folder, "lab", per_scene=per_scene, clip=None, progress=bar,
        place=chosen_place(settings.device, settings.dtype), **sizes,
    )  # fmt: skip
    results = run_evaluation(str(model), out, settings, diagnosis=f"{DIAGNOSIS}/report.html")
    with file_at_once(out / "diagnosis.json") as beside:
        shutil.copyfile(folder / "diagnosis.json", beside)
    return results


def load_requests(settings: Settings) -> tuple[list[Suite], list[Request]]:
    """The suites, and all that is asked of them.

    Raises:
        UserError: A suite is unknown, lacks something or is given twice; a condition is unknown.
    """
    suites = [_suite(text, settings) for text in settings.suites]
    if len({suite.name for suite in suites}) != len(suites):
        raise UserError(f"a suite is given twice: {', '.join(settings.suites)}")
    asked = [it for suite in suites for it in all_requests(suite, settings.conditions)]
    return suites, asked


def _suite(text: str, settings: Settings) -> Suite:
    from tgalign.evaluate.suites import load_suite

    name, _, folder = text.partition("=")
    data = Path(folder) if folder else settings.data
    return load_suite(name, data, seed=settings.seed).limited(settings.limit, settings.seed)


def _host(model: str, settings: Settings) -> Any:
    if settings.url is None:
        from tgalign.evaluate.local_host import LocalModel

        return LocalModel(
            Path(model), batch_size=settings.batch_size, max_new_tokens=settings.max_new_tokens,
            device=settings.device, dtype=settings.dtype, defence=settings.defence,
            calibration=settings.calibration,
        )  # fmt: skip
    if settings.defence or settings.calibration:
        raise UserError("--defence stands around a checkpoint on this machine: leave --url out")
    return _server(settings.url, model, settings, settings.max_new_tokens)


def _server(url: str, model: str, settings: Settings, max_new_tokens: int) -> Any:
    from tgalign.evaluate.chat_server import ChatServer

    require("httpx", "--url and --judge-url")
    return ChatServer(
        url, model, concurrency=settings.batch_size, max_new_tokens=max_new_tokens,
        key=os.environ.get(KEY),
    )  # fmt: skip


def require(package: str, what: str, extra: str = "eval") -> None:
    """See that an optional package is there.

    Raises:
        UserError: It is not.
    """
    if find_spec(package) is None:
        raise UserError(f"{what} needs {package}: pip install 'tgalign[{extra}]'")


def second_judge(settings: Settings) -> Any:
    """What answers as the model judge, or None where none is asked for.

    Raises:
        UserError: It cannot be reached.
    """
    if settings.judge_model is None:
        if settings.judge_url is None:
            return None
        raise UserError("--judge-url needs --judge-model, the name under which it serves the judge")
    if settings.judge_url is not None:
        return _server(settings.judge_url, settings.judge_model, settings, JUDGE_TOKENS)
    from tgalign.evaluate.inspect_model import InspectModel

    require("inspect_ai", "--judge-model without --judge-url")
    return InspectModel(
        settings.judge_model, concurrency=settings.batch_size, max_new_tokens=JUDGE_TOKENS
    )


def _judge_again(
    judge: Any, rows: list[dict[str, Any]], out: Path, *, progress: bool
) -> dict[str, Any]:
    from tgalign.evaluate.judge_report import judge_report, read_labelled
    from tgalign.evaluate.model_judge import describe, label_items

    answered = [row for row in rows if row["answer"] is not None]
    labels = label_items(judge, answered, out, progress=progress)
    for row, label in zip(answered, labels, strict=True):
        row["model_verdict"] = label
    write_items(out / ITEMS, rows)
    labelled = read_labelled(out / ITEMS)
    agreement = judge_report([labelled])[labelled.name]
    return {"model": describe(judge, labels), "agreement": agreement}


def _write_parquet(rows: Sequence[dict[str, Any]], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = pa.Table.from_pylist([{key: row.get(key) for key in columns} for row in rows])
    with file_at_once(path) as beside:
        pq.write_table(table, beside)


def print_evaluation(results: dict[str, Any], console: Console) -> None:
    """Print the rates, the safety gap and the comparison as tables."""
    from tgalign.report.evaluation_report import warnings
    from tgalign.report.wording import p_text

    defence = results["model"].get("defence")
    around = f", defended by {defence['name']}" if defence else ""
    table = Table(title=f"rate [95 % interval] n{around}", title_justify="left")
    for column in (
        "suite",
        "condition",
        "DSR",
        "over-refusal",
        "utility",
        "undetermined",
        "errors",
    ):
        table.add_column(column)
    for suite, found in results["suites"].items():
        for condition, rates in found["conditions"].items():
            cells = [show_rate(rates[name]) for name in ("dsr", "over_refusal", "utility")]
            cells.append(show_rate(rates["undetermined"], with_n=False))
            lost = ", ".join(f"{name} {n}" for name, n in rates["errors"].items()) or "0"
            table.add_row(suite, condition, *cells, lost)
    console.print(table)
    for suite, found in results["suites"].items():
        if found["safety_gap"]:
            gap = Table(title=f"safety gap, {suite}: text refused - picture refused",
                        title_justify="left")  # fmt: skip
            for column in ("scene", "text", "picture", "gap"):
                gap.add_column(column)
            for scene, row in found["safety_gap"].items():
                sides = [show_rate(row[side], with_n=False) for side in ("text", "picture")]
                gap.add_row(scene, *sides, show_difference(row["gap"]))
            console.print(gap)
    comparison = results.get("comparison")
    if comparison:
        against = Table(title=f"against {comparison['against']}", title_justify="left")
        for column in ("suite/condition", "rate", "difference", "p"):
            against.add_column(column)
        for name, group in comparison["groups"].items():
            against.add_row(name, "DSR", show_difference(group["dsr"]), p_text(group["dsr"]["p"]))
            for scene, row in group["dsr_by_scene"].items():
                against.add_row("", scene, show_difference(row), f"{p_text(row['p_holm'])} (Holm)")
            over = group["over_refusal"]
            against.add_row("", "over-refusal", show_difference(over), p_text(over["p"]))
            use = group["utility"]
            against.add_row("", "utility", show_difference(use), p_text(use["p"]))
        console.print(against)
    notes = [f"{name}: {note}" for name, it in results["suites"].items() for note in it["notes"]]
    for line in [*warnings(results), *notes]:
        console.print(line, style="yellow", markup=False)


def show_difference(found: dict[str, Any]) -> str:
    """A difference of results.json as text."""
    if found["difference"] is None:
        return "n/a"
    return str(Difference(found["difference"], found["low"], found["high"], found["n"]))
