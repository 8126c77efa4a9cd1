"""Corpora: what is no text is skipped and counted; toxic snippets are spread at their share."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tgalign.errors import UserError
from tgalign.retrieval.corpus import MAX_CHARACTERS, Source, mix


def test_lines_of_a_plain_file_are_texts(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_bytes(
        b"a dog .\n\n  two \t words  \nbad \xff byte\nan <image> token\n\xc3\xa9t\xc3\xa9"
    )
    source = Source(path)
    assert [(it.text, it.line, it.toxic) for it in source] == [
        ("a dog .", 1, False),
        ("two words", 3, False),
        ("été", 6, False),
    ]
    assert source.kept == 3
    assert source.skipped.total() == 3
    assert source.faults() == [
        "corpus.txt: 1 line(s) skipped, empty (line 2)",
        "corpus.txt: 1 line(s) skipped, not UTF-8 (line 4)",
        "corpus.txt: 1 line(s) skipped, holds <image>, which a model would take for an image "
        "(line 5)",
    ]


def test_a_line_of_jsonl_has_a_text_or_a_caption(tmp_path):
    path = tmp_path / "corpus.jsonl"
    rows = [
        '{"text": "a"}',
        '{"caption": "b", "image": "x.png"}',
        '{"text": "c", "caption": "d"}',
        '{"text": null, "caption": "e"}',
        '"f"',
        "{",
        "[" * 100_000,
        '{"text": "\\ud800"}',
    ]
    path.write_text("\n".join(rows))
    source = Source(path)
    assert [it.text for it in source] == ["a", "b", "c"]
    assert dict(source.skipped) == {
        'no "text" or "caption" that is a string': 2,
        "not JSON": 2,
        "holds half a character (a lone surrogate)": 1,
    }


def test_a_text_of_a_hundred_thousand_characters_is_skipped_and_counted(tmp_path):
    path = tmp_path / "corpus.jsonl"
    texts = ["a" * 100_000, "b" * MAX_CHARACTERS, "word " * 20_000]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    source = Source(path)
    assert [it.text for it in source] == [texts[1]]
    assert dict(source.skipped) == {"longer than 10,000 characters": 2}


@pytest.mark.parametrize(
    ("name", "line"), [("c.txt", "a dog"), ("c.jsonl", '{"text": "a dog"}'),
                       ("c.JSONL", '{"text": "a dog"}')],
)  # fmt: skip
def test_a_byte_order_mark_and_capitals_in_the_name_change_nothing(name, line, tmp_path):
    (tmp_path / name).write_text(f"\ufeff{line}\n{line}\n", encoding="utf-8")
    source = Source(tmp_path / name)
    assert [it.text for it in source] == ["a dog"] * 2
    assert not source.skipped


@pytest.mark.parametrize("name", ["corpus.csv", "corpus.json", "corpus.parquet", "corpus.TSV"])
def test_what_is_no_text_a_line_is_refused(name, tmp_path):
    (tmp_path / name).write_text("caption\na dog\n")
    with pytest.raises(UserError, match=f"{name}: expected JSON lines"):
        list(Source(tmp_path / name))


def test_only_the_first_lines_of_a_reason_are_named(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("\n" * 9)
    source = Source(path)
    assert list(source) == []
    assert source.faults() == ["corpus.txt: 9 line(s) skipped, empty (line 1, 2, 3, …)"]


@given(plain=st.integers(1, 200), toxic=st.integers(0, 300), share=st.floats(0.001, 0.9))
@settings(deadline=None, max_examples=100)
def test_the_share_is_reached_and_never_passed_or_there_are_too_few(
    plain, toxic, share, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("mix")
    (folder / "plain.txt").write_text("".join(f"p{n}\n" for n in range(plain)))
    (folder / "toxic.txt").write_text("".join(f"t{n}\n" for n in range(toxic)))
    sources = Source(folder / "plain.txt"), Source(folder / "toxic.txt", toxic=True)
    try:
        mixed = list(mix(*sources, share))
    except UserError:
        # One more would still have been within the share.
        assert toxic + 1 <= share * (plain + toxic + 1)
        return
    for part, lead in ((False, "p"), (True, "t")):
        found = [it.text for it in mixed if it.toxic is part]
        assert found == [f"{lead}{n}" for n in range(len(found))]
    added = sum(it.toxic for it in mixed)
    assert len(mixed) == plain + added
    assert added <= share * len(mixed)
    assert added + 1 > share * (len(mixed) + 1)
    # Spread evenly: the same holds of every beginning that ends before a plain text.
    for end in (end for end, it in enumerate(mixed) if not it.toxic):
        assert sum(it.toxic for it in mixed[:end]) <= share * end + 1e-9


def test_without_a_share_all_toxic_texts_follow_the_corpus(tmp_path):
    for name in ("plain", "toxic"):
        (tmp_path / name).write_text(f"{name} 1\n{name} 2\n")
    sources = Source(tmp_path / "plain"), Source(tmp_path / "toxic", toxic=True)
    assert [it.text for it in mix(*sources, None)] == ["plain 1", "plain 2", "toxic 1", "toxic 2"]
    assert [it.text for it in mix(Source(tmp_path / "plain"), None, None)] == ["plain 1", "plain 2"]
    with pytest.raises(UserError, match="no corpus at"):
        list(mix(Source(tmp_path / "plain"), Source(tmp_path / "none"), 0.5))
