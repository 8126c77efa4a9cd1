"""``tgalign lab build``: what it prints and when it fails."""

from __future__ import annotations

import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tgalign.errors import UserError
from tgalign.lab.assets import check_assets
from tgalign.lab.build import build_lab, check_shipped, differences
from tgalign.lab.gates import GATES, GateReport
from tgalign.locks import sole_writer


def run_build(
    out: Path | None, seed: int, *, check: bool, gates_only: bool, progress_bar: bool = True
) -> int:
    """Build, check or only measure, and print the gates and the logit lens.

    Args:
        out: Folder for a build; None with ``check`` and ``gates_only``.
        seed: Seed of a build; a check takes the shipped models' own.
        check: Rebuild in a temporary folder and compare with the shipped models.
        gates_only: Only measure the shipped models.
        progress_bar: Whether to draw one for each model that is trained.

    Returns:
        0, or 1 if the shipped models miss a gate or a rebuild behaves differently.

    Raises:
        UserError: Not exactly one of the three is asked for, or another run writes to ``out``.
    """
    if (out is not None) + check + gates_only != 1:
        raise UserError(
            "give one of --out FOLDER (build), --check (rebuild and compare with the shipped "
            "models) and --gates (only measure these)"
        )
    console = Console()
    if out is not None:
        with sole_writer(out):
            command = f"tgalign lab build --out OUT --seed {seed}"
            report = build_lab(out, seed, command, progress_bar=progress_bar)
        print_report(console, f"models built from seed {seed}", report)
        return 0
    shipped = check_shipped()
    print_report(console, "shipped models", shipped)
    if gates_only:
        return 1 if shipped.failed else 0
    seed = check_assets()["seed"]
    with tempfile.TemporaryDirectory() as folder:
        rebuilt = build_lab(
            Path(folder), seed, "tgalign lab build --check", progress_bar=progress_bar
        )
    print_report(console, f"models rebuilt from seed {seed}", rebuilt)
    differ = differences(shipped, rebuilt)
    if differ:
        console.print(f"[red]The rebuilt models behave differently in: {', '.join(differ)}")
        return 1
    console.print("The rebuilt models behave as the shipped ones do.")
    return 0


def print_report(console: Console, title: str, report: GateReport) -> None:
    """Print the gates, and by layer how sure the model is of refusing."""
    table = Table(title=f"Gates of the {title}", title_justify="left")
    for column in ("gate", "bound", "rate [95 % interval] n", "passed"):
        table.add_column(column)
    for name, (sign, bound) in GATES.items():
        passed = "no" if name in report.failed else "yes"
        table.add_row(name, f"{sign} {bound}", str(report.rates[name]), passed)
    console.print(table)
    lens = Table(
        title="Logit lens: probability that the answer opens with a refusal, by hidden state "
        "(0 = embeddings, last = after the final norm)",
        title_justify="left",
    )
    for column in ("state", "toxic captions", "benign captions"):
        lens.add_column(column, justify="right")
    for row in report.logit_lens:
        lens.add_row(f"{row['layer']:.0f}", f"{row['toxic']:.3f}", f"{row['benign']:.3f}")
    console.print(lens)
