"""The methods and the ablations as tables in Markdown, from what the code declares."""

from __future__ import annotations

from tgalign.baselines.ablations import ABLATIONS
from tgalign.baselines.comparison import NEEDS, facts
from tgalign.baselines.methods import DEFAULT_METHODS, plan


def methods_table() -> str:
    """Every method: what it does, how it departs from its paper, what it needs."""
    lines = ["| method | what it does | departs from the paper | needs |"]
    lines.append("| --- | --- | --- | --- |")
    for name in DEFAULT_METHODS:
        found = facts(plan(name))
        needs = ", ".join(said for need, said in NEEDS.items() if found[need])
        cells = (f"`{name}`", f"{found['what']} {found['paper']}", found["departure"], needs)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def ablations_table() -> str:
    """Every ablation: its question, its variants, and the command that runs it."""
    lines = ["| question | variants | command |", "| --- | --- | --- |"]
    for name, ablation in ABLATIONS.items():
        variants = "; ".join(variant.label for variant in ablation.variants)
        command = f"`tgalign compare --out ablations --ablation {name} --seeds 3`"
        lines.append(f"| {ablation.question} | {variants} | {command} |")
    return "\n".join(lines) + "\n"
