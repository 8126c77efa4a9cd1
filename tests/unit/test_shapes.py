"""Shapes: what LLaVA, TRL and tables write becomes our own record, or a reason why not."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tgalign.data.records import DEFAULT_QUESTION, Problem, read, read_records
from tgalign.data.shapes import as_ours
from tgalign.data.sources import Raw, Source, open_source

HUMAN, GPT = "human", "gpt"
ANSWERED = [(HUMAN, "<image>\nwhat ?"), (GPT, "a cat .")]


def llava(*turns, **keys):
    return {"conversations": [{"from": who, "value": what} for who, what in turns]} | keys


def trl(*contents, **keys):
    roles = ("user", "assistant") * len(contents)
    turns = zip(roles, contents, strict=False)
    return {"messages": [{"role": role, "content": content} for role, content in turns]} | keys


def text(value):
    return {"type": "text", "text": value}


IMAGE = {"type": "image"}


def turns_of(row, table=False):
    made = as_ours(row, table=table)
    return made.get("image"), [(it["role"], it["content"]) for it in made["messages"]]


ASKED = [("user", "what ?"), ("assistant", "a cat .")]


@pytest.mark.parametrize(
    ("row", "image", "turns"),
    [
        (llava(*ANSWERED, image="a.png"), "a.png", ASKED),
        (llava((HUMAN, "what ?\n<image>"), (GPT, "a cat ."), image="a.png"), "a.png", ASKED),
        (llava(*ANSWERED, image=["a.png"]), "a.png", ASKED),
        (llava((HUMAN, "what ?"), (GPT, "a cat ."), model=""), None, ASKED),
        (llava((GPT, "hello ."), *ANSWERED, image="a.png"), "a.png", ASKED),
        (
            llava((HUMAN, "<image>"), (GPT, "a cat ."), image="a.png"),
            "a.png",
            [("user", DEFAULT_QUESTION), ASKED[1]],
        ),
        (
            llava(*ANSWERED, (HUMAN, "why ?"), (GPT, "so ."), image="a.png"),
            "a.png",
            [*ASKED, ("user", "why ?"), ("assistant", "so .")],
        ),
        (trl([IMAGE, text("what ?")], [text("a cat .")], images=["a.png"]), "a.png", ASKED),
        (trl([text("what ?"), IMAGE], "a cat .", images=["a.png"]), "a.png", ASKED),
        (trl([text("what"), IMAGE, text("?")], images=["a.png"]), "a.png", [("user", "what\n?")]),
        (trl("what ?", "a cat .", images=["a.png"]), "a.png", ASKED),
        (trl("what ?", "a cat .", images=[]), None, ASKED),
        (trl([text("what ?")], "a cat ."), None, ASKED),
        (trl([IMAGE, text("what ?")], "a cat .", image="a.png"), "a.png", ASKED),
        (
            trl([IMAGE], [text("a cat .")], images=["a.png"]),
            "a.png",
            [("user", DEFAULT_QUESTION), ASKED[1]],
        ),
    ],
)
def test_turns_and_picture_of_a_row(row, image, turns):
    assert turns_of(row) == (image, turns)
    assert turns_of(row, table=True) == (image, turns)


BAD = {
    "a placeholder without image": (llava(*ANSWERED), "1 image placeholder(s) for 0 image(s)"),
    "an image without placeholder": (
        llava((HUMAN, "what ?"), (GPT, "a cat ."), image="a.png"),
        "0 image placeholder(s) for 1 image(s)",
    ),
    "two placeholders": (
        llava((HUMAN, "<image><image>"), image="a.png"),
        "2 image placeholder(s) for 1 image(s)",
    ),
    "two images": (
        llava((HUMAN, "<image><image> ?"), image=["a.png", "a.png"]),
        "2 images: a row may have one",
    ),
    "a placeholder in the second question": (
        llava((HUMAN, "what ?"), (GPT, "that ."), (HUMAN, "<image>"), image="a.png"),
        "the image stands in turn 3, not in the first",
    ),
    "a placeholder in the answer": (
        llava((HUMAN, "what ?"), (GPT, "<image>"), image="a.png"),
        "the image stands in turn 2",
    ),
    "no human turn": (llava((GPT, "hello")), "no human turn"),
    "no turn": (llava(), "no human turn"),
    "turns of strings": ({"conversations": ["hello"]}, 'must be a list of {"from", "value"}'),
    "conversations an object": ({"conversations": {}}, 'must be a list of {"from", "value"}'),
    "items without image": (
        trl([text("what ?")], images=["a.png"]),
        "0 image placeholder(s) for 1 image(s)",
    ),
    "items without picture": (trl([IMAGE, text("?")]), "1 image placeholder(s) for 0 image(s)"),
    "an item in the answer": (
        trl([text("?")], [IMAGE], images=["a.png"]),
        "the image stands in turn 2",
    ),
    "a video": (trl([{"type": "video"}]), 'turn 1: expected items {"type": "image"}'),
    "a text item without text": (trl([{"type": "text"}]), "turn 1: expected items"),
    "an item that is a string": (trl(["what ?"]), "turn 1: expected items"),
    "a misspelt key": (
        llava(*ANSWERED, image="a.png", captoin="a cat"),
        "the key 'captoin' looks like 'caption'",
    ),
    "captions": (trl("?", images=[], captions=["a"]), "the key 'captions' looks like 'caption'"),
}


@pytest.mark.parametrize("name", BAD)
def test_why_a_row_is_bad(name):
    row, reason = BAD[name]
    with pytest.raises(ValueError) as caught:
        as_ours(row, table=False)
    assert reason in str(caught.value)


def test_keys_of_other_use_are_passed_over_but_not_in_our_own_json():
    assert as_ours(llava(*ANSWERED, image="a.png", source="coco"), table=False)["image"] == "a.png"
    assert as_ours({"image": "a.png", "text": "a cat", "licence": "CC0"}, table=True) == {
        "image": "a.png",
        "messages": None,
        "caption": "a cat",
        "retrieved": None,
    }
    with pytest.raises(ValueError, match="unknown key"):
        as_ours({"image": "a.png", "licence": "CC0"}, table=False)


@pytest.mark.parametrize(
    ("given", "meant"),
    [("Question", "question"), ("answers", "answer"), ("Text", "text"), ("captions", "caption")],
)
def test_a_misspelt_column_of_a_table_is_refused(given, meant):
    row = {"image": "a.png", "caption": "a cat", given: "?"}
    with pytest.raises(ValueError, match=f"the key '{given}' looks like '{meant}'"):
        as_ours(row, table=True)
    if meant != "caption":  # the column that is read stands beside it, as in VQA's tables
        assert as_ours(row | {meant: "!"}, table=True)["image"] == "a.png"
    if meant != "caption":  # these are names of columns alone
        assert as_ours(llava(*ANSWERED, image="a.png") | {given: "?"}, table=False)["messages"]


def test_the_released_code_s_keys_are_known():
    row = llava(*ANSWERED, image="a.png", image_caption="a cat", retrieved_caption="a dog")
    made = as_ours(row, table=False)
    assert (made["caption"], made["retrieved"]) == ("a cat", "a dog")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    Image.new("RGB", (4, 4)).save(root / "a.png")
    return root


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.text(max_size=6)
    | st.sampled_from(["a.png", "human", "gpt", "user", "assistant", "<image>", "image", "text"])
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["from", "value", "role", "type", "bytes"]), inner)
    ),
    max_leaves=8,
)
ITEMS = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["image", "text", "video"])}, optional={"text": SCALARS}
    ),
    max_size=3,
)
ROWS = st.fixed_dictionaries(
    {},
    optional={
        "id": SCALARS,
        "image": st.just("a.png") | ANYTHING,
        "images": st.lists(st.just("a.png") | SCALARS, max_size=2) | ANYTHING,
        "file_name": SCALARS,
        "caption": SCALARS,
        "text": SCALARS,
        "question": SCALARS,
        "answer": SCALARS,
        "retrieved": SCALARS | st.lists(ANYTHING, max_size=2),
        "model": SCALARS,
        "conversations": st.lists(
            st.fixed_dictionaries(
                {
                    "from": st.sampled_from(["human", "gpt"]) | SCALARS,
                    "value": st.sampled_from(["what ?", "<image>\nwhat ?"]) | SCALARS,
                }
            )
            | ANYTHING,
            max_size=4,
        )
        | ANYTHING,
        "messages": st.lists(
            st.fixed_dictionaries(
                {"role": st.sampled_from(["user", "assistant"]), "content": SCALARS | ITEMS}
            )
            | ANYTHING,
            max_size=4,
        )
        | ANYTHING,
    },
)


@given(rows=st.lists(ROWS | ANYTHING, min_size=1, max_size=4), name=st.sampled_from(["l", "a"]))
@settings(deadline=None, max_examples=150)
def test_whatever_a_row_holds_it_is_a_record_or_a_problem(rows, name, root, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / ("rows.jsonl" if name == "l" else "rows.json")
    lines = [json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) if name == "l" else f"[{','.join(lines)}]")
    records, problems = read_records(path, root)
    assert len(records) + len(problems) == len(rows)
    for record in records:
        assert record.image in (None, root / "a.png")
        roles = [role for role, _ in record.messages]
        assert roles == (["user", "assistant"] * len(roles))[: len(roles)]
        texts = [content for _, content in record.messages] + [record.caption, record.retrieved]
        for it in texts:
            assert it is None or (it.strip() == it and it and "<image>" not in it)


@given(row=ROWS)
@settings(deadline=None, max_examples=100)
def test_a_row_of_a_table_too(row, root):
    (it,) = read(Source("table", iter([Raw(1, row, 1)]), None, table=True), root)
    assert isinstance(it, Problem) or it.image in (None, root / "a.png")


def test_reading_holds_no_more_than_the_rows_at_hand(root, tmp_path):
    """A source is not run through before its first row is given."""
    path = tmp_path / "rows.jsonl"
    path.write_text((json.dumps(llava(*ANSWERED, image="a.png")) + "\n") * 10_000)
    source = open_source(path)
    rows = read(source, root)
    next(rows)
    taken = next(source.rows).number
    rows.close()
    assert taken < 200
