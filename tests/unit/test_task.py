"""AlignmentTask: its losses against a row-by-row reference, and what reaches the weights.

Shape suffixes: L layers, B rows, T tokens, D channels.
"""

import copy

import pytest
import torch
from torch.nn.functional import cosine_similarity, softplus

from tgalign.config import ObjectiveConfig
from tgalign.data.collate import Collator
from tgalign.stage import estimate_center
from tgalign.task import AlignmentTask

GUIDED = {"form": "paper", "weight": 0.7}


@pytest.fixture(scope="module")
def batch(rows, encode, collator):
    """All kinds of rows in one batch."""
    return collator(encode(rows.records, 0.5))


@pytest.fixture(scope="module")
def only(rows, encode, collator):
    """A function that makes a batch of the records for which a condition holds."""

    def make(condition, retrieved_in_prompt=0.5):
        records = [record for record in rows.records if condition(record)]
        assert records
        return collator(encode(records, retrieved_in_prompt))

    return make


def gradients(model):
    return {
        name: None if weight.grad is None else weight.grad.clone()
        for name, weight in model.named_parameters()
    }


def backward(llava, batch, objective, **options):
    """Losses of a batch and gradients of every weight of a fresh copy of the model."""
    model = copy.deepcopy(llava)
    model.model.vision_tower.requires_grad_(False)
    task = AlignmentTask(model, ObjectiveConfig(**objective))
    losses = task(**batch, **options)
    losses["loss"].backward()
    return losses, gradients(model)


def same(first, second):
    assert first.keys() == second.keys()
    return all(
        (first[name] is None and second[name] is None) or torch.equal(first[name], second[name])
        for name in first
    )


def alone(model, batch, row, layers, question=None):
    """Mean states (L, D) of one row's image tokens or its question's, run without padding."""
    kept = batch["attention_mask"][row].bool()
    ids_BT = batch["input_ids"][row : row + 1, kept]
    image_BT = ids_BT == model.config.image_token_id
    with_image = (batch["input_ids"] == model.config.image_token_id).any(1)
    number = int(with_image[:row].sum())
    states = model(
        input_ids=ids_BT,
        pixel_values=batch["pixel_values"][number : number + 1],
        output_hidden_states=True,
    ).hidden_states
    read = image_BT[0] if question is None else slice(*question)
    return torch.stack([states[layer][0, read].mean(0) for layer in layers])


def text_alone(model, span, layers):
    states = model(input_ids=torch.tensor([span.input_ids]), output_hidden_states=True)
    return torch.stack(
        [states.hidden_states[layer][0, span.start : span.end].mean(0) for layer in layers]
    )


@pytest.mark.parametrize("guide_span", ["picture", "question", "question_words"])
@pytest.mark.parametrize("layers", ["all", [1, 3], "0-2", [-1], [3, 1]])
def test_the_guide_of_a_batch_is_that_of_its_rows_run_alone(
    layers, guide_span, llava, rows, encode, collator
):
    encoded = encode(rows.records, 0.5, guide_span=guide_span)
    batch = collator(encoded)
    task = AlignmentTask(llava, ObjectiveConfig(**GUIDED, layers=layers)).eval()
    with torch.no_grad():
        losses = task(**batch)
        align, rank = [], []
        for number, row in enumerate(encoded):
            if row.caption is None:
                continue
            i_LD = alone(llava, batch, number, task.layers, row.question)
            c_LD = text_alone(llava, row.caption, task.layers)
            cos_ic_L = cosine_similarity(i_LD, c_LD, dim=-1)
            align.append(-cos_ic_L.sum())
            if row.retrieved is not None:
                r_LD = text_alone(llava, row.retrieved, task.layers)
                rank.append(softplus(cosine_similarity(r_LD, c_LD, dim=-1) - cos_ic_L).sum())
    torch.testing.assert_close(losses["align"], sum(align) / len(align))
    torch.testing.assert_close(losses["rank"], sum(rank) / len(align))
    torch.testing.assert_close(losses["guide"], losses["align"] + losses["rank"])
    torch.testing.assert_close(losses["loss"], losses["ce"] + 0.7 * losses["guide"])
    assert losses["cosine"].shape == (len(task.layers),)
    torch.testing.assert_close(losses["cosine"].sum(), -losses["align"])


def test_every_layer_is_the_paper_s_1_to_n(llava):
    last = llava.config.text_config.num_hidden_layers
    assert AlignmentTask(llava, ObjectiveConfig()).layers == list(range(1, last + 1))


def test_the_question_pulls_the_picture_and_the_model_that_reads_it(llava, rows, encode, collator):
    batch = collator(encode(rows.records, 0.5, guide_span="question"))
    batch["labels"] = torch.full_like(batch["labels"], -100)
    _, found = backward(llava, batch, GUIDED)
    for part in ("multi_modal_projector", "language_model"):
        moved = [it for name, it in found.items() if part in name and it is not None]
        assert any(it.abs().sum() > 0 for it in moved), part


def test_at_the_embeddings_a_question_says_nothing_of_the_picture(llava, rows, encode, collator):
    batch = collator(encode(rows.records, 0.5, guide_span="question"))
    losses = AlignmentTask(llava, ObjectiveConfig(**GUIDED, layers=[0])).eval()(**batch)
    torch.testing.assert_close(losses["cosine"], torch.ones(1))


def test_the_centre_is_subtracted(llava, rows, encode, batch, collator):
    objective = ObjectiveConfig(**GUIDED, similarity="centered_cosine")
    task = AlignmentTask(llava, objective).eval()
    encoded = encode(rows.records, 0.5)
    estimate_center(task, encoded, collator)
    with torch.no_grad():
        captions = [row.caption for row in encoded if row.caption]
        center_LD = torch.stack([text_alone(llava, c, task.layers) for c in captions]).mean(0)
        torch.testing.assert_close(task.center_LD, center_LD)
        align = torch.zeros(())
        for number, row in enumerate(encoded):
            if row.caption:
                i_LD = alone(llava, batch, number, task.layers) - center_LD
                c_LD = text_alone(llava, row.caption, task.layers) - center_LD
                align -= cosine_similarity(i_LD, c_LD, dim=-1).sum()
        losses = task(**batch)
    torch.testing.assert_close(losses["align"], align / len(captions), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses["centered_cosine"].sum(), -losses["align"])


def test_weight_0_is_plain_llava_training_bit_for_bit(llava, batch):
    model = copy.deepcopy(llava)
    model.model.vision_tower.requires_grad_(False)
    names = ("input_ids", "attention_mask", "pixel_values", "labels")
    plain = {name: batch[name] for name in names}
    learnt = batch["labels"][:, 1:].ne(-100).sum()
    loss = model(**plain, num_items_in_batch=learnt, use_cache=False).loss
    loss.backward()
    losses, found = backward(llava, batch, {"weight": 0.0})
    assert set(losses) == {"loss", "ce"}
    assert torch.equal(losses["loss"], loss)
    assert torch.equal(losses["ce"], loss)
    assert same(found, gradients(model))
    with torch.no_grad():
        torch.testing.assert_close(model(**plain).loss, loss)  # the mean that is their default


def test_texts_alone_are_plain_llava_training_bit_for_bit(llava, only):
    batch = only(LEGAL["texts alone"])
    names = ("input_ids", "attention_mask", "labels")
    loss = llava(**{name: batch[name] for name in names}, use_cache=False).loss
    loss.backward()
    losses, found = backward(llava, batch, {"weight": 0.0})
    assert torch.equal(losses["loss"], loss)
    expected = {name: g for name, g in gradients(llava).items() if g is not None}
    assert same({name: found[name] for name in expected}, expected)


def test_released_without_gradient_trains_what_weight_0_trains(llava, batch):
    _, plain = backward(llava, batch, {"weight": 0.0})
    losses, nograd = backward(llava, batch, {"form": "released_nograd"})
    assert losses["guide"] > 0
    assert same(nograd, plain)
    assert losses["loss"] > losses["ce"]


@pytest.mark.parametrize(
    "objective",
    [{"form": "paper"}, {"form": "released"}, {"form": "contrastive"}, {"reference": "frozen"}],
    ids=str,
)
def test_a_guide_with_gradient_trains_something_else(objective, llava, batch):
    _, plain = backward(llava, batch, {"weight": 0.0})
    _, guided = backward(llava, batch, objective)
    for part in ("projector.linear_1.weight", "language_model.layers.0.self_attn.q_proj.weight"):
        name = next(name for name in plain if name.endswith(part))
        assert (guided[name] - plain[name]).norm() > 1e-3 * plain[name].norm(), part


def test_the_guide_s_weight_follows_its_schedule(llava, batch):
    objective = {"schedule": "linear_decay", "weight": 0.8}
    half, _ = backward(llava, batch, objective, progress=0.5)
    torch.testing.assert_close(half["loss"], half["ce"] + 0.4 * half["guide"])
    end, found = backward(llava, batch, objective, progress=1.0)
    assert "guide" not in end
    assert same(found, backward(llava, batch, {"weight": 0.0})[1])


def texts_of(batch):
    return batch["text_input_ids"], batch["text_attention_mask"], batch["text_span"]


def change(model):
    with torch.no_grad():
        for weight in model.model.language_model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("reference", ["frozen", "live"])
def test_only_the_live_reference_moves_with_the_llm(reference, llava, batch):
    task = AlignmentTask(llava, ObjectiveConfig(reference=reference))
    before_LBD = task.text_states(*texts_of(batch))
    change(llava)
    after_LBD = task.text_states(*texts_of(batch))
    assert torch.equal(before_LBD, after_LBD) == (reference == "frozen")


def test_a_frozen_reference_starts_as_the_live_one(llava, batch):
    live, frozen = (
        AlignmentTask(llava, ObjectiveConfig(reference=reference))(**batch)
        for reference in ("live", "frozen")
    )
    torch.testing.assert_close(live["guide"], frozen["guide"])


def test_a_frozen_reference_is_neither_trained_nor_saved(llava):
    live = AlignmentTask(copy.deepcopy(llava), ObjectiveConfig())
    frozen = AlignmentTask(llava, ObjectiveConfig(reference="frozen"))
    assert frozen.state_dict().keys() == live.state_dict().keys()
    assert len(list(frozen.parameters())) == len(list(live.parameters()))


def test_no_copy_is_made_of_an_llm_that_does_not_move(llava, batch):
    llava.model.language_model.requires_grad_(False)
    task = AlignmentTask(llava, ObjectiveConfig(reference="frozen"))
    assert not task._reference
    assert task(**batch)["guide"].isfinite()


@pytest.mark.parametrize("reference", ["frozen", "live"])
@pytest.mark.parametrize("training", [True, False])
def test_reference_states_carry_no_gradient_and_leave_the_mode(reference, training, llava, batch):
    task = AlignmentTask(llava, ObjectiveConfig(reference=reference)).train(training)
    states_LBD = task.text_states(*texts_of(batch))
    assert not states_LBD.requires_grad
    assert task.lvlm.training == training
    assert all(module.training == training for module in task.lvlm.modules())


def test_with_the_llm_frozen_the_projector_alone_gets_a_gradient(llava, batch):
    llava.requires_grad_(False)
    llava.model.multi_modal_projector.requires_grad_(True)
    AlignmentTask(llava, ObjectiveConfig())(**batch)["loss"].backward()
    found = {name for name, gradient in gradients(llava).items() if gradient is not None}
    assert found == {n for n, _ in llava.named_parameters() if "multi_modal_projector" in n}


def test_activation_checkpointing_gives_the_same_gradients(llava, batch):
    losses, plain = backward(llava, batch, GUIDED)
    llava.activation_checkpointing_enable()
    llava.train()
    model = copy.deepcopy(llava)
    model.model.vision_tower.requires_grad_(False)
    task = AlignmentTask(model, ObjectiveConfig(**GUIDED)).train()
    calls = []
    model.model.language_model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    again = task(**batch)
    forwards = len(calls)
    again["loss"].backward()
    assert len(calls) > forwards, "nothing was computed a second time"
    torch.testing.assert_close(again["loss"], losses["loss"])
    for name, gradient in gradients(model).items():
        if plain[name] is not None:
            torch.testing.assert_close(gradient, plain[name], rtol=1e-4, atol=1e-6)


LEGAL = {
    "texts alone": lambda record: record.image is None,
    "no caption": lambda record: record.image is not None and record.caption is None,
    "no retrieved": lambda record: record.caption is not None and record.retrieved is None,
    "no answer": lambda record: len(record.messages) == 1,
    "texts and no retrieved": lambda record: record.retrieved is None,
    "one row": lambda record: record.row == 1,
}


@pytest.mark.parametrize("reference", ["live", "frozen"])
@pytest.mark.parametrize("similarity", ["cosine", "centered_cosine"])
@pytest.mark.parametrize("kind", LEGAL)
def test_rows_that_lack_something_are_legal(kind, similarity, reference, llava, only):
    batch = only(LEGAL[kind])
    objective = {"similarity": similarity, "reference": reference}
    losses, found = backward(llava, batch, objective)
    assert all(value.isfinite().all() for value in losses.values())
    assert all(gradient.isfinite().all() for gradient in found.values() if gradient is not None)
    assert ("guide" in losses) == bool(batch["caption_mask"].any())
    if kind == "no retrieved":
        assert losses["rank"] == 0
    if kind == "no answer":
        assert losses["ce"] == 0
        torch.testing.assert_close(losses["loss"], losses["guide"])
        assert any(g is not None and g.abs().max() > 0 for g in found.values())


def test_texts_alone_are_learnt_as_without_a_guide(llava, only):
    batch = only(LEGAL["texts alone"])
    guided, found = backward(llava, batch, GUIDED)
    plain, expected = backward(llava, batch, {"weight": 0.0})
    assert torch.equal(guided["loss"], plain["loss"])
    assert same(found, expected)


def test_uncaptioned_rows_take_no_part_in_the_guide(llava, only):
    captioned = only(lambda record: record.caption is not None)
    everything = only(lambda record: True)
    first, _ = backward(llava, captioned, GUIDED)
    second, _ = backward(llava, everything, GUIDED)
    torch.testing.assert_close(first["guide"], second["guide"])


def test_a_step_s_totals_scale_both_losses(llava, batch):
    """Twice the step's learnt tokens and captioned rows: half of either loss, as named."""
    learnt = batch["labels"][:, 1:].ne(-100).sum()
    whole, _ = backward(llava, batch, GUIDED)
    half, _ = backward(
        llava, batch, GUIDED, num_items=2 * learnt, num_guide_rows=2 * batch["caption_mask"].sum()
    )
    for name in ("loss", "ce", "guide", "align", "rank"):
        torch.testing.assert_close(half[name], whole[name] / 2)
    torch.testing.assert_close(half["cosine"], whole["cosine"])


def test_half_precision_products_give_about_the_same(llava, batch):
    whole, _ = backward(llava, batch, GUIDED)
    with torch.autocast("cpu", torch.bfloat16):
        half, found = backward(llava, batch, GUIDED)
    for name in ("ce", "guide"):
        torch.testing.assert_close(half[name], whole[name], rtol=0.05, atol=0.05)
    assert all(g.dtype == torch.float32 for g in found.values() if g is not None)


def test_packed_texts_have_the_states_they_have_alone(llava, rows, encode, collator, batch):
    packed = Collator(collator.pad_token_id, collator.load_pixels, pack=True)(
        encode(rows.records, 0.5)
    )
    assert packed["text_input_ids"].shape[0] < batch["text_input_ids"].shape[0]
    assert packed["text_input_ids"].numel() < batch["text_input_ids"].numel()
    plain, expected = backward(llava, batch, GUIDED)
    losses, found = backward(llava, packed, GUIDED)
    torch.testing.assert_close(losses["guide"], plain["guide"], rtol=1e-5, atol=1e-5)
    for name, gradient in found.items():
        if gradient is not None:
            torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5)


def test_texts_alone_give_the_projector_a_gradient_of_nothing(llava, only):
    """Not none at all: processes that share a step must agree on what has a gradient."""
    _, found = backward(llava, only(LEGAL["texts alone"]), GUIDED)
    projector = [g for name, g in found.items() if "multi_modal_projector" in name]
    assert projector
    assert all(gradient is not None and gradient.eq(0).all() for gradient in projector)
