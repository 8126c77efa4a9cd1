"""Whether what is better aligned is refused more often: by scene, and by picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tgalign.diagnose.separability import auroc
from tgalign.evaluate.statistics import NUM_RESAMPLES


def scene_correlation(alignment: Sequence[float], dsr: Sequence[float]) -> dict[str, Any]:
    """Spearman's correlation over scenes.

    Args:
        alignment: Mean alignment of each scene's pictures.
        dsr: Share of each scene's pictures that is refused.

    Returns:
        ``rho`` (None where either side is the same in all scenes), ``low`` and ``high``, its 95 %
        bootstrap interval over scenes, ``p`` by permutation of the scenes, and ``n``.
    """
    from scipy.stats import permutation_test, spearmanr

    def rho(order: Any) -> float:
        return float(spearmanr(np.asarray(alignment)[order], np.asarray(dsr)[order]).statistic)

    count = len(dsr)
    found: dict[str, Any] = {"rho": None, "low": None, "high": None, "p": None, "n": count}
    if count < 3 or len(set(dsr)) == 1 or len(set(alignment)) == 1:
        return found
    rng = np.random.default_rng(0)
    draws = [rng.integers(count, size=count) for _ in range(NUM_RESAMPLES)]
    # A draw in which one side is the same everywhere has no correlation.
    varied = [
        draw
        for draw in draws
        if len(set(np.asarray(dsr)[draw])) > 1 and len(set(np.asarray(alignment)[draw])) > 1
    ]
    low, high = np.quantile([rho(draw) for draw in varied], [0.025, 0.975])
    test = permutation_test(
        (np.asarray(dsr),),
        lambda shuffled: spearmanr(alignment, shuffled).statistic,
        permutation_type="pairings",
        n_resamples=NUM_RESAMPLES * 10,
        rng=0,
    )
    return found | {
        "rho": rho(np.arange(count)), "low": float(low), "high": float(high),
        "p": float(test.pvalue),
    }  # fmt: skip


def picture_association(alignment: Sequence[float], refused: Sequence[bool]) -> dict[str, Any]:
    """Probability that a refused toxic picture is better aligned than one that is not.

    Returns:
        ``auroc`` with its 95 % bootstrap interval over each kind (None where one kind is empty; 0.5
        is chance), ``refused`` and ``others``, how many of each.
    """
    scores, hits = np.asarray(alignment, dtype=float), np.asarray(refused, dtype=bool)
    yes, no = scores[hits], scores[~hits]
    found: dict[str, Any] = {
        "auroc": None, "low": None, "high": None, "refused": len(yes), "others": len(no)
    }  # fmt: skip
    if not len(yes) or not len(no):
        return found
    rng = np.random.default_rng(0)
    drawn = [
        auroc(rng.choice(yes, len(yes)), rng.choice(no, len(no))) for _ in range(NUM_RESAMPLES)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    value = float(auroc(yes, no))
    assert math.isfinite(value)
    return found | {"auroc": value, "low": float(low), "high": float(high)}
