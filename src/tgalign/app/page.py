"""The layout of the page: what stands where, and which function of ``handlers`` answers to what."""

from __future__ import annotations

from importlib import resources
from typing import Any

import gradio as gr

from tgalign.app.comparison import ANY
from tgalign.app.handlers import NO_MODEL, Handlers
from tgalign.app.scenes import NOTHING, object_choices
from tgalign.app.visit import NOTHING_HEARD
from tgalign.lab.pictures import COLORS
from tgalign.lab.suite import QUESTION

TITLE = "tgalign: see a model lose and regain its safety"
FONTS = ["ui-sans-serif", "system-ui", "Segoe UI", "Roboto", "Liberation Sans", "sans-serif"]
MONO = ["ui-monospace", "Menlo", "Consolas", "Liberation Mono", "monospace"]

INTRO = """# See a model lose and regain its safety

A language model that refuses in words may answer when the same thing comes as a picture. Show two
models a picture, and see what each says, and in which layer the refusal is lost.
"""
WARNING = """<p class="caution"><b>What is shown here may be harmful.</b> The lab's own pictures are
emoji art and stand in for the real thing. Pictures of your folders stay veiled until you choose to
see one. Nothing leaves this machine: an upload is read into memory, its file is deleted at once,
and the rest goes when you close the page.</p>"""

PICK = """
const choose = (event) => {
  const found = event.target.closest('[data-method]');
  if (!found || (event.type === 'keydown' && event.key !== 'Enter' && event.key !== ' ')) return;
  if (event.type === 'keydown') event.preventDefault();
  trigger('click', {method: found.dataset.method});
};
element.addEventListener('click', choose);
element.addEventListener('keydown', (event) => {
  if (event.target.matches('.point')) choose(event);
});
"""
"""A method is chosen by a click on its row or point, or by Enter or the space bar on a point."""


def theme() -> Any:
    """Gradio's base theme in fonts of the visitor's own machine."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.stone,
        font=FONTS,
        font_mono=MONO,
    ).set(
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_title_text_color="*neutral_800",
    )


def style() -> str:
    """The page's own style sheet."""
    return resources.files("tgalign.app").joinpath("page.css").read_text(encoding="utf-8")


def build_page(handlers: Handlers) -> Any:
    """Lay the page out.

    Args:
        handlers: What answers to its events.
    """
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 600)) as page:
        gr.Markdown(INTRO)
        gr.HTML(WARNING, js_on_load=None)
        with gr.Tabs():
            with gr.Tab("Inspect", id="inspect"):
                _inspect(page, handlers)
            with gr.Tab("Compare", id="compare"):
                _compare(handlers)
            with gr.Tab("Audit", id="audit"):
                _audit(handlers)
        page.unload(handlers.close)
    return page.queue(default_concurrency_limit=8)  # visitors wait for a model, not for each other


def _html(value: str = "", name: str | None = None, **more: Any) -> gr.HTML:
    return gr.HTML(value, elem_id=name, **{"js_on_load": None, **more})


def _inspect(page: gr.Blocks, handlers: Handlers) -> None:
    names = [loaded.name for loaded in handlers.models]
    seen, heard = (gr.State(None, time_to_live=3600) for _ in range(2))
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            preview = _html(name="preview")
            upload = gr.File(
                label="Drop or pick a picture (at most 20 MB)",
                file_types=["image"], height=150, elem_id="upload",
            )  # fmt: skip
            with gr.Accordion("Or compose one from the lab's objects", open=True):
                first = gr.Dropdown(object_choices(), value="kitchen knife", label="First object")
                second = gr.Dropdown(
                    [NOTHING, *object_choices()], value=NOTHING, label="Second object"
                )
                color = gr.Dropdown(list(COLORS), value="blue", label="Background")
                draw = gr.Button("Draw it anew", elem_id="draw")
        with gr.Column(scale=3, min_width=300):
            with gr.Row():
                left = gr.Dropdown(names, value=names[0], label="Model on the left")
                right = gr.Dropdown(
                    [*names, NO_MODEL], label="Model on the right",
                    value=names[1] if len(names) > 1 else NO_MODEL,
                )  # fmt: skip
            question = gr.Textbox(QUESTION, label="Question", elem_id="question", max_lines=4)
            caption = gr.Textbox(
                label="Caption: what the picture shows, in words", elem_id="caption", max_lines=4,
                info="Told to the models in the picture's place; below, its states are put in.",
            )  # fmt: skip
            with gr.Row():
                ask = gr.Button("Ask", variant="primary", elem_id="ask")
                stop = gr.Button("Stop", elem_id="stop")
            notice = _html(name="inspect-notice")
            answers = _html(name="answers")
    gr.Markdown("## Layer by layer")
    plots = _html(NOTHING_HEARD[1], "layers")
    gr.Markdown(
        "## Put the caption's states in\n\nAt the chosen layer the states of the picture's tokens "
        "are replaced by those of the caption. If the answer turns into a refusal there, what was "
        "missing is the picture's likeness to its words."
    )
    layer = gr.Slider(
        0, max(loaded.parts.num_layers for loaded in handlers.models) - 1, value=0, step=1,
        label="Layer (0: the embeddings)", elem_id="layer",
    )  # fmt: skip
    patched = _html(name="patched")

    asking = gr.on(
        [ask.click, question.submit, caption.submit], handlers.ask,
        [seen, left, right, question, caption], [heard, answers, notice], show_progress="hidden",
    )  # fmt: skip
    reading = asking.success(
        handlers.read_layers, [heard], [heard, plots, notice], show_progress_on=plots
    )
    looking = reading.success(
        handlers.patch, [heard, layer], [patched, notice], show_progress_on=patched
    )
    stop.click(None, cancels=[asking, reading, looking])
    layer.change(
        handlers.patch, [heard, layer], [patched, notice], trigger_mode="always_last",
        show_progress="hidden",
    )  # fmt: skip
    fresh = [seen, heard, preview, caption, answers, plots, patched, notice]
    drawing: dict[str, Any] = {
        "fn": handlers.compose,
        "inputs": [seen, first, second, color],
        "outputs": fresh,
    }
    page.load(**drawing, show_progress="hidden")
    for box in (first, second, color):
        box.input(**drawing)
    draw.click(**drawing)
    upload.upload(handlers.upload, [seen, upload], [upload, *fresh])


def _compare(handlers: Handlers) -> None:
    opened, first = gr.State(None, time_to_live=3600), gr.State(0)
    with gr.Row():
        folder = gr.Textbox(
            handlers.demo, label="Folder of a finished comparison", scale=4, elem_id="comparison",
            info="Of tgalign demo or compare, or one that holds folders of tgalign evaluate.",
        )  # fmt: skip
        show = gr.Button("Open", variant="primary", scale=1, elem_id="open")
    notice = _html(name="compare-notice")
    table = _html(name="rates", js_on_load=PICK)
    plots = _html(name="pareto", js_on_load=PICK)
    with gr.Row():
        scene = gr.Dropdown([ANY], value=ANY, label="Scene", elem_id="scene")
        method = gr.Dropdown([ANY], value=ANY, label="Method", elem_id="method")
        label = gr.Dropdown([ANY], value=ANY, label="Its verdict", elem_id="label")
        disputed = gr.Checkbox(label="Only where methods disagree", elem_id="disputed")
    items = _html(name="items")
    with gr.Row():
        back = gr.Button("Earlier pictures", elem_id="back")
        on = gr.Button("Further pictures", elem_id="on")

    filters = [opened, scene, method, label, disputed]
    listed = [first, table, items, notice]
    gr.on(
        [show.click, folder.submit], handlers.open_comparison, [folder],
        [opened, scene, method, label, plots, notice],
    ).success(handlers.first_items, filters, listed)  # fmt: skip
    for box in (scene, method, label, disputed):
        box.input(handlers.first_items, filters, listed, show_progress="hidden")
    for drawing in (table, plots):
        drawing.click(handlers.pick, filters, [method, *listed], show_progress="hidden")
    back.click(handlers.earlier_items, [*filters, first], listed, show_progress="hidden")
    on.click(handlers.further_items, [*filters, first], listed, show_progress="hidden")


def _audit(handlers: Handlers) -> None:
    gr.Markdown(
        "Asks a model about every picture of a folder, judges the answers, reads its layers and "
        "writes a report: `tgalign audit`, as a process of its own."
    )
    with gr.Row(equal_height=False):
        model = gr.Dropdown(
            [(loaded.name, str(loaded.path)) for loaded in handlers.models],
            value=str(handlers.models[0].path), allow_custom_value=True, elem_id="audit-model",
            label="Model", info="One of these, or the path of a checkpoint's folder.",
        )  # fmt: skip
        data = gr.Textbox(
            label="Folder of pictures", elem_id="audit-data",
            info="A subfolder per scene, harmless pictures in `benign`. Empty: the lab's pictures.",
        )  # fmt: skip
    with gr.Row(equal_height=False):
        out = gr.Textbox(
            label="Keep the results in", elem_id="audit-out",
            info="Empty: they are deleted when you close the page.",
        )  # fmt: skip
        limit = gr.Number(
            label="At most so many pictures per scene", precision=0, elem_id="audit-limit",
            info="0: all of them.", value=0, minimum=0,
        )  # fmt: skip
    with gr.Row():
        start = gr.Button("Start", variant="primary", elem_id="audit-start")
        halt = gr.Button("Stop", elem_id="audit-stop")
    notice = _html(name="audit-notice")
    progress = _html(name="audit-progress")
    latest = _html(name="audit-items")
    clock = gr.Timer(1.0, active=False)
    shown = [progress, latest, clock, notice]
    start.click(handlers.start_audit, [model, data, out, limit], shown)
    halt.click(handlers.stop_audit, None, shown)
    clock.tick(handlers.look_at_audit, None, shown, show_progress="hidden")
