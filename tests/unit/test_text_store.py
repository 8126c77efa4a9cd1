"""States of texts on disk: found again by the same model, refused when damaged."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tgalign.checkpoint import load_llava
from tgalign.config import LoraConfig, ObjectiveConfig, parse_config
from tgalign.errors import UserError
from tgalign.lora import add_adapters
from tgalign.task import AlignmentTask
from tgalign.text_cache import TextCache
from tgalign.text_store import TextStore, weights_sha256
from tgalign.train import train

OTHER_RUN = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
import tgalign.text_cache
from tgalign.checkpoint import load_llava, pixel_loader
from tgalign.config import ObjectiveConfig
from tgalign.data.collate import Collator
from tgalign.data.encode import Encoder
from tgalign.data.records import read_records
from tgalign.task import AlignmentTask
torch.set_num_threads(1)
checkpoint, records, kept, states = map(Path, sys.argv[1:])
tgalign.text_cache.TEXTS_PER_FILE = 5
model, processor = load_llava(checkpoint)
model.model.language_model.requires_grad_(False)
length = model.config.image_seq_length
encoder = Encoder(processor.tokenizer, length, max_length=200, retrieved_in_prompt=0.0)
rows = [encoder.encode(record) for record in read_records(records, records.parent)[0]]
cache = tgalign.text_cache.TextCache([rows], kept)
collator = Collator(processor.tokenizer.pad_token_id, pixel_loader(processor))
cache.fill(AlignmentTask(model, ObjectiveConfig(layers=[1, 3])), collator, batch_size=2)
save_file({"states": cache([row.caption for row in rows if row.caption is not None])}, states)
"""


@pytest.fixture(scope="module")
def texts(rows, encode):
    return [row.caption for row in encode(rows.records) if row.caption is not None]


@pytest.fixture
def task(llava):
    llava.model.language_model.requires_grad_(False)
    return AlignmentTask(llava, ObjectiveConfig(layers=[1, 3]))


@pytest.fixture
def filled(task, rows, encode, collator, tmp_path, monkeypatch):
    """A function that fills a cache on disk, five texts a file, and gives it."""
    monkeypatch.setattr("tgalign.text_cache.TEXTS_PER_FILE", 5)

    def fill(records=rows.records, task=task, **options):
        cache = TextCache([encode(records)], tmp_path / "kept", **options)
        cache.fill(task, collator, batch_size=2)
        return cache

    return fill


def manifests(tmp_path):
    return sorted((tmp_path / "kept").glob("*/manifest.json"))


def test_what_is_kept_on_disk_is_what_is_kept_in_memory(
    filled, task, rows, encode, collator, texts, tmp_path
):
    memory = TextCache([encode(rows.records)])
    memory.fill(task, collator, batch_size=2)
    disk = filled()
    assert len(texts) > 5
    # The last bits of a state depend on which texts share its batch.
    torch.testing.assert_close(disk(texts), memory(texts), rtol=1e-5, atol=1e-5)
    (path,) = manifests(tmp_path)
    files = json.loads(path.read_text())["files"]
    assert len(files) > 2
    for name, about in files.items():
        assert (path.parent / name).stat().st_size == about["bytes"]


def no_computing(*_args):
    pytest.fail("computed again")


def test_another_run_of_the_same_model_computes_nothing(filled, llava, texts, monkeypatch):
    first = filled()(texts)
    again = AlignmentTask(copy.deepcopy(llava), ObjectiveConfig(layers=[1, 3]))
    monkeypatch.setattr(AlignmentTask, "text_states", no_computing)
    assert torch.equal(filled(task=again)(texts), first)


def test_more_texts_are_added_to_those_there(filled, rows, texts, tmp_path):
    some = [record for record in rows.records if record.caption and record.retrieved]
    filled(some)
    (path,) = manifests(tmp_path)
    before = set(json.loads(path.read_text())["files"])
    assert len(filled()(texts)) == len(texts)
    assert manifests(tmp_path) == [path]
    assert before < set(json.loads(path.read_text())["files"])


@pytest.mark.parametrize("other", ["weights", "layers", "precision"])
def test_other_states_are_kept_apart(other, filled, task, llava, texts, tmp_path):
    first = filled()(texts)
    objective = ObjectiveConfig(layers=[1, 3])
    if other == "weights":
        with torch.no_grad():
            llava.model.language_model.layers[0].mlp.up_proj.weight[0, 0] += 0.5
    elif other == "layers":
        objective = ObjectiveConfig(layers=[1, 2])
    cache = filled(task=AlignmentTask(llava, objective), bf16=other == "precision")
    assert len(manifests(tmp_path)) == 2
    assert not torch.equal(cache(texts).float(), first)
    if other == "precision":
        assert cache(texts).dtype == torch.bfloat16
        torch.testing.assert_close(cache(texts).float(), first, rtol=0.1, atol=0.1)


def test_adapters_that_say_nothing_yet_are_no_other_model(llava):
    before = weights_sha256(llava.model.language_model)
    add_adapters(llava, LoraConfig(r=2))
    assert weights_sha256(llava.model.language_model) == before


def test_what_a_killed_run_left_is_used_and_the_rest_computed(filled, texts, tmp_path, monkeypatch):
    straight = filled()(texts)
    (path,) = manifests(tmp_path)
    files = json.loads(path.read_text())["files"]
    for file in path.parent.iterdir():
        file.unlink()
    write, written = TextStore.write, []

    def write_two(self, keys, states_NLD):
        if len(written) == 2:
            (self.folder / "states-0.safetensors.incomplete").write_bytes(b"half a file")
            raise KeyboardInterrupt
        written.append(keys)
        return write(self, keys, states_NLD)

    monkeypatch.setattr(TextStore, "write", write_two)
    with pytest.raises(KeyboardInterrupt):
        filled()
    assert len(json.loads(path.read_text())["files"]) == 2
    monkeypatch.setattr(TextStore, "write", write)
    assert torch.equal(filled()(texts), straight)
    assert json.loads(path.read_text())["files"] == files


def test_two_runs_at_once_fill_one_store_in_turn(
    filled, checkpoint, rows, encode, texts, tmp_path, monkeypatch
):
    model, _ = load_llava(checkpoint)
    model.model.language_model.requires_grad_(False)
    task = AlignmentTask(model, ObjectiveConfig(layers=[1, 3]))
    places = [checkpoint, rows.path, tmp_path / "kept", tmp_path / "states.safetensors"]
    write, others = TextStore.write, []

    def write_while_another_comes(self, keys, states_NLD):
        if not others:
            command = [sys.executable, "-c", OTHER_RUN, *map(str, places)]
            others.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
            heard: list[str] = []
            while not heard or (heard[-1] and "waiting for its end" not in heard[-1]):
                heard.append(others[0].stderr.readline())
            assert heard[-1], heard  # else it ended without waiting
        return write(self, keys, states_NLD)

    monkeypatch.setattr(TextStore, "write", write_while_another_comes)
    some = [record for record in rows.records if record.caption and record.retrieved]
    first = filled(some, task)
    _, said = others[0].communicate(timeout=600)
    assert others[0].returncode == 0, said
    assert len(manifests(tmp_path)) == 1
    monkeypatch.setattr(AlignmentTask, "text_states", no_computing)
    again = filled(rows.records, task)  # both runs' files are listed, and whole
    assert torch.equal(again(texts), load_file(places[-1])["states"])
    mine = [row.caption for row in encode(some)]
    torch.testing.assert_close(first(mine), again(mine), rtol=1e-5, atol=1e-5)


DAMAGE = {
    "a bit": (lambda file: file.write_bytes(file.read_bytes()[:-1] + b"!"), "SHA-256 differs"),
    "cut short": (lambda file: file.write_bytes(file.read_bytes()[:-9]), "missing or cut short"),
    "missing": (lambda file: file.unlink(), "missing or cut short"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_named(name, filled, tmp_path):
    harm, message = DAMAGE[name]
    filled()
    (path,) = manifests(tmp_path)
    file = next(path.parent.glob("*.safetensors"))
    harm(file)
    with pytest.raises(UserError, match=message) as caught:
        filled()
    assert str(file) in str(caught.value)


def test_a_manifest_of_another_model_is_refused(filled, tmp_path):
    filled()
    (path,) = manifests(tmp_path)
    data = json.loads(path.read_text())
    data["identity"]["llm"] = "0" * 64
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match="not about the model and layers asked for"):
        filled()


@pytest.mark.parametrize("lacks", ["files", "bytes", "sha256"])
def test_a_manifest_that_lacks_something_is_named(lacks, filled, tmp_path):
    filled()
    (path,) = manifests(tmp_path)
    data = json.loads(path.read_text())
    (data if lacks == "files" else next(iter(data["files"].values()))).pop(lacks)
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"manifest\.json is damaged .*: remove"):
        filled()


def test_a_disk_too_small_is_said_before_anything_is_computed(filled, monkeypatch):
    monkeypatch.setattr(AlignmentTask, "text_states", no_computing)
    monkeypatch.setattr(
        "tgalign.text_cache.shutil.disk_usage", lambda _: type("Disk", (), {"free": 1000})
    )
    with pytest.raises(UserError, match=r"the states of \d+ texts at 2 layers take .* GB, and"):
        filled()


@pytest.mark.parametrize("reference", ["frozen", "live"])
def test_a_run_with_states_on_disk_trains_as_one_without(reference, checkpoint, rows, tmp_path):
    """A live reference moves and is never kept; a frozen one needs no copy of the LLM."""
    common = {"steps": 3, "batch_size": 8, "projector_lr": 1e-3, "llm_lr": 3e-4}
    objective = {"reference": reference, "similarity": "centered_cosine"}
    data = {
        "model": str(checkpoint),
        "records": str(rows.path),
        "attention": "eager",
        "stages": [
            common | {"name": "stage2", "train": ["projector", "llm"], "objective": objective}
        ],
    }
    weights = []
    for number, kept in enumerate((False, True)):
        where = tmp_path / f"kept{number}"
        config = data | {"out": str(tmp_path / str(number)), "cache_text": kept and str(where)}
        path = train(parse_config(config, "test"), progress_bar=False)
        weights.append(load_file(path / "model.safetensors"))
        assert where.exists() == (kept and reference == "frozen")
    plain, cached = weights
    assert max(float((plain[k] - cached[k]).abs().max()) for k in plain) < 1e-5


def test_no_copy_is_made_where_states_are_kept(llava):
    objective = ObjectiveConfig(reference="frozen")
    assert AlignmentTask(llava, objective)._reference
    assert not AlignmentTask(llava, objective, states_are_kept=True)._reference
