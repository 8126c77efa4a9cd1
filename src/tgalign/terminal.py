"""What the command line shows: a console, and no chatter of libraries in it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

LOG_WIDTH = 140
"""Columns where output goes to a file, which has none of its own."""


def wide_console() -> Console:
    """A console as wide as the terminal, or as a table needs where there is none."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=LOG_WIDTH)


def quiet_libraries() -> None:
    """Hide transformers' advice and weight-loading bars; ours tell what is going on."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
