"""The lab's tokenizer: word-level, lower-casing, with the chat template of the base model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tgalign.lab.language import vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# <eos> is not number 2: CLIP takes that id to mean "the largest id", a rule for old checkpoints.
SPECIAL = ("<pad>", "<bos>", "<unk>", "<eos>", "<user>", "<assistant>", "<image>")

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<user>' if message['role'] == 'user' else '<assistant>' }} "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for item in message['content'] %}"
    "{{ '<image>' if item['type'] == 'image' else item['text'] }} "
    "{% endfor %}{% endif %}"
    "{% if message['role'] != 'user' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A fast tokenizer over the lab's vocabulary; ``<image>`` is one special token."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [word for word in vocabulary() if word not in SPECIAL]
    vocab = {word: index for index, word in enumerate((*SPECIAL, *words))}
    core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        extra_special_tokens={
            "user_token": "<user>",
            "assistant_token": "<assistant>",
            "image_token": "<image>",
        },
        chat_template=CHAT_TEMPLATE,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )
