"""What a measurement is named by, so that it is made again where its answers might differ."""

import pytest

from tgalign.baselines import compare
from tgalign.baselines.estimate import num_questions
from tgalign.baselines.methods import plan
from tgalign.baselines.training import Setting
from tgalign.lab.alignment_data import toxic_scene


def test_what_decides_an_answer_names_its_measurement(tmp_path, monkeypatch):
    """The judge only of a defence, which asks it: else its change costs no answer."""
    read = []
    monkeypatch.setattr("tgalign.files.sha256", lambda path: read.append(path.stem) or "")
    setting = Setting("guided", 0.1, "emoji")
    compare._result(tmp_path, 0, setting, plan("ce"), {})
    assert set(read) == {"items", "generate"}
    compare._result(tmp_path, 0, setting, plan("ecso"), {})
    wanted = {"items", "generate", "ecso", "told", "defence", "states"}
    assert set(read) >= wanted | {"refusal", "refusal_phrases"}


@pytest.mark.parametrize(
    ("changed", "now"),
    [
        ("tgalign.baselines.compare.suite_sizes", lambda smoke: (2, 9, 8)),
        ("tgalign.baselines.compare.SUITE", 3_001),
        ("tgalign.lab.suite.toxic_scene", lambda rng, pool, kind: toxic_scene(rng, pool, "knife")),
        ("tgalign.lab.language.DESCRIBE", {"train": ("what ?",), "heldout": ("what ?",)}),
        ("tgalign.lab.pictures.GLYPH_COLORS", ((0, 0, 0), (255, 255, 255))),
        ("tgalign.lab.jailbreaks.ATTACKS", {"role_play": "a toy :", "in_context": "a mug ."}),
        ("tgalign.baselines.items.QUESTION", "what is this ?"),
    ],
)
def test_what_is_asked_names_a_measurement(changed, now, tmp_path, monkeypatch):
    def name():
        compare._asked.cache_clear()
        setting = Setting("guided", 0.1, "icons", smoke=True)
        return compare._result(tmp_path, 0, setting, plan("ce"), {}).name

    before = name()
    assert name() == before
    monkeypatch.setattr(changed, now)
    assert name() != before
    compare._asked.cache_clear()


def test_what_a_defence_may_look_at_names_its_measurement(tmp_path, monkeypatch):
    setting = Setting("guided", 0.1, "emoji", smoke=True)
    compare._looked_at.cache_clear()
    before = [compare._result(tmp_path, 0, setting, plan(it), {}) for it in ("ce", "ecso")]
    monkeypatch.setattr("tgalign.baselines.calibration.SAFETY_PROMPT", "sorry .")
    compare._looked_at.cache_clear()
    after = [compare._result(tmp_path, 0, setting, plan(it), {}) for it in ("ce", "ecso")]
    compare._looked_at.cache_clear()
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, False]


@pytest.mark.parametrize(("smoke", "number"), [(True, 74), (False, 2040)])
def test_the_estimate_counts_the_questions_of_the_suite(smoke, number):
    setting = Setting("guided", 0.1, "emoji", smoke=smoke)
    assert num_questions(setting) == number
    suite = compare.comparison_suite(0, "emoji", smoke)
    assert len(suite.texts) + 3 * len(suite.toxic + suite.benign) == number
