"""``tgalign evaluate`` and ``tgalign audit``."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from tgalign.commands.honoured import refuse, refuse_others
from tgalign.errors import UserError
from tgalign.evaluate.settings import Settings
from tgalign.limits import MAX_SEED
from tgalign.outputs import file_at

Suites = Annotated[
    list[str] | None,
    typer.Option(
        "--suite",
        help="lab, lab_icons, folder, mm_safetybench, figstep, vlguard, xstest, pope, scienceqa, "
        "mm_vet, or a YAML file; NAME=FOLDER says where it lies. May be given several times.",
    ),
]
Data = Annotated[Path | None, typer.Option(help="Folder of a suite that names none.")]
Conditions = Annotated[
    list[str] | None,
    typer.Option(
        "--condition",
        help="plain, caption, role_play, in_context, typographic, blank, or all; several times or "
        "comma-separated. By default plain, and caption where pictures have captions.",
    ),
]
OUT = typer.Option(help="Folder for items.jsonl, results.json, report.html.")
Limit = Annotated[int | None, typer.Option(min=1, help="Items per scene, for a quick look.")]
Seed = Annotated[
    int, typer.Option(min=0, max=MAX_SEED, help="Of the lab's pictures and of --limit.")
]
BatchSize = Annotated[
    int, typer.Option(min=1, help="Prompts at a time; halved when memory runs out.")
]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Length at which an answer is cut.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 or auto.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto.")]
FailUnder = Annotated[
    str | None,
    typer.Option(
        help="Exit with status 1 unless all hold: dsr=0.9,over_refusal<0.05,role_play.dsr>=0.5 "
        "(= is at least, for dsr and utility alone; point estimates; each suite that measures the "
        "rate)."
    ),
]
Progress = Annotated[bool, typer.Option(help="Draw progress bars.")]
Junit = Annotated[Path | None, typer.Option(help="Write JUnit XML there.")]
Pictures = Annotated[
    bool, typer.Option("--pictures", help="Show pictures in report.html; keep harmful ones out.")
]

JUDGE_REPORT = ("judge_report", "judge_url", "judge_model", "batch_size", "out", "progress")
LMMS_TASK = (
    "write_lmms_task", "suites", "data", "conditions", "limit", "seed", "max_new_tokens",
    "progress",
)  # fmt: skip
"""Parameters of ``evaluate`` that its two other modes have a use for."""


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command(
        epilog="Examples:\n\n`tgalign evaluate demo/seed0/ce/checkpoint --out runs/ce`\n\n"
        "`tgalign evaluate CHECKPOINT --suite folder=HOD --suite pope=POPE --out runs/hod`\n\n"
        "`tgalign evaluate tga --url http://127.0.0.1:8000 --out runs/served --condition all`\n\n"
        "`tgalign evaluate CHECKPOINT --out runs/tga --against runs/ce "
        "--fail-under dsr=0.9,over_refusal<0.05`\n\n"
        "`tgalign evaluate CHECKPOINT --defence ecso --calibration lab --out runs/ecso`\n\n"
        "`tgalign evaluate --judge-report tests/data/refusal_wording.csv`"
    )(evaluate)
    app.command(epilog="Example:\n\n`tgalign audit CHECKPOINT --out runs/audit`")(audit)


def evaluate(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Argument(help="A checkpoint's folder, or its name at --url.")
    ] = None,
    suites: Suites = None,
    data: Data = None,
    conditions: Conditions = None,
    out: Annotated[Path | None, OUT] = None,
    url: Annotated[
        str | None,
        typer.Option(help="Ask an OpenAI-compatible server (vLLM, SGLang, llama.cpp) instead."),
    ] = None,
    defence: Annotated[
        str | None,
        typer.Option(
            help="Set a defence around a local LLaVA: cmrm, shiftdc, safeclip, ecso, "
            "hiddendetect or safety_prompt."
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(help="What --defence is calibrated on: lab, or a folder of your own."),
    ] = None,
    limit: Limit = None,
    seed: Seed = Settings.seed,
    batch_size: BatchSize = Settings.batch_size,
    max_new_tokens: MaxNewTokens = Settings.max_new_tokens,
    device: Device = Settings.device,
    dtype: Dtype = Settings.dtype,
    against: Annotated[
        Path | None, typer.Option(help="Another evaluation's folder: compare on the same items.")
    ] = None,
    fail_under: FailUnder = None,
    junit: Junit = None,
    parquet: Annotated[bool, typer.Option("--parquet", help="Write items.parquet too.")] = False,
    pictures: Pictures = False,
    progress: Progress = True,
    judge_url: Annotated[
        str | None, typer.Option(help="A chat server with a second, model judge.")
    ] = None,
    judge_model: Annotated[
        str | None,
        typer.Option(help="Its name there; without --judge-url PROVIDER/NAME as in inspect-ai."),
    ] = None,
    write_lmms_task: Annotated[
        Path | None,
        typer.Option(help="Only write the suites as tasks that lmms-eval finds there."),
    ] = None,
    judge_report: Annotated[
        list[Path] | None,
        typer.Option(
            help="Only report how judges agree on a labelled CSV (XSTest's form) or an "
            "evaluation's items.jsonl. May be given several times."
        ),
    ] = None,
) -> None:
    """Measure a model's safety on pictures: DSR, over-refusal and utility, with intervals.

    Writes OUT/items.jsonl (one line per item with answer and verdict), OUT/results.json and
    OUT/report.html. An evaluation that was interrupted, or killed, goes on where it was when the
    same command is given again. A key for servers is read from TGALIGN_API_KEY.
    """
    settings = _settings(locals())
    if judge_report:
        refuse_others(context, "--judge-report", JUDGE_REPORT)
        _report_judges(judge_report, settings, out)
    elif write_lmms_task is not None:
        refuse_others(context, "--write-lmms-task", LMMS_TASK)
        _write_lmms(settings, write_lmms_task)
    elif model is None or out is None:
        raise UserError("give MODEL and --out, or --judge-report FILE; see tgalign evaluate --help")
    else:
        if url is not None:
            refuse(context, "--url", ("device", "dtype"))
        _evaluate(model, out, settings, fail_under, junit)


def audit(
    model: Annotated[Path, typer.Argument(help="A checkpoint's folder.")],
    out: Annotated[Path, OUT],
    suites: Suites = None,
    data: Data = None,
    conditions: Conditions = None,
    limit: Limit = None,
    seed: Seed = Settings.seed,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Prompts at a time; by default 32, then 16.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer; by default 256, then 32.")
    ] = None,
    device: Device = Settings.device,
    dtype: Dtype = Settings.dtype,
    fail_under: FailUnder = None,
    junit: Junit = None,
    pictures: Pictures = False,
    progress: Progress = True,
) -> None:
    """Evaluate a checkpoint and diagnose it by layer, in one report."""
    sizes = {"batch_size": batch_size, "max_new_tokens": max_new_tokens}
    given = {name: size for name, size in sizes.items() if size is not None}
    _evaluate(str(model), out, _settings(locals()), fail_under, junit, audit=given)


def _settings(given: dict[str, Any]) -> Settings:
    """Those parameters of a command that say what to evaluate and how."""
    names = [it.name for it in fields(Settings)]
    found = {name: given[name] for name in names if given.get(name) is not None}
    conditions = ",".join(found.get("conditions", [])).split(",")
    found["conditions"] = [name.strip() for name in conditions if name.strip()]
    return Settings(**found | {"suites": found.get("suites") or Settings.suites})


def _evaluate(
    model: str, out: Path, settings: Settings, fail_under: str | None, junit: Path | None, *,
    audit: dict[str, int] | None = None,
) -> None:  # fmt: skip
    from tgalign.evaluate.command import print_evaluation, run_audit, run_evaluation
    from tgalign.evaluate.thresholds import check, parse_thresholds, write_junit
    from tgalign.terminal import quiet_libraries, wide_console

    quiet_libraries()
    thresholds = parse_thresholds(fail_under) if fail_under else []  # before the long work
    junit = file_at(junit) if junit else None
    if audit is not None:
        results = run_audit(Path(model), out, settings, audit)
    else:
        results = run_evaluation(model, out, settings)
    console = wide_console()
    print_evaluation(results, console)
    console.print(f"{out / 'report.html'}")
    outcomes = check(thresholds, results)
    if junit:
        write_junit(junit, outcomes, results)
    failed = [it for it in outcomes if not it.met]
    for it in failed:
        typer.echo(f"tgalign: {it.threshold.text} does not hold: {it.said}", err=True)
    if failed:
        sys.exit(1)


def _write_lmms(settings: Settings, folder: Path) -> None:
    from tgalign.evaluate.command import load_requests, require
    from tgalign.evaluate.lmms_task import write_tasks

    require("datasets", "--write-lmms-task", "datasets")
    asked = load_requests(settings)[1]
    names, lost = write_tasks(asked, folder, max_new_tokens=settings.max_new_tokens)
    for name, error in lost:
        typer.echo(f"left out {name}: {error}", err=True)
    typer.echo(f"lmms_eval --include_path {folder} --tasks {','.join(names)}")


def _report_judges(paths: list[Path], settings: Settings, out: Path | None) -> None:
    from tgalign.evaluate.command import second_judge
    from tgalign.evaluate.judge_report import judge_report, print_judge_report, read_labelled
    from tgalign.evaluate.model_judge import describe, label_responses
    from tgalign.files import write_json

    place = file_at(out / "judge-report.json") if out is not None else None
    labelled = [read_labelled(path) for path in paths]
    second = second_judge(settings)
    said = {}
    for found in labelled:
        if second is not None:
            found.labels["model"] = label_responses(
                second, found.responses, progress=settings.progress
            )
            said[found.name] = describe(second, found.labels["model"])
        elif len(found.labels) < 2:
            raise UserError(
                f"{found.name} holds no second labels: give --judge-model here, or to evaluate"
            )
    report = judge_report(labelled)
    print_judge_report(report, typer.echo)
    for name, judge in said.items():
        typer.echo(
            f"{name}: model judge {judge['name']} ({judge['host']}), prompt "
            f"{judge['prompt_sha256'][:16]}: {judge['unparsed']} unparsed, "
            f"{judge['failed']} failed of {judge['n']}"
        )
    if place is not None:
        write_json(place, {"agreement": report, "model_judge": said})
