"""The page in a real headless Chromium: every flow, at two widths, offline and without errors.

Needs Debian's ``chromium`` (or ``TGALIGN_CHROMIUM``), which playwright drives; skipped without it.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from app_world import save_models, write_demo, write_pictures

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = os.environ.get("TGALIGN_CHROMIUM") or shutil.which("chromium")
PATIENCE = 60_000  # milliseconds; a slow machine is no failure

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH (apt install chromium)"),
]


@dataclass(frozen=True)
class Served:
    """A running page.

    Attributes:
        address: Where.
        root: The folder it may open; the demo, pictures and an empty ``kept`` lie there.
        temporary: Where it puts what is temporary.
    """

    address: str
    root: Path
    temporary: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("root")
    temporary = tmp_path_factory.mktemp("temporary")
    models = save_models(root)
    write_demo(root / "demo")
    write_pictures(root / "data")
    with (root / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tgalign", "app", *map(str, models), "--port", "0"],
            cwd=root, stdout=subprocess.PIPE, stderr=log, text=True,
            env={**os.environ, "TMPDIR": str(temporary), "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
    assert process.stdout is not None
    said = process.stdout.readline()
    address = re.search(r"http://127\.0\.0\.1:\d+", said)
    assert address, f"{said} {(root / 'log').read_text()}"
    yield Served(address[0], root, temporary)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert (root / "log").read_text() == ""
    assert list(temporary.glob("tgalign*")) == []  # nothing stays behind


@dataclass
class Visit:
    """A visitor's page, the errors in its console and whom it asked."""

    page: Any
    said: list[str] = field(default_factory=list)
    asked: set[str] = field(default_factory=set)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def visit(browser: Any, served: Served) -> Iterator[Callable[..., Visit]]:
    """Opens the page; at the end no console may have spoken and nobody else been asked."""
    visits: list[tuple[Any, Visit]] = []

    def open_page(width: int = 1440, scheme: str = "light") -> Visit:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        made = Visit(context.new_page())
        page = made.page
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda it: it.type == "error" and made.said.append(it.text))
        page.on("pageerror", lambda it: made.said.append(str(it)))
        page.on("request", lambda it: made.asked.add(it.url))
        page.goto(served.address)
        page.wait_for_selector("#preview img")
        visits.append((context, made))
        return made

    yield open_page
    for context, made in visits:
        assert made.said == []
        foreign = [it for it in made.asked if not it.startswith((served.address, "data:", "blob:"))]
        assert foreign == []
        context.close()


def text(visit: Visit, selector: str) -> str:
    found: str = visit.page.inner_text(selector)
    return found


def wait_for(visit: Visit, selector: str, words: str) -> None:
    playwright.expect(visit.page.locator(selector)).to_contain_text(words, timeout=PATIENCE)


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark")])
def test_ask_read_and_patch(visit: Callable[..., Visit], width: int, scheme: str) -> None:
    made = visit(width, scheme)
    page = made.page
    page.click("#ask")
    playwright.expect(page.locator("#answers .verdict")).to_have_count(4, timeout=PATIENCE)
    assert text(made, "#answers").count("told the caption instead") == 2
    page.wait_for_selector("#layers svg")
    wait_for(made, "#patched", "with the caption’s states at layer 0")
    first = text(made, "#patched")
    assert "refused" in first and "answered" in first  # the caption's states, the control's
    slider = page.locator("#layer input[type=range]")
    slider.focus()
    page.keyboard.press("End")
    wait_for(made, "#patched", "attention of layer 5 over the picture")
    assert "with the caption’s states at layer 5" in text(made, "#patched")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    background = page.evaluate(
        "getComputedStyle(document.querySelector('#answers .card')).backgroundColor"
    )
    light = sum(map(int, re.findall(r"\d+", background)[:3])) > 384
    assert light == (scheme == "light")
    page.click("#ask")
    page.click("#draw")  # another picture, beside which nothing of the last one stays
    wait_for(made, "#layers", "Ask first.")
    page.wait_for_timeout(2000)
    assert text(made, "#answers").strip() == text(made, "#patched").strip() == ""
    assert "Ask first." in text(made, "#layers")
    page.click("#ask")
    page.wait_for_selector("#layers svg")


def test_everything_has_a_name_and_can_be_reached_by_keys(visit: Callable[..., Visit]) -> None:
    made = visit()
    page = made.page
    for tab in ("Inspect", "Compare", "Audit"):
        page.get_by_role("tab", name=tab).click()
        nameless = page.evaluate(
            """() => [...document.querySelectorAll('input, textarea, button, select')]
            .filter(it => it.checkVisibility({visibilityProperty: true}))
            .filter(it => !(it.labels?.length || it.getAttribute('aria-label') || it.title ||
              it.getAttribute('aria-labelledby') || it.innerText.trim()))
            .map(it => it.outerHTML.slice(0, 200))"""
        )
        assert nameless == []
    page.get_by_role("tab", name="Inspect").click()
    page.locator("#question textarea").focus()
    reached = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.innerText.trim()"))
    assert {"Ask", "Stop"} <= reached
    page.locator("#ask").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#answers .verdict")
    wait_for(made, "#patched", "layer 0")


def test_uploads_broken_whole_and_too_large(
    visit: Callable[..., Visit], served: Served, tmp_path: Path
) -> None:
    made = visit()
    page = made.page
    before = page.get_attribute("#preview img", "src")
    page.click("#ask")
    wait_for(made, "#patched", "layer 0")
    answers = text(made, "#answers")
    broken, whole, large = (tmp_path / name for name in ("broken.png", "whole.png", "large.png"))
    broken.write_bytes(b"no picture")
    large.write_bytes(b"x" * 21_000_000)
    Image.new("RGB", (300, 200), "red").save(whole)
    page.set_input_files("#upload input[type=file]", broken)
    wait_for(made, "#inspect-notice", "broken.png cannot be read as a picture")
    assert page.get_attribute("#preview img", "src") == before
    assert text(made, "#answers") == answers
    page.reload()
    page.wait_for_selector("#preview img")
    page.set_input_files("#upload input[type=file]", whole)
    wait_for(made, "#preview", "whole.png")
    assert "notice" not in page.inner_html("#inspect-notice")
    page.click("#ask")
    wait_for(made, "#patched", "Write a caption")
    playwright.expect(page.locator("#answers .verdict")).to_have_count(2)
    kept = [path for path in served.temporary.rglob("*") if path.is_file()]
    assert [path for path in kept if path.name in ("broken.png", "whole.png")] == []
    page.reload()
    page.wait_for_selector("#preview img")
    page.set_input_files("#upload input[type=file]", large)
    playwright.expect(
        page.get_by_text(re.compile("20 ?MB|exceed|too large", re.I)).last
    ).to_be_visible(timeout=PATIENCE)
    assert not any(
        path.stat().st_size > 20_500_000 for path in served.temporary.rglob("*") if path.is_file()
    )
    made.said[:] = [it for it in made.said if "413" not in it]


def test_two_visitors_do_not_see_each_others_pictures(
    visit: Callable[..., Visit], tmp_path: Path
) -> None:
    one, two = visit(), visit()
    own = tmp_path / "mine-alone.png"
    Image.new("RGB", (120, 120), (255, 0, 255)).save(own)
    untouched = two.page.get_attribute("#preview img", "src")
    one.page.set_input_files("#upload input[type=file]", own)
    wait_for(one, "#preview", "mine-alone.png")
    for made in (one, two):
        made.page.click("#ask")
    for made in (one, two):
        made.page.wait_for_selector("#answers .verdict")
        made.page.wait_for_selector("#patched .card")
    assert two.page.get_attribute("#preview img", "src") == untouched
    assert "mine-alone" not in two.page.content()
    assert not any("mine-alone" in address for address in two.asked)


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark")])
def test_look_through_a_comparison(visit: Callable[..., Visit], width: int, scheme: str) -> None:
    made = visit(width, scheme)
    page = made.page
    page.get_by_role("tab", name="Compare").click()
    page.locator("#comparison textarea, #comparison input").first.fill("/etc")
    page.click("#open")
    wait_for(made, "#compare-notice", "outside the folders that this page may open")
    page.locator("#comparison textarea, #comparison input").first.fill("demo")
    page.locator("#comparison textarea, #comparison input").first.press("Enter")
    wait_for(made, "#items", "1 to 12 of 22 pictures")
    assert page.locator("#compare-notice .notice").count() == 0
    page.locator("#pareto .point").nth(1).focus()
    page.keyboard.press("Enter")
    wait_for(made, "#rates tr.chosen", "TGA")
    page.get_by_label("Only where methods disagree").check()
    wait_for(made, "#items", "1 to 7 of 7 pictures")
    assert "sorry , i can not help" in text(made, "#items")
    page.get_by_label("Only where methods disagree").uncheck()
    page.click("#on")
    wait_for(made, "#items", "13 to 22 of 22 pictures")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_audit_a_folder_while_the_page_is_used(visit: Callable[..., Visit], served: Served) -> None:
    made = visit()
    page = made.page
    page.get_by_role("tab", name="Audit").click()
    page.locator("#audit-data textarea, #audit-data input").first.fill("data")
    page.locator("#audit-limit input").fill("2")
    page.click("#audit-start")
    wait_for(made, "#audit-progress", "Running")
    page.get_by_role("tab", name="Inspect").click()
    page.click("#ask")
    page.wait_for_selector("#answers .verdict")
    page.get_by_role("tab", name="Audit").click()
    playwright.expect(page.locator("#audit-progress")).to_contain_text("Done", timeout=5 * PATIENCE)
    assert "3 of 4 answers" in text(made, "#audit-progress")  # one picture is broken
    wait_for(made, "#audit-items", "unreadable_picture")
    veiled = page.locator("#audit-items .veil")
    assert veiled.count() == 3
    veil = veiled.first
    picture = veil.locator("img")
    assert "blur" in picture.evaluate("it => getComputedStyle(it).filter")
    veil.locator("input").focus()
    page.keyboard.press("Space")
    assert picture.evaluate("it => getComputedStyle(it).filter") == "none"
    with page.context.expect_page() as opened:
        page.click("a.report-link")
    report = opened.value
    report.wait_for_load_state()
    assert "tgalign" in report.title()
    address = report.url
    report.click("a[href='diagnosis/report.html']")
    report.wait_for_url("**/diagnosis/report.html")
    assert report.locator("svg").count() > 3
    report.close()
    page.close()
    end = time.monotonic() + 60
    while list(served.temporary.glob("tgalign-audit-*")):
        assert time.monotonic() < end, "the audit's folder outlives its page"
        time.sleep(0.2)
    other = visit()
    assert other.page.request.get(address).status == 404
