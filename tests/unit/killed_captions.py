"""Start `tgalign caption` and kill it with SIGKILL at a named moment; run by test_caption.

Takes the arguments of the command, reads a list of moments from stdin and prints, per run, the
signal that ended it. Every run is a fork, so that torch is imported once.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch

import tgalign.caption
from tgalign import cli
from tgalign.captioner import Captioner


def die(*_args, **_options):
    os.kill(os.getpid(), signal.SIGKILL)


def wire(moment: str, line: int) -> None:
    """Make this process die in or after writing a line of the progress, or at the end."""
    append, seen = tgalign.caption._append, []

    def append_or_die(journal, content):
        seen.append(content)
        if moment == "in" and len(seen) == line:
            journal.write(json.dumps(content)[:-9])
            journal.flush()
            die()
        append(journal, content)
        if moment == "after" and len(seen) == line:
            die()

    tgalign.caption._append = append_or_die
    if moment == "output":
        tgalign.caption.write_jsonl = die
    if moment == "written":
        write = tgalign.caption.write_jsonl

        def write_and_die(path, rows):
            write(path, rows)
            if path.name == "out.jsonl":
                die()

        tgalign.caption.write_jsonl = write_and_die


def main() -> None:
    torch.set_num_threads(1)
    model = Path(sys.argv[sys.argv.index("--model") + 1])
    Captioner(
        model, None, batch_size=1, max_new_tokens=1, dtype="auto"
    )  # imports, before the forks
    for moment, line in json.load(sys.stdin):
        child = os.fork()
        if child == 0:
            wire(moment, line)
            try:
                cli.main()
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        print(os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, flush=True)


if __name__ == "__main__":
    main()
