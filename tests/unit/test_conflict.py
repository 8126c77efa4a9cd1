"""The gradients of the two losses at the image's tokens, against one backward pass each."""

import copy

import pytest
import torch

from tgalign.config import ObjectiveConfig
from tgalign.diagnose.conflict import gradient_conflict
from tgalign.task import AlignmentTask


@pytest.fixture
def batch(rows, encode, collator):
    complete = [it for it in rows.records if it.image and it.caption and len(it.messages) > 1]
    return collator(encode(complete))


@pytest.fixture
def task(llava):
    llava.requires_grad_(False)
    llava.model.multi_modal_projector.requires_grad_(True)
    return AlignmentTask(llava, ObjectiveConfig(layers="0-4", weight=0.5))


def test_gradients_are_those_at_the_projectors_output(task, batch):
    """State 0 of an image token is the projector's output, whose gradient a hook can read."""
    wanted = {}
    for name in ("ce", "guide"):
        one = copy.deepcopy(task)
        outputs = []
        one.lvlm.model.multi_modal_projector.register_forward_hook(
            lambda module, given, made, outputs=outputs: outputs.append(made)
        )
        (wanted[name],) = torch.autograd.grad(one(**batch)[name], outputs)
    shown = len(batch["pixel_values"])
    ce_BX, guide_BX = (wanted[name].reshape(shown, -1) for name in ("ce", "guide"))
    found = gradient_conflict(task, batch)
    cosine_B = torch.nn.functional.cosine_similarity(ce_BX, guide_BX)
    torch.testing.assert_close(found["cosine"][0], cosine_B.mean())
    torch.testing.assert_close(found["ce_norm"][0], ce_BX.norm(dim=1).mean())
    torch.testing.assert_close(found["guide_norm"][0], guide_BX.norm(dim=1).mean())


def test_cross_entropy_does_not_read_the_last_state_of_an_image_token(task, batch):
    found = gradient_conflict(task, batch)
    assert found["ce_norm"].shape == (5,)
    assert found["ce_norm"][-1] == 0
    assert (found["ce_norm"][:-1] > 0).all()
    assert (found["guide_norm"] > 0).all()
    assert found["cosine"][-1] == 0


def test_of_a_guided_question_its_own_tokens_count(task, rows, encode, collator):
    complete = [it for it in rows.records if it.image and it.caption and len(it.messages) > 1]
    found = gradient_conflict(task, collator(encode(complete, guide_span="question")))
    assert (found["guide_norm"][1:] > 0).all()
    assert found["ce_norm"][-1] > 0  # the answer is read from the last of them


def test_weights_get_no_gradient(task, batch):
    gradient_conflict(task, batch)
    assert all(weight.grad is None for weight in task.parameters())


def test_without_a_guide_there_is_nothing_to_compare(llava, batch):
    task = AlignmentTask(llava, ObjectiveConfig(weight=0.0))
    with pytest.raises(ValueError, match="no guide loss"):
        gradient_conflict(task, batch)
