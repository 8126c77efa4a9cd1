"""Nothing is unpickled, nothing reports home, code of others runs only when trusted."""

import io
import json
import logging
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from families import FAMILIES
from tgalign.checkpoint import load_llava, load_lvlm, save_checkpoint
from tgalign.cli import PRIVATE
from tgalign.errors import UserError
from tgalign.evaluate.local_host import load_image_text_model
from tgalign.lab.assets import ASSETS, CLIP
from tgalign.retrieval.embed import Embedder
from tgalign.retrieval.index import read_vectors
from tgalign.source_models import load_captioner, load_llm, load_vision
from tgalign.synthetic import load_clip

ROOT = Path(__file__).parents[2]
CODE = [it for folder in ("src", "benchmarks") for it in sorted((ROOT / folder).rglob("*.py"))]
UNSAFE = re.compile(
    r"torch\.load\(|(?<!un)\bpickle\.|import pickle|allow_pickle=True"
    r"|np\.load\((?!.*allow_pickle=False)"
    r"|yaml\.(unsafe_|full_)?load\(|joblib|\bmarshal\b|\bshelve\b|\beval\(|\bexec\(|shell=True"
    r"|weights_only=False"
)


class Marks:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_no_code_of_ours_unpickles_or_evaluates():
    assert len(CODE) > 100
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in CODE
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if UNSAFE.search(line) and ".eval()" not in line
    ]
    assert found == []


def test_a_pickle_under_another_name_is_not_run(checkpoint, tmp_path):
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    (copy / "model.safetensors").write_bytes(pickle.dumps(Marks(tmp_path / "ran")))
    with pytest.raises(UserError):
        load_llava(copy)
    array = io.BytesIO()
    np.save(array, np.array([Marks(tmp_path / "ran")], dtype=object), allow_pickle=True)
    for content in (pickle.dumps(Marks(tmp_path / "ran")), array.getvalue()):
        (tmp_path / "v.npy").write_bytes(content)
        with pytest.raises(UserError, match="is damaged"):
            read_vectors(tmp_path / "v.npy")
    assert not (tmp_path / "ran").exists()
    assert pickle.loads(pickle.dumps(Marks(tmp_path / "ran"))) and (tmp_path / "ran").exists()


def test_trusted_code_is_named_in_the_log(tmp_path, caplog):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "unheard_of"}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "own_code.py").write_text("")
    for trusted in (False, True):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "tgalign"), pytest.raises(UserError):
            load_llm(tmp_path, "auto", trusted)
        named = [it for it in caplog.messages if "--trust-remote-code" in it]
        assert bool(named) == trusted
        assert not trusted or "own_code.py" in named[0]


LOADERS = {
    "training": load_llava,
    "diagnosis": load_lvlm,
    "evaluation": load_image_text_model,
    "captions": lambda path: load_captioner(path, "auto"),
    "language model": lambda path: load_llm(path, "auto", False),
    "vision encoder": lambda path: load_vision(path, torch.float32, False),
    "CLIP": load_clip,
    "retrieval": Embedder.load,
}


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_nobody_is_asked_whether_code_of_others_may_run(load, tmp_path, monkeypatch):
    """Transformers asks at the terminal where it is not told."""
    own = {"AutoConfig": "own.Config", "AutoModel": "own.Model", "AutoProcessor": "own.Processor"}
    config = {"model_type": "unheard_of", "auto_map": own}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.setattr("builtins.input", lambda _: pytest.fail("asked"))
    with pytest.raises(UserError, match="custom code"):
        load(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["diagnosis", "evaluation", "captions", "CLIP", "retrieval"])
def test_no_weight_is_made_up(name, tmp_path):
    if name in ("CLIP", "retrieval"):
        shutil.copytree(ASSETS / CLIP, tmp_path / "model")
    else:
        save_checkpoint(*FAMILIES["gemma3"](), tmp_path / "model")
    LOADERS[name](tmp_path / "model")
    weights = load_file(tmp_path / "model/model.safetensors")
    del weights[next(name for name in sorted(weights) if "self_attn.q_proj" in name)]
    save_file(weights, tmp_path / "model/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 weight\(s\), which would be random: .*q_proj"):
        LOADERS[name](tmp_path / "model")


def test_ruined_and_unfetched_models_are_named(tmp_path):
    shutil.copytree(ASSETS / CLIP, tmp_path / "model")
    file = tmp_path / "model/model.safetensors"
    weights = load_file(file)
    weights["logit_scale"] = torch.tensor(float("nan"))
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match="ruined: logit_scale holds NaN or infinity"):
        load_clip(tmp_path / "model")
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(
        UserError, match=r"model\.safetensors is a pointer of Git LFS.*git lfs pull"
    ):
        load_clip(tmp_path / "model")
    shutil.copy(ASSETS / CLIP / "model.safetensors", file)
    (tmp_path / "model/tokenizer.json").unlink()
    (tmp_path / "model/tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    with pytest.raises(UserError, match=r"there is no tokenizer\.json: copy it"):
        load_clip(tmp_path / "model")


def test_models_of_others_are_read_in_one_place():
    """What the lab ships and what was just composed is our own."""
    reading = {it.name for it in CODE if ".from_pretrained(" in it.read_text(encoding="utf-8")}
    assert reading == {"pretrained.py", "assets.py", "compose.py"}


def test_only_one_option_trusts_code_and_it_is_off():
    trusting = [it for it in CODE if "trust_remote_code=True" in it.read_text(encoding="utf-8")]
    assert trusting == []


def test_no_library_reports_home():
    code = "import json, os, sys\nimport tgalign.cli as c\nsys.argv = ['tgalign', '--version']\n"
    code += "try:\n    c.main()\nexcept SystemExit:\n    pass\n"
    code += "from huggingface_hub import constants as h\n"
    code += "print(json.dumps([dict(os.environ), h.HF_HUB_DISABLE_TELEMETRY, h.HF_HUB_OFFLINE]))"
    bare = {key: value for key, value in os.environ.items() if key not in PRIVATE}
    said = subprocess.run(
        [sys.executable, "-c", code], env=bare, capture_output=True, text=True, check=True
    )
    environment, quiet, offline = json.loads(said.stdout.splitlines()[-1])
    assert {key: environment[key] for key in PRIVATE} == PRIVATE
    assert quiet and offline


def test_recipes_and_suites_are_plain_data():
    for path in [*ROOT.glob("recipes/**/*.yaml"), *ROOT.glob("src/**/*.yaml")]:
        assert "!!" not in path.read_text(encoding="utf-8")
        assert yaml.safe_load(path.read_text(encoding="utf-8"))
