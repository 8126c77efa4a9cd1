"""Probes: what is written is read again; every fault is named by row; the lab's pairs match."""

import json

import numpy as np
import pytest
from PIL import Image

from tgalign.diagnose.probes import ProbeSet, read_probes, write_probes
from tgalign.errors import UserError
from tgalign.lab.probes import lab_probes


@pytest.fixture(scope="module")
def lab():
    return lab_probes(3, per_scene=2)


def rows_of(folder):
    return [json.loads(line) for line in (folder / "probes.jsonl").read_text().splitlines()]


def write_rows(folder, rows):
    (folder / "probes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(lab, tmp_path):
    write_probes(lab, tmp_path)
    return tmp_path


def test_what_is_written_is_read_again(lab, folder):
    found = read_probes(folder)
    assert [it.id for it in found.toxic] == [it.id for it in lab.toxic]
    assert found.source == str(folder)
    for ours, theirs in zip(found.toxic + found.benign, lab.toxic + lab.benign, strict=True):
        assert np.array_equal(np.asarray(ours.load()), np.asarray(theirs.load()))
        for name in ("id", "caption", "scene", "paraphrase", "toxic_text", "names"):
            assert getattr(ours, name) == getattr(theirs, name)
        assert ours.box == (theirs.box and pytest.approx(theirs.box))
    # Harmless ones may stand in any order: what counts is which they match.
    rows = rows_of(folder)
    write_rows(folder, rows[::-1])
    again = read_probes(folder)
    pairs = {a.id: b.id for a, b in zip(found.toxic, found.benign, strict=True)}
    assert {a.id: b.id for a, b in zip(again.toxic, again.benign, strict=True)} == pairs


def test_the_labs_pairs_differ_in_one_thing_alone(lab):
    assert len(lab.scenes) == 7
    assert len(lab.toxic) == len(lab.benign) == 14
    for toxic, benign in zip(lab.toxic, lab.benign, strict=True):
        assert toxic.toxic_text in toxic.caption
        assert toxic.toxic_text not in benign.caption
        assert {toxic.caption, benign.caption}.isdisjoint({toxic.paraphrase, benign.paraphrase})
        assert benign.scene is None and benign.box is None and benign.names
        differs = (np.asarray(toxic.load()) != np.asarray(benign.load())).any(axis=-1)
        left, top, right, bottom = (72 * end for end in toxic.box)
        y, x = differs.nonzero()
        assert len(y) > 50
        assert x.min() >= left - 1 and x.max() <= right + 1
        assert y.min() >= top - 1 and y.max() <= bottom + 1
    again = lab_probes(3, per_scene=2)
    assert [it.caption for it in again.toxic] == [it.caption for it in lab.toxic]
    other = lab_probes(4, per_scene=2)
    assert [it.caption for it in other.toxic] != [it.caption for it in lab.toxic]


def test_at_most_some_of_every_scene(lab):
    few = lab.at_most(1)
    assert [it.scene for it in few.toxic] == lab.scenes
    assert [it.id for it in few.benign] == [f"{it.id}-harmless" for it in few.toxic]
    assert lab.at_most(None) is lab


@pytest.mark.parametrize(
    ("number", "change", "said"),
    [
        (0, {"captoin": "x"}, "captoin"),
        (0, {"caption": " "}, "caption"),
        (0, {"scene": None}, "none has both"),
        (1, {"scene": "gun"}, "none has both"),
        (1, {"matches": "nobody"}, "no toxic id"),
        (1, {"matches": "alcohol-1"}, "second match"),
        (2, {"id": "alcohol-0"}, "stands twice"),
        (0, {"image": "../outside.png"}, "leads outside"),
        (0, {"image": "pictures/none.png"}, "does not exist"),
        (0, {"toxic_text": "battle axe"}, "does not stand in the caption"),
        (0, {"box": [0.5, 0.0, 0.4, 1.0]}, "left, top, right, bottom"),
        (0, {"box": [0.0, 0.0, 1.4, 1.0]}, "less than or equal to 1"),
    ],
)
def test_a_fault_is_named_by_row(folder, number, change, said):
    rows = rows_of(folder)
    rows[number] |= change
    write_rows(folder, rows)
    with pytest.raises(UserError, match=said) as fault:
        read_probes(folder)
    assert "probes.jsonl:" in str(fault.value)


def test_folders_that_are_no_probes(folder, tmp_path):
    with pytest.raises(UserError, match="tgalign lab probes"):
        read_probes(tmp_path / "nowhere")
    rows = rows_of(folder)
    write_rows(folder, rows[:8])
    with pytest.raises(UserError, match="holds 4 toxic pictures; expected at least 8"):
        read_probes(folder)
    (folder / "probes.jsonl").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        read_probes(folder)


def test_pictures_of_any_mode_come_as_rgb(tmp_path, lab):
    Image.new("P", (8, 8)).save(tmp_path / "p.png")
    probe = ProbeSet(lab.toxic, lab.benign, "").toxic[0]
    assert probe.load().mode == "RGB"
    moved = type(probe)("x", tmp_path / "p.png", "a cat")
    assert moved.load().mode == "RGB"
