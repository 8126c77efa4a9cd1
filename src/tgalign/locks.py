"""Keep two runs from writing to one place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tgalign.errors import UserError
from tgalign.files import INCOMPLETE

LOCK = "lock" + INCOMPLETE
"""Name of the file that a run holds locked while it writes."""
PATIENCE = 10.0
"""Seconds that a run waits for the workers of one that was killed."""


@contextmanager
def sole_writer(out: Path, *, beside: bool = False) -> Iterator[None]:
    """Keep a second run from writing where this one does.

    The lock goes with the process that holds it, however that ends. Workers of one that was killed
    may outlive it by seconds, for which a new run waits.

    Args:
        out: What is written.
        beside: It is a file, or a folder that appears when it is complete, so the lock lies beside
            it (``named``); else it lies in the folder, which is made.

    Raises:
        UserError: Another run writes there, or nobody can.
    """
    from filelock import FileLock, Timeout

    path = out.with_name(f"{out.name}.{LOCK}") if beside else out / LOCK
    lock = FileLock(path, timeout=PATIENCE)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UserError(
            f"another run is writing to {out}: wait for its end, or give another --out"
        ) from None
    except OSError as fault:
        raise UserError(f"cannot write to {out}: {fault}") from None
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        lock.release()
