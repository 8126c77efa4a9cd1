"""The token ``<image>`` and the chat template's slot for it; text chats stay as they were."""

import copy

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import clip_processor, new_llm, new_tokenizer, new_vision
from tokenizers import AddedToken

from tgalign.compose import compose_models
from tgalign.errors import UserError
from tgalign.image_slot import SLOT, add_image_slot, add_image_token

# Templates of the kinds in use: what begins with white space, trims, loops over `messages` twice,
# slices it, defines macros over it, takes lists of items itself, or refuses roles.
TEMPLATES = {
    "mistral": "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}",
    "chatml": "{%- if messages[0]['role'] == 'system' %}\n"
    "    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}\n"
    "{%- else %}\n    {{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}\n{%- endif %}\n"
    "{%- for message in messages %}\n"
    "    {%- if message.role == 'user' or message.role == 'assistant' %}\n"
    "        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\n"
    "    {%- endif %}\n{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n",
    "llama3": "{{- bos_token }}\n{%- if messages[0]['role'] == 'system' %}\n"
    "    {%- set system_message = messages[0]['content']|trim %}\n"
    "    {%- set messages = messages[1:] %}\n{%- else %}\n"
    '    {%- set system_message = "" %}\n{%- endif %}\n'
    '{{- "<|start|>system<|end|>\\n\\n" }}\n{{- system_message }}\n'
    "{%- for message in messages %}\n"
    "    {{- '<|start|>' + message['role'] + '<|end|>\\n\\n' + message['content'] | trim }}\n"
    "{%- endfor %}\n",
    "gemma": "{{ bos_token }}\n{%- for message in messages -%}\n"
    "    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}\n"
    "    {{ '<start_of_turn>' + role + '\\n' }}\n"
    "    {%- if message['content'] is string -%}\n        {{ message['content'] | trim }}\n"
    "    {%- elif message['content'] is iterable -%}\n"
    "        {%- for item in message['content'] -%}\n"
    "            {%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}\n"
    "            {%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}\n"
    "        {%- endfor -%}\n    {%- endif -%}\n    {{ '<end_of_turn>\\n' }}\n{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}\n",
    "white": "\n\n  {% for message in messages %}\n  {{ message.content }}\n {% endfor %}\n tail\n",
    "indented": "   {% if messages %}{{ messages|length }}{% endif %} x\n",
    "macro": "{% macro said(number) %}{{ messages[number]['content'] }}{% endmacro %}"
    "{% for message in messages %}{{ loop.index }}: {{ said(loop.index0) }}{% endfor %}",
    "bare": "{% for message in messages %}{{ message.content }}|{% endfor %}",
}
ROLES = ("user", "assistant")
SLOWLY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=50)
TURNS = st.lists(st.text(max_size=12), min_size=1, max_size=5)


def with_template(template):
    tokenizer = new_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


SOURCES = {name: with_template(template) for name, template in TEMPLATES.items()}
SLOTTED = copy.deepcopy(SOURCES)
for slotted in SLOTTED.values():
    assert add_image_slot(slotted) == "image slot added"


def chat(contents, system=None):
    turns = [{"role": ROLES[i % 2], "content": content} for i, content in enumerate(contents)]
    return ([{"role": "system", "content": system}] if system is not None else []) + turns


def render(tokenizer, turns, prompt=True):
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt)


@pytest.mark.parametrize("name", TEMPLATES)
@SLOWLY
@given(contents=TURNS, system=st.none() | st.text(max_size=5), prompt=st.booleans())
def test_text_chats_render_byte_for_byte_as_before(name, contents, system, prompt):
    if name == "mistral":
        system = None  # it refuses the role
    turns = chat(contents, system)
    assert render(SLOTTED[name], turns, prompt) == render(SOURCES[name], turns, prompt)


@pytest.mark.parametrize("name", TEMPLATES)
@SLOWLY
@given(contents=TURNS, items=st.lists(st.text(max_size=6) | st.just(None), min_size=1, max_size=4))
def test_items_render_as_the_string_they_make(name, contents, items):
    """Whatever the template does with strings (trim, count) it does with items as well."""
    as_items = [
        {"type": "image"} if item is None else {"type": "text", "text": item} for item in items
    ]
    as_string = "\n".join("<image>" if item is None else item for item in items)
    theirs = render(SOURCES[name], chat([as_string, *contents]))
    assert render(SLOTTED[name], chat([as_items, *contents])) == theirs


def test_fields_beside_the_content_stay():
    template = (
        "{% for m in messages %}{{ m.name }}{{ m.tool_calls[0].id }}{{ m.content }}{% endfor %}"
    )
    tokenizer = with_template(SLOT + template)
    turn = {"role": "user", "name": "N", "tool_calls": [{"id": "T"}]}
    assert render(tokenizer, [turn | {"content": [{"type": "image"}]}]) == "NT<image>"
    assert render(tokenizer, [turn | {"content": "C"}]) == "NTC"
    for odd in (turn, turn | {"content": None}):  # a call of a tool says nothing
        assert render(tokenizer, [odd]) == render(with_template(template), [odd])


def test_an_item_of_another_type_is_refused():
    with pytest.raises(Exception, match="image and text, got video"):
        render(SLOTTED["bare"], [{"role": "user", "content": [{"type": "video"}]}])


def test_every_named_template_gets_the_slot():
    tokenizer = with_template({"default": TEMPLATES["bare"], "tool_use": TEMPLATES["chatml"]})
    add_image_slot(tokenizer)
    picture = [{"role": "user", "content": [{"type": "image"}]}]
    for name in ("default", "tool_use"):
        text = tokenizer.apply_chat_template(picture, tokenize=False, chat_template=name)
        assert text.count("<image>") == 1


def test_a_template_that_knows_images_is_kept():
    knows = (
        "{% for message in messages %}{% for item in message.content %}"
        "{{ '<image>' if item.type == 'image' else item.text }}{% endfor %}{% endfor %}"
    )
    tokenizer = with_template(knows)
    assert add_image_slot(tokenizer) == "kept"
    assert tokenizer.chat_template == knows


@pytest.mark.parametrize("begins", [True, False])
def test_a_base_model_gets_the_default_template(begins, monkeypatch):
    tokenizer = new_tokenizer()
    if begins:
        plain = tokenizer.encode
        monkeypatch.setattr(
            tokenizer, "encode", lambda text: [tokenizer.bos_token_id, *plain(text)]
        )
    assert add_image_slot(tokenizer) == "default"
    items = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    first = "<s>" if begins else ""
    assert render(tokenizer, chat([items])) == f"{first}USER: <image>\nWhat is this? ASSISTANT:"
    turns = chat([items, "A cat.", "Sure?"], system="Be brief.")
    assert render(tokenizer, turns, prompt=False) == (
        f"{first}Be brief.\nUSER: <image>\nWhat is this? ASSISTANT: A cat.</s>USER: Sure? "
    )


def test_image_is_added_as_one_special_token():
    tokenizer = new_tokenizer()
    before = len(tokenizer)
    image_id = add_image_token(tokenizer)
    assert image_id == before == len(tokenizer) - 1
    ids = tokenizer("w1<image>\nw2 <image>", add_special_tokens=False)["input_ids"]
    assert ids.count(image_id) == 2
    assert tokenizer.decode([image_id, 5], skip_special_tokens=True) == tokenizer.decode([5])


def test_image_of_the_vocabulary_keeps_its_id():
    tokenizer = new_tokenizer()
    tokenizer.add_tokens([AddedToken("<image>", special=False, normalized=False)])
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    assert image_id not in tokenizer.all_special_ids
    assert add_image_token(tokenizer) == image_id
    assert image_id in tokenizer.all_special_ids


def test_an_image_token_of_its_own_is_left_alone(tokenizer):
    before = copy.deepcopy(tokenizer)
    assert add_image_token(tokenizer) == before.convert_tokens_to_ids("<image>")
    assert len(tokenizer) == len(before)
    assert tokenizer.init_kwargs == before.init_kwargs
    assert tokenizer.special_tokens_map == before.special_tokens_map


def test_other_special_tokens_stay_special():
    tokenizer = new_tokenizer(extra_special_tokens=["<|turn|>"])
    add_image_token(tokenizer)
    assert {"<|turn|>", "<image>", "<s>"} <= set(tokenizer.all_special_tokens)


@pytest.mark.parametrize(
    ("named", "padding"),
    [
        ({}, "<pad>"),
        ({"pad_token": None}, "<unk>"),
        ({"pad_token": None, "unk_token": None}, "<pad>"),
        ({"pad_token": None, "unk_token": "</s>"}, "<pad>"),
    ],
)
def test_padding_is_never_the_end_of_an_answer(named, padding):
    tokenizer = new_tokenizer(**named)
    add_image_token(tokenizer)
    assert tokenizer.pad_token == padding
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_a_slow_tokenizer_is_refused(monkeypatch):
    tokenizer = new_tokenizer()
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    with pytest.raises(UserError, match="no character offsets"):
        add_image_token(tokenizer)


@pytest.mark.parametrize(
    ("rows", "expected"), [(None, 128), (120, 120)], ids=["grown", "rows to spare"]
)
@pytest.mark.parametrize("tied", [True, False])
def test_old_embeddings_stay_and_new_ones_are_their_mean(rows, expected, tied):
    llm = new_llm("llama", rows, tie_word_embeddings=tied)
    tokenizer = new_tokenizer()
    model, processor = compose_models(llm, tokenizer, new_vision(), clip_processor())
    old = llm.get_input_embeddings().weight, llm.get_output_embeddings().weight
    new = model.get_input_embeddings().weight, model.lm_head.weight
    assert len(tokenizer) == len(new_tokenizer())  # the caller's is not changed
    assert processor.image_token_id == len(tokenizer) == model.config.image_token_id
    assert (new[0] is new[1]) == tied == model.config.text_config.tie_word_embeddings
    for before, after in zip(old, new, strict=True):
        assert len(after) == expected == model.config.text_config.vocab_size
        assert after[: len(before)].equal(before)
        for row in after[len(before) :]:
            assert row.allclose(before.mean(dim=0), atol=1e-6)
