"""AlignmentTask: one forward computes the cross-entropy and the guide loss together.

Image, caption and retrieved text go through the model inside ONE ``forward``, so that data
parallelism, sharding and compilation see a single call.

Shape suffixes: L layers, B rows, T tokens, D channels.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from tgalign.config import ObjectiveConfig
from tgalign.diagnose.alignment import alignment_by_layer
from tgalign.lora import adapters_of, without
from tgalign.objective import guide_loss
from tgalign.pooling import numbered_means, parse_layers, pool_layers

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration


class AlignmentTask(nn.Module):
    """A LLaVA and its training objective.

    Args:
        lvlm: The model under training.
        objective: What is added to the cross-entropy.
        states_are_kept: Whether every batch to come brings its ``text_states``, computed before
            training: then no copy of the LLM is kept for a frozen reference.

    Attributes:
        layers: Absolute indices of the hidden states that are aligned.
        center_LD: The centre that ``centered_cosine`` subtracts, one row per aligned layer.
        reference_moves: Whether the states of one text change as training goes on.
    """

    center_LD: Tensor

    def __init__(
        self,
        lvlm: LlavaForConditionalGeneration,
        objective: ObjectiveConfig,
        *,
        states_are_kept: bool = False,
    ) -> None:
        super().__init__()
        text: Any = lvlm.config.text_config
        self.lvlm = lvlm
        self.objective = objective
        self.layers = parse_layers(objective.layers, text.num_hidden_layers)
        center_LD = torch.zeros(len(self.layers), text.hidden_size, device=lvlm.device)
        self.register_buffer("center_LD", center_LD)
        moves = any(weight.requires_grad for weight in self._decoder.parameters())
        self.reference_moves = objective.reference == "live" and moves
        frozen = objective.reference == "frozen" and objective.weight > 0 and moves
        self._adapters = adapters_of(self._decoder) if frozen else []
        # A copy is needed only if the LLM moves and is not its frozen self without its adapters.
        # Kept in a tuple, it is no submodule: it is neither trained nor saved.
        self._reference: tuple[nn.Module, ...] = ()
        self._states_are_kept = frozen and states_are_kept
        if frozen and not self._adapters and not states_are_kept:
            self._reference = (copy.deepcopy(self._decoder).requires_grad_(False).eval(),)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        caption_mask: Tensor,
        retrieved_mask: Tensor,
        question_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        text_input_ids: Tensor | None = None,
        text_attention_mask: Tensor | None = None,
        text_span: Tensor | None = None,
        text_position_ids: Tensor | None = None,
        text_number: Tensor | None = None,
        text_states: Tensor | None = None,
        num_items: Tensor | None = None,
        num_guide_rows: Tensor | None = None,
        progress: float = 0.0,
        return_states: bool = False,
    ) -> dict[str, Any]:
        """Compute every named loss of a batch (see ``tgalign.data.collate.Collator``).

        Args:
            input_ids: Conversations, (B, T).
            attention_mask: 1 on tokens, 0 on padding, (B, T).
            labels: What is learnt, -100 elsewhere, (B, T).
            caption_mask: Rows with an image and a caption, (B,).
            retrieved_mask: Rows with a retrieved text besides, (B,).
            question_mask: True on the tokens that are averaged in place of the picture's, (B, T).
            pixel_values: One entry per image token span of ``input_ids``, in order.
            text_input_ids: The captions of the rows in ``caption_mask``, then the retrieved texts
                of those in ``retrieved_mask``.
            text_attention_mask: 1 on tokens, 0 on padding.
            text_span: True on the tokens that are averaged.
            text_position_ids: Of texts that share rows, in place of ``text_attention_mask``.
            text_number: Of those, in place of ``text_span``: the text a token is averaged for.
            text_states: In place of all these, what ``text_states`` gives of them, (N, L, D).
            num_items: Learnt tokens of the whole optimizer step; by default of this batch.
            num_guide_rows: Rows with a caption of the whole step; by default of this batch.
            progress: Share of the stage's steps already done.
            return_states: Whether to return the aligned hidden states too.

        Returns:
            ``loss`` (what is minimised), ``ce`` (nats per learnt token), and with captions
            ``guide`` and its parts, unweighted, and per aligned layer ``cosine``,
            ``centered_cosine`` and ``caption_retrieval``, these without gradient; if asked for,
            ``hidden_states``, a list of (B, T, D).
        """
        weight = self.objective.weight_at(progress)
        guided = weight > 0 and (text_input_ids is not None or text_states is not None)
        if num_items is None:
            num_items = labels[:, 1:].ne(-100).sum()
        # Encoded apart: transformers 5.24 hands the LLM's layer selection to the vision tower too.
        images = (
            None
            if pixel_values is None
            else {"image": self.lvlm.get_image_features(pixel_values, return_dict=True)}
        )
        nothing = self._nothing_of_the_projector() if images is None else None
        outputs = self.lvlm(
            input_ids=input_ids if nothing is None else None,
            inputs_embeds=None if nothing is None else self._embeddings(input_ids) + nothing,
            attention_mask=attention_mask,
            mm_encoder_outputs=images,
            labels=labels,
            num_items_in_batch=num_items.clamp_min(1),
            output_hidden_states=self.layers if guided else False,
            use_cache=False,
        )
        losses: dict[str, Any] = {"loss": outputs.loss, "ce": outputs.loss}
        if not guided:
            return losses
        guided_BT = self.guided_tokens(input_ids, question_mask)
        image_LBD, _ = pool_layers(outputs.hidden_states, self.layers, guided_BT)
        num_captions = int(caption_mask.sum())
        if text_states is not None:
            text_LBD = text_states.transpose(0, 1)
        else:
            assert text_input_ids is not None
            assert not self._states_are_kept, "texts without their states, and no reference left"
            if text_position_ids is not None:
                assert text_number is not None
                count = num_captions + int(retrieved_mask.sum())
                text_LBD = self.packed_text_states(
                    text_input_ids, text_position_ids, text_number, count
                )
            else:
                assert text_attention_mask is not None and text_span is not None
                text_LBD = self.text_states(text_input_ids, text_attention_mask, text_span)
        caption_LBD = torch.zeros_like(image_LBD, dtype=text_LBD.dtype)
        retrieved_LBD = torch.zeros_like(caption_LBD)
        caption_LBD[:, caption_mask] = text_LBD[:, :num_captions]
        retrieved_LBD[:, retrieved_mask] = text_LBD[:, num_captions:]
        parts = guide_loss(
            image_LBD,
            caption_LBD,
            retrieved_LBD,
            form=self.objective.form,
            similarity=self.objective.similarity,
            pair=self.objective.pair,
            mask_B=caption_mask,
            retrieved_mask_B=retrieved_mask,
            center_LD=self._center(),
            progress=progress,
            temperature=self.objective.temperature,
        )
        # guide_loss averages over this batch's rows; the step's average is over all its rows.
        share = 1.0 if num_guide_rows is None else num_captions / num_guide_rows.clamp_min(1)
        losses |= {name: value * share for name, value in parts.items()}
        losses["loss"] = losses["loss"] + weight * losses["guide"]
        if return_states:
            losses["hidden_states"] = [outputs.hidden_states[layer] for layer in self.layers]
        if num_captions:
            with torch.no_grad():
                losses |= alignment_by_layer(
                    image_LBD[:, caption_mask],
                    caption_LBD[:, caption_mask],
                    center_LD=self._center(),
                )
        return losses

    def guided_tokens(self, input_ids: Tensor, question_mask: Tensor | None) -> Tensor:
        """The tokens whose states are pulled, bool (B, T): the question's, or else the image's."""
        if question_mask is not None:
            return question_mask
        return cast("Tensor", input_ids == self.lvlm.config.image_token_id)

    @torch.no_grad()
    def text_states(self, input_ids: Tensor, attention_mask: Tensor, span_BT: Tensor) -> Tensor:
        """Mean states of texts where an image would stand, from the reference.

        Args:
            input_ids: Token ids, (B, T).
            attention_mask: 1 on tokens, 0 on padding, (B, T).
            span_BT: True on the tokens that are averaged.

        Returns:
            (L, B, D), without gradient.
        """
        hidden_states = self._of_reference(input_ids, attention_mask=attention_mask)
        states_LBD, _ = pool_layers(hidden_states, self.layers, span_BT)
        return states_LBD

    @torch.no_grad()
    def packed_text_states(
        self, input_ids: Tensor, position_ids: Tensor, number_BT: Tensor, count: int
    ) -> Tensor:
        """The same of texts several of which share a row.

        Args:
            input_ids: Token ids, (B, T).
            position_ids: Positions, which begin anew with every text, (B, T).
            number_BT: The number of the text that a token is averaged for, negative for none.
            count: How many texts there are, N.

        Returns:
            (L, N, D), without gradient.
        """
        if self.lvlm.config._attn_implementation.startswith("flash"):  # knows only one row of them
            input_ids, position_ids = input_ids.view(1, -1), position_ids.view(1, -1)
        hidden_states = self._of_reference(input_ids, position_ids=position_ids)
        return torch.stack(
            [numbered_means(hidden_states[layer], number_BT, count) for layer in self.layers]
        )

    def _of_reference(self, input_ids: Tensor, **arguments: Tensor) -> Any:
        decoder: nn.Module = self._reference[0] if self._reference else self._decoder
        training = decoder.training
        decoder.to(input_ids.device).eval()
        with without(self._adapters):
            outputs = decoder(
                input_ids=input_ids,
                output_hidden_states=self.layers,
                use_cache=False,
                **arguments,
            )
        decoder.train(training)
        return outputs.hidden_states

    @property
    def _decoder(self) -> nn.Module:
        return cast("nn.Module", self.lvlm.model.language_model)

    def _embeddings(self, input_ids: Tensor) -> Tensor:
        return cast("Tensor", self.lvlm.get_input_embeddings()(input_ids))

    def _nothing_of_the_projector(self) -> Tensor | None:
        """Zero, made of the trained projector, for batches without a picture.

        Added to the embeddings, it makes gradients flow as they do with a picture: processes that
        share a step must agree on what has a gradient, and under FSDP2 on the layers it passes.
        """
        weights = self.lvlm.model.multi_modal_projector.parameters()
        trained = [weight.sum() * 0.0 for weight in weights if weight.requires_grad]
        return torch.stack(trained).sum() if trained else None

    def _center(self) -> Tensor | None:
        return self.center_LD if self.objective.similarity == "centered_cosine" else None
