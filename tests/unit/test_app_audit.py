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
    assert audit.seconds_left is not None and audit.seconds_left > 0
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
    outside = ["..", "../secret.html", "/etc/hostname", "audit.log", "none.html"]
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
    (out / "items.jsonl").write_text("{}\n" * 4)  # errors among them, which are asked again
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
