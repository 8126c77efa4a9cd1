"""What inspect-ai finds through the entry point: task, scorer and model provider of tgalign."""

from tgalign.evaluate.inspect_provider import tgalign
from tgalign.evaluate.inspect_task import dsr, refusal

__all__ = ["dsr", "refusal", "tgalign"]
