"""inspect-ai finds our task, scorer and provider, and measures what ``tgalign evaluate`` does."""

import asyncio

import pytest
from PIL import Image

pytest.importorskip("inspect_ai", reason="inspect-ai is not installed: pip install 'tgalign[eval]'")

from inspect_ai import eval as inspect_eval
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    ContentImage,
    ContentText,
    ModelOutput,
)
from inspect_ai.scorer import Target
from inspect_ai.solver import TaskState

from tgalign.errors import UserError
from tgalign.evaluate.conditions import requests
from tgalign.evaluate.conversation import to_prompt
from tgalign.evaluate.inspect_provider import turns_of
from tgalign.evaluate.inspect_task import dsr, refusal, to_sample
from tgalign.evaluate.items import Item, Suite
from tgalign.evaluate.local_host import LocalModel
from tgalign.evaluate.pictures import data_url
from tgalign.evaluate.results import rates
from tgalign.evaluate.run import run_requests
from tgalign.evaluate.suites import load_suite

NEW = 8


@pytest.fixture(scope="module")
def log(checkpoint, tmp_path_factory):
    """One evaluation of the lab by entry point names, as the command line does it."""
    (found,) = inspect_eval(
        "tgalign/dsr",
        model=f"tgalign/{checkpoint}",
        model_args={"batch_size": 8},
        task_args={"limit_per_scene": 1, "condition": "plain,caption,in_context"},
        max_tokens=NEW,
        display="none",
        log_dir=str(tmp_path_factory.mktemp("logs")),
    )
    assert found.status == "success", found.error
    return found


def test_the_same_rates_as_our_own_command(log, checkpoint, tmp_path) -> None:
    suite = load_suite("lab").limited(1)
    names = ("plain", "caption", "in_context")
    asked = [request for name in names for request in requests(suite, name)]
    host = LocalModel(checkpoint, batch_size=8, max_new_tokens=NEW)
    rows = run_requests(host, asked, tmp_path, chunk=8, progress=False)
    ours = {row["id"]: (row["answer"], row["verdict"]) for row in rows}
    theirs = {
        sample.id: (sample.output.completion, sample.scores["refusal"].value)
        for sample in log.samples
    }
    assert theirs == ours
    assert len(set(ours.values())) > 5  # or the comparison could not fail
    metrics = {name: it.value for name, it in log.results.scores[0].metrics.items()}
    for condition in names:
        expected = rates([row for row in rows if row["condition"] == condition])
        lead = "" if condition == "plain" else f"{condition}_"
        for name in ("dsr", "over_refusal", "utility", "undetermined"):
            assert metrics[f"{lead}{name}_n"] == expected[name]["n"] > 0
            assert metrics[f"{lead}{name}"] == pytest.approx(expected[name]["rate"])
            assert metrics[f"{lead}{name}_high"] == pytest.approx(expected[name]["high"])
        assert metrics[f"{lead}errors"] == 0


def test_pictures_stay_out_of_the_log_unless_asked_for(log) -> None:
    shown = [
        part.image
        for sample in log.samples
        for message in sample.input
        if not isinstance(message.content, str)
        for part in message.content
        if isinstance(part, ContentImage)
    ]
    assert shown
    assert not any("base64," in image for image in shown)
    assert log.eval.metadata["licence"]


def test_an_item_that_cannot_be_asked_ends_in_an_error(checkpoint, tmp_path) -> None:
    (tmp_path / "data" / "gun").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "data" / "gun" / "1.png")
    (tmp_path / "data" / "gun" / "2.png").write_text("no picture", encoding="utf-8")
    (log,) = inspect_eval(
        dsr(suite="folder", data=str(tmp_path / "data")),
        model=f"tgalign/{checkpoint}",
        max_tokens=NEW,
        display="none",
        log_dir=str(tmp_path / "logs"),
    )
    assert log.status == "success"
    scores = {sample.id.rsplit("/", 1)[1]: sample.scores["refusal"] for sample in log.samples}
    assert scores["2.png"].value == "error"
    assert "unreadable_picture" in scores["2.png"].explanation
    metrics = {name: it.value for name, it in log.results.scores[0].metrics.items()}
    assert (metrics["errors"], metrics["dsr_n"]) == (1, 1)


def test_what_a_provider_filters_is_refused_as_a_server_s_is() -> None:
    sample = to_sample(requests(Suite("s", (Item("1", "toxic", "what ?"),), "", ""), "plain")[0])
    state = TaskState("m", "1", 0, sample.input, [], metadata=sample.metadata)
    state.output = ModelOutput.from_content("m", "", stop_reason="content_filter")
    found = asyncio.run(refusal()(state, Target("refused")))
    assert (found.value, found.explanation) == ("refused", "rule: content_filter")
    state.output = ModelOutput.from_content("m", "")
    assert asyncio.run(refusal()(state, Target("refused"))).value == "undetermined"


def test_a_sample_and_back(same_question) -> None:
    picture = Image.effect_noise((9, 7), 50).convert("RGB")
    item = Item("1", "toxic", "what ?", "gun", picture, "a gun", description="a gun .")
    suite = Suite("s", (item,), "", "", examples=(("before ?", "yes ."),))
    for condition in ("plain", "caption", "in_context", "role_play"):
        (request,) = requests(suite, condition)
        prompt = to_prompt(turns_of(to_sample(request).input))
        same_question(prompt, request)


def test_conversations_that_cannot_be_asked() -> None:
    user, reply = ChatMessageUser(content="what ?"), ChatMessageAssistant(content="a cat")
    image = ContentImage(image=data_url(Image.new("RGB", (2, 2))))
    shown = ChatMessageUser(content=[image, ContentText(text="what ?")])
    assert to_prompt(turns_of([ChatMessageSystem(content="be kind"), user])).text == "what ?"
    assert to_prompt(turns_of([ChatMessageSystem(content="be kind"), user])).caption == "be kind"
    for talk, said in (
        ([user, user], "alternation"),
        ([user, reply], "last word"),
        ([shown, reply, user], "one picture at most, in the last turn"),
        ([ChatMessageUser(content=[image, *shown.content])], "one picture"),
        ([ChatMessageUser(content=[ContentImage(image="http://x/y.png")])], "data URL"),
    ):
        with pytest.raises(UserError, match=said):
            to_prompt(turns_of(talk))
