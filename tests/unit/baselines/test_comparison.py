"""From items to rates, tests and tables: what is counted, and what a page shows of it."""

import csv
import io
import json
from pathlib import Path

import pytest
from markupsafe import escape

from tgalign.baselines import compare
from tgalign.baselines.comparison import (
    COLUMNS,
    assemble,
    csv_text,
    markdown,
    title,
)
from tgalign.baselines.items import ask_all
from tgalign.baselines.methods import plan
from tgalign.evaluate.seeds import NOTE
from tgalign.evaluate.statistics import bootstrap_share, mcnemar, paired_difference, wilson
from tgalign.files import write_json
from tgalign.lab.jailbreaks import ATTACKS
from tgalign.lab.outcomes import judged, outcomes
from tgalign.lab.suite import lab_suite
from tgalign.report.comparison_report import headline, render
from tgalign.report.verdict import main_of
from tgalign.report.wording import label

SETTING = {
    "condition": "guided", "toxic_share": 0.1, "style": "emoji", "scale": 1.0, "smoke": False,
}  # fmt: skip
RATE = {"rate", "low", "high", "n"}


def item(kind, number, label, *, scene=None, fresh=False, named=None):
    toxic = scene is not None
    return {
        "id": f"{kind}-{number}", "kind": kind, "scene": scene, "toxic": toxic, "fresh": fresh,
        "question": "", "text": "", "label": label, "rule": "", "named": named or {},
    }  # fmt: skip


def answers(refused_of_ten, *, harmless_refused=0, named=True, text_refused=4):
    """Ten toxic and ten harmless pictures, plain and attacked, and four texts of each kind."""
    items = []
    for kind in ("plain", *ATTACKS):
        for number in range(10):
            label = "refused" if number < refused_of_ten else "answered"
            items.append(item(kind, number, label, scene="gun", fresh=number < 4))
            label = "refused" if number < harmless_refused else "answered"
            shown = {"fox": named, "taco": named}
            items.append(item(kind, 100 + number, label, named=shown if kind == "plain" else {}))
    for number in range(4):
        label = "refused" if number < text_refused else "answered"
        items.append(item("text", number, label, scene="gun"))
        items.append(item("text", 100 + number, "answered"))
    return items


def found(*given, seconds=60.0, latency=0.0, **options):
    return {"items": answers(*given, **options), "training_seconds": seconds,
            "added_latency": latency}  # fmt: skip


PLANS = [plan(name, ["<b>mine"]) for name in ("ce", "tga", "ecso", "<b>mine")]


@pytest.fixture(scope="module")
def comparison():
    by_method = {
        "ce": found(0),
        "tga": found(8),
        "ecso": found(5, harmless_refused=1, latency=1.5),
        "<b>mine": found(8, named=False, seconds=None),
    }
    return assemble(dict.fromkeys((0, 1), by_method), PLANS, SETTING)


def test_what_each_rate_counts():
    counts = {
        name: (sum(hits for _, hits, _ in rows), sum(of for *_, of in rows))
        for name, rows in outcomes(answers(3, harmless_refused=2)).items()
    }
    assert counts["dsr"] == counts["dsr_gun"] == (3, 10)
    assert counts["over_refusal"] == (2, 10)
    assert counts["named"] == (20, 20)
    assert counts["held_out_dsr"] == (3, 4)
    assert counts["undetermined"] == (0, 20)
    assert counts["text_dsr"] == (4, 4) and counts["text_over_refusal"] == (0, 4)
    assert counts["jailbreak_dsr"] == (6, 20) and counts["jailbreak_over_refusal"] == (4, 20)
    assert counts["jailbreak_dsr_role_play"] == (3, 10)


def test_an_undetermined_answer_is_no_refusal():
    rows = dict(outcomes([item("plain", 0, "undetermined", scene="gun")]))
    assert rows["dsr"] == [("0", 0, 1)] and rows["undetermined"] == [("0", 1, 1)]


def test_a_picture_under_two_attacks_is_one_picture():
    rows = outcomes(answers(3, harmless_refused=2))
    assert rows["jailbreak_dsr"] == [(str(i), 2 * (i < 3), 2) for i in range(10)]
    assert rows["jailbreak_over_refusal"][0] == ("100", 2, 2)
    assert rows["jailbreak_dsr_role_play"][0] == ("0", 1, 1)
    assert rows["named"] == [(str(100 + i), 2, 2) for i in range(10)]
    assert rows["held_out_named"] == []


def test_two_trials_of_a_picture_count_once_in_interval_and_test(comparison):
    """Ten pictures of two seeds: of each both attacks are refused, or none."""
    ours = comparison["methods"]["tga"]
    assert ours["jailbreak_dsr"] == bootstrap_share([(2, 2)] * 16 + [(0, 2)] * 4).as_dict()
    width = ours["jailbreak_dsr"]["high"] - ours["jailbreak_dsr"]["low"]
    apart = wilson(32, 40)
    assert ours["jailbreak_dsr"]["n"] == 40 and width > 1.2 * (apart.high - apart.low)
    test = ours["against_ce"]["jailbreak_dsr"]
    assert (test["difference"], test["gained"], test["lost"], test["n"]) == (0.8, 16, 0, 40)
    assert test["pairs"] == 20 and ours["against_ce"]["text_dsr"]["pairs"] == 8
    pairs = [(True, False)] * 16 + [(False, False)] * 4
    assert test["p"] >= mcnemar(pairs) > 100 * mcnemar(2 * pairs)
    assert 0.4 < test["low"] < 0.8 < test["high"] < 1
    single = ours["against_ce"]["dsr"]
    assert single["low"] == paired_difference(pairs).low


def test_an_answer_is_judged_by_todays_rules():
    was = item("plain", 0, "answered", named={"fox": False, "taco": True})
    now = judged(was | {"text": "i cannot help with this fox", "question": "describe this image ."})
    assert (now["label"], now["named"]) == ("refused", {"fox": True, "taco": False})
    assert now["rule"] and now["id"] == was["id"]


def test_the_fixed_fields_of_the_json(comparison):
    again = json.loads(json.dumps(comparison))
    assert list(again["methods"]) == ["ce", "tga", "ecso", "<b>mine"]
    assert again["seeds"] == [0, 1] and again["versions"]["torch"]
    for method in again["methods"].values():
        for name in ("dsr", "over_refusal", "named", "text_dsr", "jailbreak_dsr"):
            assert set(method[name]) == RATE
            assert method[name]["low"] <= method[name]["rate"] <= method[name]["high"]
        assert isinstance(method["added_latency"], float)
        assert [row["seed"] for row in method["seeds"]] == [0, 1]
    needs = ("uses_image_safety_data", "uses_second_model", "at_inference")
    assert [again["methods"]["ecso"][need] for need in needs] == [False, False, True]
    assert again["methods"]["tga"]["dsr"] == pytest.approx(
        {"rate": 0.8, "low": 0.584, "high": 0.919, "n": 20}, abs=1e-3
    )


def test_only_what_nothing_beats_is_on_the_front(comparison):
    assert comparison["pareto"] == ["tga"]
    assert headline(comparison).startswith("No other method beats TGA")
    worse = {**comparison, "pareto": ["<b>mine"]}
    ours = comparison["methods"]["tga"]
    better = {**ours, "dsr": {**ours["dsr"], "rate": 0.9}}
    worse["methods"] = {**comparison["methods"], "same": ours, "x": better}
    assert headline(worse) == "TGA is beaten by x"


def test_names_for_readers_hold_for_an_arm_and_a_defence_together():
    assert label("tga_question+safety_prompt") == "TGA at the question + safety prompt"
    assert main_of({"ce": 0, "tga": 0, "tga_question": 0, "vlguard": 0}) == "tga_question"
    assert main_of({"ce": 0, "tga": 0, "vlguard": 0}) == "tga"
    assert main_of({"ce": 0, "vlguard": 0}) == "vlguard"


def test_methods_are_tested_against_ce_on_the_same_items(comparison):
    methods = comparison["methods"]
    assert "against_ce" not in methods["ce"]
    test = methods["tga"]["against_ce"]["dsr"]
    assert (test["gained"], test["lost"], test["n"]) == (16, 0, 20)
    assert test["difference"] == pytest.approx(0.8)
    assert test["p"] == pytest.approx(2 / 2**16)
    assert test["p_holm"] == pytest.approx(3 * test["p"])
    assert methods["tga"]["against_ce"]["named"]["p_holm"] == 1.0
    worded = [item | {"question": "another"} for item in answers(1)]
    for change in ({"items": answers(1)[1:]}, {"items": worded}, {"asked": "other pictures"}):
        with pytest.raises(AssertionError, match="different items"):
            assemble({0: {"ce": found(0), "tga": found(1) | change}}, PLANS[:2], SETTING)


@pytest.fixture
def measured_at_once(monkeypatch):
    """`compare` where every measurement is there at once, with verdicts of an older judge."""

    def measure(crew, out, setting, todo, given):
        text = {"text": "i cannot help with that", "question": "describe this image ."}
        for seed, method in todo:
            items = [it | text | {"label": "answered"} for it in answers(0)]
            write_json(
                compare._result(out, seed, setting, method, given), found(0) | {"items": items}
            )

    monkeypatch.setattr(compare, "_run", measure)


def test_a_kept_answer_has_the_verdict_of_todays_judge(tmp_path, measured_at_once):
    methods = ["ce+safety_prompt", "safety_prompt"]
    made = compare.run_compare(tmp_path, num_seeds=1, methods=methods, smoke=True)
    assert list(made["methods"]) == ["ce", "safety_prompt"]  # one method under two names
    assert made["methods"]["ce"]["dsr"]["rate"] == 1
    kept = [json.loads(path.read_text()) for path in tmp_path.glob("seed0/measured/*.json")]
    assert len(kept) == 2
    assert {item["label"] for one in kept for item in one["items"]} == {"refused"}


def test_a_file_of_before_pictures_were_counted_says_so(comparison):
    old = json.loads(json.dumps(comparison))
    for method in old["methods"].values():
        for test in method.get("against_ce", {}).values():
            del test["low"], test["high"]
    assert "take the trials of one picture as independent" in markdown(old)
    assert "as independent" not in markdown(comparison)
    assert "a bootstrap over pictures and a permutation test" in markdown(comparison)


@pytest.mark.parametrize("path", sorted(Path("docs").glob("comparison*.json")), ids=str)
def test_the_page_of_an_older_file_is_made(path, comparison):
    assert "+16 −0 of 20, p" in render(comparison)
    page = render(json.loads(path.read_text()))
    assert "Differences from CE only" in page


def test_the_table_marks_what_differs(comparison):
    lines = markdown(comparison).splitlines()
    assert lines[0] == f"{title(comparison)}: rate [95 % interval]"
    rows = {line.split(" | ")[0].strip("| "): line for line in lines if line.startswith("| ")}
    assert "0.80 [0.58, 0.92]*" in rows["tga ★"]
    assert "*" not in rows["ce"]
    assert "+150 %" in rows["ecso"] and "at inference" in rows["ecso"]
    assert "n/a" in rows["\\<b\\>mine"]
    assert "DSR 20, over-refusal 20, objects named 40, text DSR 8, jailbreak DSR 40" in lines[-1]


def test_the_table_marks_a_rate_whose_seeds_differ(comparison):
    """Of an attacked picture both answers count as one: 4 of 10 for 10 of 10 is p = 0.013."""
    assert "†" not in markdown(comparison)
    changed = json.loads(json.dumps(comparison))
    one, other = changed["methods"]["tga"]["seeds"]
    for rate, n in (("jailbreak_dsr", 20), ("dsr", 20)):
        one[rate], other[rate] = ({"rate": share, "n": n} for share in (0.4, 1.0))
    text = markdown(changed)
    (row,) = (line for line in text.splitlines() if line.startswith("| tga ★"))
    assert row.count("†") == 1 and "0.80 [0.58, 0.92]†*" in row
    assert text.endswith(f"{NOTE}\n")
    page, note = render(changed), str(escape(NOTE))
    assert (page.count("†"), page.count(note)) == (2, 1) and "†*</td>" in page
    assert "†" not in render(comparison)


def test_the_csv_holds_the_same_numbers(comparison):
    rows = {row["method"]: row for row in csv.DictReader(io.StringIO(csv_text(comparison)))}
    assert list(rows) == list(comparison["methods"])
    for name, row in rows.items():
        for rate in COLUMNS:
            assert float(row[f"{rate}_rate"]) == comparison["methods"][name][rate]["rate"]
        assert row["pareto"] == str(name == "tga")


def test_the_page_is_offline_escaped_and_says_what_smoke_is_worth(comparison):
    page = render(comparison)
    assert "No other method beats TGA" in page
    assert "&lt;b&gt;mine" in page and "<b>mine" not in page
    assert "http://" not in page.replace("http://www.w3.org", "") and "<script" not in page
    assert page.count("<svg") == 2 + len(PLANS)
    assert render(comparison) == page
    assert "figures mean nothing" in render({**comparison, "smoke": True})
    methods = comparison["methods"].items()
    unasked = {name: it | {"over_refusal": {"rate": None}} for name, it in methods}
    page = render({**comparison, "methods": unasked, "pareto": list(unasked)})
    assert page.count("n/a: nothing was measured") == 1 and ">None<" not in page


def test_every_item_is_asked_and_judged(llava, processor):
    suite = lab_suite(3, per_scene=1, num_benign=3, num_texts=4)
    items = ask_all(llava, processor, suite)
    assert len({it["id"] for it in items}) == len(items) == 3 * (7 + 3) + 4
    assert {it["label"] for it in items} <= {"refused", "answered", "undetermined"}
    counted = outcomes(items)
    assert len(counted["dsr"]) == 7 and len(counted["over_refusal"]) == 3
    assert len(counted["text_dsr"]) == len(counted["text_over_refusal"]) == 2
    assert len(counted["jailbreak_dsr"]) == 7
    assert all(of == 2 for *_, of in counted["jailbreak_dsr"])
    assert sum(of for *_, of in counted["named"]) == sum(len(it.names) for it in suite.benign)
    assert all(item == judged(item) for item in items)
