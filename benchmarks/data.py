"""How fast and in how much memory a data set of LLaVA's size is read, against ``json.load``.

``python -m benchmarks.data --json`` writes rows of the layout and length of LLaVA's instruction
data (which is not shipped: texts are random words, pictures are few and shared), reads them in
several ways, each in a process of its own, and prints one object. Peak memory is the process's,
less what it had before.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measure import apart

WORDS = "a the cat dog mug table red blue large small on near under with is are what how"


def write_rows(folder: Path, rows: int) -> Path:
    """Write ``llava.json`` and its pictures; a tenth of the rows is text alone."""
    from PIL import Image

    rng = random.Random(0)
    for number in range(100):
        noise = Image.effect_noise((336, 336), 40).convert("RGB")
        noise.save(folder / f"{number}.jpg")

    def words(count: int) -> str:
        return " ".join(rng.choices(WORDS.split(), k=count))

    path = folder / "llava.json"
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            turns = []
            for _ in range(rng.choice((1, 1, 3, 5, 8))):
                turns.append({"from": "human", "value": words(rng.randint(5, 30))})
                turns.append({"from": "gpt", "value": words(rng.randint(1, 60))})
            row: dict[str, Any] = {"id": str(number), "conversations": turns}
            if rng.random() < 0.9:
                turns[0]["value"] = f"<image>\n{turns[0]['value']}"
                row["image"] = f"{rng.randrange(100)}.jpg"
            file.write(("[" if number == 0 else ",\n") + json.dumps(row))
        file.write("]")
    return path


def load_at_once(path: Path) -> None:
    """The baseline: what LLaVA's own loader does."""
    with path.open(encoding="utf-8") as file:
        json.load(file)


def read_rows(path: Path) -> None:
    """Split the file into rows, no more."""
    from tgalign.data.sources import open_source

    for _ in open_source(path).rows:
        pass


def check_rows(path: Path) -> None:
    """``tgalign check`` without a tokenizer."""
    from tgalign.data.check import check
    from tgalign.data.sources import open_source

    check(open_source(path), path.parent)


def load_records(path: Path) -> None:
    """What ``tgalign train`` holds of the rows."""
    from tgalign.data.load import TrainingData

    TrainingData(path, path.parent, out=path.parent, max_bad_share=0.0, progress_bar=False)


def _measured(work: Callable[[Path], None], path: Path) -> dict[str, float]:
    import tgalign.data.load  # noqa: F401 - its imports are none of the work's memory

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    work(path)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "mebibytes": (peak - before) / 1024}


def measure(rows: int) -> dict[str, Any]:
    """Seconds and peak memory of each way to read, and their ratios to the baseline."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_rows(Path(folder), rows)
        found: dict[str, Any] = {"rows": rows, "file_mebibytes": path.stat().st_size / 2**20}
        for work in (load_at_once, read_rows, check_rows, load_records):
            found[work.__name__] = apart(_measured, work, path)
    for name in ("read_rows", "check_rows", "load_records"):
        for unit in ("seconds", "mebibytes"):
            found[name][f"{unit}_ratio"] = found[name][unit] / found["load_at_once"][unit]
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000, help="LLaVA-665K has 665,298.")
    parser.add_argument("--json", action="store_true", help="One line in place of several.")
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.rows), indent=None if arguments.json else 1))


if __name__ == "__main__":
    main()
