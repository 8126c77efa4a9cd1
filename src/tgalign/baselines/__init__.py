"""Rival defences and controls, each one file, and their comparison."""

from tgalign.baselines.defence import Calibration
from tgalign.baselines.methods import defend

__all__ = ["Calibration", "defend"]
