"""Nothing that is given to a command vanishes: what one of its modes has no use for is refused."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

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
    names = {it.name or "" for it in context.command.params}
    refuse(context, mode, names.difference(honoured))


def refuse(
    context: typer.Context,
    mode: str,
    refused: Collection[str],
    mend: str = "leave out one or the other",
) -> None:
    """Refuse those of some parameters that were given.

    Args:
        context: Of the command.
        mode: What has no use for them.
        refused: Their names.
        mend: What to do.

    Raises:
        UserError: One was given.
    """
    given = [
        _form_given(it, context.params.get(it.name or ""))
        for it in context.command.params
        if it.name in refused
        and (source := context.get_parameter_source(it.name or ""))
        and source.name == "COMMANDLINE"
    ]
    if given:
        raise UserError(f"{mode} has no use for {', '.join(given)}: {mend}")


def _form_given(parameter: Any, value: Any) -> str:
    if parameter.param_type_name != "option":
        return (parameter.name or "").upper()
    negated = value is False and parameter.secondary_opts
    forms: list[str] = parameter.secondary_opts if negated else parameter.opts
    return forms[0]
