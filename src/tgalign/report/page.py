"""What all reports share: one style, templates that escape everything, pictures as data."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tgalign.evaluate.seeds import MARK, NOTE, counts_of, seeds_differ
from tgalign.report import wording

if TYPE_CHECKING:
    from jinja2 import Environment

_MEDIA = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}


def environment() -> Environment:
    """What all pages are made with: autoescape, and the filters of all reports."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    made = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters |= {
        "percent": wording.percent, "share": wording.share, "interval": wording.interval,
        "seconds": wording.seconds, "number": wording.number, "svg": Markup,
        "label": wording.label, "whole": wording.whole, "points": wording.points,
        "dagger": dagger, "text_uri": text_uri, "rate_text": wording.rate_text,
        "p_value": wording.p_text,
    }  # fmt: skip
    return made


def render_page(name: str, **content: Any) -> str:
    """Fill a page's template, with ``style`` and ``dagger_note``, which all pages share."""
    from markupsafe import Markup

    page = environment().from_string(_read(name))
    return page.render(style=Markup(_read("page.css")), dagger_note=NOTE, **content)


def dagger(found: Mapping[str, Any], name: str, per_item: int = 1) -> str:
    """``MARK`` where a rate differs by seed, as tables in Markdown have it; else nothing.

    Args:
        found: What was measured of an arm, a method or a variant, with its ``seeds``.
        name: The rate.
        per_item: Trials of it that an item holds.
    """
    each: list[Any] = [(seed or {}).get(name) for seed in found.get("seeds") or []]
    known = [it for it in each if wording.share(it) is not None and wording.number(it.get("n"))]
    return MARK if seeds_differ(counts_of(known, per_item=per_item)) else ""


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
