"""The text gate: the language model itself says which pictures it should not answer about.

Web data describes toxic pictures plainly, and cross-entropy on those answers teaches the model to
answer where it would refuse in words. Before training, the gate asks the untrained language model:
told the caption in the picture's place, does it refuse the record's question? If so, the record's
answers are not learnt, and its picture and caption, which still reach the guide loss, can be shown
more often (``companions``). Nobody labels a picture, and no refusal text is trained.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from tgalign.data.records import Record
from tgalign.data.spool import Lazy
from tgalign.errors import UserError
from tgalign.evaluate.generate import NoAnswerError, Prompt, answer, render
from tgalign.evaluate.refusal import judge
from tgalign.files import INCOMPLETE, blamed_on, data_sha256, digest, read_json, write_json
from tgalign.text_store import turn_to_fill, unversioned, weights_sha256

GATE_FILE = "text_gate.json"
"""What it found, in the folder of a run."""
_PART = "text_gate-{}" + INCOMPLETE
_AT_ONCE = 4096
"""Questions after which what is known is kept."""

_Line = tuple[str, str, str]
"""A caption, the question about it, and the place of the row in its file."""


def answers(
    model: Any,
    processor: Any,
    captions: Sequence[str],
    questions: Sequence[str],
    *,
    title: str | None = None,
) -> list[str]:
    """What the language model answers to each question, told a caption in the picture's place.

    Args:
        model: A LLaVA whose language model is not trained yet.
        processor: Its processor.
        captions: The captions.
        questions: One for each.
        title: Of a progress bar; None: there is none.

    Raises:
        NoAnswerError: A question cannot be answered, not even alone.
    """
    prompts = [Prompt(q, caption=c) for q, c in zip(questions, captions, strict=True)]
    return answer(model, processor, prompts, batch_size=256, title=title)


@dataclass(frozen=True)
class Verdicts:
    """What the language model refuses.

    Attributes:
        rows: Line numbers of the refused records.
        texts: Positions of the refused texts in the corpus.
    """

    rows: list[int]
    texts: list[int]

    def __str__(self) -> str:
        found = f"text gate: the language model refuses the captions of {len(self.rows):,} rows"
        return found + (f", and {len(self.texts):,} texts" if self.texts else "")

    def write(self, out: Path) -> bool:
        """Keep them for a run that goes on: another machine may hear other answers.

        Returns:
            Whether they are new there.
        """
        new = not (out / GATE_FILE).is_file()
        write_json(out / GATE_FILE, asdict(self))
        for part in out.glob(_PART.format("*")):
            part.unlink()
        return new


def verdicts_of(
    out: Path,
    records: Sequence[Record],
    corpus: list[str],
    model: Any,
    processor: Any,
    progress_bar: bool,
    files: tuple[str, str] = ("records", "texts"),
    kept: Path | None = None,
) -> Verdicts:
    """Ask the language model about the captions of pictures and the texts of a corpus.

    Args:
        out: Folder of the run; the verdicts found there are taken.
        records: The alignment data. Rows with a picture and a caption are asked about, each by its
            first question.
        corpus: Texts, each asked about by the question that most pictures have.
        model: A LLaVA whose language model is not trained yet.
        processor: Its processor.
        progress_bar: Whether to draw one.
        files: What records and corpus are called in messages.
        kept: Folder where runs that ask the same language model the same find what it said.

    Raises:
        UserError: No record has a picture and a caption, or a question has no answer.
    """
    if (out / GATE_FILE).is_file():
        remedy = "remove it, and the gate asks anew"
        with blamed_on(out / GATE_FILE, remedy):
            found = read_json(out / GATE_FILE, remedy)
            return Verdicts([int(it) for it in found["rows"]], [int(it) for it in found["texts"]])
    asked = [
        (it.row, it.caption, it.messages[0][1])
        for it in records
        if it.image is not None and it.caption is not None
    ]
    if not asked:
        raise UserError("text_gate asks about captions of pictures, and no row has both")
    captions = [caption for _, caption, _ in asked] + corpus
    questions = [question for _, _, question in asked]
    questions += [usual_question(questions)] * len(corpus)
    places = [f"{files[0]}:{row}" for row, _, _ in asked]
    places += [f"{files[1]}:{number}" for number in range(1, len(corpus) + 1)]
    lines = list(zip(captions, questions, places, strict=True))
    llm = _identity(model, processor)
    ask = partial(_ask, out, lines, llm, partial(answers, model, processor), progress_bar)
    answered = ask() if kept is None else _kept_or_asked(kept, llm, lines, ask)
    refused = [
        judge(text, question).label == "refused"
        for text, question in zip(answered, questions, strict=True)
    ]
    if not any(refused):
        logging.getLogger(__name__).warning(
            "text gate: the language model refuses none of %d captions and %d texts, so the gate "
            "and companions change nothing",
            len(asked),
            len(corpus),
        )
    rows = [row for (row, _, _), toxic in zip(asked, refused, strict=False) if toxic]
    texts = [number for number, toxic in enumerate(refused[len(asked) :]) if toxic]
    return Verdicts(rows, texts)


def _kept_or_asked(
    kept: Path, llm: dict[str, Any], lines: list[_Line], ask: Callable[[], list[str]]
) -> list[str]:
    """What the language model said to another run, or says now and is kept."""
    identity = data_sha256([llm, [line[:2] for line in lines]])
    folder, first = kept / f"text_gate-{identity[:16]}", PartialState().is_main_process
    with turn_to_fill(folder):
        path = folder / "answers.json"
        found = _read_kept(path, identity, len(lines)) if first else None
        (said,) = broadcast_object_list([found])
        if said is None:
            said = ask()
            if first:
                write_json(path, {"identity": identity, "said": said})
    return list(said)


def _identity(model: Any, processor: Any) -> dict[str, Any]:
    """What decides what the language model says, but for the rounding of another machine."""
    decoder, tokenizer = model.model.language_model, processor.tokenizer
    return {
        "bf16": torch.is_autocast_enabled(model.device.type),
        "llm": [weights_sha256(part) for part in (decoder, model.lm_head)],
        "llm_config": unversioned(decoder.config),
        "generation": unversioned(model.generation_config),
        "vocabulary": digest(sorted(tokenizer.get_vocab().items())),
        "chat_template": digest([processor.chat_template, tokenizer.chat_template]),
        "prompt": render(processor, Prompt("question", caption="caption")),
    }


def _read_kept(path: Path, identity: str, number: int) -> list[str] | None:
    """The answers that another run kept; None: there are none, or not whole ones."""
    if not path.is_file():
        return None
    with suppress(UserError):
        found = read_json(path)
        if isinstance(found, dict) and found.get("identity") == identity:
            said = found.get("said")
            if _are_answers(said, number):
                return said
    logging.getLogger(__name__).warning("%s is damaged: the text gate asks again", path)
    return None


def _are_answers(said: Any, number: int) -> TypeGuard[list[str]]:
    return (
        isinstance(said, list) and len(said) == number and all(isinstance(it, str) for it in said)
    )


def _ask(
    out: Path,
    lines: list[_Line],
    llm: dict[str, Any],
    answer_lines: Callable[..., list[str]],
    progress_bar: bool,
) -> list[str]:
    """Ask the language model, each process its share."""
    with PartialState().split_between_processes(lines) as mine:
        shares = gather_object([_go_on(out, mine, llm, answer_lines, progress_bar)])
    for fault in (fault for _, fault in shares if fault):
        raise UserError(fault)  # in every process, as none may wait for one that has ended
    return [text for said, _ in shares for text in said]


def _go_on(
    out: Path,
    mine: list[_Line],
    llm: dict[str, Any],
    answer_lines: Callable[..., list[str]],
    progress_bar: bool,
) -> tuple[list[str], str | None]:
    """Answers to this process's share, from where a kill cut it off.

    Returns:
        The answers; and why there are no more, where a question has none.
    """
    said: list[str] = []
    for start in range(0, len(mine), _AT_ONCE):
        part = mine[start : start + _AT_ONCE]
        path = out / _PART.format(f"{PartialState().process_index}-{start}")
        asked = digest([llm, part])
        remedy = "remove it, and its questions are asked again"
        with blamed_on(path, remedy):
            found = dict(read_json(path, remedy)) if path.is_file() else {}
        if found.get("asked") != asked or not _are_answers(found.get("said"), len(part)):
            captions, questions, places = zip(*part, strict=True)
            title = f"text gate, from {start:,} of {len(mine):,}" if progress_bar else None
            try:
                found = {"asked": asked, "said": answer_lines(captions, questions, title=title)}
            except NoAnswerError as fault:
                return said, _no_answer(fault, places[fault.index])
            write_json(path, found)
        said += found["said"]
    return said, None


def _no_answer(fault: NoAnswerError, place: str) -> str:
    mend = "mend or remove the row"
    if fault.said.error == "out_of_memory":
        mend = "free memory, or shorten the row if it is longer than the others"
    return (
        f"{place}: the language model has no answer to the text gate's question "
        f"({fault.said.error}: {fault.said.detail}): {mend}"
    )


def usual_question(questions: Iterable[str]) -> str:
    """The question that a text of a corpus is asked by: the most common of at least one."""
    return Counter(questions).most_common(1)[0][0]


def gated(
    records: Sequence[Record], verdicts: Verdicts
) -> tuple[Sequence[Record], Sequence[Record]]:
    """Drop the answers of the refused records.

    Returns:
        The records, those refused without any turn after the first question; and the refused ones
        again, by themselves.
    """
    rows = set(verdicts.rows)

    def kept(number: int) -> Record:
        it = records[number]
        return replace(it, messages=it.messages[:1]) if it.row in rows else it

    refused = [number for number, it in enumerate(records) if it.row in rows]
    return Lazy(len(records), kept), Lazy(len(refused), lambda number: kept(refused[number]))
