"""Output paths that cannot be, told before the work; and files of somebody else, left alone."""

import json

import pytest

from tgalign.errors import UserError
from tgalign.outputs import file_at, files_at

FILES = (".json", ".md")


def written(path):
    """What an earlier call wrote at a path."""
    for file in files_at(path, *FILES, sign="ours"):
        file.write_text("ours")


def test_a_file_has_a_name_and_is_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert file_at(tmp_path / "deep/er/junit.xml").parent.is_dir()
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path, tmp_path / "deep", "."):
        with pytest.raises(UserError, match="it is a folder; name a file"):
            file_at(type(tmp_path)(path))
    with pytest.raises(UserError, match=r"cannot write to .*file/junit\.xml"):
        file_at(tmp_path / "file/junit.xml")


@pytest.mark.parametrize("name", ["table", "table.md", "table.json", "v1.2"])
def test_an_ending_is_put_once(name, tmp_path):
    stem = name if name == "v1.2" else "table"
    for _ in range(2):  # the files of an earlier call are replaced
        written(tmp_path / name)
        assert sorted(it.name for it in tmp_path.iterdir()) == [f"{stem}.json", f"{stem}.md"]


def test_the_files_of_somebody_else_are_left_alone(tmp_path):
    (tmp_path / "notes.md").write_text("mine")
    (tmp_path / "package.json").write_text("{}")
    for name in ("notes", "notes.md", "package"):
        with pytest.raises(UserError, match="none that an earlier call wrote: give another --out"):
            files_at(tmp_path / name, *FILES, sign="ours")


@pytest.mark.parametrize("path", [".", "./", "..", "deep/.."])
def test_files_need_a_name(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="name files without an ending, as"):
        files_at(type(tmp_path)(path), *FILES, sign="ours")
    assert not list(tmp_path.iterdir())


def test_commands_say_so_before_their_work(tgalign, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = ("nothing=/nowhere", "--out", ".")
    for command in (("pool", *folder), ("report", "/nowhere", "--out", "./")):
        status, _, err = tgalign(*command)
        assert status == 2
        assert "name files without an ending" in err
    for junit in (tmp_path, "."):
        status, _, err = tgalign("evaluate", "/nowhere", "--out", "out", "--junit", junit)
        assert status == 2
        assert "it is a folder; name a file" in err
    (tmp_path / "file").write_text("mine")
    labelled = ("--judge-report", "/nowhere.csv", "--out", tmp_path / "file")
    status, _, err = tgalign("evaluate", *labelled)
    assert status == 2
    assert f"cannot write to {tmp_path}/file" in err


def test_items_without_second_labels_are_no_judge_report(tgalign, tmp_path):
    (tmp_path / "t.csv").write_text("prompt,completion\nq,a\n")
    given = ("--judge-report", tmp_path / "t.csv", "--out", tmp_path / "out")
    status, said, err = tgalign("evaluate", *given)
    assert (status, said) == (2, "")
    assert "t.csv holds no second labels: give --judge-model" in err
    assert not (tmp_path / "out" / "judge-report.json").exists()
    (tmp_path / "t.csv").write_text("prompt,completion,label\nq,a,answered\n")
    assert tgalign("evaluate", *given)[0] == 0
    report = json.loads((tmp_path / "out" / "judge-report.json").read_text())
    assert report["agreement"][str(tmp_path / "t.csv")][0]["judges"] == ["human", "rules"]
