r"""A place for pictures in a language model's tokenizer: ``<image>`` and its slot in the template.

A text chat is rendered as before, byte for byte. A turn whose content is a list of items is given
to the language model's own template as one string: its items joined by line breaks, an image item
as ``<image>``, so that a picture stands as in LLaVA-1.5, ``<image>\n{question}``, and a caption in
the picture's place stands where the picture would.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tgalign.data.records import IMAGE_TOKEN
from tgalign.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The line break after the last tag is taken away by the trim_blocks that transformers renders with,
# so that the template behind begins a line, as it did alone.
SLOT = (
    "{%- set image_slot = namespace(messages=[], text='') -%}"
    "{%- for message in messages -%}"
    "{%- if message['content'] is defined and message['content'] is iterable"
    " and message['content'] is not string and message['content'] is not mapping -%}"
    "{%- set image_slot.text = '' -%}"
    "{%- for item in message['content'] -%}"
    "{%- if item['type'] not in ['image', 'text'] -%}"
    "{{- raise_exception('this model takes items of type image and text, got ' ~ item['type']) -}}"
    "{%- endif -%}"
    "{%- set image_slot.text = image_slot.text ~ ('' if loop.first else '\\n')"
    f" ~ ('{IMAGE_TOKEN}' if item['type'] == 'image' else item['text']) -%}}"
    "{%- endfor -%}"
    "{%- set message = dict(message, content=image_slot.text) -%}"
    "{%- endif -%}"
    "{%- set image_slot.messages = image_slot.messages + [message] -%}"
    "{%- endfor -%}"
    "{%- set messages = image_slot.messages %}\n"
)
"""What goes before a language model's chat template."""

DEFAULT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'USER: ' ~ message['content'] ~ ' ' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ 'ASSISTANT: ' ~ message['content'] ~ eos_token }}"
    "{% else %}{{ message['content'] ~ '\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""The template of a base model that has none: the turns of LLaVA-1.5, each answer closed by the end
of sequence. A tokenizer that begins texts with a token has it put before."""


def add_image_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Make ``<image>`` one special token of a tokenizer, and see that it can pad.

    Args:
        tokenizer: Changed in place. One without a token for padding gets its unknown token, as
            LLaVA-1.5, or where there is none or it is the end of sequence too, ``<pad>``.

    Returns:
        The id of ``<image>``.

    Raises:
        UserError: The tokenizer splits the token all the same, or gives no character offsets.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"{type(tokenizer).__name__} gives no character offsets, which training needs: "
            "expected a fast tokenizer (tokenizer.json)"
        )
    if not _is_one_token(tokenizer):
        tokenizer.add_special_tokens(
            {"extra_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False
        )
        if not _is_one_token(tokenizer):
            raise UserError(
                f"the tokenizer splits {IMAGE_TOKEN} though it was added as a special token; add "
                "it to tokenizer.json first"
            )
    if tokenizer.pad_token is None:
        unknown = tokenizer.unk_token
        fit = unknown is not None and unknown != tokenizer.eos_token
        tokenizer.add_special_tokens({"pad_token": unknown if fit else "<pad>"})
    return tokenizer.get_vocab()[IMAGE_TOKEN]


def _is_one_token(tokenizer: PreTrainedTokenizerBase) -> bool:
    ids = tokenizer.encode(f"a{IMAGE_TOKEN}\na", add_special_tokens=False)
    image_id = tokenizer.get_vocab().get(IMAGE_TOKEN)
    return image_id in tokenizer.all_special_ids and ids.count(image_id) == 1


def add_image_slot(tokenizer: PreTrainedTokenizerBase) -> str:
    """Give the chat template of a tokenizer a place for pictures.

    Args:
        tokenizer: Changed in place.

    Returns:
        ``"kept"`` (the template knew image items), ``"image slot added"`` or ``"default"`` (there
        was none).
    """
    if tokenizer.chat_template is None:
        begins = tokenizer.encode("a")[:1] == [tokenizer.bos_token_id]
        tokenizer.chat_template = SLOT + ("{{ bos_token }}" if begins else "") + DEFAULT_TEMPLATE
        return "default"
    if _knows_images(tokenizer):
        return "kept"
    if isinstance(tokenizer.chat_template, dict):
        named = tokenizer.chat_template.items()
        tokenizer.chat_template = {name: SLOT + template for name, template in named}
    else:
        tokenizer.chat_template = SLOT + tokenizer.chat_template
    return "image slot added"


def _knows_images(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template writes ``<image>`` for an image item, and the text beside it."""
    items: Any = [{"type": "image"}, {"type": "text", "text": "a question"}]
    try:
        text = tokenizer.apply_chat_template([{"role": "user", "content": items}], tokenize=False)
    except Exception:  # a template that takes strings alone fails on a list in any way
        return False
    return isinstance(text, str) and text.count(IMAGE_TOKEN) == 1 and "a question" in text
