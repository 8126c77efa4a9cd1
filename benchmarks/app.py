"""How long a visitor of the page waits: ``python -m benchmarks.app --json``.

Starts the page with the lab's untrained models as a process of its own and asks as a browser would.
Baseline, in the same run: the same models asked directly, without page, queue and network. With
``--audit`` an audit of the lab runs meanwhile. Seconds depend on the machine; the ratio less.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tgalign.app.answers import stream_answers
from tgalign.app.models import load_models
from tgalign.app.scenes import NOTHING, compose_scene
from tgalign.checkpoint import save_checkpoint
from tgalign.lab.assets import lab_llava, load_lab
from tgalign.lab.suite import QUESTION

TURNS = 5


def measure(*, audit: bool) -> dict[str, Any]:
    """Seconds until the page is ready and until answers, and their ratio to the models alone."""
    with tempfile.TemporaryDirectory() as folder:
        lab = load_lab()
        paths = [Path(folder) / name / "checkpoint" for name in ("one", "two")]
        for seed, path in enumerate(paths):
            path.parent.mkdir()
            save_checkpoint(*lab_llava(*lab, seed=seed), path)
        start = time.perf_counter()
        with _page(paths, Path(folder)) as address:
            ready = time.perf_counter() - start
            found = _visit(address, paths[0] if audit else None)
        models = load_models(paths)
        shown = compose_scene("kitchen knife", NOTHING, "blue", 1)
        alone = []
        for _ in range(TURNS):
            start = time.perf_counter()
            for _ in stream_answers(models, QUESTION, picture=shown.picture):
                pass
            for _ in stream_answers(models, QUESTION, caption=shown.caption):
                pass
            alone.append(time.perf_counter() - start)
    return {
        "ready_seconds": ready,
        **found,
        "alone_seconds": min(alone),
        "answers_over_alone": found["answers_seconds"] / min(alone),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
    }


@contextlib.contextmanager
def _page(paths: list[Path], folder: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "tgalign", "app", *map(str, paths), "--port", "0"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = re.search(r"http://\S+", process.stdout.readline())
        assert address, "the page did not start"
        yield address[0]
    finally:
        process.terminate()
        process.wait()


def _visit(address: str, audited: Path | None) -> dict[str, Any]:
    from gradio_client import Client

    with contextlib.redirect_stdout(io.StringIO()):
        client = Client(address, verbose=False)
    caption = client.predict("kitchen knife", NOTHING, "blue", api_name="/compose")[1]
    asked = ("one", "two", QUESTION, caption)
    if audited is not None:
        progress = client.predict(str(audited), "", "", 0, api_name="/start_audit")[0]
        assert "Running" in progress, progress
    first, whole = [], []
    for _ in range(TURNS):
        start = time.perf_counter()
        judged = None
        for page in client.submit(*asked, api_name="/ask"):
            if judged is None and 'class="verdict' in str(page):
                judged = time.perf_counter() - start
        whole.append(time.perf_counter() - start)
        first.append(judged or whole[-1])
    return {
        "first_answer_seconds": first[0],
        "answers_seconds": min(whole),
        "answers_seconds_at_most": max(whole),
        "during_audit": audited is not None,
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one line of JSON and nothing else")
    parser.add_argument("--audit", action="store_true", help="while an audit runs")
    arguments = parser.parse_args()
    found = measure(audit=arguments.audit)
    print(json.dumps(found) if arguments.json else json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
