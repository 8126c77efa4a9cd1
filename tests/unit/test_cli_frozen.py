"""Verbs, options, defaults and types are those of tests/data/cli.txt: none vanishes unnoticed.

`python tests/unit/test_cli_frozen.py --write` renews the file; its diff belongs into the review.
"""

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer
from typer.models import ArgumentInfo

from tgalign.cli import app
from tgalign.data.encode import GuideSpan

FROZEN = Path(__file__).parents[1] / "data" / "cli.txt"


def lines(app: typer.Typer, verb: str) -> Iterator[str]:
    """A line for a command and one for each of its parameters, all below it."""
    found: dict[str, Any] = {it.name or it.callback.__name__: it for it in app.registered_commands}
    found |= {it.name: it for it in app.registered_groups}
    root = app.registered_callback
    if root is not None and callable(root.callback):
        found[""] = root
    for name in sorted(found):
        if isinstance(getattr(found[name], "typer_instance", None), typer.Typer):
            yield from lines(found[name].typer_instance, f"{verb} {name}")
            continue
        callback = found[name].callback
        hints = get_type_hints(callback, include_extras=True)
        yield f"{verb} {name.replace('_', '-')}".strip()
        for parameter in inspect.signature(callback).parameters.values():
            if hints[parameter.name] is typer.Context:
                continue
            kind, info = get_args(hints[parameter.name])
            said = str(kind).replace("pathlib.", "").replace("typing.", "")
            said = kind.__name__ if isinstance(kind, type) and not get_args(kind) else said
            bounds = "" if (info.min, info.max) == (None, None) else f" {info.min}..{info.max}"
            given = parameter.default
            default = "required" if given is inspect.Parameter.empty else f"default {given}"
            yield f"  {title(parameter.name, kind, info)}: {said}{bounds}, {default}"


def title(name: str, kind: Any, info: Any) -> str:
    """An option's names, or an argument's in brackets."""
    if isinstance(info, ArgumentInfo):
        return f"<{name}>"
    option = name.replace("_", "-")
    given = [info.default] if isinstance(info.default, str) else []  # the first name, in Annotated
    given += info.param_decls or []
    return " ".join(given or [f"--{option}", *([f"--no-{option}"] * (kind is bool))])


def frozen() -> str:
    return "".join(f"{line}\n" for line in lines(app, "tgalign"))


def test_no_verb_or_option_has_changed_unnoticed() -> None:
    assert frozen() == FROZEN.read_text(), f"if that was meant: python {__file__} --write"


def test_every_line_tells_verbs_and_options_apart() -> None:
    verbs = [line for line in frozen().splitlines() if not line.startswith(" ")]
    assert {"tgalign train", "tgalign retrieve build", "tgalign evaluate"} <= set(verbs)
    assert "  --limit: int | None 1..None, default None" in frozen()
    assert "  --root: list[Path] | None, default None" in frozen()


def test_every_span_that_a_recipe_may_guide_can_be_checked() -> None:
    """`check` writes them out, so that `--help` need not import what encodes."""
    assert f"--guide-span: {str(GuideSpan).replace('typing.', '')}, " in frozen()


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    FROZEN.write_text(frozen())
