"""Train the lab's base LLM: a small stock Llama that reads, answers and refuses, text only.

It never sees an image. Two phases, as reading has to come before robustness: clean captions until
copying has emerged, then captions out of order, repeated and blurred (neighbouring embeddings
mixed, Gaussian noise added), so that what it reads need not be perfect text.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tgalign.lab.language import TextExample, text_example
from tgalign.lab.precision import fast_products

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

# Shape legend: B rows, T tokens, D channels.

CLEAN_STEPS = 1_000
MESSY_STEPS = 2_400
BATCH_SIZE = 96
BUCKETS = 5
LEARNING_RATE = 1.5e-3
WIDTH = 128
IGNORE_INDEX = -100


def new_llm(tokenizer: PreTrainedTokenizerFast, *, width: int = WIDTH) -> LlamaForCausalLM:
    """A fresh Llama of the lab's kind with embeddings of unit scale (RMS 1 per channel).

    Args:
        tokenizer: The lab's tokenizer.
        width: Channels, a multiple of 8.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model: LlamaForCausalLM = LlamaForCausalLM._from_config(config, attn_implementation="eager")
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=1.0)
    return model


def text_batch(
    examples: list[TextExample], tokenizer: PreTrainedTokenizerFast
) -> tuple[dict[str, Tensor], Tensor]:
    """Tokenised exchanges, right-padded; only answers carry labels.

    Returns:
        ``input_ids``, ``attention_mask``, ``labels`` of shape (B, T), and a mask (B, T) that is
        True on the tokens of the context.
    """
    rows = []
    for example in examples:
        context = tokenizer.encode(f"<bos> <user> {example.context}", add_special_tokens=False)
        question = tokenizer.encode(f"{example.question} <assistant>", add_special_tokens=False)
        answer = tokenizer.encode(f"{example.answer} <eos>", add_special_tokens=False)
        rows.append((context, question, answer))
    longest = max(len(c) + len(q) + len(a) for c, q, a in rows)
    ids_BT = torch.full((len(rows), longest), tokenizer.pad_token_id)
    labels_BT = torch.full_like(ids_BT, IGNORE_INDEX)
    context_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    mask_BT = torch.zeros_like(ids_BT)
    for row, (context, question, answer) in enumerate(rows):
        start, end = len(context) + len(question), len(context) + len(question) + len(answer)
        ids_BT[row, :end] = torch.tensor(context + question + answer)
        labels_BT[row, start:end] = torch.tensor(answer)
        context_BT[row, 2 : len(context)] = True
        mask_BT[row, :end] = 1
    return {"input_ids": ids_BT, "attention_mask": mask_BT, "labels": labels_BT}, context_BT


def blur(embeds_BTD: Tensor, context_BT: Tensor, generator: torch.Generator) -> Tensor:
    """Mix each context embedding with its right neighbour's and add noise, row by row at random.

    Half of the rows stay as they are. Of the others a share a ~ U(0, 0.5) comes from the next
    token, and noise of relative size U(0, 0.5) is added.
    """
    rows = embeds_BTD.shape[0]
    chosen_B11 = torch.rand(rows, 1, 1, generator=generator) < 0.5
    share_B11 = torch.rand(rows, 1, 1, generator=generator) * 0.5
    size_B11 = torch.rand(rows, 1, 1, generator=generator) * 0.5
    shifted_BTD = torch.cat([embeds_BTD[:, 1:], embeds_BTD[:, -1:]], dim=1)
    next_is_context_BT1 = torch.cat(
        [context_BT[:, 1:], torch.zeros_like(context_BT[:, :1])], dim=1
    ).unsqueeze(-1)
    neighbour_BTD = torch.where(next_is_context_BT1, shifted_BTD, embeds_BTD)
    noise_BTD = torch.randn(embeds_BTD.shape, generator=generator)
    scale = embeds_BTD.detach().pow(2).mean().sqrt()
    soft_BTD = (1 - share_B11) * embeds_BTD + share_B11 * neighbour_BTD
    soft_BTD = soft_BTD + size_B11 * scale * noise_BTD
    return torch.where(chosen_B11 & context_BT.unsqueeze(-1), soft_BTD, embeds_BTD)


def _bucketed(rng: random.Random, messy: float) -> list[list[TextExample]]:
    """``BUCKETS`` batches of similar length in random order, so that little is padding."""
    examples = [text_example(rng, messy=messy) for _ in range(BATCH_SIZE * BUCKETS)]
    examples.sort(key=lambda example: len(example.prompt.split()))
    batches = [examples[i : i + BATCH_SIZE] for i in range(0, len(examples), BATCH_SIZE)]
    rng.shuffle(batches)
    return batches


def train_llm(
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    *,
    width: int = WIDTH,
    steps: tuple[int, int] | None = None,
) -> Iterator[tuple[int, float, object]]:
    """Train the base LLM, yielding (steps done, loss, model) after every step.

    Args:
        tokenizer: The lab's tokenizer.
        seed: Seed of weights, texts and noise.
        width: Channels; the shipped model has ``WIDTH``.
        steps: Steps on clean captions, then on messy ones too; by default those of the shipped
            model.

    Yields:
        The number of finished steps, the cross-entropy of the last one (nats per answer token),
        and the model itself.
    """
    torch.manual_seed(seed)
    rng = random.Random(f"base-llm-{seed}")
    generator = torch.Generator().manual_seed(seed)
    model = new_llm(tokenizer, width=width)
    steps = steps or (CLEAN_STEPS, MESSY_STEPS)
    total = sum(steps)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, (0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total, pct_start=0.05, cycle_momentum=False
    )
    buckets: list[list[TextExample]] = []
    for step in range(total):
        messy = step >= steps[0]
        if step % BUCKETS == 0:
            buckets = _bucketed(rng, messy=0.5 if messy else 0.0)
        batch, context_BT = text_batch(buckets.pop(), tokenizer)
        embeds_BTD = model.get_input_embeddings()(batch["input_ids"])
        if messy:
            embeds_BTD = blur(embeds_BTD, context_BT, generator)
        with fast_products():
            loss = model(
                inputs_embeds=embeds_BTD,
                attention_mask=batch["attention_mask"],
                labels=batch["labels"],
            ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        yield step + 1, loss.item(), model
