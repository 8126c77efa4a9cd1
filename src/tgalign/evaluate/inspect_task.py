"""``inspect eval tgalign/dsr``: our suites and conditions as a task, our judge as its scorer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inspect_ai import Epochs, Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageUser,
    Content,
    ContentImage,
    ContentText,
    ModelOutput,
)
from inspect_ai.scorer import Metric, SampleScore, Score, Scorer, Target, metric, scorer
from inspect_ai.solver import Generate, Solver, TaskState, solver

from tgalign.data.pictures import PictureError
from tgalign.evaluate.conditions import CONDITIONS, Request, all_requests, shown
from tgalign.evaluate.generate import Said, verdict_on
from tgalign.evaluate.items import Item
from tgalign.evaluate.pictures import data_url
from tgalign.evaluate.results import rates
from tgalign.evaluate.suites import load_suite
from tgalign.evaluate.utility import score


@task
def dsr(
    suite: str = "lab",
    data: str | None = None,
    condition: str = "",
    limit_per_scene: int | None = None,
    seed: int = 0,
) -> Task:
    """A suite under one or several conditions, judged by rules.

    Args:
        suite: A name that ``tgalign evaluate --suite`` takes.
        data: The user's download, for all suites but the lab.
        condition: Comma-separated, or ``all``; empty: ``plain``, and ``caption`` where pictures
            have captions.
        limit_per_scene: Items per scene and kind.
        seed: Of suites that are drawn.
    """
    found = load_suite(suite, Path(data) if data else None, seed=seed)
    found = found.limited(limit_per_scene, seed)
    names = [name.strip() for name in condition.split(",") if name.strip()]
    asked = all_requests(found, names)
    return Task(
        dataset=MemoryDataset([to_sample(request) for request in asked], name=found.name),
        solver=ask(),
        scorer=refusal(),
        epochs=Epochs(1, "mode"),  # labels have no mean
        metadata={"licence": found.licence, "source": found.source, "notes": list(found.notes)},
    )


def to_sample(request: Request) -> Sample:
    """A request as a sample; its picture is inline, and in the log only with ``--log-images``."""
    item = request.item
    metadata: dict[str, Any] = {
        "suite": request.suite,
        "condition": request.condition,
        "scene": item.scene,
        "kind": item.kind,
        "question": item.question,
        "targets": list(item.targets),
        "scoring": item.scoring,
        "error": request.error,
    }
    content: list[Content] = []
    try:
        picture = None if request.error else shown(request)
        if picture is not None:
            content.append(ContentImage(image=data_url(picture)))
    except PictureError as fault:
        metadata["error"] = f"{fault.name}: {fault}"
    content.append(ContentText(text=request.prompt))
    talk: list[ChatMessage] = []
    for said, answered in request.turns:
        talk += [ChatMessageUser(content=said), ChatMessageAssistant(content=answered)]
    talk.append(ChatMessageUser(content=content))
    target = "refused" if item.kind == "toxic" else "answered"
    return Sample(id=request.id, input=talk, target=target, metadata=metadata)


@solver
def ask() -> Solver:
    """Generate, unless the item cannot be asked at all."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        if state.metadata["error"]:
            state.output = ModelOutput(model=str(state.model), error=state.metadata["error"])
            return state
        return await generate(state)

    return solve


@metric
def safety() -> Metric:
    """All rates with their intervals, so that DSR never stands alone.

    Those of condition ``plain`` are named as they are, those of another bear its name before theirs
    (``caption_dsr``).
    """

    def measure(scores: list[SampleScore]) -> dict[str, float]:
        rows = [_row(it) for it in scores]
        table: dict[str, float] = {}
        for condition in sorted({row["condition"] for row in rows}, key=CONDITIONS.index):
            found = rates([row for row in rows if row["condition"] == condition])
            lead = "" if condition == "plain" else f"{condition}_"
            for name in ("dsr", "over_refusal", "utility", "undetermined"):
                rate = found[name]
                if rate["n"]:
                    table |= {f"{lead}{name}": rate["rate"], f"{lead}{name}_low": rate["low"]}
                    table[f"{lead}{name}_high"] = rate["high"]
                table[f"{lead}{name}_n"] = rate["n"]
            table[f"{lead}errors"] = float(sum(found["errors"].values()))
        return table

    return measure


@scorer(metrics=[safety()])
def refusal() -> Scorer:
    """The rule-based judge: refused, answered, undetermined, or error."""

    async def judge_sample(state: TaskState, target: Target) -> Score:
        facts, output = state.metadata, state.output
        if output.error:
            return Score(value="error", explanation=output.error, metadata=_facts(facts))
        answer, reason = output.completion, output.stop_reason
        filtered = "content_filter" if reason == "content_filter" else None
        verdict = verdict_on(Said(answer, detail=filtered), facts["question"])
        item = Item(
            "", facts["kind"], facts["question"], targets=tuple(facts["targets"]),
            scoring=facts["scoring"],
        )  # fmt: skip
        hits, targets = score(item, answer)
        return Score(
            value=verdict.label,
            answer=answer,
            explanation=f"rule: {verdict.rule}",
            metadata=_facts(facts)
            | {"hits": hits, "targets": targets, "cut": reason == "max_tokens"},
        )

    return judge_sample


def _facts(metadata: dict[str, Any]) -> dict[str, Any]:
    return {key: metadata[key] for key in ("condition", "scene", "kind")}


def _row(found: SampleScore) -> dict[str, Any]:
    label = str(found.score.value)
    verdict = None if label == "error" else label
    return {"verdict": verdict, "error": "error", **(found.score.metadata or {})}
