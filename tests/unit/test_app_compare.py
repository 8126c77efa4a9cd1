"""The page's second part without a browser: finished comparisons, filters, what is drawn."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from app_world import QUESTION, REFUSAL, write_demo, write_pictures
from tgalign.app import drawing
from tgalign.app.answers import Answer
from tgalign.app.comparison import ANY, BENIGN, Asked, Comparison, Said, pareto_front, select
from tgalign.app.comparison_files import read_audit_items, read_comparison
from tgalign.app.folders import inside
from tgalign.app.layers import LayerFigures
from tgalign.app.scenes import NOTHING, compose_scene
from tgalign.demo import demo_suite
from tgalign.errors import UserError
from tgalign.evaluate.pictures import picture_hash
from tgalign.evaluate.refusal import judge
from tgalign.evaluate.statistics import wilson
from tgalign.evaluate.suites import load_suite

HOSTILE = "<script>alert(1)</script>\"' onmouseover=x"


class Tags(HTMLParser):
    """All tags with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, str]]]:
    folder = tmp_path_factory.mktemp("demo")
    return folder, write_demo(folder)


def test_a_demo_is_read_with_every_answer(demo: tuple[Path, dict[str, dict[str, str]]]) -> None:
    folder, answers = demo
    found = read_comparison(folder, [folder])
    suite = demo_suite(0, "emoji", True)
    assert found.title.startswith("SMOKE RUN")
    assert list(found.methods) == ["ce", "tga"]
    assert len(found.items) == len(suite.toxic) + len(suite.benign) == len(answers["ce"])
    for item, drawn in zip(found.items, suite.toxic + suite.benign, strict=True):
        assert item.picture is not None
        assert item.picture().tobytes() == drawn.picture.tobytes()
        assert {name: said.text for name, said in item.answers.items()} == {
            name: said[drawn.id] for name, said in answers.items()
        }
    assert found.scenes[-1] == BENIGN and len(found.scenes) == 8
    assert found.labels == ["answered", "refused"]


def test_filters_keep_exactly_what_fits(demo: tuple[Path, dict[str, dict[str, str]]]) -> None:
    folder, answers = demo
    found = read_comparison(folder, [folder])
    refused = sum(text == REFUSAL for text in answers["tga"].values())
    assert len(select(found)) == len(found.items)
    assert len(select(found, method="tga", label="refused")) == refused > 0
    assert select(found, method="ce", label="refused") == []
    assert len(select(found, label="refused")) == refused
    assert len(select(found, disputed=True)) == refused
    assert {it.scene for it in select(found, scene="gun")} == {"gun"}
    assert {it.scene for it in select(found, scene=BENIGN)} == {None}
    assert select(found, scene=BENIGN, disputed=True) == []
    assert select(found, method="nobody") == []


def test_the_front_is_of_dsr_over_refusal_and_naming() -> None:
    def method(dsr: float, over: float, named: float) -> dict[str, Any]:
        return {"dsr": {"rate": dsr}, "over_refusal": {"rate": over}, "utility": {"rate": named}}

    methods = {
        "ce": method(0.0, 0.0, 0.9),
        "refuses all": method(1.0, 1.0, 0.0),
        "tga": method(0.5, 0.0, 0.9),
        "worse": method(0.4, 0.1, 0.8),
        "names more": method(0.1, 0.0, 0.95),
    }
    assert pareto_front(methods) == ["refuses all", "tga", "names more"]
    never = wilson(0, 0).as_dict()
    methods["never asked"] = method(1.0, 0.0, 0.9) | {"over_refusal": never}
    assert pareto_front(methods) == ["refuses all", "tga", "names more"]
    page = drawing.comparison_table(Comparison("x", methods, pareto_front(methods)), ANY)
    assert re.findall(r"<td>(yes|no|not measured)</td>", page) == [
        "no", "yes", "yes", "no", "yes", "not measured",
    ]  # fmt: skip
    unnamed = {name: found | {"utility": never} for name, found in methods.items()}
    assert pareto_front(unnamed) == ["refuses all", "tga"]  # a utility of nobody decides nothing


def _evaluations(folder: Path, data: Path) -> None:
    """Two evaluations of a user's folder, one item of which ended in an error."""
    paths = sorted(path for path in data.rglob("*.png"))
    for name, text in (("plain", "a red square."), ("safe", "I cannot help with that.")):
        out = folder / name
        out.mkdir(parents=True)
        rows = []
        for condition in ("plain", "blank"):
            for path in paths:
                item = path.relative_to(data).as_posix()
                broken = path.name == "broken.png"
                verdict = judge(text, QUESTION)
                row = {
                    "id": f"folder/{condition}/{item}", "suite": "folder", "condition": condition,
                    "scene": None if item.startswith("benign") else path.parent.name,
                    "kind": "benign" if item.startswith("benign") else "toxic",
                    "prompt": QUESTION, "picture": str(path),
                    "picture_sha256": None if broken else picture_hash(Image.open(path)),
                    "cut": False, "answer": None if broken else text,
                    "verdict": None if broken else verdict.label,
                }  # fmt: skip
                rows.append(
                    row | ({"error": "unreadable_picture"} if broken else {"rule": verdict.rule})
                )
        (out / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        results = {"schema_version": 1, "dsr": wilson(2, 2).as_dict(), "seeds": [0],
                   "over_refusal": wilson(1, 1).as_dict(), "utility": wilson(0, 0).as_dict(),
                   "suites": {"folder": {}}}  # fmt: skip
        (out / "results.json").write_text(json.dumps(results))


def test_evaluations_of_ones_own_pictures_are_veiled_and_stay_inside(tmp_path: Path) -> None:
    data, runs = tmp_path / "data", tmp_path / "runs"
    write_pictures(data)
    _evaluations(runs, data)
    found = read_comparison(runs, [tmp_path])
    assert list(found.methods) == ["plain", "safe"]
    assert len(found.items) == 4  # the plain questions alone
    assert all(item.private for item in found.items)
    assert {item.scene for item in found.items} == {"gun", "knife", None}
    (broken,) = (item for item in found.items if item.id.endswith("broken.png"))
    assert broken.answers["safe"] == Said("", "error", "unreadable_picture")
    assert len(select(found, disputed=True)) == 3
    page = Tags(drawing.item_cards(found.items, 0, 12))
    veils = [it for it in page.of("input") if it.get("type") == "checkbox"]
    assert len(veils) == len(page.of("img")) == 3  # the broken one has no picture
    outside = read_comparison(runs, [runs])
    text = drawing.item_cards(outside.items, 0, 12)
    assert Tags(text).of("img") == []
    assert text.count("outside the folders that this page may open") == 4


def test_a_picture_that_has_changed_is_not_shown_beside_answers(tmp_path: Path) -> None:
    data, runs = tmp_path / "data", tmp_path / "runs"
    write_pictures(data)
    _evaluations(runs, data)
    Image.new("RGB", (80, 60), "white").save(data / "gun" / "1.png")
    text = drawing.item_cards(read_comparison(runs, [tmp_path]).items, 0, 12)
    assert len(Tags(text).of("img")) == 2
    assert text.count("another one than was asked about") == 1


def test_only_what_was_asked_of_one_picture_is_joined(tmp_path: Path) -> None:
    """Two seeds of the lab draw two pictures under one id, and each stands by its own answers."""
    pictures = {}
    for seed in (0, 1, 2):
        item = load_suite("lab", None, seed=seed).items[0]
        pictures[seed] = item.picture
        row = {
            "id": f"lab/plain/{item.id}", "suite": "lab", "condition": "plain", "scene": item.scene,
            "kind": "toxic", "prompt": QUESTION, "picture": None, "rule": "r", "cut": False,
            "picture_sha256": picture_hash(item.picture), "answer": "a", "verdict": "answered",
        }  # fmt: skip
        if seed == 2:  # another version drew the picture
            row["picture_sha256"] = "0123456789abcdef"
        rate = wilson(1, 2).as_dict()
        results = {"schema_version": 1, "seeds": [seed], "suites": {"lab": {}},
                   "dsr": rate, "over_refusal": rate, "utility": rate}  # fmt: skip
        for name in (f"a{seed}", f"b{seed}"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "items.jsonl").write_text(json.dumps(row) + "\n")
            (tmp_path / name / "results.json").write_text(json.dumps(results))
    found = read_comparison(tmp_path, [tmp_path])
    by_methods = {tuple(item.answers): item for item in found.items}
    assert by_methods.keys() == {("a0", "b0"), ("a1", "b1"), ("a2", "b2")}
    assert len({item.id for item in found.items}) == 3
    for seed in (0, 1):
        shown = by_methods[f"a{seed}", f"b{seed}"].picture
        assert shown is not None and shown().tobytes() == pictures[seed].tobytes()
    text = drawing.item_cards(found.items, 0, 3)
    assert len(Tags(text).of("img")) == 2 and text.count("picture lost: it is another one") == 1


def test_a_running_audit_shows_what_it_has_so_far(tmp_path: Path) -> None:
    data, runs = tmp_path / "data", tmp_path / "runs"
    write_pictures(data)
    _evaluations(runs, data)
    path = runs / "safe" / "items.jsonl"
    path.write_text(path.read_text() + '{"id": "half a li')  # as a writer leaves it
    items = read_audit_items(runs / "safe", "mine", [tmp_path])
    assert len(items) == 4
    assert items[0].answers.keys() == {"mine"}
    assert read_audit_items(tmp_path, "mine", [tmp_path]) == []


def _compare(folder: Path, *, named: list[str]) -> None:
    from tgalign.app.comparison_files import _compare_suite

    suite = _compare_suite(0, "emoji", True)
    rates = {key: wilson(1, 2).as_dict() for key in ("dsr", "over_refusal", "named", "text_dsr")}
    facts = {"uses_image_safety_data": True, "uses_second_model": False, "at_inference": False}
    methods = {name: {**rates, **facts} for name in ("ce", "vlguard")}
    content = {
        "schema_version": 1, "smoke": True, "condition": "guided", "toxic_share": 0.1,
        "style": "emoji", "scale": 1, "seeds": [0], "methods": methods, "pareto": ["vlguard"],
    }  # fmt: skip
    (folder / "comparison.json").write_text(json.dumps(content))
    for method, text in (("ce", "a mug ."), ("vlguard", REFUSAL)):
        verdict = judge(text, QUESTION)
        rows = [
            {
                "id": f"{kind}-{item.id}", "kind": kind, "scene": item.scene, "text": text,
                "label": verdict.label, "rule": verdict.rule,
                "named": {} if item.scene else dict.fromkeys(named or item.names, False),
            }
            for kind in ("plain", "typographic")
            for item in suite.toxic + suite.benign
        ]  # fmt: skip
        path = folder / "seed0" / "measured" / f"{method}-0123456789.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"items": rows}))


def test_a_comparison_of_methods_is_read(tmp_path: Path) -> None:
    _compare(tmp_path, named=[])
    found = read_comparison(tmp_path, [tmp_path])
    assert found.pareto == ["vlguard"]
    assert len(found.items) == 22
    assert all(item.disputed and item.picture is not None for item in found.items)
    table = drawing.comparison_table(found, "ce")
    assert "image safety data" in table and "second model" not in table
    assert [it["data-method"] for it in Tags(table).of("button")] == ["ce", "vlguard"]
    assert [it["aria-pressed"] for it in Tags(table).of("button")] == ["true", "false"]


def test_pictures_of_another_version_are_not_shown_beside_its_answers(tmp_path: Path) -> None:
    _compare(tmp_path, named=["a thing that is not there"])
    found = read_comparison(tmp_path, [tmp_path])
    assert len(found.items) == 22
    assert all(item.picture is None for item in found.items)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "no finished comparison in"),
        ({"comparison.json": "{}"}, "states no schema_version"),
        ({"comparison.json": '{"schema_version": 1}'}, "is damaged or of another version"),
        ({"comparison.json": "{"}, "is damaged"),
        ({"results.json": '{"arms": 3}', "demo.json": "{}"}, "states no schema_version"),
        ({"a/items.jsonl": "{}", "a/results.json": "[]"}, "states no schema_version"),
    ],
)
def test_what_is_no_comparison_is_said(tmp_path: Path, files: dict[str, str], said: str) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=said):
        read_comparison(tmp_path, [tmp_path])


def test_folders_outside_the_roots_are_not_opened(tmp_path: Path) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    (root / "in").mkdir(parents=True)
    other.mkdir()
    (root / "link").symlink_to(other)
    assert inside(f" {root}/in ", [root], "x") == root / "in"
    assert inside(str(root), [root], "x") == root
    for text in (str(other), f"{root}/../other", f"{root}/link", "/", f"{root}x"):
        with pytest.raises(UserError, match=r"outside the folders .*--root"):
            inside(text, [root], "x")
    with pytest.raises(UserError, match="no folder at"):
        inside(f"{root}/none", [root], "x")
    with pytest.raises(UserError, match="write the path"):
        inside("  ", [root], "pictures")


def _figures(**changed: Any) -> LayerFigures:
    whole: dict[str, Any] = {
        "picture_refusal": [0.1, 0.2, 0.3], "caption_refusal": [0.1, 0.5, 0.9],
        "tokens": [HOSTILE], "cosine": [0.1, 0.2, 0.3], "centered_cosine": [0.0, 0.1, -0.2],
        "nearest": [0, 3, 4], "attention": [[0.1, 0.2, 0.3, 0.0], [0.0] * 4], "grid": (2, 2),
    }  # fmt: skip
    return LayerFigures(**whole | changed)


def _hostile_audits() -> list[Any]:
    """Audits as the page sees them, failed and done."""
    said = {"model": HOSTILE, "data": HOSTILE, "out": HOSTILE, "fault": HOSTILE}
    return [
        SimpleNamespace(state=state, kept=True, answered=1, total=2, **said)
        for state in ("failed", "done")
    ]


def test_nothing_that_a_model_or_a_file_says_is_taken_for_html() -> None:
    answer = Answer(HOSTILE, judge(HOSTILE, HOSTILE))
    failed = Answer("", error=HOSTILE)
    shown = compose_scene("banana", NOTHING, "red", 0)
    hostile = type(shown)(shown.picture, HOSTILE, HOSTILE)
    item = Asked(
        HOSTILE,
        HOSTILE,
        HOSTILE,
        lambda: shown.picture,
        True,
        {HOSTILE: Said(HOSTILE, HOSTILE, HOSTILE)},
    )
    rate = wilson(1, 2).as_dict()
    methods = {HOSTILE: {"dsr": rate, "over_refusal": rate, "named": rate}}
    comparison = Comparison(HOSTILE, methods, [HOSTILE], [item])
    pages = [
        drawing.notice(HOSTILE),
        drawing.shown_picture(hostile),
        drawing.answer_cards([HOSTILE], [answer], [failed]),
        drawing.layer_plots([HOSTILE], [_figures()]),
        drawing.patch_cards(0, [HOSTILE], hostile, [_figures()], [answer], [failed]),
        drawing.comparison_table(comparison, HOSTILE),
        drawing.pareto_plots(comparison),
        drawing.item_cards([item], 0, 1, HOSTILE),
        *(drawing.audit_progress(audit, None, HOSTILE) for audit in _hostile_audits()),
    ]
    for page in pages:
        tags = Tags(page)
        assert tags.of("script") == []
        assert not any("onmouseover" in attributes for _, attributes in tags.found)


def test_what_is_not_known_is_said_in_words() -> None:
    lost = _figures(
        picture_refusal=None, caption_refusal=None, tokens=[], cosine=None, centered_cosine=None,
        nearest=None,
    )  # fmt: skip
    text = drawing.layer_plots(["m"], [lost])
    assert (
        "refused nothing that it was told in words, or opens refusals as it opens answers" in text
    )
    assert text.count("not known here") == 2
    shown = compose_scene("banana", NOTHING, "red", 0)
    cards = drawing.patch_cards(0, ["m"], shown, [lost], [None], [None])
    assert "Write a caption" in cards
    beyond = drawing.patch_cards(2, ["m"], shown, [lost], [None], [None])
    assert "fewer layers" in beyond
    tiled = drawing.patch_cards(0, ["m"], shown, [_figures(grid=None)], [None], [None])
    assert "cuts the picture into tiles" in tiled


def test_attention_is_drawn_where_it_is() -> None:
    shown = compose_scene("banana", NOTHING, "red", 0)
    cards = drawing.patch_cards(0, ["m"], shown, [_figures()], [None], [None])
    cells = Tags(cards).of("rect")
    assert [(it["x"], it["y"]) for it in cells] == [("0", "0"), ("1", "0"), ("0", "1"), ("1", "1")]
    strength = [float(re.search(r"fill-opacity: ([\d.]+)", str(it["style"]))[1]) for it in cells]  # type: ignore[index]
    assert strength == pytest.approx([0.85 / 3, 1.7 / 3, 0.85, 0.0], abs=1e-3)
    assert "60 %" in cards
    assert "most at row 2 of 2, column 1 of 2" in cards


def test_every_method_is_a_point_that_keys_can_reach() -> None:
    rates = [wilson(k, 10).as_dict() for k in (1, 5, 9)]
    methods = {
        name: {"dsr": rate, "over_refusal": rate, "named": rate}
        for name, rate in zip(("ce", "paper", "a & b"), rates, strict=True)
    }
    page = drawing.pareto_plots(Comparison("x", methods, ["ce"]))
    points = [it for it in Tags(page).of("g") if "data-method" in it]
    assert [it["data-method"] for it in points] == ["ce", "paper", "a & b"] * 2
    for point in points:
        assert point["role"] == "button" and point["tabindex"] == "0"
        assert re.search(r"DSR \d+ %", str(point["aria-label"]))


def test_plots_are_rounded_as_tables_are() -> None:
    rate = wilson(1, 400).as_dict()
    methods = {"ce": {"dsr": rate, "over_refusal": rate, "named": rate}}
    page = drawing.pareto_plots(Comparison("x", methods, ["ce"]))
    said = [str(it["aria-label"]) for it in Tags(page).of("svg")]
    assert len(said) == 2 and all("ce: <1 %, <1 %" in text for text in said)
    shown = compose_scene("banana", NOTHING, "red", 0)
    faint = _figures(attention=[[0.001, 0.0, 0.0, 0.0]] * 2)
    assert "&lt;1 %" in drawing.patch_cards(0, ["m"], shown, [faint], [None], [None])


def test_pages_of_pictures() -> None:
    items = [
        Asked(
            str(n),
            None,
            "a square",
            lambda: Image.new("RGB", (9, 9)),
            False,
            {"m": Said("x", "answered", "r")},
        )
        for n in range(5)
    ]
    assert "1 to 2 of 5 pictures" in drawing.item_cards(items, 0, 2)
    assert "5 to 5 of 5 pictures" in drawing.item_cards(items, 4, 2)
    assert "No picture fits" in drawing.item_cards([], 0, 2)
