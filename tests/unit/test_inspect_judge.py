"""A model judge of any provider that inspect-ai knows: labels, failures, what is kept of them."""

import json

import pytest

pytest.importorskip("inspect_ai", reason="inspect-ai is not installed: pip install 'tgalign[eval]'")

from inspect_ai.model import ModelAPI, ModelOutput, modelapi

from tgalign.errors import UserError
from tgalign.evaluate.generate import Prompt, Said
from tgalign.evaluate.inspect_model import InspectModel
from tgalign.evaluate.model_judge import JUDGED, describe, label_items, label_responses

RESPONSES = [("q", "an apple"), ("q", "I will not"), ("q", "odd"), ("q", "broken"), ("q", "none")]
SAID = {
    "an apple": ModelOutput.from_content("judge-1", "It does.\nLABEL: ANSWERED"),
    "I will not": ModelOutput.from_content("judge-1", "LABEL: REFUSED"),
    "odd": ModelOutput.from_content("judge-1", "I cannot help with that.", "content_filter"),
    "none": ModelOutput(model="judge-1", error="overloaded"),
}


@modelapi(name="judging")
class JudgeAPI(ModelAPI):
    """A provider that knows what to say, and fails where it does not."""

    async def generate(self, input, tools, tool_choice, config) -> ModelOutput:
        assert (config.temperature, config.max_tokens) == (0, 64)
        (message,) = input
        return next(said for word, said in SAID.items() if f"\n{word}\n" in message.text)


def test_labels_and_failures(capsys) -> None:
    judge = InspectModel("judging/any", max_new_tokens=64)
    for _ in range(2):  # each in an event loop of its own
        labels = label_responses(judge, RESPONSES)
        assert labels == ["answered", "refused", "unparsed", "failed", "failed"]
    assert "2 of 5 answers were not judged; the first: provider_error: " in capsys.readouterr().err
    said = describe(judge, labels)
    assert (said["n"], said["unparsed"], said["failed"]) == (5, 1, 2)
    assert (said["name"], said["served_as"]) == ("judging/any", "judge-1")
    assert said["host"].startswith("inspect-ai 0.")
    json.dumps(said)


def test_why_it_failed_is_said() -> None:
    judge = InspectModel("judging/any", max_new_tokens=64)
    ((_, said),) = judge.answer([Prompt("x")])
    assert (said.text, said.error) == (None, "provider_error")
    assert "StopIteration" in said.detail or "RuntimeError" in said.detail


@pytest.mark.parametrize("name", ["nobody/x", "nobody", ""])
def test_an_unknown_provider_is_named(name) -> None:
    with pytest.raises(UserError, match=f"the model '{name}' cannot be asked through inspect-ai"):
        InspectModel(name)


class Counting:
    """A host that fails on what it is told to, and counts what it is asked."""

    def __init__(self, name: str) -> None:
        self.name, self.asked, self.broken = name, 0, ()

    def answer(self, prompts):
        for index, prompt in reversed(list(enumerate(prompts))):
            self.asked += 1
            if any(word in prompt.text for word in self.broken):
                yield index, Said(None, error="server_error")
            else:
                yield index, Said("LABEL: ANSWERED" if "an apple" in prompt.text else "hm")

    def describe(self):
        return {"host": "x", "name": self.name}


def test_a_label_is_not_asked_for_twice(tmp_path) -> None:
    rows = [{"id": str(i), "prompt": q, "answer": a} for i, (q, a) in enumerate(RESPONSES)]
    expected = ["answered", "unparsed", "unparsed", "failed", "unparsed"]
    judge = Counting("one")
    judge.broken = ("broken",)
    assert label_items(judge, rows, tmp_path) == expected
    assert judge.asked == 5
    judge.broken = ()
    expected[3] = "unparsed"
    assert label_items(judge, rows, tmp_path) == expected
    assert judge.asked == 6  # what failed, again
    with (tmp_path / JUDGED).open("a") as file:
        file.write('{"id": "0", "jud')  # a kill in the middle of a line
    assert label_items(judge, rows, tmp_path) == expected
    assert judge.asked == 6
    other = Counting("two")
    assert label_items(other, rows, tmp_path) == expected
    assert other.asked == 5
