"""Jobs side by side: Ctrl-C ends them, however it reaches them."""

import os
import signal
import subprocess
import sys
import time

import pytest

from processes import children, runs

WAIT = 120
JOBS = """
import signal, time
from rich.console import Console
from tgalign.workers import workers
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells switch it off behind `&`
    with workers(2, Console(), progress_bar=False) as crew:
        jobs = [(str(number), time.sleep, (number,)) for number in (0.01, 0.02, 998, 999, 1000)]
        crew.run("done", jobs)
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.mark.parametrize("to", ["the command alone", "all of the group", "all, twice"])
def test_an_interrupt_ends_all_jobs_at_once_and_quietly(to: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-u", "-c", JOBS],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        assert [process.stdout.readline().strip() for _ in range(2)] == ["done: 0.01", "done: 0.02"]
        started = children(process.pid)
        assert len(started) >= 2
        for _ in range(2 if to == "all, twice" else 1):
            if to == "the command alone":
                process.send_signal(signal.SIGINT)
            else:
                os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.2)
        _, said = process.communicate(timeout=WAIT)
    assert process.returncode == -signal.SIGINT
    assert said.count("Traceback") <= 1 or to == "all, twice"  # the command's own
    until = time.monotonic() + WAIT
    while any(map(runs, started)):
        assert time.monotonic() < until, "a worker is left"
        time.sleep(0.1)
