"""The config's and the command line's answer to mistakes: status 2, one message, no traceback."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

from tgalign import __version__, cli
from tgalign.config import ObjectiveConfig, TrainConfig, parse_config
from tgalign.errors import UserError
from tgalign.limits import MAX_SEED
from tgalign.recipe import load_recipe

HEAVY = ("torch", "transformers", "numpy", "scipy", "PIL", "matplotlib")


@pytest.fixture
def recipe(tmp_path, checkpoint, rows):
    """A function that writes a valid recipe, changed as asked, and gives its path.

    A value of None removes the key; ``stage`` and ``objective`` change those parts.
    """

    def write(*, stage=None, objective=None, **changes):
        only = {
            "name": "stage1",
            "train": ["projector"],
            "steps": 1,
            "batch_size": 4,
            "projector_lr": 1e-3,
            "objective": objective or {},
        }
        data = {
            "model": str(checkpoint),
            "records": str(rows.path),
            "out": str(tmp_path / "out"),
            "stages": [only | (stage or {})],
        } | changes
        data = {key: value for key, value in data.items() if value is not None}
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(data), encoding="utf-8")
        return path

    return write


def refused(tgalign, path, *said):
    """Check that training exits with 2, says all of ``said`` on stderr and trains nothing."""
    status, out, err = tgalign("train", path, "--no-progress")
    assert status == 2, (status, err)
    assert err.startswith("tgalign: ")
    for text in said:
        assert text in err
    assert not list((path.parent / "out").rglob("*.safetensors"))
    assert not (path.parent / "out" / "checkpoint").exists()
    assert out == ""
    return err


WRONG = {
    "form": ({"objective": {"form": "papr"}}, "stages.0.objective.form", "'papr'", "'contrastive'"),
    "similarity": ({"objective": {"similarity": "dot"}}, "'dot'", "'centered_cosine'"),
    "reference": ({"objective": {"reference": "ema"}}, "'ema'", "'live' or 'frozen'"),
    "pair": ({"objective": {"pair": "text"}}, "'text'", "'image_retrieved'"),
    "schedule": ({"objective": {"schedule": "cosine"}}, "'cosine'", "'linear_decay'"),
    "weight": (
        {"objective": {"weight": -1}},
        "objective.weight",
        "-1",
        "greater than or equal to 0",
    ),
    "weight infinite": (
        {"objective": {"weight": float("inf")}},
        "objective.weight: Input should be a finite number",
    ),
    "rate infinite": ({"stage": {"projector_lr": float("inf")}}, "projector_lr", "finite number"),
    "temperature": ({"objective": {"temperature": 0}}, "temperature", "greater than 0"),
    "layers out of range": ({"objective": {"layers": "2-9"}}, "'2-9'", 'expected "all"'),
    "layers of no kind": ({"objective": {"layers": "deep"}}, "'deep'", 'expected "all"'),
    "layers empty": ({"objective": {"layers": []}}, "names no layer"),
    "layers a fraction": ({"objective": {"layers": 1.5}}, "stages.0.objective.layers", "1.5"),
    "unknown objective key": (
        {"objective": {"wieght": 1}},
        "stages.0.objective.wieght",
        "unknown key",
        "did you mean weight?",
    ),
    "unknown stage key": ({"stage": {"lr": 1}}, "stages.0.lr", "unknown key, got 1"),
    "unknown key": ({"epochs": 3}, "epochs: unknown key, got 3"),
    "precision": ({"precision": "fp16"}, "precision", "'fp32' or 'bf16'", "'fp16'"),
    "attention": ({"attention": "fast"}, "'fast'", "'sdpa'"),
    "part": ({"stage": {"train": ["vision"]}}, "'projector' or 'llm'", "'vision'"),
    "no part": ({"stage": {"train": []}}, "stages.0.train", "at least 1"),
    "steps": ({"stage": {"steps": 0}}, "stages.0.steps", "greater than 0, got 0"),
    "steps a word": ({"stage": {"steps": "many"}}, "stages.0.steps", "'many'"),
    "batch size": ({"stage": {"batch_size": -2}}, "stages.0.batch_size", "-2"),
    "share": ({"stage": {"retrieved_in_prompt": 1.5}}, "retrieved_in_prompt", "1.5"),
    "stage name": ({"stage": {"name": "../out"}}, "stages.0.name", "'../out'"),
    "no rate for the llm": ({"stage": {"train": ["llm"]}}, "llm_lr must be given"),
    "seed": ({"seed": -1}, "seed", "-1"),
    "seed too great": ({"seed": 10**30}, "seed: ", "less than or equal to 4294967295"),
    "length too great": ({"max_length": 10**9}, "max_length: ", "less than or equal to 1048576"),
    "no stages": ({"stages": []}, "stages", "at least 1"),
    "no model": ({"model": None}, "model: Field required"),
    "no records": ({"records": None}, "records: Field required"),
    "model a number": ({"model": 3}, "model"),
    "model missing": ({"model": "/nowhere"}, "no checkpoint at /nowhere"),
    "records missing": ({"records": "/nowhere.jsonl"}, "no records at /nowhere.jsonl"),
    "image root missing": ({"image_root": "/nowhere"}, "no image root at /nowhere"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_setting_is_named_with_what_was_given_and_what_is_allowed(name, tgalign, recipe):
    changes, *said = WRONG[name]
    refused(tgalign, recipe(**changes), *said)


@pytest.mark.parametrize(
    "arguments",
    [
        ("compose", "--llm", "a", "--vision", "b", "--out", "c", "--projector-seed"),
        ("lab", "experiment", "ce", "--out", "c", "--seed"),
        ("lab", "build", "--out", "c", "--seed"),
        ("lab", "probes", "--out", "c", "--seed"),
        ("evaluate", "a", "--out", "c", "--seed"),
        ("audit", "a", "--out", "c", "--seed"),
        ("retrieve", "attach", "a", "--index", "b", "--out", "c", "--seed"),
    ],
)
def test_a_seed_that_no_generator_takes_is_refused(arguments, tgalign):
    status, _, err = tgalign(*arguments, 10**23)
    assert status == 2
    assert str(MAX_SEED) in err


def test_the_greatest_seed_trains(tgalign, recipe):
    assert tgalign("train", recipe(seed=MAX_SEED), "--no-progress")[0] == 0


def test_every_wrong_setting_is_named_at_once(tgalign, recipe):
    path = recipe(seed="x", precision="fp8", stage={"steps": 0}, epochs=1)
    err = refused(tgalign, path, str(path), "seed:", "precision:", "stages.0.steps:", "epochs:")
    assert len(err.splitlines()) == 5


def test_two_stages_of_one_name_are_refused(tgalign, recipe):
    stage = {"name": "same", "train": ["projector"], "steps": 1, "batch_size": 1, "projector_lr": 1}
    said = refused(tgalign, recipe(stages=[stage, stage]), "different names", "['same', 'same']")
    assert "PosixPath" not in said and "Value error" not in said


GUIDE = {"objective": {"weight": 1.0}}
PLAIN = {"objective": {"weight": 0.0}}
NO_GRADIENT = {"objective": {"form": "released_nograd"}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"companions": 0.5, "stage": GUIDE}, "text_gate must be true"),
        ({"companions": 1.5, "text_gate": True, "stage": GUIDE}, "companions:"),
        (
            {"synthetic": {"clip": "c", "texts": "t"}, "cache_vision": True, "stage": GUIDE},
            "give a share of companions",
        ),
        (
            {
                "synthetic": {"clip": "c", "texts": "t"},
                "text_gate": True,
                "companions": 0.5,
                "stage": GUIDE,
            },
            "cache_vision must be true",
        ),
        ({"companions": 0.5, "text_gate": True, "stage": PLAIN}, "no stage has one that trains"),
        ({"probes": {"a": "a.jsonl"}, "stage": PLAIN}, "no stage has a guide that trains"),
        ({"probes": {"a": "a.jsonl"}, "stage": NO_GRADIENT}, "no stage has a guide that trains"),
    ],
)
def test_settings_that_need_each_other_are_asked_for_together(changes, said, tgalign, recipe):
    refused(tgalign, recipe(**changes), said)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: [1", "not readable YAML"),
        (b"\xff\xfe\xfd", "not readable YAML"),
        (b"a: !!python/object:os.system x", "not readable YAML"),
        (b"- 1\n- 2", "must hold a mapping of settings, got list"),
        (b"", "must hold a mapping of settings, got NoneType"),
        (b"{}", "Field required"),
        (b"1: 2", "1: "),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(content, said, tgalign, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    refused(tgalign, path, "recipe.yaml", said)


def test_a_missing_recipe_is_refused(tgalign, tmp_path):
    refused(tgalign, tmp_path / "none.yaml", "no training config at", "none.yaml")
    refused(tgalign, tmp_path, "no training config at")


def change_rows(rows, tmp_path, *extra):
    path = tmp_path / "data.jsonl"
    lines = [json.dumps(row) for row in rows.data[:2]] + [
        line if isinstance(line, str) else json.dumps(line) for line in extra
    ]
    path.write_text("\n".join(lines))
    return {"records": str(path), "image_root": str(rows.path.parent)}


def test_bad_rows_are_named_by_file_and_row(tgalign, recipe, rows, tmp_path):
    broken = rows.path.parent / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    image = next(row["image"] for row in rows.data if "image" in row)
    try:
        bad = change_rows(
            rows,
            tmp_path,
            {"image": "broken.png", "caption": "a cat"},
            {"image": image, "caption": "an <image> of a cat"},
            "{",
        )
        refused(
            tgalign,
            recipe(**bad),
            "3 bad row(s)",
            "data.jsonl:3: image",
            "broken.png",
            "data.jsonl:4: caption contains a literal '<image>'",
            "data.jsonl:5: not valid JSON",
        )
    finally:
        broken.unlink()


def test_a_row_that_is_too_long_is_named(tgalign, recipe):
    refused(tgalign, recipe(max_length=20), "records.jsonl:1: ", "more than the limit of 20")


@pytest.mark.parametrize(
    "kind",
    [
        "a language model",
        "no config",
        "broken",
        "no object",
        "other parts",
        "unknown",
        "no weights",
    ],
)
def test_a_checkpoint_that_is_no_llava_is_refused(kind, tgalign, recipe, llm, checkpoint, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    if kind == "a language model":
        llm.save_pretrained(folder)
        said = "holds a 'llama' model; expected a 'llava' checkpoint"
    elif kind == "no config":
        said = "expected a folder with config.json"
    elif kind == "broken":
        (folder / "config.json").write_text("{")
        said = "config.json cannot be read"
    elif kind == "no object":
        (folder / "config.json").write_text("null")
        said = "config.json cannot be read"
    elif kind == "other parts":
        (folder / "config.json").write_text('{"model_type": "llava", "text_config": 3}')
        said = "config.json cannot be read"
    elif kind == "unknown":
        (folder / "config.json").write_text('{"model_type": "no_such_model"}')
        said = "config.json cannot be read"
    else:
        (folder / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
        said = "cannot be loaded"
    refused(tgalign, recipe(model=str(folder)), str(folder), said)


DAMAGES = ("cut", "pickle", "no tokenizer", "no template", "weights missing", "other sizes")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused(damage, tgalign, recipe, checkpoint, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = folder / "model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:10_000])
    elif damage == "pickle":
        weights.rename(folder / "pytorch_model.bin")
    elif damage == "no tokenizer":
        for file in folder.glob("*token*"):
            file.unlink()
    elif damage == "no template":
        (folder / "chat_template.jinja").unlink()
    elif damage == "weights missing":
        kept = {
            name: tensor for name, tensor in load_file(weights).items() if "lm_head" not in name
        }
        save_file(kept, weights, metadata={"format": "pt"})
    else:
        config = json.loads((folder / "config.json").read_text())
        config["text_config"]["intermediate_size"] += 1
        (folder / "config.json").write_text(json.dumps(config))
    refused(tgalign, recipe(model=str(folder)), str(folder))


def test_an_out_that_cannot_be_written_is_refused(tgalign, recipe, tmp_path):
    (tmp_path / "file").write_text("")
    path = recipe(out=str(tmp_path / "file" / "out"))
    refused(tgalign, path, "cannot write to")
    path = recipe(out=str(tmp_path / "file"))
    refused(tgalign, path, "cannot write to")


def test_a_mended_recipe_trains_in_the_same_folder(tgalign, recipe, tmp_path):
    """Nothing was trained, so nothing stands in the way of the corrected run."""
    refused(tgalign, recipe(max_length=20), "more than the limit")
    status, out, err = tgalign("train", recipe(max_length=200), "--no-progress")
    assert status == 0, err
    assert out.strip() == str(tmp_path / "out" / "checkpoint")
    assert (tmp_path / "out" / "checkpoint" / "model.safetensors").is_file()


def test_a_demo_of_an_unknown_condition_is_refused(tgalign, tmp_path):
    status, _, err = tgalign("demo", "--out", tmp_path / "demo", "--condition", "none")
    assert status == 2
    assert "'none'" in err
    assert "absent, guided, captioned" in err
    assert not (tmp_path / "demo").exists()


def test_a_demo_into_a_folder_of_something_else_is_refused(tgalign, tmp_path):
    (tmp_path / "precious").write_text("")
    status, _, err = tgalign("demo", "--out", tmp_path)
    assert status == 2
    assert "not empty and holds no demo" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["precious"]


@pytest.mark.parametrize(
    "arguments",
    [["demmo"], ["demo", "--sedes", "3"], ["demo", "--seeds", "0"], ["demo", "--seeds", "x"]],
    ids=" ".join,
)
def test_a_mistyped_command_ends_with_2(arguments, tgalign):
    status, _, err = tgalign(*arguments)
    assert status == 2
    assert arguments[:2][-1] in err


def test_an_interrupt_says_how_to_go_on(tgalign, recipe, monkeypatch):
    def stop(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("tgalign.train.train", stop)
    status, _, err = tgalign("train", recipe())
    assert status == 130
    assert "the same command goes on from what was finished" in err


HELP = {
    (): ["demo", "train", "lab"],
    ("demo",): ["--out", "--seeds", "--condition", "Examples"],
    ("train",): ["recipe", "metrics.jsonl", "Example"],
    ("check",): ["--images", "--json", "--preview", "Examples"],
    ("lab",): ["build"],
    ("lab", "build"): ["--check", "--gates", "Examples"],
    ("diagnose",): ["--probes", "--patch-layers", "diagnosis.json", "Examples"],
}


def test_help_and_version_are_instant_for_they_import_nothing_heavy():
    script = (
        "import json, sys\n"
        "from tgalign import cli\n"
        "for arguments in json.loads(sys.argv.pop()):\n"
        "    sys.argv[1:] = arguments\n"
        "    try:\n"
        "        cli.main()\n"
        "    except SystemExit as exit_:\n"
        "        assert not exit_.code, (arguments, exit_.code)\n"
        "    print('=====')\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    calls = [[*command, "--help"] for command in HELP] + [["--version"]]
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(calls)],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *pages, loaded = done.stdout.split("=====")
    assert loaded.strip() == "[]"
    for expected, page in zip(HELP.values(), pages, strict=False):
        for text in expected:
            assert text in page
    assert pages[-1].strip() == f"tgalign {__version__}"


def test_a_mistake_ends_a_real_process_with_2(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tgalign.cli", "train", str(tmp_path / "none.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("tgalign: no training config at")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("terminal", "disabled"), [(True, None), (False, "1")])
def test_a_log_has_no_bars(terminal, disabled, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    seen = []
    monkeypatch.setattr(cli, "app", lambda: seen.append(os.environ.pop("TQDM_DISABLE", None)))
    cli.main()
    assert seen == [disabled]


def test_paths_of_a_recipe_are_relative_to_it(tmp_path):
    stage = {"name": "s", "train": ["projector"], "steps": 1, "batch_size": 1, "projector_lr": 1}
    path = tmp_path / "sub" / "recipe.yaml"
    path.parent.mkdir()
    data = {
        "model": "../m",
        "records": "/r.jsonl",
        "image_root": ".",
        "out": "out",
        "stages": [stage],
    }
    path.write_text(yaml.safe_dump(data))
    config = load_recipe(path)
    assert config.model == tmp_path / "m"
    assert config.records == Path("/r.jsonl")
    assert config.image_root == path.parent
    assert config.out == path.parent / "out"
    assert isinstance(config, TrainConfig)


def test_a_config_is_refused_as_a_user_s_mistake_in_python_too():
    with pytest.raises(UserError, match=r"^here is not a valid training config:\n"):
        parse_config({}, "here")


def test_the_weight_s_schedules():
    constant = ObjectiveConfig(weight=2.0)
    assert [constant.weight_at(p) for p in (0, 0.5, 1)] == [2, 2, 2]
    falling = ObjectiveConfig(weight=2.0, schedule="linear_decay")
    assert [falling.weight_at(p) for p in (0, 0.5, 1)] == [2, 1, 0]


def test_a_smoke_run_of_the_demo_has_a_folder_of_its_own(tgalign, monkeypatch):
    folders = []
    monkeypatch.setattr("tgalign.demo.run_demo", lambda out, **_: folders.append(str(out)))
    for options in ((), ("--smoke",), ("--smoke", "--out", "there")):
        assert tgalign("demo", *options)[0] == 0
    assert folders == ["demo", "demo-smoke", "there"]


def test_a_run_with_another_config_says_what_differs(tgalign, recipe, tmp_path):
    config = load_recipe(recipe(seed=3))
    config.out.mkdir()
    (config.out / "config.json").write_text(config.model_dump_json())
    refused(
        tgalign,
        recipe(seed=4, stage={"steps": 9}),
        "holds a run with another config (seed: 3 there, 4 here; stages[0].steps: 1 there, 9 here)",
    )


def test_examples_in_help_name_files_that_a_clone_has():
    root = Path(__file__).parents[2]
    sources = [path.read_text() for path in (root / "src/tgalign/commands").glob("*.py")]
    named = re.findall(r"`tgalign [^`]*?((?:tests|recipes|shared)/[^ `]+)", "".join(sources))
    assert named
    assert all((root / path).is_file() for path in named)
