"""What all reports share: one style, templates that escape everything, pictures as data."""

from __future__ import annotations

import base64
import re
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tgalign.report import verdict

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup

_MEDIA = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}


def template(name: str) -> Template:
    """A template of this package, with autoescape and the filters of all reports."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": verdict.percent, "share": verdict.share, "interval": verdict.interval,
        "seconds": verdict.seconds, "number": verdict.number, "svg": Markup,
        "label": verdict.label, "whole": verdict.whole, "points": verdict.points,
        "text_uri": text_uri, "rate_text": verdict.rate_text,
    }  # fmt: skip
    return environment.from_string(_read(name))


def css() -> Markup:
    """The style of all reports."""
    from markupsafe import Markup

    return Markup(_read("page.css"))


@cache
def light_colors() -> dict[str, str]:
    """The colours of the light page by the names of their CSS variables."""
    root = _read("page.css").split("}", maxsplit=1)[0]
    return dict(re.findall(r"--([\w-]+): (#\w+);", root))


def text_uri(text: str, media: str) -> str:
    """A text as a data URI, for a link that saves it."""
    return f"data:{media};base64,{base64.b64encode(text.encode()).decode('ascii')}"


def picture_uri(folder: Path, name: Any) -> str | None:
    """A picture of a report's folder as a data URI; None if there is none to be had."""
    if not isinstance(name, str) or not name:
        return None
    path = (folder / name).resolve()
    media = _MEDIA.get(path.suffix.lower())
    if media is None or not path.is_relative_to(folder.resolve()):
        return None
    try:
        content = path.read_bytes()
    except OSError:
        return None
    return f"data:{media};base64,{base64.b64encode(content).decode('ascii')}"


def _read(name: str) -> str:
    return resources.files("tgalign.report").joinpath(name).read_text(encoding="utf-8")


def render_page(name: str, **content: Any) -> str:
    """Fill a page's template; it gets ``style``, the style sheet that all pages share."""
    return template(name).render(style=css(), **content)
