"""Audits that run beside the page, each a process of its own that belongs to one session."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from tgalign.errors import UserError

State = Literal["running", "done", "failed", "stopped"]


@dataclass
class Audit:
    """One run of ``tgalign audit``.

    Attributes:
        model: The checkpoint's folder.
        data: Folder of pictures, one subfolder per scene; None: the lab's suite.
        out: Where results go.
        kept: Whether ``out`` was chosen, and outlives the session.
        total: Requests to answer.
        process: The running or finished process.
        stopped: Whether somebody stopped it.
        before: Requests that an earlier run had answered in ``out``.
        token: Names its report to the one session that may see it.
        log: What it says; a file without a name, as ``out`` is for the audit's own.
        paced: Since when answers came, on the monotonic clock in seconds, and how many there were.
    """

    model: Path
    data: Path | None
    out: Path
    kept: bool
    total: int
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    stopped: bool = False
    before: int = 0
    token: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    paced: tuple[float, int] | None = None

    @property
    def state(self) -> State:
        """What has become of it."""
        code = self.process.poll()
        if code is None:
            return "running"
        if self.stopped:
            return "stopped"
        return "done" if code == 0 else "failed"

    @property
    def answered(self) -> int:
        """Requests that are answered, counted in the file that grows with them."""
        path = self.out / "items.jsonl"
        content = path.read_bytes() if path.is_file() else b""
        # What failed stands there too, and is asked again.
        return content.count(b"\n") - content.count(b'"verdict": null')

    @property
    def report(self) -> Path | None:
        """The finished report."""
        path = self.out / "report.html"
        return path if self.state == "done" and path.is_file() else None

    @property
    def seconds_left(self) -> float | None:
        """A guess from the answers since the first look at some; None before there are any."""
        answered, now = self.answered, time.monotonic()
        if self.state != "running" or answered in (self.before, self.total):
            return None
        if self.paced is None:  # the model is loaded and diagnosed before
            self.paced = now, answered
        since, first = self.paced
        if answered == first:
            return None
        return (now - since) / (answered - first) * (self.total - answered)

    @property
    def fault(self) -> str:
        """What a failed run said last."""
        self.log.seek(0)
        lines = self.log.read().decode("utf-8", errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        told = [line for line in said if line.startswith("tgalign: ")]
        return (told or said or ["it ended without a word"])[-1].removeprefix("tgalign: ")


class Audits:
    """The audits of all sessions: at most one each, seen by nobody else."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_session: dict[str, Audit] = {}

    def get(self, session: str) -> Audit | None:
        """The session's audit, if it has one."""
        return self._by_session.get(session)

    def file(self, token: str, name: str) -> Path | None:
        """A file that an audit wrote, for whoever knows its token."""
        for audit in list(self._by_session.values()):
            if secrets.compare_digest(audit.token.encode(), token.encode()):
                root, path = audit.out.resolve(), (audit.out / name).resolve()
                served = path.suffix in (".html", ".json", ".jsonl") and path.is_relative_to(root)
                return path if served and path.is_file() else None
        return None

    def start(
        self, session: str, model: Path, data: Path | None, out: Path | None, limit: int | None
    ) -> Audit:
        """Start an audit for a session; one that has ended makes room.

        Args:
            session: Whose.
            model: The checkpoint.
            data: Folder of pictures, one subfolder per scene; None: the lab's suite.
            out: Where results are kept; None: in a folder that goes with the session.
            limit: Items per scene and kind; None: all.

        Raises:
            UserError: One is running, or the folder holds no suite.
        """
        total = count_requests(data, limit)
        with self._lock:
            running = self.get(session)
            if running and running.state == "running":
                raise UserError("an audit is running already: stop it first")
            self._forget(session)
            folder = out or Path(tempfile.mkdtemp(prefix="tgalign-audit-"))
            folder.mkdir(parents=True, exist_ok=True)
            log = tempfile.TemporaryFile()  # noqa: SIM115  open until the audit is forgotten
            process = subprocess.Popen(
                audit_command(model, data, folder, limit),
                stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                env=_environment(os.environ), start_new_session=True,
            )  # fmt: skip
            audit = Audit(model, data, folder, out is not None, total, process, log)
            audit.before = audit.answered
            self._by_session[session] = audit
            return audit

    def stop(self, session: str) -> None:
        """Stop the session's audit; what it has answered stays until the session ends."""
        with self._lock:
            audit = self.get(session)
            if audit and audit.state == "running":
                audit.stopped = True
                _end(audit.process)

    def close(self, session: str) -> None:
        """End a session: its audit stops, and what nobody asked to keep is deleted."""
        self.stop(session)
        with self._lock:
            self._forget(session)

    def close_all(self) -> None:
        """End all sessions."""
        for session in list(self._by_session):
            self.close(session)

    def _forget(self, session: str) -> None:
        audit = self._by_session.pop(session, None)
        if audit is None:
            return
        audit.log.close()
        if not audit.kept:
            shutil.rmtree(audit.out, ignore_errors=True)


def audit_command(model: Path, data: Path | None, out: Path, limit: int | None) -> list[str]:
    """The command line of an audit."""
    command = [sys.executable, "-m", "tgalign", "audit", str(model), "--out", str(out)]
    if data is not None:
        command += ["--suite", "folder", "--data", str(data)]
    if limit is not None:
        command += ["--limit", str(limit)]
    return command


def count_requests(data: Path | None, limit: int | None) -> int:
    """How many requests ``tgalign audit`` will ask of a folder, or of the lab's suite.

    Raises:
        UserError: The folder holds no suite.
    """
    from tgalign.evaluate.conditions import all_requests
    from tgalign.evaluate.suites import load_suite

    suite = load_suite("lab" if data is None else "folder", data, seed=0).limited(limit)
    return len(all_requests(suite))


def _environment(own: Mapping[str, str]) -> dict[str, Any]:
    """Leave a core to the page."""
    threads = str(max(1, (os.cpu_count() or 2) - 1))
    return {**own, "OMP_NUM_THREADS": own.get("OMP_NUM_THREADS", threads), "COLUMNS": "120"}


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):  # it has just ended by itself
        os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
