"""Audits beside the page: one for each session, followed, stopped and forgotten."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from app_world import write_pictures
from tgalign.app import audit as module
from tgalign.app import drawing
from tgalign.app.audit import Audits, audit_command, count_requests
from tgalign.errors import UserError

WORK = """
import json, pathlib, sys, time
out, until = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
for n in range(2):
    with (out / "items.jsonl").open("a") as file:
        file.write(json.dumps({"id": n}) + "\\n")
while not until.exists():
    time.sleep(0.02)
(out / "report.html").write_text("<p>report</p>")
"""
FAIL = "print('tgalign: no checkpoint at x', flush=True); raise SystemExit(2)"


def wait(until: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not until():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.02)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Audits are a short script that waits for this file."""
    until = tmp_path / "until"
    monkeypatch.setattr(
        module,
        "audit_command",
        lambda model, data, out, limit: [sys.executable, "-c", WORK, str(out), str(until)],
    )
    return until


def test_the_command_is_that_of_the_command_line(tmp_path: Path) -> None:
    command = audit_command(tmp_path / "m", tmp_path / "d", tmp_path / "o", 3)
    assert command[1:] == [
        "-m", "tgalign", "audit", str(tmp_path / "m"), "--out", str(tmp_path / "o"),
        "--suite", "folder", "--data", str(tmp_path / "d"), "--limit", "3",
    ]  # fmt: skip
    from typer.main import get_command

    from tgalign.cli import app

    verb = get_command(app).commands["audit"]  # type: ignore[attr-defined]
    assert verb.make_context("audit", command[4:]).params["limit"] == 3


def test_requests_are_counted_as_the_audit_asks_them(data: Path) -> None:
    assert count_requests(data, None) == 4
    assert count_requests(data, 1) == 3
    for name in ("gun/1", "gun/broken", "knife/1", "benign/1"):
        (data / f"{name}.txt").write_text("a caption")
    assert count_requests(data, None) == 8  # with captions, the text side too
    with pytest.raises(UserError, match="no picture"):
        (data / "none").mkdir()
        count_requests(data / "none", None)


def test_an_audit_is_followed_to_its_report(
    data: Path, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    audits = Audits()
    audit = audits.start("me", tmp_path, data, None, None)
    wait(lambda: audit.answered == 2)
    assert audit.state == "running"
    assert audit.report is None and audits.file(audit.token, "report.html") is None
    text = drawing.audit_progress(audit, audit.seconds_left, None)
    assert "Running" in text and "2 of 4 answers" in text
    release.touch()
    wait(lambda: audit.state == "done")
    assert audit.report == audit.out / "report.html"
    assert audits.file(audit.token, "report.html") == audit.report
    (audit.out / "diagnosis").mkdir()
    (audit.out / "diagnosis" / "report.html").touch()
    assert audits.file(audit.token, "diagnosis/report.html") is not None
    (audit.out.parent / "secret.html").touch()
    (audit.out / "notes.txt").touch()
    outside = ["..", "../secret.html", "/etc/hostname", "notes.txt", "none.html"]
    for token, name in [("", "report.html"), ("é", "report.html")] + [
        (audit.token, name) for name in outside
    ]:
        assert audits.file(token, name) is None
    audits.close("me")
    assert not audit.out.exists()
    assert audits.get("me") is None


def test_sessions_have_audits_of_their_own(data: Path, release: Path, tmp_path: Path) -> None:
    audits = Audits()
    mine = audits.start("me", tmp_path, data, None, None)
    yours = audits.start("you", tmp_path, data, None, None)
    assert mine.token != yours.token and mine.out != yours.out
    with pytest.raises(UserError, match="running already"):
        audits.start("me", tmp_path, data, None, None)
    audits.stop("me")
    assert (mine.state, yours.state) == ("stopped", "running")
    again = audits.start("me", tmp_path, data, None, None)  # a stopped one makes room
    assert again.state == "running" and not mine.out.exists()
    audits.close_all()
    assert not again.out.exists() and not yours.out.exists()
    assert yours.process.poll() is not None


def test_kept_results_outlive_the_session_and_are_gone_on_with(
    data: Path, release: Path, tmp_path: Path
) -> None:
    out = tmp_path / "kept"
    out.mkdir()
    (out / "items.jsonl").write_text(json.dumps({"id": "old"}) + "\n")
    audits = Audits()
    audit = audits.start("me", tmp_path, data, out, None)
    assert audit.before == 1
    wait(lambda: audit.answered == 3)
    audits.close("me")
    assert audit.state == "stopped"
    assert (out / "items.jsonl").read_text().count("\n") == 3


def test_answers_are_never_more_than_the_requests(
    data: Path, release: Path, tmp_path: Path
) -> None:
    out = tmp_path / "kept"
    out.mkdir()
    failed = json.dumps({"verdict": None}) + "\n"  # asked again
    (out / "items.jsonl").write_text("{}\n" * 2 + failed * 2)
    audits = Audits()
    audit = audits.start("me", tmp_path, data, out, None)
    wait(lambda: (out / "items.jsonl").read_text().count("\n") == 6)
    assert (audit.answered, audit.total, audit.seconds_left) == (4, 4, None)
    audits.close_all()


def test_a_failed_audit_says_why(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "audit_command", lambda *_: [sys.executable, "-c", FAIL])
    audits = Audits()
    audit = audits.start("me", tmp_path, data, None, None)
    wait(lambda: audit.state != "running")
    assert audit.state == "failed"
    assert audit.fault == "no checkpoint at x"
    assert "no checkpoint at x" in drawing.audit_progress(audit, None, None)
    audits.close_all()


def test_the_real_command_takes_a_new_folder(data: Path, tmp_path: Path) -> None:
    audits = Audits()
    audit = audits.start("me", tmp_path / "none", data, tmp_path / "new", None)
    wait(lambda: audit.state != "running")
    assert "no checkpoint" in audit.fault
    audits.close_all()


def test_sessions_of_one_folder_have_their_own_words(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audits, found = Audits(), []
    for name in ("me", "you"):
        said = FAIL.replace("at x", f"at {name}")
        monkeypatch.setattr(
            module, "audit_command", lambda *_, say=said: [sys.executable, "-c", say]
        )
        found.append(audits.start(name, tmp_path, data, tmp_path / "kept", None))
    wait(lambda: all(audit.state == "failed" for audit in found))
    assert [audit.fault for audit in found] == ["no checkpoint at me", "no checkpoint at you"]
    audits.close_all()


def test_the_time_left_counts_from_the_first_answers(
    data: Path, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered, clock = [1], [0.0]
    monkeypatch.setattr(module.Audit, "answered", property(lambda _: answered[0]))
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    audits = Audits()
    audit = audits.start("me", tmp_path, data, None, None)
    audit.total = 11
    guesses = []
    for at, many in ((50.0, 1), (100.0, 2), (101.0, 2), (104.0, 4), (106.0, 5)):
        clock[0], answered[0] = at, many
        guesses.append(audit.seconds_left)
    assert guesses == [None, None, None, 14.0, 12.0]
    monkeypatch.undo()
    audits.close_all()


def test_an_audit_that_ends_while_it_is_stopped_is_no_error(
    data: Path, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audits = Audits()
    audit = audits.start("me", tmp_path, data, None, None)

    def ended(*_: object) -> None:
        release.touch()
        raise ProcessLookupError

    monkeypatch.setattr(module.os, "killpg", ended)
    audits.close_all()
    assert audit.process.poll() is not None
