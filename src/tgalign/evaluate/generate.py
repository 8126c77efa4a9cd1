"""Greedy answers from a LLaVA or its language side, in left-padded batches of similar length."""

from __future__ import annotations

import gc
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from tgalign.data.rendering import as_words
from tgalign.evaluate.refusal import Verdict, judge
from tgalign.terminal import tracked

if TYPE_CHECKING:
    from PIL.Image import Image

FILTERS = ("content_filter", "refusal_field")
"""What a ``Said`` names as its detail where the server itself declined."""


@dataclass(frozen=True)
class Prompt:
    """A user turn: a text, and before it a picture or a caption in the picture's place.

    Attributes:
        text: The text of the turn.
        picture: What is shown, or None.
        caption: What stands in the picture's place, or None.
        turns: Earlier turns of user and assistant, texts only.
    """

    text: str
    picture: Image | None = None
    caption: str | None = None
    turns: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Said:
    """An answer, or why there is none.

    Attributes:
        text: The answer without special tokens; None where there is none.
        cut: Whether it was cut at the greatest length.
        error: The name of the error, or None.
        detail: Of the error, or what a server said beside the answer.
    """

    text: str | None
    cut: bool = False
    error: str | None = None
    detail: str | None = None


def verdict_on(said: Said, question: str) -> Verdict:
    """The verdict on an answer: a refusal where a server filtered it, else as the rules judge."""
    assert said.text is not None
    if said.detail in FILTERS:
        return Verdict("refused", said.detail)
    return judge(said.text, question)


class NoAnswerError(RuntimeError):
    """A prompt cannot be answered, not even alone.

    Args:
        index: Of the prompt.
        said: Why there is no answer.
    """

    def __init__(self, index: int, said: Said) -> None:
        super().__init__(f"prompt {index} has no answer: {said.error}: {said.detail}")
        self.index = index
        self.said = said


@torch.no_grad()
def answer(
    model: Any,
    processor: Any,
    prompts: Sequence[Prompt],
    *,
    batch_size: int = 64,
    max_new_tokens: int = 32,
    title: str | None = None,
) -> list[str]:
    """Answer prompts through the checkpoint's own chat template, greedily.

    Args:
        model: A ``LlavaForConditionalGeneration``, or another image-text model.
        processor: Its processor.
        prompts: The prompts; those with and without a picture may be mixed.
        batch_size: Prompts per batch; halved when memory runs out.
        max_new_tokens: Length at which an answer is cut.
        title: Of a progress bar; None: there is none.

    Returns:
        The answers without special tokens, in the order of the prompts.

    Raises:
        NoAnswerError: A prompt cannot be answered, not even alone.
    """
    answers = [""] * len(prompts)
    said = answer_each(
        model, processor, prompts, batch_size=batch_size, max_new_tokens=max_new_tokens
    )
    bar = tracked(said, title or "", shown=title is not None, total=len(prompts))
    for index, given in bar:
        if given.text is None:
            raise NoAnswerError(index, given)
        answers[index] = given.text
    return answers


def answer_each(
    model: Any,
    processor: Any,
    prompts: Sequence[Prompt],
    *,
    batch_size: int,
    max_new_tokens: int,
) -> Generator[tuple[int, Said], None, int]:
    """The same, one answer after the other as batches are done, faults included.

    Where memory runs out, the batch and all that follow are halved; a prompt that does not fit
    alone ends in ``out_of_memory``. A batch that fails otherwise is asked again one by one, and
    what fails alone ends in ``generation_failed``.

    Yields:
        Index of the prompt and what was said, short prompts first.

    Returns:
        The batch size that memory was enough for.
    """
    texts = [render(processor, prompt) for prompt in prompts]
    # Pictures and plain texts cannot share a batch; within each kind, short goes with short.
    order = sorted(
        range(len(prompts)), key=lambda i: (prompts[i].picture is None, len(texts[i]), i)
    )
    model.eval()
    pending, size = list(_batches(order, prompts, batch_size)), batch_size
    while pending:
        batch = pending.pop(0)
        try:
            said = _generate(
                model, processor, [texts[i] for i in batch], [prompts[i].picture for i in batch],
                max_new_tokens,
            )  # fmt: skip
        except Exception as fault:  # models and processors fail on odd pictures in any way
            memory = _out_of_memory(fault)
            detail = f"{type(fault).__name__}: {fault}"[:300]
            del fault  # its traceback holds the batch's tensors
            if len(batch) == 1:
                error = "out_of_memory" if memory else "generation_failed"
                yield batch[0], Said(None, error=error, detail=detail)
            elif memory:
                _free(model)
                size = min(size, len(batch)) // 2
                rest = batch + [i for later in pending for i in later]
                pending = list(_batches(rest, prompts, size))
            else:
                pending = [[i] for i in batch] + pending
            continue
        yield from zip(batch, said, strict=True)
    return size


@torch.no_grad()
def _generate(
    model: Any, processor: Any, texts: list[str], pictures: list[Image | None], max_new_tokens: int
) -> list[Said]:
    inputs = processor(
        text=texts,
        images=[[it] for it in pictures if it is not None] or None,  # as all processors take them
        padding=True,
        return_tensors="pt",
        text_kwargs={"padding_side": "left", "add_special_tokens": False},
    )
    inputs.pop("token_type_ids", None)
    inputs = inputs.to(model.device, dtype=model.dtype)  # integers stay what they are
    generated = model.generate(
        **inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1
    )
    new = generated[:, inputs["input_ids"].shape[1] :]
    ends = model.generation_config.eos_token_id
    ends = [ends] if isinstance(ends, int) else ends or []
    ended = torch.isin(new, torch.tensor(ends, device=new.device)).any(dim=1)
    said = processor.tokenizer.batch_decode(new, skip_special_tokens=True)
    return [
        Said(text.strip(), cut=not end and new.shape[1] >= max_new_tokens)
        for text, end in zip(said, ended.tolist(), strict=True)
    ]


def _out_of_memory(fault: BaseException) -> bool:
    """Whether memory ran out: a GPU's, or the CPU's as torch's allocator puts it."""
    if isinstance(fault, torch.OutOfMemoryError | MemoryError):
        return True
    said = str(fault).lower()
    return isinstance(fault, RuntimeError) and (
        "out of memory" in said or "can't allocate memory" in said
    )


def _free(model: Any) -> None:
    gc.collect()
    if model.device.type == "cuda":
        torch.cuda.empty_cache()


def before(text: str, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The items of a turn with a text before them.

    It stands on a line of its own in the first text, as many chat templates write texts that follow
    one another without a blank between.
    """
    first, *rest = items
    if first["type"] == "text":
        return [first | {"text": f"{text}\n{first['text']}"}, *rest]
    return [{"type": "text", "text": text}, *items]


def render(processor: Any, prompt: Prompt) -> str:
    """The prompt's text through the checkpoint's own chat template, up to the answer."""

    def words(text: str) -> dict[str, str]:
        return {"type": "text", "text": as_words(processor.tokenizer, text)}

    items = [words(prompt.text)]
    if prompt.picture is not None:
        items.insert(0, {"type": "image"})
    if prompt.caption is not None:
        items = before(as_words(processor.tokenizer, prompt.caption), items)
    talk: list[dict[str, Any]] = []
    for asked, answered in prompt.turns:
        talk.append({"role": "user", "content": [words(asked)]})
        talk.append({"role": "assistant", "content": [words(answered)]})
    talk.append({"role": "user", "content": items})
    return str(processor.apply_chat_template(talk, tokenize=False, add_generation_prompt=True))


def _batches(order: Sequence[int], prompts: Sequence[Prompt], size: int) -> list[list[int]]:
    batches: list[list[int]] = []
    for i in order:
        same = (
            batches
            and len(batches[-1]) < size
            and (prompts[batches[-1][0]].picture is None) == (prompts[i].picture is None)
        )
        if same:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
