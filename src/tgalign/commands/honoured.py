"""Nothing that is given to a command vanishes: what one of its modes has no use for is refused."""

from __future__ import annotations

from collections.abc import Collection

import typer

from tgalign.errors import UserError


def refuse_others(context: typer.Context, mode: str, honoured: Collection[str]) -> None:
    """Refuse what was given beside a mode that has no use for it.

    Args:
        context: Of the command.
        mode: What to call it, such as ``--judge-report``.
        honoured: Names of the parameters that may be given.

    Raises:
        UserError: Another one was given.
    """
    given = [
        it.opts[0] if it.param_type_name == "option" else (it.name or "").upper()
        for it in context.command.params
        if it.name not in honoured
        and (source := context.get_parameter_source(it.name or ""))
        and source.name == "COMMANDLINE"
    ]
    if given:
        raise UserError(f"{mode} has no use for {', '.join(given)}: leave that out")
