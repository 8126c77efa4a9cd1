"""The page's server over HTTP, and its events without a browser."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from PIL import Image
from starlette.testclient import TestClient
from typer.testing import CliRunner

from app_world import QUESTION, Fetched, save_models, write_demo
from tgalign.app.audit import Audits
from tgalign.app.comparison import Asked, Said
from tgalign.app.handlers import NO_MODEL, Handlers
from tgalign.app.models import Loaded, load_models
from tgalign.app.scenes import NOTHING
from tgalign.app.server import allowed_hosts, build_app, listen, run_app, warm_up
from tgalign.cli import app as command_line
from tgalign.errors import UserError

HOST = {"host": "127.0.0.1"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Loaded]:
    return load_models(save_models(tmp_path_factory.mktemp("models")))


@pytest.fixture(scope="module")
def client(models: list[Loaded], tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    demo = tmp_path_factory.mktemp("demo")
    app = build_app(models, Audits(), roots=[demo], hosts=["127.0.0.1"], demo=demo)
    return TestClient(app, headers=HOST)


def test_the_page_answers_and_asks_nobody_else(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200
    addresses = Fetched(page.text).addresses
    assert addresses, "the page has scripts of its own"
    for address in addresses:
        assert re.match(r"(\./|/|http://127\.0\.0\.1/|data:|[\w-]+/)", address), address
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http" not in policy and "*" not in policy
    assert "connect-src 'self'" in policy
    styles = [it for it in addresses if "css" in it]
    for address in [*styles, "/theme.css"]:
        style = client.get(address.removeprefix("http://127.0.0.1"))
        assert not re.search(r"url\([\"']?(https?:)?//|@import", style.text), address
    assert "huggingface" not in client.get("/theme.css").text


def test_only_this_machine_is_listened_to(client: TestClient) -> None:
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
    foreign = {"origin": "http://evil.example", "content-type": "application/json"}
    allowed = client.get("/config", headers=foreign).headers.get("access-control-allow-origin")
    assert allowed != "http://evil.example"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "LOCALHOST", "localhost", "::1"])
def test_a_loopback_address_is_one_however_it_is_written(host: str) -> None:
    try:
        listener = listen(host, 0)
    except UserError:
        pytest.skip(f"this machine has no {host}")
    with listener:
        bound = listener.getsockname()[0]
    names = allowed_hosts(host, bound)
    assert "*" not in names and {"127.0.0.1", "localhost", host, bound} <= set(names)


def test_an_address_for_others_has_any_name() -> None:
    assert allowed_hosts("0.0.0.0", "0.0.0.0") == ["*"]
    assert allowed_hosts("box.example", "192.0.2.7") == ["*"]


def test_a_report_may_run_no_script(
    models: list[Loaded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "report.html").touch()
    audits = Audits()
    monkeypatch.setattr(audits, "file", lambda *_: tmp_path / "report.html")
    app = build_app(models, audits, roots=[], hosts=["127.0.0.1"], demo=tmp_path / "none")
    policy = (
        TestClient(app, headers=HOST)
        .get("/audit-report/x/report.html")
        .headers["content-security-policy"]
    )
    assert "sandbox" in policy and "script" not in policy and "default-src 'none'" in policy


def test_files_of_the_machine_are_not_served(client: TestClient, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    for path in (secret, Path("pyproject.toml").absolute(), Path("/etc/hostname")):
        for name in (path, f"../{path}"):
            assert client.get(f"/gradio_api/file={name}").status_code in (403, 404)
    assert client.get("/audit-report/guess/report.html").status_code == 404


def test_a_taken_port_is_said_and_the_next_one_found() -> None:
    with listen("127.0.0.1", 0) as one:
        port = one.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} of 127.0.0.1.*--port"):
            listen("127.0.0.1", port)
    with listen("127.0.0.1", None) as first, listen("127.0.0.1", None) as second:
        assert first.getsockname()[1] != second.getsockname()[1]
    with pytest.raises(UserError, match=r"cannot listen on 'no\.such\.host\.invalid'"):
        listen("no.such.host.invalid", 0)


def test_models_are_asked_before_anybody_waits(
    models: list[Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    warm_up(models)

    def fail(**_: Any) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(models[0].model, "generate", fail)
    with pytest.raises(UserError, match=r"cannot be asked: one failed .*no memory"):
        warm_up(models)


@pytest.fixture
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the server sets for gradio is put back afterwards."""
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "")


def test_without_gradio_it_says_what_to_install(
    tmp_path: Path, own_environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(UserError, match=r"pip install -e"):
        run_app([tmp_path], host="127.0.0.1", port=0, roots=[], demo=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_says_what_is_missing_and_cannot_share(tmp_path: Path) -> None:
    help_text = CliRunner().invoke(command_line, ["app", "--help"], env={"COLUMNS": "200"}).output
    assert "--host" in help_text and "--port" in help_text and "--share" not in help_text
    missing = subprocess.run(
        [sys.executable, "-m", "tgalign", "app", "--port", "0"],
        cwd=tmp_path, capture_output=True, text=True, check=False, env={**os.environ},
    )  # fmt: skip
    assert missing.returncode == 2
    assert "run `tgalign demo --out demo` first" in missing.stderr
    assert "Traceback" not in missing.stderr


@pytest.fixture
def handlers(models: list[Loaded], tmp_path: Path) -> Handlers:
    return Handlers(models, Audits(), [tmp_path])


def fails(found: tuple[Any, ...], words: str) -> None:
    """All stays as it is, and the page says why."""
    assert words in found[-1] and 'role="alert"' in found[-1]
    assert all(it == gr.skip() for it in found[:-1])


def test_the_flow_of_one_visitor(handlers: Handlers) -> None:
    composed = handlers.compose(None, "kitchen knife", NOTHING, "blue")
    seen, heard, picture, caption, answers, plots, patched, notice = composed
    assert heard is None and answers == patched == "" and "Ask first" in plots
    assert "data:image/png" in picture and "kitchen knife" in caption and notice == ""
    *stages, last = handlers.ask(seen, "one", "two", QUESTION, caption)
    assert len(stages) > 4
    assert all(stage[0] == gr.skip() for stage in stages)
    heard, cards, notice = last
    assert cards.count("told the caption instead") == 2 and notice == ""
    assert cards.count("refused") >= 2
    assert handlers.patch(heard, 0)[0] == gr.skip()  # its layers are not read yet
    heard, plots, _ = handlers.read_layers(heard)
    assert plots.count("<svg") == 7  # three panels and four keys
    assert handlers.read_layers(heard)[0] == gr.skip()  # nothing is read twice
    patched, _ = handlers.patch(heard, 0)
    assert patched.count("with the caption’s states at layer 0") == 2
    assert "refused" in patched
    no_caption = list(handlers.ask(seen, "one", NO_MODEL, QUESTION, ""))[-1]
    assert "told the caption" not in no_caption[1]


def test_answers_to_one_picture_do_not_stay_beside_another(
    handlers: Handlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, *_ = handlers.compose(None, "banana", NOTHING, "blue")
    *_, (heard, _, _) = handlers.ask(seen, "one", NO_MODEL, QUESTION, "")
    read, *_ = handlers.read_layers(heard)
    assert handlers.patch(read, 0)[0] != gr.skip()
    stream = handlers.ask(seen, "one", NO_MODEL, QUESTION, "")
    assert "card" in next(stream)[1]

    def slow(*_: Any) -> str:
        handlers.compose(seen, "banana", NOTHING, "blue")  # meanwhile
        return "plots"

    with monkeypatch.context() as patch:
        patch.setattr("tgalign.app.handlers.drawing.layer_plots", slow)
        patch.setattr("tgalign.app.handlers.layer_figures", slow)
        assert handlers.read_layers(heard)[:2] == (gr.skip(), gr.skip())
    assert list(stream) == [(gr.skip(), "", "")]  # drawn while answers streamed
    for later in (handlers.read_layers(heard), handlers.patch(read, 0)):
        assert all(it == gr.skip() for it in later)


def test_errors_are_said_and_lose_nothing(handlers: Handlers, tmp_path: Path) -> None:
    seen, *_ = handlers.compose(None, "banana", NOTHING, "blue")
    fails(handlers.compose(None, "banana", "banana", "blue"), "two of the same")
    fails(handlers.upload(None, None), "drop it again")
    broken = tmp_path / "hash" / "broken.png"
    broken.parent.mkdir()
    broken.write_bytes(b"x")
    fails(handlers.upload(None, str(broken)), "cannot be read as a picture")
    for arguments, words in (
        ((None, "one", "two", QUESTION, ""), "there is no picture"),
        ((seen, "one", "two", "  ", ""), "question is empty"),
        ((seen, "one", "two", QUESTION, "x" * 3000), "3,000 characters"),
        ((seen, NO_MODEL, NO_MODEL, QUESTION, ""), "no model is chosen"),
    ):
        (only,) = handlers.ask(*arguments)
        fails(only, words)
    fails(handlers.open_comparison("/"), "outside the folders")
    fails(handlers.further_items(None, "any", "any", "any", False, 0), "open a comparison first")
    request = SimpleNamespace(session_hash="me")
    fails(handlers.start_audit("/none", "", "", 0, request), "outside the folders")
    fails(handlers.start_audit(str(tmp_path), "/etc", "", 0, request), "outside the folders")
    fails(handlers.start_audit(str(tmp_path), "", "/etc/x", 0, request), "outside the folders")
    fails(handlers.stop_audit(request), "no audit is running")


def test_a_fault_of_ours_is_said_without_its_traceback(
    handlers: Handlers, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("<i>where</i>")

    monkeypatch.setattr("tgalign.app.handlers.compose_scene", broken)
    fails(handlers.compose(None, "banana", NOTHING, "blue"), "KeyError: ")
    assert "<i>" not in handlers.compose(None, "banana", NOTHING, "blue")[-1]
    assert "Traceback" in capsys.readouterr().err


def test_an_upload_replaces_the_picture(handlers: Handlers, tmp_path: Path) -> None:
    path = tmp_path / "hash" / "mine.png"
    path.parent.mkdir()
    Image.new("RGB", (50, 50), "red").save(path)
    cleared, seen, heard, picture, caption, *panels, notice = handlers.upload(None, str(path))
    assert cleared is heard is None and caption == notice == ""
    assert panels == ["", "<p class='none'>Ask first.</p>", ""]
    assert seen.shown.picture.getpixel((3, 3)) == (255, 0, 0)
    assert "mine.png" in picture and not path.exists()


def test_every_visit_begins_with_the_same_drawing(handlers: Handlers) -> None:
    one, *_ = handlers.compose(None, "banana", NOTHING, "red")
    other, *_ = handlers.compose(None, "banana", NOTHING, "red")
    anew, *_ = handlers.compose(one, "banana", NOTHING, "red")
    pixels = [it.shown.picture.tobytes() for it in (one, other, anew)]
    assert pixels[0] == pixels[1] != pixels[2]


def test_a_comparison_is_looked_through(handlers: Handlers, tmp_path: Path) -> None:
    write_demo(tmp_path)
    found, scenes, methods, labels, plots, notice = handlers.open_comparison(str(tmp_path))
    assert notice == "" and "data-method" in plots
    assert scenes["choices"][0] == methods["choices"][0] == labels["choices"][0] == "any"
    at, table, items, _ = handlers.first_items(found, "any", "any", "any", False)
    assert at == 0 and "1 to 12 of 22" in items and "TGA" in table
    at, _, items, _ = handlers.further_items(found, "any", "any", "any", False, at)
    assert at == 12 and "13 to 22 of 22" in items
    at, _, items, _ = handlers.further_items(found, "any", "any", "any", False, at)
    assert at == 12  # the last page stays
    at, _, items, _ = handlers.earlier_items(found, "any", "any", "any", False, at)
    assert at == 0
    method, _, table, items, _ = handlers.pick(
        found, "any", "any", "refused", False, SimpleNamespace(method="tga")
    )
    assert method == "tga" and 'class="chosen"' in table and "refused" in items
    fails(
        handlers.pick(found, "any", "any", "any", False, SimpleNamespace(method="x")), "no method"
    )


def test_a_running_audit_shows_its_latest_and_leaves_notices(
    handlers: Handlers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [
        Asked(f"item {n}", None, "x", None, False, {"m": Said("x", "answered", "r")})
        for n in range(50)
    ]
    monkeypatch.setattr("tgalign.app.handlers.read_audit_items", lambda *_: items)
    audit = SimpleNamespace(
        model=tmp_path, data=None, out=tmp_path, kept=False, total=99, answered=50, state="running",
        report=None, seconds_left=None,
    )  # fmt: skip
    monkeypatch.setattr(handlers.audits, "get", lambda _: audit)
    _, latest, _, notice = handlers.look_at_audit(SimpleNamespace(session_hash="me"))
    assert "45 to 50 of 50 pictures" in latest and "item 49" in latest
    assert notice == gr.skip()


def test_nothing_is_left_open_when_models_cannot_be_loaded(
    tmp_path: Path, own_environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(UserError, match="no checkpoint at"):
        run_app([tmp_path], host="127.0.0.1", port=port, roots=[], demo=tmp_path)
    assert list(tmp_path.iterdir()) == []
    with socket.create_server(("127.0.0.1", port)):
        pass
