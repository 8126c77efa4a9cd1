"""Shard workers for the tests of jobs, in a module that a Ray worker imports in no time."""

import os
import signal

from tgalign.errors import UserError


def writer(out, kill):
    """What writes a file for each shard; the worker that gets shard 2 first dies over it."""

    def write(shard):
        dead = out / "dead"
        if shard == 2 and kill and not dead.exists():
            dead.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        (out / f"shard-{shard}").write_text(str(os.getpid()))

    return write


def refuser():
    def refuse(shard):
        raise UserError(f"shard {shard} is bad")

    return refuse
