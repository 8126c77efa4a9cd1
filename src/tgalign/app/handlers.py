"""What the page's events do: plain functions from what was entered to what is shown."""

from __future__ import annotations

import functools
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from tgalign.app import drawing
from tgalign.app.answers import Answer, check_words
from tgalign.app.audit import Audit, Audits
from tgalign.app.comparison import ANY, Comparison, select
from tgalign.app.comparison_files import read_audit_items, read_comparison
from tgalign.app.folders import inside
from tgalign.app.layers import control_caption, layer_figures, patched_answer
from tgalign.app.models import Loaded, short_names
from tgalign.app.scenes import compose_scene, read_upload
from tgalign.app.visit import Heard, Seen, heard_answers, taken
from tgalign.errors import UserError

NO_MODEL = "(none)"
ITEMS = 12
"""Pictures on a page of a comparison."""
LATEST = 6
"""Pictures shown of a running audit."""


def _said(
    outputs: int, *, clears: bool = True
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Turn what a handler raises into words on the page; all its other outputs stay as they are.

    Args:
        outputs: How many the handler has beside the notice, which comes last.
        clears: Whether success takes an earlier notice away; not in the later steps of a chain.
    """
    fine = "" if clears else gr.skip()

    def decorate(handler: Callable[..., Any]) -> Callable[..., Any]:
        def failed(fault: Exception) -> tuple[Any, ...]:
            if isinstance(fault, UserError):
                words = str(fault)
            else:
                traceback.print_exception(fault, file=sys.stderr)
                words = (
                    f"{type(fault).__name__}: {str(fault)[:300]} (see where the page was started)"
                )
            return (*[gr.skip()] * outputs, drawing.notice(words))

        @functools.wraps(handler)
        def one(*args: Any, **kwargs: Any) -> Any:
            try:
                return (*handler(*args, **kwargs), fine)
            except Exception as fault:
                return failed(fault)

        @functools.wraps(handler)
        def many(*args: Any, **kwargs: Any) -> Iterator[Any]:
            try:
                for found in handler(*args, **kwargs):
                    yield (*found, fine)
            except Exception as fault:
                yield failed(fault)

        return many if inspect.isgeneratorfunction(handler) else one

    return decorate


class Handlers:
    """The page's events.

    Args:
        models: The models that can be asked, at least one.
        audits: Those of all sessions.
        roots: Folders that the page may open.
        demo: A folder to compare, or empty.
    """

    def __init__(
        self, models: Sequence[Loaded], audits: Audits, roots: Sequence[Path], demo: str = ""
    ) -> None:
        self.models, self.audits, self.roots, self.demo = list(models), audits, list(roots), demo

    @_said(7)
    def compose(self, seen: Seen | None, first: str, second: str, color: str) -> Any:
        """Draw objects of the lab, each time anew; every session begins with the same drawing."""
        draws = 1 if seen is None else seen.draws + 1
        shown = compose_scene(first, second, color, draws)
        return taken(seen, Seen(shown, draws), shown.caption)

    @_said(8)
    def upload(self, seen: Seen | None, path: str | None) -> Any:
        """Take a picture that was dropped; its file is gone afterwards."""
        if path is None:
            raise UserError("no file came: drop it again")
        shown = read_upload(Path(path))
        draws = 0 if seen is None else seen.draws
        return None, *taken(seen, Seen(shown, draws), "")

    @_said(2)
    def ask(
        self, seen: Seen | None, left: str, right: str, question: str, caption: str
    ) -> Iterator[Any]:
        """Ask both models about the picture, then about its caption, word by word."""
        if seen is None:
            raise UserError("there is no picture: drop one, or draw one")
        asked = check_words("question", question)
        caption = check_words("caption", caption) if caption.strip() else ""
        chosen = [name for name in (left, right) if name != NO_MODEL]
        models = [loaded for name in chosen for loaded in self.models if loaded.name == name]
        if not models:
            raise UserError("no model is chosen")
        heard = Heard(seen, tuple(models), asked, caption)
        for found in heard_answers(heard, chosen):
            if seen.gone:
                break
            yield found
        if seen.gone:  # these are no answers to the picture that is shown now
            yield gr.skip(), ""

    @_said(2, clears=False)
    def read_layers(self, heard: Heard | None) -> Any:
        """Read the picture layer by layer in the models that were asked."""
        if heard is None or heard.seen.gone or heard.figures:
            return gr.skip(), gr.skip()
        figures = [
            layer_figures(loaded, heard.seen.shown.picture, heard.caption, heard.question)
            for loaded in heard.models
        ]
        if heard.seen.gone:
            return gr.skip(), gr.skip()
        names = [loaded.name for loaded in heard.models]
        return replace(heard, figures=tuple(figures)), drawing.layer_plots(names, figures)

    @_said(1, clears=False)
    def patch(self, heard: Heard | None, layer: float) -> Any:
        """Put the caption's states in at a layer, and a harmless caption's as a control."""
        if heard is None or heard.seen.gone or not heard.figures:
            return (gr.skip(),)
        number = int(layer)
        patched: list[Answer | None] = [None] * len(heard.models)
        controls = list(patched)
        for index, loaded in enumerate(heard.models):
            if heard.caption and number < loaded.parts.num_layers:
                both = [
                    patched_answer(loaded, heard.seen.shown.picture, words, heard.question, number)
                    for words in (heard.caption, control_caption(heard.caption))
                ]
                patched[index], controls[index] = both
        if heard.seen.gone:
            return (gr.skip(),)
        names = [loaded.name for loaded in heard.models]
        return (
            drawing.patch_cards(number, names, heard.seen.shown, heard.figures, patched, controls),
        )

    @_said(5)
    def open_comparison(self, folder: str) -> Any:
        """Open a finished comparison."""
        found = read_comparison(inside(folder, self.roots, "comparison"), self.roots)
        methods = [ANY, *found.methods]
        return (
            found,
            gr.update(choices=[ANY, *found.scenes], value=ANY),
            gr.update(choices=methods, value=ANY),
            gr.update(choices=[ANY, *found.labels], value=ANY),
            drawing.pareto_plots(found),
        )

    @_said(3, clears=False)
    def first_items(
        self, found: Comparison | None, scene: str, method: str, label: str, disputed: bool
    ) -> Any:
        """The first pictures that fit the filters."""
        if found is None:
            return gr.skip(), gr.skip(), gr.skip()
        return self._items(found, scene, method, label, disputed, 0)

    @_said(3)
    def further_items(
        self, found: Comparison | None, scene: str, method: str, label: str, disputed: bool, at: int
    ) -> Any:
        """The next pictures that fit."""
        return self._items(found, scene, method, label, disputed, at + ITEMS)

    @_said(3)
    def earlier_items(
        self, found: Comparison | None, scene: str, method: str, label: str, disputed: bool, at: int
    ) -> Any:
        """The pictures before."""
        return self._items(found, scene, method, label, disputed, at - ITEMS)

    @_said(4)
    def pick(
        self, found: Comparison | None, scene: str, method: str, label: str, disputed: bool,
        event: gr.EventData,
    ) -> Any:  # fmt: skip
        """Choose a method by its row or point."""
        method = str(event.method)
        if found is not None and method not in found.methods:
            raise UserError(f"there is no method {method!r} here")
        return method, *self._items(found, scene, method, label, disputed, 0)

    def _items(
        self, found: Comparison | None, scene: str, method: str, label: str, disputed: bool, at: int
    ) -> tuple[Any, ...]:
        if found is None:
            raise UserError("open a comparison first")
        fit = select(found, scene=scene, method=method, label=label, disputed=disputed)
        at = min(max(at, 0), (len(fit) - 1) // ITEMS * ITEMS if fit else 0)
        table = drawing.comparison_table(found, method)
        return at, table, drawing.item_cards(fit, at, ITEMS)

    @_said(3)
    def start_audit(
        self, model: str, data: str, out: str, limit: float | None, request: gr.Request
    ) -> Any:
        """Start an audit for this session."""
        path = inside(model, [*self.roots, *(it.path for it in self.models)], "model")
        folder = inside(data, self.roots, "pictures") if data.strip() else None
        kept = None
        if out.strip():
            kept = Path(out.strip()).expanduser().resolve()
            inside(str(kept.parent), self.roots, "results")
        audit = self.audits.start(
            _session(request), path, folder, kept, int(limit) if limit else None
        )
        return self._look(audit)

    @_said(3)
    def stop_audit(self, request: gr.Request) -> Any:
        """Stop this session's audit."""
        audit = self.audits.get(_session(request))
        if audit is None:
            raise UserError("no audit is running")
        self.audits.stop(_session(request))
        return self._look(audit)

    @_said(3, clears=False)
    def look_at_audit(self, request: gr.Request) -> Any:
        """See how far this session's audit is."""
        audit = self.audits.get(_session(request))
        if audit is None:
            return gr.skip(), gr.skip(), gr.Timer(active=False)
        return self._look(audit)

    def _look(self, audit: Audit) -> tuple[Any, ...]:
        address = f"audit-report/{audit.token}/report.html" if audit.report else None
        rows = read_audit_items(audit.out, short_names([audit.model])[0], self.roots)
        first = max(0, len(rows) - LATEST)
        return (
            drawing.audit_progress(audit, audit.seconds_left, address),
            drawing.item_cards(rows, first, LATEST, "The latest of them.") if rows else "",
            gr.Timer(active=audit.state == "running"),
        )

    def close(self, request: gr.Request) -> None:
        """Forget a session whose page was closed."""
        self.audits.close(_session(request))


def _session(request: gr.Request) -> str:
    assert request.session_hash is not None, "gradio gives every page a session"
    return str(request.session_hash)
