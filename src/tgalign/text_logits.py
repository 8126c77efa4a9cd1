"""Text logits: what a language model says of random texts, which a LLaVA made of it must say too.

Named causes for which stock LLaVA cannot carry a language model are refused first, as weights may
hide them (a head bias of zeros); the comparison finds whatever else an unknown architecture loses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tgalign.errors import UserError

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, PreTrainedModel

# Shape legend: B texts, T tokens, S tokens and decoding steps, V vocabulary.

TOLERANCE = 1e-4
"""Largest difference of two float32 logits that counts as none."""
TEXTS, TOKENS, DECODED = 4, 16, 4
"""Random texts, their length, and how many of their tokens are decoded one by one besides."""
SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap", "softcap")
SCALES = ("logits_scaling", "logit_scale", "lm_head_multiplier")


def require_carried(llm: PreTrainedModel) -> None:
    """Refuse a language model with a part that stock LLaVA has no place for.

    Raises:
        UserError: Naming the part.
    """
    config: Any = llm.config.get_text_config(decoder=True)
    head, embeddings = llm.get_output_embeddings(), llm.get_input_embeddings()
    lost = None
    if llm.config.is_encoder_decoder:
        lost = "an encoder: it is no decoder alone"
    elif cap := next((key for key in SOFT_CAPS if getattr(config, key, None)), None):
        lost = f"final-logit soft-capping ({cap}={getattr(config, cap)})"
    elif scale := next(
        (key for key in SCALES if getattr(config, key, None) not in (None, 1)), None
    ):
        lost = f"logit scaling ({scale}={getattr(config, scale)})"
    elif _has_alibi(config):
        lost = "ALiBi: its penalty by distance would count the tokens of a picture as words"
    elif getattr(config, "hidden_size_per_layer_input", 0):
        lost = "per-layer embeddings: they are looked up by token, and a picture has none"
    elif not isinstance(embeddings, nn.Embedding) or embeddings.embedding_dim != config.hidden_size:
        lost = f"an odd embedding path: words do not enter as {config.hidden_size} channels"
    elif type(head) is not nn.Linear or head.weight.shape != embeddings.weight.shape:
        lost = (
            f"an odd LM head: it is no linear map from {config.hidden_size} channels to the words"
        )
    elif head.bias is not None:
        lost = "an LM head bias"
    if lost:
        raise UserError(
            f"stock LLaVA cannot carry this {config.model_type!r} model, as it has {lost}; compose "
            "with a language model without it"
        )


def _has_alibi(config: Any) -> bool:
    attention = getattr(config, "attn_config", None)
    return (
        config.model_type == "bloom"
        or bool(getattr(config, "alibi", False) or getattr(attention, "alibi", False))
        or getattr(config, "position_embedding_type", None) == "alibi"
    )


@dataclass(frozen=True)
class TextProbe:
    """Random texts, the first one padded on the left, and a language model's logits for them.

    Attributes:
        ids_BT: The token ids.
        mask_BT: 1 on tokens, 0 on padding.
        logits_BSV: What the language model gives of them (see ``_logits``), float32.
        dtype: Of the language model.
    """

    ids_BT: Tensor
    mask_BT: Tensor
    logits_BSV: Tensor
    dtype: torch.dtype

    @property
    def allowed(self) -> float:
        """The difference allowed: ``TOLERANCE``, or in a short dtype two roundings of a logit."""
        if self.dtype == torch.float32:
            return TOLERANCE
        return max(TOLERANCE, 2 * torch.finfo(self.dtype).eps * float(self.logits_BSV.abs().max()))

    @classmethod
    def of(cls, llm: PreTrainedModel, avoid: set[int]) -> TextProbe:
        """Draw texts and let the language model read them.

        Args:
            llm: The language model.
            avoid: Ids that are not to be drawn: special tokens. What ends an answer is not either.

        Raises:
            UserError: It cannot read them itself, or its logits are no numbers.
        """
        embeddings: Any = llm.get_input_embeddings()
        ends = llm.generation_config.eos_token_id
        avoid = avoid | set(ends if isinstance(ends, list) else [ends])
        words = torch.tensor([i for i in range(embeddings.num_embeddings) if i not in avoid])
        drawn = torch.randint(
            len(words), (TEXTS, TOKENS), generator=torch.Generator().manual_seed(0)
        )
        ids_BT = words[drawn]
        mask_BT = torch.ones_like(ids_BT)
        mask_BT[0, : TOKENS // 4] = 0
        kind = llm.config.model_type
        try:
            logits_BSV = _logits(llm, ids_BT, mask_BT)
        except Exception as fault:  # whatever a model raises that is no decoder
            raise UserError(f"the {kind!r} language model cannot read texts: {fault}") from fault
        if not logits_BSV.isfinite().all():
            raise UserError(f"the {kind!r} language model's own logits are not finite numbers")
        return cls(ids_BT, mask_BT, logits_BSV, llm.dtype)

    def compare(self, model: LlavaForConditionalGeneration) -> float:
        """The largest difference between a LLaVA's logits and the language model's.

        Returns:
            The largest absolute difference over the language model's own vocabulary.

        Raises:
            UserError: It exceeds ``allowed``, or the LLaVA cannot read the texts.
        """
        text: Any = model.config.text_config
        kind = text.model_type
        try:
            logits_BSV = _logits(model, self.ids_BT, self.mask_BT)
        except Exception as fault:  # whatever an architecture raises that LLaVA does not fit
            raise UserError(f"stock LLaVA cannot run a {kind!r} model: {fault}") from fault
        ours_BSV = logits_BSV[..., : self.logits_BSV.shape[-1]]
        worst = float((ours_BSV - self.logits_BSV).abs().max())
        if not worst <= self.allowed:  # NaN too
            raise UserError(
                f"the composed model's text-only logits differ from the language model's by up to "
                f"{worst:.2g} (allowed: {self.allowed:.2g}): stock LLaVA cannot carry this "
                f"{kind!r} model"
            )
        return worst


@torch.no_grad()
def _logits(model: Any, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Logits of every token, then of the last ``DECODED`` ones decoded with the cache."""
    from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

    class Forced(LogitsProcessor):
        """Lets only the next token of the texts be generated."""

        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            next_B1 = ids_BT[:, input_ids.shape[1], None]
            return torch.full_like(scores, -torch.inf).scatter(1, next_B1, 0.0)

    model.eval()
    whole_BTV = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
    start = ids_BT.shape[1] - DECODED
    decoded = model.generate(
        input_ids=ids_BT[:, :start],
        attention_mask=mask_BT[:, :start],
        logits_processor=LogitsProcessorList([Forced()]),
        generation_config=GenerationConfig(
            max_new_tokens=DECODED,
            do_sample=False,
            num_beams=1,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        ),
    )
    steps_BTV = torch.stack(decoded.logits, dim=1)
    whole_BTV = whole_BTV.masked_fill(mask_BT[..., None] == 0, 0)  # on padding it means nothing
    return torch.cat([whole_BTV, steps_BTV], dim=1).float()
