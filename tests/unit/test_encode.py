"""Encoding: what is learnt, where the image and R stand, which tokens C and R are averaged over."""

import copy
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from tgalign.data.encode import IGNORE_INDEX, Encoder
from tgalign.data.records import Record
from tgalign.image_slot import DEFAULT_TEMPLATE, add_image_slot, add_image_token

IMAGE = Path("picture.png")
SEATS = 9  # image tokens
USER, ASSISTANT = "user", "assistant"
CAPTION = "a cat on a red background ."
RETRIEVED = "a dog near a cat , green background ."


def record(*turns, row=1, image=IMAGE, caption=None, retrieved=None):
    return Record(row, image, caption, retrieved, turns)


@pytest.fixture
def encoder(tokenizer):
    def make(template=None, image_seq_length=SEATS, **options):
        used = tokenizer
        if template is not None:
            used = copy.deepcopy(tokenizer)
            used.chat_template = template
        options = {"max_length": 200, "retrieved_in_prompt": 0.0} | options
        return Encoder(used, image_seq_length, **options)

    return make


def ids(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


def test_a_single_turn_token_by_token(encoder, tokenizer):
    row = encoder().encode(record((USER, "what color ?"), (ASSISTANT, "red .")))
    before = ids(tokenizer, "<bos> <user> " + "<image> " * SEATS + "what color ? <assistant>")
    learnt = ids(tokenizer, "red . <eos>")
    assert row.input_ids == before + learnt
    assert row.labels == [IGNORE_INDEX] * len(before) + learnt
    assert (row.image, row.caption, row.retrieved) == (IMAGE, None, None)


@pytest.mark.parametrize("guide_span", ["picture", "question", "question_words"])
def test_words_that_the_tokenizer_lacks_are_noticed_where_they_count(encoder, guide_span):
    made = encoder(guide_span=guide_span)
    turns = (USER, "what color ?"), (ASSISTANT, "red .")
    told = {"caption": CAPTION, "retrieved": RETRIEVED}
    assert not made.has_unknown(made.encode(record(*turns, **told)))
    for name in told:  # where the question is averaged, its states have read them
        assert made.has_unknown(made.encode(record(*turns, **told | {name: "a zyzzy ."})))
    assert made.has_unknown(made.encode(record(turns[0], (ASSISTANT, "zyzzy ."), **told)))


def test_several_turns_teach_every_answer_and_nothing_else(encoder, tokenizer):
    turns = (USER, "what ?"), (ASSISTANT, "a cat ."), (USER, "color ?"), (ASSISTANT, "red .")
    row = encoder().encode(record(*turns, (USER, "is there a dog ?")))
    pieces = [
        ("<bos> <user> " + "<image> " * SEATS + "what ? <assistant>", False),
        ("a cat . <eos>", True),
        ("<user> color ? <assistant>", False),
        ("red . <eos>", True),
        ("<user> is there a dog ?", False),
    ]
    expected = [(token, learnt) for text, learnt in pieces for token in ids(tokenizer, text)]
    assert row.input_ids == [token for token, _ in expected]
    assert row.labels == [token if learnt else IGNORE_INDEX for token, learnt in expected]


def test_every_row_of_a_real_set_teaches_its_answers_and_their_ends(
    rows, encode, tokenizer, composed
):
    patches = composed[0].config.image_seq_length
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    for source, row in zip(rows.records, encode(rows.records, 0.5), strict=True):
        learnt = [label for label in row.labels if label != IGNORE_INDEX]
        answers = [content for role, content in source.messages if role == ASSISTANT]
        assert learnt == [
            token for answer in answers for token in ids(tokenizer, f"{answer} <eos>")
        ]
        for token, label in zip(row.input_ids, row.labels, strict=True):
            assert label in (IGNORE_INDEX, token)
            assert label != image_id
        assert row.input_ids.count(image_id) == (patches if source.image else 0)
        assert tokenizer.unk_token_id not in row.input_ids


@pytest.mark.parametrize("seats", [1, 9, 577])
def test_the_image_token_stands_once_per_patch_in_one_run(seats, encoder, tokenizer):
    row = encoder(max_length=999, image_seq_length=seats).encode(
        record((USER, "what ?"), (ASSISTANT, "a cat ."))
    )
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    first = row.input_ids.index(image_id)
    assert row.input_ids[first : first + seats] == [image_id] * seats
    assert row.input_ids.count(image_id) == seats
    assert set(row.labels[first : first + seats]) == {IGNORE_INDEX}


def test_a_text_only_row_has_no_image_and_no_spans(encoder, tokenizer):
    turns = (USER, "what ?"), (ASSISTANT, "a cat .")
    row = encoder(retrieved_in_prompt=1.0).encode(
        record(*turns, image=None, caption=CAPTION, retrieved=RETRIEVED)
    )
    assert row.input_ids == ids(tokenizer, "<bos> <user> what ? <assistant> a cat . <eos>")
    assert (row.image, row.caption, row.retrieved) == (None, None, None)


def test_spans_stand_where_the_image_would_and_decode_to_their_texts(encoder, tokenizer):
    row = encoder().encode(record((USER, "what ?"), caption=CAPTION, retrieved=RETRIEVED))
    for span, text in ((row.caption, CAPTION), (row.retrieved, RETRIEVED)):
        assert tokenizer.decode(span.input_ids[span.start : span.end]) == text
        assert span.input_ids == ids(tokenizer, f"<bos> <user> {text}")
        assert (span.start, span.end) == (2, len(span.input_ids))


ANSWERED = (USER, "what ?"), (ASSISTANT, "a cat ."), (USER, "color ?"), (ASSISTANT, "red .")


@pytest.mark.parametrize("turns", [ANSWERED, ANSWERED[:1]], ids=["answered", "not answered"])
@pytest.mark.parametrize("share", [0.0, 1.0], ids=["R apart", "R in the prompt"])
def test_the_question_after_the_picture_is_that_after_the_texts(turns, share, encoder, tokenizer):
    made = encoder(guide_span="question", retrieved_in_prompt=share)
    row = made.encode(record(*turns, caption=CAPTION, retrieved=RETRIEVED))
    read = ids(tokenizer, "what ? <assistant>")
    assert row.input_ids[slice(*row.question)] == read
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    assert row.input_ids[row.question[0] - 1] == image_id
    assert image_id not in row.input_ids[row.question[0] :]
    assert set(row.labels[: row.question[1]]) == {IGNORE_INDEX}
    for span, text in ((row.caption, CAPTION), (row.retrieved, RETRIEVED)):
        assert span.input_ids[span.start : span.end] == read
        assert span.input_ids == ids(tokenizer, f"<bos> <user> {text} what ? <assistant>")


@pytest.mark.parametrize("turns", [ANSWERED, ANSWERED[:1]], ids=["answered", "not answered"])
def test_the_question_s_words_end_before_what_the_answer_begins_from(turns, encoder, tokenizer):
    source = record(*turns, caption=CAPTION, retrieved=RETRIEVED)
    row = encoder(guide_span="question_words").encode(source)
    whole = encoder(guide_span="question").encode(source)
    assert (row.input_ids, row.labels) == (whole.input_ids, whole.labels)
    assert row.question == (whole.question[0], whole.question[1] - 1)
    assert row.input_ids[slice(*row.question)] == ids(tokenizer, "what ?")
    for span, text in ((row.caption, CAPTION), (row.retrieved, RETRIEVED)):
        assert span.input_ids[span.start : span.end] == ids(tokenizer, "what ?")
        assert span.input_ids == ids(tokenizer, f"<bos> <user> {text} what ?")


def test_blanks_around_a_question_may_go(encoder, tokenizer):
    asked = record((USER, "\nwhat ? "), (ASSISTANT, "a cat ."), caption=CAPTION)
    trimmed = (
        "{{ bos_token }}{% for message in messages %}{% for item in message['content'] %}"
        "{{ '<image>' if item['type'] == 'image' else item['text'] | trim }} {% endfor %}"
        "{{ '<assistant>' if loop.first else eos_token }}{% endfor %}"
    )
    row = encoder(template=trimmed, guide_span="question_words").encode(asked)
    assert row.input_ids[slice(*row.question)] == ids(tokenizer, "what ?")


def test_a_question_that_the_template_changes_has_no_span(encoder):
    loud = (
        "{% for message in messages %}{% for item in message['content'] %}"
        "{{ '<image>' if item['type'] == 'image' else "
        "(item['text'] if loop.first else item['text'] | upper) }} {% endfor %}{% endfor %}"
    )
    asked = record((USER, "what ?"), (ASSISTANT, "a cat ."), row=4, caption=CAPTION)
    _, problems = encoder(template=loud, guide_span="question_words").encode_all([asked], "f")
    assert "the chat template changes the question 'what ?'" in str(problems[0])


def test_a_text_s_end_that_joins_what_follows_is_in_no_span():
    """Pre-tokenizers of Llama 3 and Qwen make one token of a full stop and a line break."""
    pattern = r"[^\s\p{L}\p{N}]+[\r\n]*| ?\p{L}+|\s+"
    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer = Sequence(
        [Split(Regex(pattern), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = ByteLevelDecoder()
    texts = ["A gun on a table.\nWhat is this?", "USER: ASSISTANT:", "a dog\n"] * 9
    bpe.train_from_iterator(texts, BpeTrainer(initial_alphabet=ByteLevel.alphabet()))
    joined = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="</s>", pad_token="</s>")
    add_image_token(joined)
    joined.chat_template = DEFAULT_TEMPLATE
    add_image_slot(joined)
    made = Encoder(joined, SEATS, max_length=99, retrieved_in_prompt=0.0, guide_span="question")
    turns = (USER, "What is this?"), (ASSISTANT, "A gun.")
    for caption, first in (("A gun on a table.", "What"), ("a dog", "\n")):
        row = made.encode(record(*turns, caption=caption))
        alike = row.input_ids[slice(*row.question)]
        assert alike == row.caption.input_ids[row.caption.start : row.caption.end]
        assert joined.decode(alike[:1]).strip(" ") == first


def test_the_span_changes_nothing_that_is_learnt(encoder):
    source = record(*ANSWERED, caption=CAPTION)
    question, picture = encoder(guide_span="question").encode(source), encoder().encode(source)
    assert (question.input_ids, question.labels) == (picture.input_ids, picture.labels)
    assert picture.question is None


def test_rows_without_picture_or_caption_have_no_question(encoder):
    made = encoder(guide_span="question")
    for without in ({"image": None, "caption": CAPTION}, {"caption": None}):
        row = made.encode(record(*ANSWERED, **without))
        assert (row.question, row.caption) == (None, None)


def test_nothing_between_picture_and_answer_is_a_problem(encoder):
    bare = (
        "{% for message in messages %}{% for item in message['content'] %}"
        "{{ '<image>' if item['type'] == 'image' else item['text'] }} {% endfor %}{% endfor %}"
    )
    rows, problems = encoder(template=bare, guide_span="question").encode_all(
        [record((USER, ""), (ASSISTANT, "a cat ."), row=4, caption=CAPTION)], "data.jsonl"
    )
    assert not rows
    assert str(problems[0]).startswith("data.jsonl:4: nothing is read between the picture and the")


def test_without_a_caption_no_retrieved_states_are_needed(encoder):
    row = encoder().encode(record((USER, "what ?"), (ASSISTANT, "a cat ."), retrieved=RETRIEVED))
    assert (row.caption, row.retrieved) == (None, None)


# The text stands again, or stood before, in what the template writes around it.
WRAPPED = (
    "{{ bos_token }}<user> the picture : {% for message in messages %}"
    "{% for item in message['content'] %}"
    "{{ '<image>' if item['type'] == 'image' else item['text'] }} {% endfor %}"
    "{{ '<assistant>' if loop.first else eos_token }}{% endfor %} the picture"
)


@pytest.mark.parametrize("text", ["the picture", "picture", "the", "t"])
def test_a_span_is_found_even_if_the_template_holds_the_same_words(text, encoder, tokenizer):
    row = encoder(template=WRAPPED).encode(record((USER, "what ?"), caption=text))
    before = ids(tokenizer, "<bos> <user> the picture :")
    assert row.caption.input_ids == before + ids(tokenizer, text)
    assert (row.caption.start, row.caption.end) == (len(before), len(row.caption.input_ids))


def test_a_template_that_changes_the_text_is_a_problem(encoder, tokenizer):
    shouting = tokenizer.chat_template.replace("item['text']", "item['text'] | upper")
    rows, problems = encoder(template=shouting).encode_all(
        [record((USER, "what ?"), (ASSISTANT, "a cat ."), row=7, caption=CAPTION)], "data.jsonl"
    )
    assert not rows
    assert str(problems[0]).startswith("data.jsonl:7: the chat template changes the text 'a cat on")


def test_a_template_that_rewrites_earlier_turns_is_a_problem(encoder):
    forgetful = (
        "{% for message in messages[-2:] %}<{{ message['role'] }}> "
        "{{ message['content'][-1]['text'] }} {% endfor %}"
    )
    turns = (USER, "what ?"), (ASSISTANT, "a cat ."), (USER, "color ?"), (ASSISTANT, "red .")
    rows, problems = encoder(template=forgetful).encode_all([record(*turns, row=3)], "data.jsonl")
    assert not rows
    assert str(problems[0]).startswith("data.jsonl:3: the chat template rewrites earlier turns")


def prompts_with_r(encoder, share, count=2_000):
    """The numbers of the rows in whose prompt R stands."""
    made = encoder(retrieved_in_prompt=share)
    shown = set()
    for row in range(1, count + 1):
        ids = made.encode(record((USER, "what ?"), row=row, caption=CAPTION, retrieved="a dog"))
        if len(ids.input_ids) > SEATS + 4:
            shown.add(row)
    return shown


def test_r_stands_before_the_image_in_the_first_turn_only(encoder, tokenizer):
    turns = (USER, "what ?"), (ASSISTANT, "a cat ."), (USER, "color ?"), (ASSISTANT, "red .")
    source = record(*turns, caption=CAPTION, retrieved=RETRIEVED)
    with_r = encoder(retrieved_in_prompt=1.0).encode(source)
    without = encoder(retrieved_in_prompt=0.0).encode(source)
    r = ids(tokenizer, f"retrieved text : {RETRIEVED}")
    assert with_r.input_ids == without.input_ids[:2] + r + without.input_ids[2:]
    assert with_r.labels == without.labels[:2] + [IGNORE_INDEX] * len(r) + without.labels[2:]
    assert without.input_ids[2] == tokenizer.convert_tokens_to_ids("<image>")
    assert (with_r.caption, with_r.retrieved) == (without.caption, without.retrieved)


def test_r_stands_in_about_the_share_asked_and_always_in_the_same_rows(encoder):
    assert prompts_with_r(encoder, 0.0, count=300) == set()
    assert len(prompts_with_r(encoder, 1.0, count=300)) == 300
    quarter = prompts_with_r(encoder, 0.25)
    assert 0.22 < len(quarter) / 2_000 < 0.28
    assert quarter == prompts_with_r(encoder, 0.25)
    assert quarter < prompts_with_r(encoder, 0.5)
    neighbours = sum(row + 1 in quarter for row in quarter) / len(quarter)
    assert 0.15 < neighbours < 0.35  # neither blocks nor a comb


def test_a_row_without_r_is_the_same_at_any_share(encoder):
    source = record((USER, "what ?"), (ASSISTANT, "a cat ."), caption=CAPTION)
    assert encoder(retrieved_in_prompt=1.0).encode(source) == encoder().encode(source)


LONG = " ".join(["cat"] * 60)


@pytest.mark.parametrize(
    "options",
    [
        {"messages": ((USER, LONG), (ASSISTANT, "a cat ."))},
        {"messages": ((USER, "what ?"), (ASSISTANT, LONG))},
        {"caption": LONG},
        {"caption": "a cat", "retrieved": LONG},
    ],
    ids=["question", "answer", "caption", "retrieved"],
)
def test_a_row_that_is_too_long_is_a_problem_and_never_cut(options, encoder):
    turns = options.pop("messages", ((USER, "what ?"), (ASSISTANT, "a cat .")))
    short = record((USER, "what ?"), (ASSISTANT, "a cat ."), row=1)
    long = record(*turns, row=2, **options)
    rows, problems = encoder(max_length=50).encode_all([short, long, short], "data.jsonl")
    assert len(rows) == 2
    assert [(problem.file, problem.row) for problem in problems] == [("data.jsonl", 2)]
    assert "tokens, more than the limit of 50" in problems[0].reason
    assert encoder(max_length=100).encode(long)


def test_the_limit_is_exact(encoder):
    source = record((USER, "what ?"), (ASSISTANT, "a cat ."))
    length = len(encoder().encode(source).input_ids)
    assert len(encoder(max_length=length).encode(source).input_ids) == length
    with pytest.raises(ValueError, match=f"^{length} tokens, more than the limit of {length - 1}"):
        encoder(max_length=length - 1).encode(source)


def test_a_row_that_teaches_nothing_is_a_problem(encoder):
    rows, problems = encoder().encode_all([record((USER, "what ?"), row=4)], "data.jsonl")
    assert not rows
    assert str(problems[0]) == "data.jsonl:4: no token to learn and no caption to align to"


@pytest.mark.parametrize("text", ["say <eos>", "<assistant> yes . <eos><user>", "<pad> <bos>"])
def test_text_that_looks_like_special_tokens_is_words_and_moves_no_label(text, encoder, tokenizer):
    words = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    assert not set(words) & {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id}
    asked = encoder().encode(record((USER, text), (ASSISTANT, "a cat .")))
    assert [label for label in asked.labels if label != IGNORE_INDEX] == ids(
        tokenizer, "a cat . <eos>"
    )
    assert asked.labels[-4:] == ids(tokenizer, "a cat . <eos>")
    answered = encoder().encode(record((USER, "what ?"), (ASSISTANT, text)))
    assert [label for label in answered.labels if label != IGNORE_INDEX] == [
        *words,
        tokenizer.eos_token_id,
    ]
    spanned = encoder().encode(record((USER, "what ?"), caption=text)).caption
    assert spanned.input_ids[spanned.start : spanned.end] == words


@pytest.mark.parametrize("text", ["<IMAGE>", "< image >", "<image", "image>"])
def test_text_that_looks_like_an_image_is_none(text, encoder, tokenizer):
    row = encoder().encode(record((USER, text), (ASSISTANT, text), caption=text))
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    assert row.input_ids.count(image_id) == SEATS
    assert image_id not in row.caption.input_ids


def test_characters_that_grow_when_lowered_keep_the_spans_apart(encoder, tokenizer):
    """``İ`` becomes two characters: offsets must be those of the text as it was."""
    row = encoder().encode(record((USER, "İİİİ cat"), (ASSISTANT, "a Cat ."), caption="İİ cat"))
    assert [label for label in row.labels if label != IGNORE_INDEX] == ids(
        tokenizer, "a cat . <eos>"
    )
    assert row.caption.end - row.caption.start == len(ids(tokenizer, "İİ cat"))
