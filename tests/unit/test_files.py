import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tgalign.errors import UserError
from tgalign.files import (
    differences,
    is_free,
    listed_differences,
    read_json,
    write_json,
    write_jsonl,
    write_text,
)


def test_written_json_reads_back_and_leaves_nothing_beside(tmp_path):
    write_json(tmp_path / "new" / "a.json", {"b": [1, None]})
    assert read_json(tmp_path / "new" / "a.json") == {"b": [1, None]}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]


@given(st.lists(st.dictionaries(st.text(), st.text(st.characters(codec=None)))))
def test_json_lines_read_back_whatever_their_characters(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    write_jsonl(path, rows)
    lines = path.read_text(encoding="utf-8").split("\n")
    # Two halves that belong together are read as one character, as of any JSON.
    assert [json.loads(line) for line in lines[:-1]] == json.loads(json.dumps(rows))


def test_json_lines_are_readable_and_halves_of_characters_escaped(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", [{"caption": "ein Köter"}, {"id": "\ud83d"}])
    text = (tmp_path / "rows.jsonl").read_text(encoding="utf-8")
    assert text == '{"caption": "ein Köter"}\n{"id": "\\ud83d"}\n'


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    write_text(tmp_path / "a", "old")
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe"])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json is damaged"):
        read_json(tmp_path / "a.json")


def test_a_folder_is_free_without_what_others_put_there(tmp_path):
    assert is_free(tmp_path / "missing")
    assert is_free(tmp_path)
    (tmp_path / "x.json.incomplete").touch()
    assert is_free(tmp_path)
    (tmp_path / "x.json").touch()
    assert not is_free(tmp_path)


def test_differences_name_the_place_and_both_values():
    there = {"a": 1, "b": [{"c": 2}, {"c": 3}], "d": [1], "gone": True}
    here = {"a": 1, "b": [{"c": 2}, {"c": 4}], "d": [1, 2], "new": "x"}
    assert differences(there, here) == [
        "b[1].c: 3 there, 4 here",
        "d: [1] there, [1, 2] here",
        "gone: True there, None here",
        "new: None there, 'x' here",
    ]
    assert differences(there, there) == []
    many = listed_differences(dict.fromkeys("abcdefg", 1), {})
    assert (many.count("there"), many.endswith("; and 2 more")) == (5, True)
