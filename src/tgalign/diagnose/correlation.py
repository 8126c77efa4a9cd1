"""Whether what is better aligned is refused more often: by scene, and by picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tgalign.diagnose.separability import auroc
from tgalign.evaluate.statistics import NUM_RESAMPLES, bootstrap, percentile_ends


def scene_correlation(alignment: Sequence[float], dsr: Sequence[float]) -> dict[str, Any]:
    """Spearman's correlation over scenes.

    Args:
        alignment: Mean alignment of each scene's pictures.
        dsr: Share of each scene's pictures that is refused.

    Returns:
        ``rho`` (None where either side is the same in all scenes), ``low`` and ``high``, its 95 %
        bootstrap interval over scenes, ``p`` by permutation of the scenes, and ``n``.
    """
    from scipy.stats import permutation_test

    x, y = np.asarray(alignment, dtype=float), np.asarray(dsr, dtype=float)
    found: dict[str, Any] = {"rho": None, "low": None, "high": None, "p": None, "n": len(y)}
    if len(y) < 3 or len(set(dsr)) == 1 or len(set(alignment)) == 1:
        return found
    # A draw in which one side is the same everywhere has no correlation, and is left out.
    low, high = bootstrap(
        np.stack([x, y]), lambda both: _spearman(both[0], both[1]), method="linear"
    )
    test = permutation_test(
        (y,),
        lambda shuffled, axis: _spearman(x, np.moveaxis(shuffled, axis, -1)),
        permutation_type="pairings",
        vectorized=True,
        n_resamples=NUM_RESAMPLES * 10,
        rng=0,
    )
    ends = {"low": float(low), "high": float(high), "p": float(test.pvalue)}
    return found | {"rho": float(_spearman(x, y))} | ends


def _spearman(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> Any:
    """Correlation of ranks over the last axis; NaN where one side is the same everywhere."""
    from scipy.stats import rankdata

    a, b = (rankdata(side, axis=-1) for side in (x, y))
    a, b = (side - side.mean(axis=-1, keepdims=True) for side in (a, b))
    scale = np.sqrt((a**2).sum(axis=-1) * (b**2).sum(axis=-1))
    with np.errstate(invalid="ignore"):
        return np.where(scale > 0, (a * b).sum(axis=-1) / scale, np.nan)


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
    low, high = percentile_ends(drawn)
    value = float(auroc(yes, no))
    assert math.isfinite(value)
    return found | {"auroc": value, "low": float(low), "high": float(high)}
