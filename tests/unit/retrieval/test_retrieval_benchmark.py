"""The benchmark runs and prints what it promises; what it measures is not judged here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("faiss", reason="the benchmark needs the extra [retrieval]")

ROOT = Path(__file__).parents[3]


def test_the_last_line_has_the_three_ratios():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.retrieval", "--size", "1500", "--json"],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1,500 × 512 (3 MiB): memory grows by" in done.stdout
    assert "IVF37,SQfp16 built in" in done.stdout
    ratios = json.loads(done.stdout.splitlines()[-1])
    assert set(ratios) == {"exact_over_gemm", "ivf_speedup", "ivf_recall_at_10"}
    assert all(value > 0 for value in ratios.values())
    assert ratios["ivf_recall_at_10"] <= 1
