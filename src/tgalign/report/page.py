"""Offline pages of one style: Jinja2 with everything escaped but our own drawings."""

from __future__ import annotations

from importlib import resources
from typing import Any

from tgalign.report import verdict


def render_page(template: str, **content: Any) -> str:
    """Fill a page's template.

    Args:
        template: A file of this package. It gets ``style``, the style sheet that all pages share,
            and filters for rates, numbers and drawings.
        content: What else it names.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": verdict.percent, "share": verdict.share, "interval": verdict.interval,
        "seconds": verdict.seconds, "number": verdict.number, "svg": Markup,
        "label": verdict.label, "whole": verdict.whole, "points": verdict.points,
    }  # fmt: skip
    files = resources.files("tgalign.report")
    source = files.joinpath(template).read_text(encoding="utf-8")
    style = Markup(files.joinpath("page.css").read_text(encoding="utf-8"))
    return environment.from_string(source).render(style=style, **content)
