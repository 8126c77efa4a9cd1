"""Serve the page: bound to one address, asking nobody else for anything."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tgalign.errors import UserError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from tgalign.app.audit import Audits
    from tgalign.app.models import Loaded

FIRST_PORT, NUM_PORTS = 7860, 20
"""Where a free port is looked for when none is given."""

LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")

PAGE_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self'; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'"
)
"""The browser refuses whatever would leave this host; gradio needs inline scripts and ``eval``."""

REPORT_POLICY = (
    "sandbox allow-downloads allow-popups; default-src 'none'; img-src data:; "
    "style-src 'unsafe-inline'"
)
"""A report is a page of its own that cannot reach this one, and has no script."""


def run_app(
    models: Sequence[Path], *, host: str, port: int | None, roots: Sequence[Path], demo: Path
) -> None:
    """Load the models and serve the page until it is interrupted.

    Args:
        models: Checkpoints; none: the CE-only and TGA models of ``demo``.
        host: Address to listen on.
        port: Its port; None: the first free one from ``FIRST_PORT`` on.
        roots: Folders that the page may open beside ``demo``.
        demo: Folder of a finished demo, which the page offers to compare.

    Raises:
        UserError: gradio is not installed, a model cannot be loaded or the address is taken.
    """
    paths = [path.expanduser() for path in models]
    if not paths:
        from tgalign.app.models import demo_models

        paths = demo_models(demo)
    with (
        listen(host, port) as listener,
        tempfile.TemporaryDirectory(prefix="tgalign-app-", ignore_cleanup_errors=True) as folder,
    ):
        _keep_to_ourselves(folder)
        _serve(paths, listener, host, [*roots, demo], demo)


def _serve(
    paths: Sequence[Path], listener: socket.socket, host: str, roots: Sequence[Path], demo: Path
) -> None:
    try:
        import uvicorn

        import gradio  # noqa: F401  isort:skip
    except ImportError:
        raise UserError(
            "the page needs gradio: pip install -e '.[app]' in the clone of tgalign"
        ) from None
    from tgalign.app.audit import Audits
    from tgalign.app.models import load_models

    audits = Audits()
    try:
        loaded = load_models(paths)
        warm_up(loaded)
        hosts = allowed_hosts(host, listener.getsockname()[0])
        app = build_app(loaded, audits, roots=roots, hosts=hosts, demo=demo)
        address = f"[{host}]" if ":" in host else host
        ready = f"tgalign app: http://{address}:{listener.getsockname()[1]}"

        class Announced(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                print(ready, flush=True)

            async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
                # Pages that are open are cut off, which uvicorn reports as errors.
                logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
                await super().shutdown(sockets)

        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that we clean up then, too
        with suppress(KeyboardInterrupt):  # how a page is ended
            Announced(config).run(sockets=[listener])
    finally:
        audits.close_all()


def listen(host: str, port: int | None) -> socket.socket:
    """Bind the address before the models are loaded, so that a taken port is said at once.

    Raises:
        UserError: It cannot be bound.
    """
    tried = range(FIRST_PORT, FIRST_PORT + NUM_PORTS) if port is None else [port]
    fault: OSError | None = None
    for number in tried:
        try:
            family, kind, _, _, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[
                0
            ]
            bound = socket.socket(family, kind)
        except OSError as problem:
            raise UserError(f"cannot listen on {host!r}: {problem}") from None
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.listen()
            return bound
        except OSError as problem:
            bound.close()
            fault = problem
    where = f"port {port}" if port is not None else f"any port from {tried[0]} to {tried[-1]}"
    raise UserError(f"cannot listen on {where} of {host}: {fault}; give another --port")


def allowed_hosts(host: str, bound: str) -> list[str]:
    """The names under which the page may be asked for.

    On a loopback address only those of this machine: another site's script that gets its own name
    to mean this address is not listened to.

    Args:
        host: What was asked for, however it is written.
        bound: The address that it stands for.
    """
    address = ipaddress.ip_address(bound)
    if not (getattr(address, "ipv4_mapped", None) or address).is_loopback:
        return ["*"]
    return [*LOOPBACK, host, bound]


def warm_up(models: Sequence[Loaded]) -> None:
    """Ask every model once, so that the first visitor does not wait for what is done only once."""
    from tgalign.app.answers import stream_answers
    from tgalign.app.scenes import NOTHING, compose_scene

    shown = compose_scene("banana", NOTHING, "white", 0)
    for answers in stream_answers(models, "describe this image .", picture=shown.picture):
        for loaded, answer in zip(models, answers, strict=True):
            if answer.error:
                raise UserError(f"{loaded.path} cannot be asked: {answer.error}")


def build_app(
    models: Sequence[Loaded],
    audits: Audits,
    *,
    roots: Sequence[Path],
    hosts: Sequence[str],
    demo: Path,
) -> FastAPI:
    """The web application: the page, the reports of its audits, and what keeps others out."""
    import gradio
    from fastapi import FastAPI, HTTPException
    from fastapi.responses import FileResponse
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from tgalign.app.handlers import Handlers
    from tgalign.app.page import build_page, style, theme
    from tgalign.app.scenes import MAX_BYTES

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/audit-report/{token}/{name:path}")
    def report(token: str, name: str) -> FileResponse:
        path = audits.file(token, name)
        if path is None:
            raise HTTPException(404, "no such report: its page may have been closed")
        return FileResponse(path, headers={"Content-Security-Policy": REPORT_POLICY})

    handlers = Handlers(models, audits, roots, str(demo) if demo.is_dir() else "")
    gradio.mount_gradio_app(
        app, build_page(handlers), path="/", footer_links=[], run_history=False, ssr_mode=False,
        enable_monitoring=False, pwa=False, max_file_size=MAX_BYTES, theme=theme(), css=style(),
    )  # fmt: skip
    app.add_middleware(_Headers)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    return app


class _Headers:
    """Adds the page's policy to every answer that has none; streams pass through."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                names = {name.lower() for name, _ in message["headers"]}
                more = [
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                ]
                if b"content-security-policy" not in names:
                    more.append((b"content-security-policy", PAGE_POLICY.encode()))
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        await self._app(scope, receive, with_policy if scope["type"] == "http" else send)


def _keep_to_ourselves(folder: str) -> None:
    """Settings that gradio and the hub read when they are imported."""
    os.environ["GRADIO_TEMP_DIR"] = folder
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"
