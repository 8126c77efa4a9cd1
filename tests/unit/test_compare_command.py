"""What `tgalign compare` makes of its own options, before anything is trained."""

import json

import pytest

from tgalign.baselines import compare as module
from tgalign.baselines import estimate


def test_a_name_of_two_checkpoints_is_refused(tgalign, tmp_path):
    given = ("--checkpoint", "a=one", "--checkpoint", "a=two")
    status, _, err = tgalign("compare", "--out", tmp_path / "out", *given)
    assert status == 2
    assert "checkpoint 'a=two': a is one already" in err


@pytest.fixture
def _no_trial(monkeypatch):
    monkeypatch.setattr(module, "prepare", lambda out, *_: (out / "seed0").mkdir(exist_ok=True))
    monkeypatch.setattr(estimate, "estimated_hours", lambda *_: 7.0)


@pytest.mark.usefixtures("_no_trial")
def test_an_estimate_leaves_nothing_that_binds(tgalign, tmp_path):
    out = tmp_path / "out"
    for scale in (0.5, 1.0):
        given = ("--methods", "ce", "--scale", scale, "--estimate")
        status, said, _ = tgalign("compare", "--out", out, *given)
        assert (status, "about 7.0 hours" in said) == (0, True)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_no_trial")
def test_an_estimate_of_a_comparison_under_way_looks_at_it(tgalign, tmp_path):
    (tmp_path / "compare.json").write_text(json.dumps({"schema_version": 1, "scale": 3}))
    given = ("--methods", "ce", "--estimate")
    status, _, err = tgalign("compare", "--out", tmp_path, *given)
    assert status == 2
    assert "holds a comparison with other settings" in err
