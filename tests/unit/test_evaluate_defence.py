"""A local host with a defence around its model: what it answers, says of itself and refuses."""

import json
from pathlib import Path

import pytest
from PIL import Image

from families import FAMILIES
from tgalign.baselines import defend
from tgalign.baselines.calibration_folder import find_calibration
from tgalign.errors import UserError
from tgalign.evaluate import local_host
from tgalign.evaluate.conditions import requests
from tgalign.evaluate.generate import Prompt, answer
from tgalign.evaluate.items import Item, Suite
from tgalign.evaluate.local_host import LocalModel
from tgalign.evaluate.run import run_requests

NEW = 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "calibration"
    path.mkdir()
    rows = [{"image": f"{i}.png", "caption": f"a picture of a cat and {i} dog ."} for i in range(4)]
    for i, row in enumerate(rows):
        Image.effect_noise((20, 20), 20 + 60 * i).save(path / row["image"])
    (path / "harmless.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "toxic.jsonl").write_text('{"text": "a picture of a beer mug ."}\n')
    (path / "settings.yaml").write_text("question: describe this image .\n")
    return path


def test_answers_are_those_of_the_defended_model(checkpoint, composed, folder) -> None:
    name = "safety_prompt"  # whatever it stands around answers otherwise
    prompts = [
        Prompt("describe this image .", Image.effect_noise((30, 30), i)) for i in (10, 60, 200)
    ] + [Prompt("what is a cat ?")]
    plain = LocalModel(checkpoint, max_new_tokens=NEW)
    assert plain.describe()["defence"] is None
    host = LocalModel(checkpoint, max_new_tokens=NEW, defence=name, calibration=str(folder))
    calibration = find_calibration(str(folder))
    with defend(*composed, name, calibration=calibration):
        expected = answer(*composed, prompts, max_new_tokens=NEW)
    for _ in range(2):  # the defence stays
        assert [said.text for _, said in sorted(host.answer(prompts))] == expected
    assert [said.text for _, said in sorted(plain.answer(prompts))] != expected
    assert host.describe()["defence"] == {
        "name": name, "calibration": str(folder), "calibration_sha256": calibration.sha256,
    }  # fmt: skip


def test_a_run_goes_on_with_the_same_defence_only(checkpoint, folder, tmp_path) -> None:
    suite = Suite("s", (Item("1", "toxic", "what ?", None, Image.new("RGB", (9, 9))),), "", "")
    asked = requests(suite, "plain")

    def ask(out: str, defence: str | None) -> None:
        source = str(folder) if defence else None
        host = LocalModel(checkpoint, max_new_tokens=2, defence=defence, calibration=source)
        run_requests(host, asked, tmp_path / out, chunk=8, progress=False)

    ask("defended", "ecso")
    ask("defended", "ecso")
    ask("plain", None)
    for out, defence in (("defended", None), ("defended", "cmrm"), ("plain", "ecso")):
        with pytest.raises(UserError, match=r"holds another evaluation .*--defence"):
            ask(out, defence)
    (folder / "toxic.jsonl").write_text('{"text": "a picture of a knife ."}\n')
    with pytest.raises(UserError, match="holds another evaluation"):
        ask("defended", "ecso")


def test_what_a_defence_needs_is_said(checkpoint, folder, tmp_path, monkeypatch) -> None:
    for settings, said in (
        ({"defence": "ecso"}, "needs --calibration"),
        ({"calibration": "lab"}, "for a defence"),
        ({"defence": "eco", "calibration": str(folder)}, "unknown defence 'eco'; expected .*ecso"),
        ({"defence": "ecso", "calibration": "nowhere"}, "no calibration at nowhere"),
        ({"defence": "safeclip", "calibration": str(folder)}, "folder of the CLIP"),
    ):
        with pytest.raises(UserError, match=said):
            LocalModel(checkpoint, **settings)
    loaded = FAMILIES["internvl"]()
    monkeypatch.setattr(local_host, "load_image_text_model", lambda *_: loaded)
    with pytest.raises(UserError, match="is a internvl: defences stand around a llava only"):
        LocalModel(tmp_path, defence="ecso", calibration=str(folder))
