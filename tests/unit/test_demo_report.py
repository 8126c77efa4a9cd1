import copy
import json
import math
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from tgalign.cli import app
from tgalign.errors import UserError
from tgalign.evaluate.seeds import NOTE
from tgalign.evaluate.statistics import wilson
from tgalign.report.demo_report import write_demo_report
from tgalign.report.verdict import MEASURES, compare, difference, headline
from tgalign.report.wording import percent, points

SCENES = ("alcohol", "insulting_gesture", "knife")
LABELS = ("CE only", "released (no gradient)", "TGA")
EVIL = '<script>alert("x")</script><img src="http://evil.example/a.png">'


def rate(share: float, n: int) -> dict[str, Any]:
    return wilson(round(share * n), n).as_dict()


def synthetic_arm(dsr: float, seeds: int, n: int = 120) -> dict[str, Any]:
    layers = range(7)
    return {
        "dsr": rate(dsr, 3 * n * seeds),
        "dsr_by_scene": {
            scene: rate(dsr * factor, n * seeds)
            for scene, factor in zip(SCENES, (1.3, 0.7, 1.0), strict=True)
        },
        "over_refusal": rate(0.02 * dsr, n * seeds),
        "named": rate(0.93 - 0.02 * dsr, n * seeds),
        "undetermined": rate(0.004, 4 * n * seeds),
        "text_dsr": rate(0.99, n * seeds),
        "text_over_refusal": rate(0.01, n * seeds),
        "step_seconds": 0.05 + 0.04 * dsr,
        "alignment": [
            {
                "layer": layer,
                "cosine": 0.9 + 0.01 * layer,
                "centered_cosine": (0.2 + dsr) * (1 - layer / 12),
                "caption_retrieval": (0.1 + 1.5 * dsr) * (1 - layer / 9),
                "toxic_cosine": 0.9,
                "toxic_centered_cosine": (0.1 + dsr) * (1 - layer / 9),
                "toxic_caption_retrieval": (0.1 + dsr) * (1 - layer / 7),
            }
            for layer in layers
        ],
        "logit_lens": [
            {"layer": layer, "toxic": dsr * (layer / 6) ** 2, "benign": 0.01 * layer * dsr}
            for layer in layers
        ],
        "seeds": [
            {
                "seed": seed,
                "dsr": rate(min(1.0, dsr * (0.9 + 0.1 * seed)), 3 * n),
                "over_refusal": rate(0.02 * dsr, n),
                "named": rate(0.92, n),
                "text_dsr": rate(0.99, n),
                "step_seconds": 0.05 + 0.04 * dsr,
            }
            for seed in range(seeds)
        ],
    }


def synthetic_curve(arm: str) -> list[dict[str, Any]]:
    rows = []
    for stage, steps in (("pretrain", 300), ("finetune", 600)):
        for step in range(10, steps + 1, 10):
            done = (step if stage == "pretrain" else 300 + step) / 900
            row = {"step": step, "stage": stage, "ce": 0.4 + 4 * math.exp(-6 * done)}
            row["ce"] += 0.05 * math.sin(step)
            if arm != "ce":
                row["guide"] = -3 * done + 0.1 * math.cos(step)
                row["caption_retrieval"] = [0.6 * done, 0.4 * done]
            rows.append(row)
    return rows


def synthetic(seeds: int = 3) -> dict[str, Any]:
    arms = {"ce": 0.01, "released_nograd": 0.012, "tga": 0.45}
    texts = {"ce": "a beer mug and a fox on blue .", "released_nograd": EVIL, "tga": "i cannot ."}
    labels = {"ce": "answered", "released_nograd": "undetermined", "tga": "refused"}
    answers = {arm: {"text": texts[arm], "label": labels[arm]} for arm in arms}
    return {
        "schema_version": 2,
        "condition": "guided",
        "toxic_share": 0.02,
        "style": "emoji",
        "seeds": list(range(seeds)),
        "arms": {name: synthetic_arm(dsr, seeds) for name, dsr in arms.items()},
        "base": {
            "text_dsr": rate(0.99, 150),
            "text_over_refusal": rate(0.0, 150),
            "text_named": rate(0.99, 150),
            "logit_lens": [
                {"layer": layer, "toxic": min(1.0, layer / 4), "benign": 0.01} for layer in range(7)
            ],
        },
        "gallery": [
            {"image": "pictures/2.png", "scene": None, "shown": "a red kite", "answers": answers},
            {"image": "pictures/1.png", "scene": "alcohol", "shown": EVIL, "answers": answers},
        ],
        "curves": {arm: synthetic_curve(arm) for arm in arms},
        "seconds": 754.2,
        "versions": {"tgalign": "0.1.0", "torch": "2.13.0"},
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "1.png").write_bytes(b"\x89PNG not really")
    return tmp_path


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("page")
    (place / "pictures").mkdir()
    (place / "pictures" / "1.png").write_bytes(b"\x89PNG not really")
    return write_demo_report(synthetic(), place).read_text(encoding="utf-8")


def test_the_page_says_how_to_make_it_again(tmp_path: Path) -> None:
    made = synthetic() | {"style": "icons", "smoke": True}
    text = write_demo_report(made, tmp_path).read_text(encoding="utf-8")
    found = re.search(r"<code>tgalign (demo .*)</code>", text)
    assert found is not None
    verb = get_command(app).commands["demo"]  # type: ignore[attr-defined]
    asked = verb.make_context("demo", found[1].split()[1:]).params
    assert asked == asked | {
        "seeds": 3, "condition": "guided", "toxic_share": 0.02, "style": "icons",
        "arms": "ce,released_nograd,tga", "smoke": True,
    }  # fmt: skip
    assert "2&nbsp;% of the pictures toxic · drawn as icons" in text
    assert "harmless icons that stand in" in text and "Twemoji" not in text


def test_writes_one_file_and_leaves_nothing_beside_it(folder: Path) -> None:
    path = write_demo_report(synthetic(1), folder)
    assert path == folder / "report.html"
    assert {child.name for child in folder.iterdir()} == {"pictures", "report.html"}


def test_model_answers_are_escaped(page: str) -> None:
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 3


def test_arm_and_scene_names_are_escaped_in_drawings_too(folder: Path) -> None:
    results = synthetic(1)
    name = '</text><script>"&'
    results["arms"][name] = copy.deepcopy(results["arms"]["tga"])
    results["arms"][name]["dsr_by_scene"][name] = rate(0.5, 10)
    results["curves"][name] = [{"step": 1, "stage": name, "ce": 1.0}] * 2
    assert "<script" not in write_demo_report(results, folder).read_text(encoding="utf-8")


class Tags(HTMLParser):
    """All tags with their attributes, and the text of style elements."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def of(self, *names: str) -> list[str]:
        return [value for name, value in self.attributes if name in names]


def test_page_loads_nothing_from_anywhere(page: str) -> None:
    tags = Tags(page)
    assert not tags.names & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for target in tags.of("src", "href", "xlink:href", "srcset", "poster", "data", "action"):
        assert target.startswith(("data:image/", "#"))
    css = "".join(re.findall(r"<style>.*?</style>", page, re.S)) + " ".join(
        tags.of("style", "clip-path", "fill", "marker-end", "filter", "mask")
    )
    assert not re.search(r"@import|//", css)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", css))
    assert "default-src 'none'" in " ".join(tags.of("content"))


def test_ids_are_unique_and_references_resolve(page: str) -> None:
    tags = Tags(page)
    ids = tags.of("id")
    assert len(ids) == len(set(ids))
    used = [target[1:] for target in tags.of("href", "xlink:href")]
    used += re.findall(r"url\(#([^)]*)\)", " ".join(tags.of("style", "clip-path")))
    assert used
    assert set(used) <= set(ids)


def test_all_arms_and_scenes_appear_in_the_table_and_the_drawings(page: str) -> None:
    table = page[page.index('<section id="numbers">') : page.index('<section id="plots">')]
    drawings = " ".join(re.findall(r'aria-label="([^"]*)"', page))
    for name in (*LABELS, *(scene.replace("_", " ") for scene in SCENES)):
        assert name in table
        assert name in drawings


def test_all_panels_are_drawn_and_described(page: str) -> None:
    assert len(re.findall(r'<svg [^>]*role="img" aria-label="[^"]{20,}"', page)) == 2 + 4 + 2 + 3
    assert "nothing was measured" not in page


def test_toxic_pictures_come_first_and_missing_ones_leave_a_placeholder(page: str) -> None:
    gallery = page[page.index('<section id="gallery">') :]
    assert gallery.index("data:image/png;base64,") < gallery.index(
        "picture missing: pictures/2.png"
    )
    assert gallery.index("Toxic pictures") < gallery.index("Harmless pictures")


def test_pictures_outside_the_folder_are_not_embedded(folder: Path) -> None:
    (folder / "secret.png").write_bytes(b"secret")
    results = synthetic(1)
    results["gallery"][0]["image"] = "../secret.png"
    inner = folder / "pictures"
    page = write_demo_report(results, inner).read_text(encoding="utf-8")
    assert "picture missing: ../secret.png" in page
    assert "data:image" not in page


def test_verdicts_stand_as_words(page: str) -> None:
    gallery = unescape(page[page.index('<section id="gallery">') :])
    toxic, harmless = gallery.split("Harmless pictures")
    assert '<b class="good">✓ refused</b>' in toxic
    assert '<b class="bad">✗ answered</b>' in toxic
    assert '<b class="bad">✗ refused</b>' in harmless
    assert '<b class="unsure">? undetermined</b>' in harmless


@pytest.mark.parametrize("seeds", [1, 3])
def test_same_input_gives_the_same_page(folder: Path, seeds: int) -> None:
    first = write_demo_report(synthetic(seeds), folder).read_text(encoding="utf-8")
    again = json.loads(json.dumps(synthetic(seeds)))
    assert write_demo_report(again, folder).read_text(encoding="utf-8") == first


def test_single_seed_says_so_and_three_seeds_are_listed(folder: Path, page: str) -> None:
    single = write_demo_report(synthetic(1), folder).read_text(encoding="utf-8")
    assert "One seed:" in single
    assert "Seed by seed" not in single
    assert "One seed:" not in page
    table = page[page.index("Seed by seed") : page.index('<section id="plots">')]
    assert table.count('<th scope="row">') == 9


def blank(value: Any, missing: Any) -> Any:
    """The same structure with every number replaced."""
    if isinstance(value, dict):
        return {key: blank(child, missing) for key, child in value.items()}
    if isinstance(value, list):
        return [blank(child, missing) for child in value]
    return missing if isinstance(value, int | float) else value


@pytest.mark.parametrize("missing", [None, math.nan])
def test_missing_numbers_render_as_na(folder: Path, missing: float | None) -> None:
    results = {**blank(synthetic(), missing), "schema_version": 2, "seeds": [0, 1, 2]}
    page = write_demo_report(results, folder).read_text(encoding="utf-8")
    assert page.count("n/a") > 50
    assert not re.search(r"\b(nan|None)\b", re.sub(r"<style.*?</style>", "", page, flags=re.S))
    assert "cannot be compared" in page


def test_an_arm_with_nothing_in_it_and_nothing_else_given(folder: Path) -> None:
    results = {"schema_version": 2, "arms": {"tga": {}}, "gallery": [{"scene": "knife"}]}
    page = write_demo_report(results, folder).read_text(encoding="utf-8")
    assert "n/a" in page
    assert "picture missing" in page


def test_one_missing_scene_leaves_the_others(folder: Path) -> None:
    results = synthetic(1)
    del results["arms"]["tga"]["dsr_by_scene"]["knife"]
    results["arms"]["ce"]["dsr_by_scene"]["alcohol"] = None
    page = write_demo_report(results, folder).read_text(encoding="utf-8")
    row = page[page.index('<th scope="row">knife') :]
    assert "n/a" in row[: row.index("</tr>")]


@pytest.mark.parametrize("results", [{}, {"schema_version": 1, "arms": {"a": {}}}])
def test_other_schema_is_refused(folder: Path, results: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="schema_version"):
        write_demo_report(results, folder)
    with pytest.raises(UserError, match="no arms"):
        write_demo_report({"schema_version": 2, "arms": {}}, folder)


def test_difference_is_newcombes_interval() -> None:
    # Newcombe (1998), table II, row (a), method 10: 56/70 against 48/80.
    found = difference(wilson(56, 70).as_dict(), wilson(48, 80).as_dict())
    assert found == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


def arms_with(ce: float, tga: float, seeds: list[tuple[float, float]]) -> dict[str, Any]:
    def arm(pooled: float, which: int) -> dict[str, Any]:
        rows = [{"seed": s, "dsr": rate(pair[which], 200)} for s, pair in enumerate(seeds)]
        return {"dsr": rate(pooled, 600), "seeds": rows}

    return {"ce": arm(ce, 0), "tga": arm(tga, 1)}


def test_headline_claims_only_what_intervals_and_seeds_show() -> None:
    clear = arms_with(0.01, 0.45, [(0.01, 0.4), (0.0, 0.45), (0.02, 0.5)])
    assert headline(clear) == "TGA refuses more toxic pictures than CE only"
    turned = {"ce": clear["tga"], "tga": clear["ce"]}
    assert headline(turned) == "TGA refuses fewer toxic pictures than CE only"
    near = arms_with(0.01, 0.015, [(0.01, 0.015)])
    assert headline(near).startswith("No difference shown")
    split = arms_with(0.01, 0.15, [(0.01, 0.45), (0.01, 0.0), (0.01, 0.0)])
    assert headline(split).startswith("The seeds disagree")
    assert headline({"ce": {}, "tga": clear["tga"]}) == (
        "TGA and CE only cannot be compared: refusals of toxic pictures were not measured"
    )


def test_headline_names_the_price() -> None:
    arms = arms_with(0.01, 0.45, [])
    arms["ce"] |= {"over_refusal": rate(0.0, 300), "named": rate(0.9, 300)}
    arms["tga"] |= {"over_refusal": rate(0.2, 300), "named": rate(0.6, 300)}
    assert headline(arms) == (
        "TGA refuses more toxic pictures than CE only, but refuses more harmless ones and names "
        "fewer objects"
    )
    assert compare(arms["tga"], arms["ce"], MEASURES[1]).wanted is False


def test_verdict_has_the_numbers(page: str) -> None:
    text = unescape(page[page.index("<h1>") : page.index("<nav")]).replace("\u00a0", " ")
    assert "TGA refuses more toxic pictures than CE only" in text
    assert re.search(r"language model refuses 99 % \[\d+, \d+\] of toxic prompts", text)
    assert re.search(r"stays 5\d\.\d points \[\d+\.\d, \d+\.\d\] below", text)
    assert "very same weights" not in text
    assert re.search(r"CE only refuses 1 % \[\d, \d\]", text)
    assert "against CE only: released (no gradient): no difference shown." in text


def test_an_arm_with_the_weights_of_ce_only_is_named(folder: Path) -> None:
    results = synthetic(1)
    results["arms"]["released_nograd"]["same_weights_as_ce"] = True
    page = write_demo_report(results, folder).read_text(encoding="utf-8")
    assert "no difference shown, having ended with the very same weights." in page


def test_numbers_are_not_rounded_into_certainty() -> None:
    assert [percent(x) for x in (0.0, 0.004, 0.45, 0.996, 1.0)] == ["0", "<1", "45", ">99", "100"]
    assert [points(x) for x in (0.446, -0.0042, 0.0)] == ["+44.6", "\u22120.4", "0.0"]


def test_a_rate_whose_seeds_differ_is_marked(folder: Path) -> None:
    results = synthetic(2)
    assert "†" not in write_demo_report(results, folder).read_text(encoding="utf-8")
    first, second = results["arms"]["tga"]["seeds"]
    first["dsr"], second["dsr"], first["text_dsr"] = rate(0.2, 120), rate(0.8, 120), None
    text = unescape(write_demo_report(results, folder).read_text(encoding="utf-8"))
    assert text.count("†") == 2 and text.count(NOTE) == 1
    assert re.search(r'all scenes</th>(?:(?!</tr>).)*</span>†</td>\s*<td class="n">', text, re.S)
