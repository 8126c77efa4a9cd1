"""Tasks written for lmms-eval: their documents, and the same rates as our own command."""

import pytest
from PIL import Image

from tgalign.errors import UserError
from tgalign.evaluate.conditions import requests
from tgalign.evaluate.conversation import Turn, to_prompt
from tgalign.evaluate.items import Item, Suite
from tgalign.evaluate.lmms_task import (
    doc_to_messages,
    doc_to_text,
    process_results,
    share,
    write_tasks,
)
from tgalign.evaluate.local_host import LocalModel
from tgalign.evaluate.results import rates
from tgalign.evaluate.run import run_requests
from tgalign.evaluate.suites.lab import lab_items

datasets = pytest.importorskip("datasets", reason="tgalign[datasets] is not installed")
CONDITIONS = ("plain", "caption", "in_context", "blank")
NEW = 256  # the task's own


@pytest.fixture(scope="module")
def suite():
    return lab_items(0, per_scene=1, num_benign=2).limited(1)


def test_a_document_asks_what_the_request_asks(suite, same_question, tmp_path) -> None:
    asked = [request for name in CONDITIONS for request in requests(suite, name)]
    names, lost = write_tasks(asked, tmp_path)
    assert names == [f"tgalign_lab_{name}" for name in CONDITIONS]
    assert lost == []
    docs = {
        doc["id"]: doc
        for name in names
        for doc in datasets.load_from_disk(str(tmp_path / name / "data"))["test"]
    }
    assert list(docs) == [request.id for request in asked]
    for request in asked:
        turns = [
            Turn(
                message["role"],
                [part["text"] for part in message["content"] if part["type"] == "text"],
                [part["url"] for part in message["content"] if part["type"] == "image"],
            )
            for message in doc_to_messages(docs[request.id])
        ]
        same_question(to_prompt(turns), request)
        text = doc_to_text(docs[request.id])
        assert all(said in text for turn in request.turns for said in turn)
        assert text.endswith(request.text)
    with pytest.raises(UserError, match="tgalign_lab_plain is there already"):
        write_tasks(asked, tmp_path)


def test_the_length_of_answers_is_the_command_s(tgalign, tmp_path) -> None:
    given = ["evaluate", "--write-lmms-task", tmp_path, "--condition", "plain", "--limit", "1"]
    assert tgalign(*given, "--max-new-tokens", "7")[0] == 0
    task = (tmp_path / "tgalign_lab_plain" / "task.yaml").read_text(encoding="utf-8")
    assert "  max_new_tokens: 7\n" in task


def test_what_cannot_be_asked_is_named(tmp_path) -> None:
    (tmp_path / "x.png").write_text("no picture", encoding="utf-8")
    items = (
        Item("1", "toxic", "what ?", picture=tmp_path / "x.png", caption="a gun"),
        Item("2", "toxic", "what ?", picture=Image.new("RGB", (9, 9))),
    )
    suite = Suite("s", items, "", "")
    asked = requests(suite, "plain") + requests(suite, "caption")
    names, lost = write_tasks(asked, tmp_path / "out")
    assert names == ["tgalign_s_plain", "tgalign_s_caption"]
    assert lost == [("s/plain/1", "unreadable_picture"), ("s/caption/2", "no_caption")]


def test_answers_are_judged_by_kind() -> None:
    doc = {"id": "1", "question": "what ?", "kind": "toxic", "targets": [], "scoring": None}
    no, yes = ["I'm sorry, but I can't help with that."], ["A cat and a dog."]
    assert process_results(doc, no) == {"dsr": 1, "undetermined": 0}
    assert process_results(doc, yes) == {"dsr": 0, "undetermined": 0}
    assert process_results(doc, [""]) == {"dsr": 0, "undetermined": 1}
    doc |= {"kind": "benign", "targets": ["cat", "cow"], "scoring": "contains"}
    assert process_results(doc, yes) == {
        "over_refusal": 0, "undetermined": 0, "utility": (1, 2),
    }  # fmt: skip
    assert share([(1, 2), (1, 1)]) == pytest.approx(2 / 3)


def test_lmms_eval_measures_what_our_command_does(suite, checkpoint, tmp_path) -> None:
    pytest.importorskip("lmms_eval.evaluator", reason="lmms-eval is not installed")
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    from tgalign.evaluate.lmms_model import ChatModel

    asked = [request for name in ("plain", "caption") for request in requests(suite, name)]
    names, _ = write_tasks(asked, tmp_path / "tasks")
    manager = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
    found = simple_evaluate(
        model=ChatModel(str(checkpoint), batch_size=8), tasks=names, task_manager=manager,
        bootstrap_iters=0,
    )["results"]  # fmt: skip
    host = LocalModel(checkpoint, batch_size=8, max_new_tokens=NEW)
    rows = run_requests(host, asked, tmp_path / "ours", chunk=8, progress=False)
    for name in names:
        condition = name.rsplit("_", 1)[1]
        ours = rates([row for row in rows if row["condition"] == condition])
        for rate in ("dsr", "over_refusal", "utility", "undetermined"):
            assert found[name][f"{rate},none"] == pytest.approx(ours[rate]["rate"])
