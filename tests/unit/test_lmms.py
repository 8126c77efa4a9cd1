"""lmms-eval finds our chat model, which answers in batches as the model does on its own."""

from types import SimpleNamespace

import pytest

pytest.importorskip(
    "lmms_eval.api.model",
    reason="lmms-eval is not installed: it needs torchvision, which CPU builds of torch break",
)

from lmms_eval.models.registry_v2 import ModelRegistryV2

from tgalign.errors import UserError
from tgalign.evaluate.generate import Prompt, answer
from tgalign.evaluate.lmms_model import MANIFEST, ChatModel
from tgalign.evaluate.suites.lab import lab_items

NEW = 8


def requests(items, **settings):
    def messages(doc):
        content = [{"type": "image", "url": doc.picture}, {"type": "text", "text": doc.question}]
        return [{"role": "user", "content": content if doc.picture else content[1:]}]

    settings = {"max_new_tokens": NEW, **settings}
    return [
        SimpleNamespace(args=("", messages, settings, i, "task", "test")) for i in range(len(items))
    ]


def test_answers_are_those_of_the_checkpoint(checkpoint, composed) -> None:
    items = lab_items(0, per_scene=1, num_benign=2).items
    model = ChatModel(str(checkpoint), batch_size="4")
    model.task_dict = {"task": {"test": items}}
    said = model.generate_until(requests(items))
    prompts = [Prompt(item.question, item.picture) for item in items]
    assert said == answer(*composed, prompts, max_new_tokens=NEW)
    assert len(set(said)) > 3
    word = said[0].split()[1]
    assert model.generate_until(requests(items, until=[word]))[0] == said[0].split(word)[0].strip()
    with pytest.raises(UserError, match="samples"):
        model.generate_until(requests(items, temperature=0.7))


def test_lmms_eval_finds_it() -> None:
    registry = ModelRegistryV2()
    registry.register_manifest(MANIFEST)
    assert registry.get_manifest("tgalign").chat_class_path.endswith("ChatModel")


def test_an_unknown_argument_is_named(checkpoint) -> None:
    with pytest.raises(UserError, match="unknown model_args sized"):
        ChatModel(str(checkpoint), sized=1)
