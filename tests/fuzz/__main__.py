"""Attack every reader for some minutes of the processor each, and print what was found as JSON.

    python tests/fuzz --minutes 10 --out docs/fuzz.json
    python tests/fuzz --minutes 1 --readers records,recipe

Each reader has a process of its own. With atheris, coverage guides what hypothesis draws; without,
bytes are drawn at random. A find is an exception that is no clear error, a reading of more than
``HANG`` seconds of the processor, or one that takes more than ``MEMORY`` MiB; equal finds (same
exception from the same line) are counted once, with the first input that led to it. What ``--out``
holds of other readers is kept.
"""

from __future__ import annotations

import argparse
import base64
import importlib.util
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

HANG = 20
MEMORY = 700


def attack(name: str, minutes: float, report: Path, atheris: Any) -> None:
    """Attack one reader; writes executions and finds to ``report`` as it goes. Does not return."""
    from damage import damaged
    from fuzzed_readers import fresh
    from hypothesis import HealthCheck, given, settings

    place = Path(tempfile.mkdtemp())
    reader, folder = fresh(name, place)
    finds: dict[str, dict[str, str]] = {}
    count, began, cpu = 0, time.monotonic(), time.process_time()

    def write() -> None:
        minutes_run = (time.monotonic() - began) / 60
        found = {
            "executions": count,
            "minutes": round(minutes_run, 2),
            "cpu_minutes": round((time.process_time() - cpu) / 60, 2),
            "finds": finds,
        }
        beside = report.with_suffix(".part")
        beside.write_text(json.dumps(found))
        beside.replace(report)

    def hung(signum: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"more than {HANG} s of the processor")

    signal.signal(signal.SIGVTALRM, hung)

    @settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(damaged(reader.files[reader.target], reader.form))
    def once(content: bytes) -> None:
        nonlocal count
        count += 1
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        signal.setitimer(signal.ITIMER_VIRTUAL, HANG)
        try:
            reader.attack(folder, content)
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
            if grown > MEMORY:
                raise MemoryError(f"{grown} MiB more")
        except Exception as fault:
            ours = [it for it in traceback.extract_tb(fault.__traceback__) if "/tgalign/" in it[0]]
            last = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "fuzz"
            key = f"{type(fault).__name__} at {last}"
            if key not in finds:
                said = str(fault).encode("utf-8", "replace").decode()[:300]
                finds[key] = {"said": said, "input": base64.b64encode(content[:3000]).decode()}
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        if count % 50 == 0:
            write()
            if time.process_time() - cpu >= 60 * minutes:
                os._exit(0)

    target = once.hypothesis.fuzz_one_input  # type: ignore[attr-defined]
    if atheris is None:
        while True:
            target(os.urandom(2000))
    corpus = place / "corpus"
    corpus.mkdir()
    for number in range(200):
        (corpus / str(number)).write_bytes(os.urandom(400))
    atheris.Setup(
        [sys.argv[0], str(corpus), "-max_len=2000", "-rss_limit_mb=0", "-verbosity=0"],
        lambda data: target(data) and None,
    )
    atheris.Fuzz()


def _attacker(name: str, minutes: float, report: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        return attack(name, minutes, report, None)
    import atheris

    with atheris.instrument_imports(include=["tgalign", "yaml", "csv"]):
        import fuzzed_readers  # noqa: F401
    attack(name, minutes, report, atheris)


def _attacked(name: str, minutes: float, work: Path) -> dict[str, Any]:
    """What a process of its own found in one reader."""
    work.mkdir()
    report = work / "report.json"
    command = [sys.executable, str(Path(__file__).parent), "--readers", name,
               "--minutes", str(minutes), "--attack", str(report)]  # fmt: skip
    ended = subprocess.run(
        command, capture_output=True, text=True, errors="replace", cwd=work, check=False,
        env={**os.environ, "TMPDIR": str(work)},
    )  # fmt: skip
    found: dict[str, Any] = {"executions": 0, "minutes": 0.0, "cpu_minutes": 0.0, "finds": {}}
    if report.is_file():
        found = json.loads(report.read_text())
    if ended.returncode:
        found["finds"]["process died"] = {"said": ended.stderr[-2000:], "input": ""}
    return found


def main() -> None:
    """Run the command line."""
    from fuzzed_readers import READERS

    parser = argparse.ArgumentParser(prog="python tests/fuzz", description=__doc__)
    parser.add_argument(
        "--minutes", type=float, default=10, help="of the processor, for each reader"
    )
    parser.add_argument("--readers", help="names separated by commas; all of them by default")
    parser.add_argument("--out", type=Path, help="write the JSON there too, after each reader")
    parser.add_argument("--jobs", type=int, default=1, help="readers side by side")
    parser.add_argument("--attack", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    names = given.readers.split(",") if given.readers else list(READERS)
    if given.attack:
        _attacker(names[0], given.minutes, given.attack)
    result: dict[str, Any] = {
        "engine": "hypothesis " + version("hypothesis") + (
            ", guided by atheris " + version("atheris")
            if importlib.util.find_spec("atheris") else ", unguided"
        ),
        "python": platform.python_version(),
        "readers": {},
    }  # fmt: skip
    if given.out and given.out.is_file():
        result["readers"] = json.loads(given.out.read_text())["readers"]
    with tempfile.TemporaryDirectory() as work, ThreadPoolExecutor(given.jobs) as pool:
        reports = pool.map(lambda name: _attacked(name, given.minutes, Path(work) / name), names)
        for name, found in zip(names, reports, strict=True):
            result["readers"][name] = found
            said = (f"{name}: {found['executions']:,} executions in {found['cpu_minutes']} minutes "
                    f"of the processor, {len(found['finds'])} find(s)")  # fmt: skip
            print(said, file=sys.stderr, flush=True)
            if given.out:
                given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
