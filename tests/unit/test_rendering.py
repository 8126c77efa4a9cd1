"""Rendering once by a pattern gives what rendering at every turn gives."""

import copy

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tgalign.data.rendering import ChatTemplate

HEAD = "{% for m in messages %}{% for c in m['content'] %}"
CONTENT = "{{ '<image>' if c['type'] == 'image' else c['text'] }}"
TEMPLATES = {
    "plain": f"{{{{ bos_token }}}}{HEAD}[{{{{ m['role'] }}}}] {CONTENT}{{% endfor %}}<eos>"
    "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}",
    # Mistral's: the user's turn ends with [/INST], the assistant's begins right after it.
    "brackets": "{% for m in messages %}{% if m['role'] == 'user' %}[INST] "
    f"{{% for c in m['content'] %}}{CONTENT}{{% endfor %}} [/INST]"
    "{% else %}{% for c in m['content'] %}{{ c['text'] }}{% endfor %}<eos>{% endif %}{% endfor %}",
    "trimmed": f"{HEAD}{{{{ m['role'] }}}}:{{{{ c['text'] | trim if c['type'] == 'text' }}}}"
    "<eos>{% endfor %}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}",
    # Looks into texts: what is learnt depends on them.
    "thinking": f"{HEAD}{{{{ m['role'] }}}}:"
    "{{ c['text'].split('x')[-1] if c['type'] == 'text' }}<eos>{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}",
    # Repeats the first text at the end of every turn.
    "repeating": f"{HEAD}{{{{ m['role'] }}}}:{CONTENT}{{{{ messages[0]['content'][-1]['text'] }}}}"
    "<eos>{% endfor %}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}",
    # Rewrites earlier turns: refused.
    "forgetful": "{% for m in messages[-2:] %}{% for c in m['content'] %}"
    "{{ m['role'] }}:{{ c['text'] }}<eos>{% endfor %}{% endfor %}",
}


@pytest.fixture(scope="module")
def templates(tokenizer):
    made = {}
    for name, template in TEMPLATES.items():
        used = copy.deepcopy(tokenizer)
        used.chat_template = template
        made[name] = ChatTemplate(used)
    return made


TEXT = st.text(alphabet="ab x:<>[]/\0é0123", min_size=1, max_size=8)


def conversation(texts, image):
    turns = []
    for number, text in enumerate(texts):
        content = [{"type": "text", "text": text}]
        if number == 0 and image:
            content.insert(0, {"type": "image"})
        turns.append({"role": ("user", "assistant")[number % 2], "content": content})
    return turns


def outcome(make):
    try:
        return make()
    except ValueError as fault:
        return str(fault)


@pytest.mark.parametrize("name", TEMPLATES)
@given(texts=st.lists(TEXT, min_size=1, max_size=6), image=st.booleans())
@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_pattern_gives_what_every_turn_gives(name, texts, image, templates):
    template = templates[name]
    turns = conversation(texts, image)
    quick = outcome(lambda: template.render_learnt(turns))
    text = template.render(turns)
    slow = outcome(lambda: (text, template._learnt(turns, text)))
    assert quick == slow


def test_the_conversation_is_rendered_once_where_its_kind_is_known(templates, monkeypatch):
    template = templates["plain"]
    turns = conversation(["what ?", "that .", "why ?", "so ."], image=True)
    template.render_learnt(turns)
    calls = []
    render = template.render
    monkeypatch.setattr(template, "render", lambda *a, **k: calls.append(a) or render(*a, **k))
    other = conversation(["who ?", "a cat on a red background .", "0", "1"], image=True)
    text, learnt = template.render_learnt(other)
    assert len(calls) == 1
    assert [text[start:end] for start, end in learnt] == [
        "a cat on a red background .<eos>",
        "1<eos>",
    ]
