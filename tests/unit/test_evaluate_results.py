"""Rates, gap, comparison, thresholds and page, from rows made by hand."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tgalign.errors import UserError
from tgalign.evaluate.compare import compare, load_pairs, parity, read_other
from tgalign.evaluate.conditions import Request, requests
from tgalign.evaluate.generate import Said
from tgalign.evaluate.items import Item, Suite
from tgalign.evaluate.pool import parse_columns, pool, write_pool
from tgalign.evaluate.results import assemble, rates, read_results, safety_gap
from tgalign.evaluate.run import run_requests
from tgalign.evaluate.thresholds import check, parse_thresholds, write_junit
from tgalign.report.evaluation_report import NUM_CARDS, warnings, write_evaluation_report

MODEL = {
    "host": "local", "name": "m", "revision": "abc", "chat_template_sha256": "d",
    "decoding": {"do_sample": False},
}  # fmt: skip


def row(name: str, verdict: str | None, kind: str = "toxic", *, condition: str = "plain",
        scene: str | None = "gun", **rest):  # fmt: skip
    made = {
        "id": f"s/{condition}/{name}", "suite": "s", "condition": condition, "scene": scene,
        "kind": kind, "prompt": f"prompt {name}", "picture": None, "picture_sha256": name,
        "cut": False,
        "answer": f"answer {name}", "verdict": verdict,
    }  # fmt: skip
    if verdict is None:
        made |= {"answer": None, "error": "out_of_memory", "detail": "none left"}
    else:
        made["rule"] = "some_rule"
    return made | rest


def table():
    rows = [row(f"t{i}", "refused" if i < 3 else "answered") for i in range(6)]
    rows += [row(f"k{i}", "refused", scene="knife") for i in range(2)]
    rows += [row("u", "undetermined"), row("e", None)]
    rows += [
        row(f"b{i}", "refused" if i == 0 else "answered", "benign", scene=None,
            hits=int(i > 1), targets=1)
        for i in range(5)
    ]  # fmt: skip
    return rows


def results(rows, **rest):
    suite = Suite("s", (), "CC0", "here", ("a note",))
    return assemble(rows, [suite], MODEL, seed=0) | rest


def test_rates_by_hand() -> None:
    found = rates(table())
    assert found["n"] == 15
    assert (found["dsr"]["rate"], found["dsr"]["n"]) == (pytest.approx(5 / 9), 9)
    assert (found["over_refusal"]["rate"], found["over_refusal"]["n"]) == (0.2, 5)
    assert (found["utility"]["rate"], found["utility"]["n"]) == (0.6, 5)
    assert found["undetermined"]["rate"] == pytest.approx(1 / 14)
    assert found["errors"] == {"out_of_memory": 1}
    assert found["dsr_by_scene"]["knife"]["n"] == 2
    assert found["dsr_by_scene"]["gun"]["rate"] == pytest.approx(3 / 7)
    assert found["over_refusal_by_scene"] == {}
    assert found["dsr"]["low"] < found["dsr"]["rate"] < found["dsr"]["high"]


verdicts = st.sampled_from(["refused", "answered", "undetermined", None])


@settings(deadline=None)
@given(st.lists(st.tuples(verdicts, st.sampled_from(["toxic", "benign"])), max_size=30))
def test_verdicts_and_errors_sum_to_n(kinds) -> None:
    rows = [row(str(i), verdict, kind) for i, (verdict, kind) in enumerate(kinds)]
    found = rates(rows)
    assert found["dsr"]["n"] + found["over_refusal"]["n"] + sum(found["errors"].values()) == len(
        rows
    )
    assert found["undetermined"]["n"] + sum(found["errors"].values()) == found["n"]
    json.dumps(found, allow_nan=False)


def test_the_gap_is_paired_by_item() -> None:
    rows = [
        row(f"{scene}{i}", "refused" if i < refused else "answered", scene=scene, condition=side)
        for scene, texts, pictures in (("gun", 4, 1), ("knife", 4, 4))
        for side, refused in (("caption", texts), ("plain", pictures))
        for i in range(4)
    ]
    rows += [row("lost", None, condition="plain"), row("lost", "refused", condition="caption")]
    rows += [row("b", "refused", "benign", condition=side) for side in ("plain", "caption")]
    gap = safety_gap(rows)
    assert gap["gun"]["gap"]["difference"] == 0.75
    assert gap["knife"]["gap"]["difference"] == 0
    assert gap["all"]["gap"]["difference"] == pytest.approx(3 / 8)
    assert gap["all"]["gap"]["n"] == gap["all"]["text"]["n"] == 8
    assert safety_gap(table()) is None


def test_results_carry_what_they_rest_on() -> None:
    found = results(table())
    assert found["dsr"] == found["suites"]["s"]["conditions"]["plain"]["dsr"]
    assert found["model"]["revision"] == "abc"
    assert found["seeds"] == [0]
    assert {"tgalign", "torch", "transformers"} <= set(found["versions"])
    other = results([row("t0", "refused") | {"prompt": "another"}])
    assert len(found["prompts_sha256"]) == 64
    assert other["prompts_sha256"] != results([row("t0", "refused")])["prompts_sha256"]
    turned = results([row("t0", "refused", turns_sha256="0")])
    assert turned["prompts_sha256"] != results([row("t0", "refused")])["prompts_sha256"]


def write(folder: Path, rows) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "items.jsonl").write_text(
        "".join(json.dumps(it) + "\n" for it in rows), encoding="utf-8"
    )
    return folder


def test_a_comparison_is_paired_and_holm_adjusted(tmp_path: Path) -> None:
    ours = [row(f"{s}{i}", "refused", scene=s) for s in ("gun", "knife") for i in range(8)]
    theirs = [it | {"verdict": "answered"} if it["scene"] == "gun" else it for it in ours]
    ours += [row("x", None)]
    theirs += [row("x", "refused"), row("only theirs", "refused")]
    benign = [row(f"b{i}", "answered", "benign", hits=1, targets=2) for i in range(8)]
    ours += benign
    theirs += [it | {"hits": 2} for it in benign]
    pairs, unshared = load_pairs(write(tmp_path / "a", ours), write(tmp_path / "b", theirs))
    found = compare(pairs, "b", unshared)
    assert (found["shared"], found["left_out"], found["unshared"]) == (25, 1, 1)
    group = found["groups"]["s/plain"]
    assert group["dsr"]["difference"] == 0.5
    assert group["dsr"]["p"] == pytest.approx(2 / 2**8)
    gun, knife = group["dsr_by_scene"]["gun"], group["dsr_by_scene"]["knife"]
    assert gun["p_holm"] == pytest.approx(2 * gun["p"])
    assert (knife["difference"], knife["p_holm"]) == (0, 1)
    assert group["over_refusal"]["difference"] == 0
    use = group["utility"]
    assert (use["difference"], use["n"]) == (-0.5, 16)
    assert use["low"] < -0.5 < use["high"] < 0
    assert group["utility"]["p"] == pytest.approx(2 / 2**8)


def test_other_questions_are_not_compared(tmp_path: Path) -> None:
    one = write(tmp_path / "a", [row("t", "refused")])
    with pytest.raises(UserError, match="share no item"):
        load_pairs(one, write(tmp_path / "b", [row("u", "refused")]))
    for change in (
        {"prompt": "else"}, {"picture_sha256": "else"}, {"picture_sha256": None},
        {"kind": "benign"}, {"hits": 0, "targets": 1},
    ):  # fmt: skip
        with pytest.raises(UserError, match="not the same question"):
            load_pairs(one, write(tmp_path / "c", [row("t", "refused") | change]))


def test_what_is_known_is_compared_before_anything_is_asked(tmp_path: Path) -> None:
    def of(color: str, *turns: tuple[str, str]) -> list[Request]:
        item = Item("1", "toxic", "what ?", "gun", Image.new("RGB", (8, 8), color))
        suite = Suite("s", (item,), "", "", examples=turns)
        return [it for name in ("plain", "in_context") for it in requests(suite, name)]

    class Host:
        def answer(self, prompts):
            return ((i, Said("a gun")) for i in range(len(prompts)))

        def describe(self):
            return {"host": "server", "name": "m"}

    one, out, turn = tmp_path / "one", tmp_path / "out", ("what ?", "a knife")
    run_requests(Host(), of("red", turn), one, chunk=8, progress=False)
    (one / "results.json").touch()
    assert len(read_other(one, of("red", turn), out)) == 2
    for asked, what in ((of("blue", turn), "picture"), (of("red", turn, turn), "earlier turns")):
        with pytest.raises(UserError, match=f"not the same question in .* .another {what}"):
            read_other(one, asked, out)


def test_a_picture_that_one_could_not_open_is_left_out(tmp_path: Path) -> None:
    one = [row("a", "refused"), row("b", "refused")]
    other = [row("a", "refused"), row("b", None, picture_sha256=None)]
    pairs, _ = load_pairs(write(tmp_path / "a", one), write(tmp_path / "b", other))
    found = compare(pairs, "b")
    assert (found["shared"], found["left_out"]) == (2, 1)


def test_parity_counts_equal_answers_and_names_the_others(tmp_path: Path) -> None:
    one = [row(str(i), "refused") for i in range(4)] + [row("e", None)]
    other = [it | {"answer": f" {it['answer']} "} if it["answer"] else it for it in one]
    assert parity(*load_pairs(write(tmp_path / "a", one), write(tmp_path / "b", other)))[
        "same_answer"
    ]["rate"] == 1  # fmt: skip
    other[0] |= {"answer": "other words"}
    other[1] |= {"answer": "yes", "verdict": "answered"}
    other[4] |= {"error": "server_error"}
    found = parity(*load_pairs(tmp_path / "a", write(tmp_path / "b", other)))
    assert found["same_answer"]["rate"] == pytest.approx(2 / 5)
    assert found["same_verdict"]["rate"] == pytest.approx(3 / 5)
    assert found["differing"][0] == {
        "id": "s/plain/0", "one": "answer 0", "other": "other words",
    }  # fmt: skip
    found = parity(*load_pairs(write(tmp_path / "a", one), write(tmp_path / "b", one[1:])))
    assert (found["same_answer"]["rate"], found["unshared"]) == (1, 1)


@pytest.mark.parametrize(
    ("text", "met"),
    [
        ("dsr=0.5", True), ("dsr=0.6", False), ("dsr>=0.55", True), ("dsr<0.6", True),
        ("over_refusal<0.2", False), ("over_refusal<=0.2", True), ("utility>0.59", True),
        ("errors<0.1", True), ("errors<=0", False), ("undetermined < .1", True),
        ("role_play.dsr=0.1", False), ("plain.dsr=0.1", True), ("cut<=0", True),
    ],
)  # fmt: skip
def test_thresholds(text: str, met: bool) -> None:
    (outcome,) = check(parse_thresholds(text), results(table()))
    assert outcome.met is met
    if text.startswith("role_play"):
        assert outcome.said == "not measured"


def test_several_thresholds_and_several_suites() -> None:
    found = results(table())
    found["suites"]["other"] = {"conditions": {"plain": rates([row("t", "answered")])}}
    outcomes = check(parse_thresholds("dsr=0.5,over_refusal<0.3"), found)
    assert [it.met for it in outcomes] == [False, True]
    assert outcomes[0].said == "s: 0.556, other: 0.000"


@pytest.mark.parametrize(
    "text", ["", "dsr", "dsr=", "dsr=x", "dsr==1", "gap=0.1", "plane.dsr=1", "dsr=1.2.3", "dsr=.."]
)
def test_a_malformed_threshold_is_named(text: str) -> None:
    with pytest.raises(UserError, match="expected"):
        parse_thresholds(text)


@pytest.mark.parametrize("rate", ["over_refusal", "undetermined", "cut", "errors"])
def test_at_least_is_no_bound_of_what_is_better_small(rate: str) -> None:
    with pytest.raises(UserError, match=rf"{rate} is better small: give role_play.{rate}<=0\.05"):
        parse_thresholds(f"dsr=0.9,role_play.{rate}=0.05")
    assert parse_thresholds(f"{rate}>=0.05")


def test_junit_says_what_failed(tmp_path: Path) -> None:
    found = results(table())
    outcomes = check(parse_thresholds("dsr=0.9,over_refusal<0.3"), found)
    write_junit(tmp_path / "deep" / "junit.xml", outcomes, found)
    root = ElementTree.parse(tmp_path / "deep" / "junit.xml").getroot()
    assert (root.get("tests"), root.get("failures")) == ("3", "2")
    failed = {
        case.get("name"): case.find("failure").get("message")
        for case in root
        if case.find("failure") is not None
    }
    assert failed == {
        "dsr=0.9": "dsr=0.9: s: 0.556",
        "every item of s/plain answered": "1 of 15 items ended in an error (out_of_memory: 1)",
    }


def test_dsr_alone_is_warned_of() -> None:
    assert any("ended in an error" in line for line in warnings(results(table())))
    told = row("t", None) | {"condition": "caption"}
    assert any("1 of 2 items ended" in it for it in warnings(results([row("t", "refused"), told])))
    assert any("3 items that only" in it for it in warnings(
        results([row("t", "refused")], comparison={"unshared": 3})
    ))  # fmt: skip
    said = warnings(results([row("t", "refused")]))
    assert any("Over-refusal was not measured" in line for line in said)
    assert any("Utility was not measured" in line for line in said)
    (said,) = warnings(results([row("b", "answered", "benign", hits=1, targets=1)]))
    assert said.startswith("DSR was not measured")


def test_the_page_is_offline_escaped_and_shows_pictures_only_when_asked(tmp_path: Path) -> None:
    rows = table()
    rows[0] |= {"answer": "<script>alert(1)</script>"}
    rows += [row(f"t{i}", "refused", condition="caption") for i in range(6)]
    found = results(rows, comparison=compare([(it, it) for it in rows], "<b>other</b>"))
    path = write_evaluation_report(found, rows, tmp_path)
    page = path.read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "&lt;b&gt;other" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "Safety gap, s" in page
    assert "out_of_memory: 1" in page
    assert "data:image" not in page
    pictures = {it["id"]: Image.new("RGB", (900, 600)) for it in rows[:3]}
    pictures[rows[3]["id"]] = tmp_path / "nowhere.png"
    page = write_evaluation_report(found, rows, tmp_path, pictures=pictures).read_text("utf-8")
    assert page.count("data:image/png") == 3
    assert page.count('class="card"') == len(rows) < NUM_CARDS


def test_results_of_another_schema_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no results"):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text('{"schema_version": 99}', encoding="utf-8")
    with pytest.raises(UserError, match="schema"):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text('{"schema_version": 1}', encoding="utf-8")
    with pytest.raises(UserError, match="no seeds or suites"):
        read_results(tmp_path)
    whole = {"schema_version": 1, "seeds": [0], "suites": {}}
    (tmp_path / "results.json").write_text(json.dumps(whole), encoding="utf-8")
    assert read_results(tmp_path / "results.json") == whole


def test_seeds_are_pooled_and_stand_one_by_one(tmp_path: Path) -> None:
    folders = []
    for seed, refused in enumerate((1, 3)):
        rows = [
            row(f"t{i}", "refused" if side == "caption" or i < refused else "answered",
                condition=side)
            for side in ("plain", "caption")
            for i in range(4)
        ]  # fmt: skip
        folder = write(tmp_path / str(seed), rows)
        found = results(rows) | {"seeds": [seed]}
        (folder / "results.json").write_text(json.dumps(found), encoding="utf-8")
        folders.append(folder)
    columns = parse_columns([f"tga={folders[0]},{folders[1]}", f"one={folders[0]}"])
    text = write_pool(columns, tmp_path / "table")
    assert text == (tmp_path / "table.md").read_text(encoding="utf-8")
    made = json.loads((tmp_path / "table.json").read_text(encoding="utf-8"))
    plain = made["tga"]["suites"]["s"]["conditions"]["plain"]
    assert (plain["dsr"]["rate"], plain["dsr"]["n"], made["tga"]["seeds"]) == (0.5, 8, [0, 1])
    assert [seed["dsr"] for seed in plain["by_seed"]] == [0.25, 0.75]
    assert made["tga"]["suites"]["s"]["safety_gap"]["all"]["gap"]["n"] == 8
    assert "0.50 [0.22, 0.78] n=8 (0.25, 0.75)" in text
    assert "tga: seeds 0, 1; one: seeds 0" in text
    assert [seed["dsr"] for seed in plain["n_by_seed"]] == [4, 4]
    assert "undetermined |" not in text and "errors |" not in text and "†" not in text
    for twice in (f"a={folders[0]},{folders[0]}", f"a={folders[0]},{folders[0]}/../0"):
        with pytest.raises(UserError, match=r"a: .* of one model with one seed, whose items would"):
            pool(parse_columns([twice]))
    for model in ("", "a name", None):  # damaged, as the fuzzer found
        odd = results(rows) | {"model": model, "seeds": [[1]]}
        (folders[1] / "results.json").write_text(json.dumps(odd), encoding="utf-8")
        assert pool({"a": folders})["a"]["seeds"] == [0, [1]]
    for wrong in (["tga"], ["=x"], ["a=x", "a=y"]):
        with pytest.raises(UserError, match="expected LABEL=FOLDER"):
            parse_columns(wrong)
