"""Estimate the memory of a training stage from the model's config alone, without its weights.

Weights, gradients and optimizer state are counted. So is what the forward pass keeps for the
gradients, by running the LLM with one and with two layers on fake tensors, which have shapes and no
content: the difference is a layer.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tgalign.config import StageConfig, TrainConfig
from tgalign.lora import linear_layers

if TYPE_CHECKING:
    from transformers import LlavaConfig

FORMULA = (
    "weights: 4 bytes each, but 2 each where none trains it with frozen_weights: bf16",
    "gradients: 4 bytes a trained weight; optimizer: 8 (AdamW's two averages)",
    "reference: 4 bytes a weight of the LLM's frozen copy, where an objective needs one",
    "activations: what a forward pass of batch_size rows of max_length tokens keeps for its "
    "gradients, ends + layers × one layer, or with activation_checkpointing ends + one layer + "
    "layers × a layer's input; the ends are projector, embeddings, head, loss and the gradient of "
    "the logits",
    "fsdp2 shares weights, gradients and optimizer among the processes, ddp nothing",
    "loading: what the weights take beyond the rest before fsdp2 shares them, when every process "
    "has them all on its device",
    "not counted: fragmentation, and the passes of pictures and texts that keep nothing",
)


def count(weights: Iterable[nn.Parameter]) -> int:
    """How many numbers parameters hold; tied ones count once."""
    return sum(weight.numel() for weight in set(weights))


def part_sizes(model: Any, config: TrainConfig) -> dict[str, int]:
    """Weights of a LLaVA by part.

    Returns:
        ``vision``, ``projector``, ``llm`` (with its head) and ``adapters``, which ``lora`` would
        add: rank × (inputs + outputs) of each layer that gets one.
    """
    inner = model.model
    llm = [*inner.language_model.parameters(), *model.lm_head.parameters()]
    adapters = 0
    if config.lora is not None:
        wanted = config.lora.target_modules
        for name, module in linear_layers(inner.language_model):
            if wanted is None or name in wanted:
                adapters += config.lora.r * sum(module.weight.shape)
    return {
        "vision": count(inner.vision_tower.parameters()),
        "projector": count(inner.multi_modal_projector.parameters()),
        "llm": count(llm),
        "adapters": adapters,
    }


def trained_sizes(sizes: dict[str, int], config: TrainConfig, stage: StageConfig) -> dict[str, int]:
    """The parts that a stage trains, of those that ``part_sizes`` gives."""
    parts = {"projector": "projector", "llm": "llm" if config.lora is None else "adapters"}
    return {parts[part]: sizes[parts[part]] for part in stage.train}


def stage_memory(
    model: Any, config: TrainConfig, stage: StageConfig, processes: int
) -> dict[str, float]:
    """Bytes that one process needs for a stage, by use (``FORMULA``).

    Args:
        model: The LLaVA, on the meta device.
        config: The run.
        stage: The stage.
        processes: How many processes share it.

    Returns:
        ``weights``, ``gradients``, ``optimizer``, ``reference``, ``activations`` and ``loading``.
    """
    sizes = part_sizes(model, config)
    trained = trained_sizes(sizes, config, stage)
    # What any stage trains is float32 all along; adapters are there while they are trained.
    any_stage: dict[str, int] = {}
    for it in config.stages:
        any_stage |= trained_sizes(sizes, config, it)
    adapters = any_stage.pop("adapters", 0) if "adapters" in trained else 0
    any_stage.pop("adapters", 0)
    whole = sum(any_stage.values())
    frozen = sizes["vision"] + sizes["projector"] + sizes["llm"] - whole
    shared = processes if config.parallel == "fsdp2" else 1
    objective = stage.objective
    copied = objective.reference == "frozen" and objective.weight > 0 and "llm" in trained
    states_are_kept = config.cache_text and not config.probes
    decoder = count(model.model.language_model.parameters())
    weights = 4 * (whole + adapters) + _frozen_bytes(config) * frozen
    uses = {
        "weights": weights / shared,
        "gradients": 4 * sum(trained.values()) / shared,
        "optimizer": 8 * sum(trained.values()) / shared,
        "reference": 4 * decoder if copied and not states_are_kept else 0,
        "activations": _activations(model.config, config, stage),
    }
    return uses | {"loading": max(0.0, weights - sum(uses.values()))}


def _frozen_bytes(config: TrainConfig) -> int:
    return 2 if config.frozen_weights == "bf16" else 4


def _activations(llava: LlavaConfig, config: TrainConfig, stage: StageConfig) -> float:
    one, layer_input = kept_bytes(llava, config, stage, num_layers=1)
    two, _ = kept_bytes(llava, config, stage, num_layers=2)
    layer = two - one
    text: Any = llava.text_config
    logits_gradient = 4 * stage.batch_size * config.max_length * text.vocab_size
    ends = one - layer + logits_gradient
    if config.activation_checkpointing:
        return float(ends + layer + text.num_hidden_layers * layer_input)
    return float(ends + text.num_hidden_layers * layer)


def kept_bytes(
    llava: LlavaConfig,
    config: TrainConfig,
    stage: StageConfig,
    *,
    num_layers: int,
    mode: Any = None,
) -> tuple[int, int]:
    """Bytes that a forward pass keeps beside the weights, and of these a layer's input.

    Args:
        llava: The model's config.
        config: The run.
        stage: Its ``batch_size`` rows of ``max_length`` tokens, a picture each, are passed.
        num_layers: Of the LLM, in place of the config's.
        mode: In which all is computed; by default on fake tensors.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import LlavaForConditionalGeneration

    small: Any = copy.deepcopy(llava)
    small.text_config.num_hidden_layers = num_layers
    if getattr(small.text_config, "layer_types", None):
        small.text_config.layer_types = small.text_config.layer_types[:num_layers]
    small.vision_config.num_hidden_layers = 1
    attention = "eager" if config.attention == "eager" else "sdpa"  # flash keeps what sdpa keeps
    kept: dict[int, tuple[int, Any]] = {}
    with torch.device("meta"):
        model: Any = LlavaForConditionalGeneration._from_config(
            small, attn_implementation=attention
        )
    trains_llm = "llm" in stage.train
    half = config.frozen_weights == "bf16" and (config.lora is not None or not trains_llm)
    with mode or FakeTensorMode():
        # With adapters a layer keeps its input as if it were trained itself.
        _fill(model.model.language_model, torch.bfloat16 if half else torch.float32, trains_llm)
        if small.text_config.tie_word_embeddings:
            model.lm_head.weight = model.model.language_model.get_input_embeddings().weight
        trains_head = trains_llm and config.lora is None
        _fill(model.lm_head, torch.bfloat16 if half else torch.float32, trains_head)
        _fill(model.model.multi_modal_projector, torch.float32, True)
        weights = {weight.untyped_storage()._cdata for weight in model.parameters()}

        def keep(value: Tensor) -> Tensor:
            storage = value.untyped_storage()
            if storage._cdata not in weights:
                kept[storage._cdata] = storage.nbytes(), storage
            return value

        channels = small.vision_config.hidden_size
        features = torch.zeros(stage.batch_size, small.image_seq_length, channels)
        ids = torch.zeros(
            stage.batch_size, config.max_length - small.image_seq_length, dtype=torch.long
        )
        labels = torch.zeros(stage.batch_size, config.max_length, dtype=torch.long)
        with (
            torch.autocast("cpu", torch.bfloat16, config.precision == "bf16"),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value),
        ):
            image = model.model.multi_modal_projector(features)
            text = model.model.language_model.get_input_embeddings()(ids)
            states = torch.cat([image.to(text.dtype), text], dim=1)
            out = model.model.language_model(inputs_embeds=states, use_cache=False)
            logits = model.lm_head(out.last_hidden_state)
            model.loss_function(logits, labels, vocab_size=small.text_config.vocab_size)
        return sum(size for size, _ in kept.values()), states.untyped_storage().nbytes()


def _fill(module: nn.Module, dtype: torch.dtype, trained: bool) -> None:
    """Give a module on the meta device weights, without values, on the device at hand."""
    for part in module.modules():
        for name, weight in part.named_parameters(recurse=False):
            if weight.is_meta:
                value = torch.empty(weight.shape, dtype=dtype)
                part.register_parameter(name, nn.Parameter(value, requires_grad=trained))
        for name, buffer in part.named_buffers(recurse=False):
            part.register_buffer(name, torch.empty(buffer.shape, dtype=buffer.dtype))
