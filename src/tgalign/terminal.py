"""What the command line shows: a console, and no chatter of libraries in it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn

T = TypeVar("T")

LOG_WIDTH = 140
"""Columns where output goes to a file, which has none of its own."""


def wide_console() -> Console:
    """A console as wide as the terminal, or as a table needs where there is none."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=LOG_WIDTH)


def bar_on_stderr(shown: bool, *columns: ProgressColumn) -> Progress:
    """Progress bars beside what a command prints on stdout as its result.

    Args:
        shown: Whether to draw them.
        columns: What they show; by default title, bar, share and time left.
    """
    from rich.console import Console
    from rich.progress import Progress

    return Progress(*columns, console=Console(stderr=True), disable=not shown)


def tracked(
    items: Iterable[T], title: str, *, shown: bool, total: int | None = None
) -> Iterator[T]:
    """Items, under such a bar until the last is done.

    Args:
        items: The items.
        title: Of the bar.
        shown: Whether to draw it.
        total: How many there are, if ``items`` cannot tell.
    """
    with bar_on_stderr(shown) as bar:
        yield from bar.track(items, total, description=title)


def quiet_libraries() -> None:
    """Hide transformers' advice and weight-loading bars; ours tell what is going on."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
