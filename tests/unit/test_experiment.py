"""`tgalign lab experiment`: what a change changes, and what it says to mistakes."""

import json
from pathlib import Path

import pytest

from tgalign.config import TrainConfig
from tgalign.errors import UserError
from tgalign.lab import experiment
from tgalign.lab.arms import arm_config
from tgalign.lab.experiment import run_experiment
from tgalign.lab.experiment_tables import conflict_table, table
from tgalign.run_folder import claim_run, write_config


@pytest.fixture
def seen(monkeypatch):
    """The configs and data sizes that were to be run; nothing is trained."""
    calls = []

    def measured(config, data, condition, size, seed, llm, quality, progress_bar):
        calls.append((config, data, size))
        return {"rates": {}, "alignment": []}

    monkeypatch.setattr(experiment, "_measured", measured)
    return calls


def run(out, *changes, arm="tga", condition="guided", **options):
    options = {"toxic_share": None, "seed": 0} | options
    return run_experiment(out, arm, condition=condition, changes=changes, **options)


def test_nothing_changed_is_the_demos_arm_on_development_things(seen, tmp_path):
    run(tmp_path)
    ((config, data, size),) = seen
    assert isinstance(config, TrainConfig)
    wanted = arm_config("tga", model=config.model, data=data, out=config.out, seed=0, smoke=False)
    assert config == wanted
    assert config.model.parent == data.parent == tmp_path
    assert size.objects == "development"
    assert size.toxic_share == 0.1


def test_changes_reach_the_recipe_one_stage_both_and_the_data(seen, tmp_path):
    run(
        tmp_path,
        "companions=0.5",
        "stage1.steps=7",
        "stage.batch_size=3",
        "objective.weight=2",
        "stage2.objective.layers=1-3",
        "data.pictures=99",
        "data.retrieved=random",
    )
    ((config, _, size),) = seen
    first, second = config.stages
    assert config.companions == 0.5
    assert (first.steps, second.steps) == (7, config.stages[1].steps)
    assert (first.batch_size, second.batch_size) == (3, 3)
    assert (first.objective.weight, second.objective.weight) == (2, 2)
    assert (first.objective.layers, second.objective.layers) == ("0-6", "1-3")
    assert (size.pictures, size.retrieved) == (99, "random")


def test_another_quality_of_r_has_records_of_its_own_in_the_same_data(seen, tmp_path):
    run(tmp_path)
    run(tmp_path, "quality.rank=10")
    run(tmp_path, "quality.shuffled=0.5")
    assert len({data for _, data, _ in seen}) == 1
    plain, ranked, shuffled = (config.records for config, _, _ in seen)
    assert plain.name == "records.jsonl"
    assert plain.parent == ranked.parent == shuffled.parent
    assert len({plain, ranked, shuffled}) == 3
    assert len({config.out for config, _, _ in seen}) == 3


def test_other_data_or_settings_have_other_folders_and_a_finished_one_is_not_repeated(
    seen, tmp_path
):
    first = run(tmp_path)
    assert run(tmp_path) == first
    assert len(seen) == 1
    run(tmp_path, "data.pictures=99")
    run(tmp_path, "companions=0.5")
    assert len({config.out for config, _, _ in seen}) == 3
    assert seen[0][1] == seen[2][1] != seen[1][1]
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["changes"] for line in lines] == [
        [], ["data.pictures=99"], ["companions=0.5"],
    ]  # fmt: skip


def test_a_moved_folder_holds_what_was_finished_there(seen, tmp_path, monkeypatch):
    options = {"arm": "tga", "conflict": True}
    first = run(tmp_path / "here", **options)
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tgalign.lab.arms.ASSETS", tmp_path / "elsewhere")
    assert run(Path("there"), **options) == first
    assert len(seen) == 1
    run(Path("there"), arm="tga")  # without the conflict
    assert len(seen) == 2


def test_a_killed_one_goes_on_where_its_folder_was_moved_to(tmp_path, monkeypatch):
    """Another training than that of its own folder's name would be refused."""

    class Killed(BaseException):
        pass

    begun = []

    def train(config, **_):
        claim_run(config)
        write_config(config)
        begun.append(config)
        raise Killed

    monkeypatch.setattr("tgalign.train.train", train)
    small = [f"data.{it}=40" for it in ("pictures", "texts", "corpus")]
    with pytest.raises(Killed):
        run(tmp_path / "here", *small)
    (tmp_path / "here").rename(tmp_path / "there")
    with pytest.raises(Killed):
        run(tmp_path / "there", *small)
    before, after = begun
    assert before.out.name == after.out.name
    assert before.out.parent.name == after.out.parent.name
    assert after.records.is_file() and not before.records.is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["companions"], "expected KEY=VALUE"),
        (["stage3.steps=1"], "unknown setting 'stage3.steps'"),
        (["stage1.stepz=1"], "stages.0.stepz"),
        (["companions=2"], "companions"),
        (["data.picture=1"], "data.picture"),
        (["data.pictures=many"], "data.pictures"),
        (["data.retrieved=neares"], "data.retrieved"),
        (["quality.rang=1"], "unknown setting quality.rang; those of the quality: rank"),
        (["quality.rank=0"], "quality.rank: Input should be greater"),
        (["quality.noise_share=2"], "quality.noise_share"),
        (["data.objects=all"], "is not to be changed here"),
        (["out=elsewhere"], "is not to be changed here"),
        (["probes={mine: mine.jsonl}"], "probes is not to be changed here"),
        (["companions=[0.5"], "is no YAML"),
    ],
)
def test_mistakes_are_named_before_anything_is_run(changes, message, seen, tmp_path):
    with pytest.raises(UserError, match=message):
        run(tmp_path, *changes)
    assert seen == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arm": "none"}, "unknown arm"),
        ({"condition": "none"}, "unknown condition"),
        ({"toxic_share": 5.0}, "toxic share 5.0"),
        ({"condition": "absent", "toxic_share": 0.1}, "expected 0 in absent"),
        ({"toxic_share": 1e-6}, "is none"),
        ({"arm": "ce", "conflict": True}, "no stage has a guide that trains"),
        ({"arm": "released_nograd", "conflict": True}, "no stage has a guide that trains"),
    ],
)
def test_unknown_arms_and_conditions_are_named(options, message, seen, tmp_path):
    with pytest.raises(UserError, match=message):
        run(tmp_path, **options)


def test_the_table_shows_what_was_run(seen, tmp_path, monkeypatch):
    rate = {"rate": 0.5, "low": 0.25, "high": 0.75, "n": 8}
    rates = dict.fromkeys(("dsr", "over_refusal", "named", "text_dsr"), rate)
    monkeypatch.setattr(experiment, "_measured", lambda *args: {"rates": rates, "alignment": []})
    run(tmp_path, "companions=0.5", seed=2)
    run(tmp_path, condition="absent")
    lines = table(tmp_path / "results.jsonl").splitlines()
    assert lines[0].startswith("| arm | condition | changed | DSR |")
    assert lines[2].startswith("| tga | guided 10 % | seed 2 companions=0.5 | 0.50 [0.25, 0.75] |")
    assert lines[3].startswith("| tga | absent |  | 0.50 [0.25, 0.75] |")
    with pytest.raises(UserError, match="no experiments at"):
        table(tmp_path / "none.jsonl")
    (tmp_path / "other.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"give the results\.jsonl of lab experiment"):
        table(tmp_path / "other.jsonl")


def test_the_conflict_table_shows_the_first_and_the_last_step_of_every_stage(tmp_path):
    def line(stage, step, cosine, layers=(0, 1, 2)):
        norms = {"ce_norm": [1.0, 1.0, 0.0], "guide_norm": [4.0, 1.0, 1.0]}
        place = {"stage": stage, "step": step, "probe": "toxic", "layers": list(layers)}
        return {**place, "cosine": [cosine, 0.0, 0.0], **norms}

    logged = [line("stage1", 1, -0.5), line("stage1", 100, 0.5), line("stage1", 200, 0.25)]
    plain = {"arm": "ce", "condition": "guided", "conflict": []}
    found = {"arm": "tga", "condition": "guided", "conflict": logged}
    other = {"arm": "paper", "condition": "guided", "conflict": [line("s", 1, 0.125, (1, 2, 3))]}
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(it) + "\n" for it in (plain, found, other)))
    lines = conflict_table(path).splitlines()
    assert lines[0].startswith(
        "| arm | condition | stage | step | pictures | state 0 | state 1 | state 2 | norms"
    )
    assert lines[2:] == [
        "| tga | guided | stage1 | 1 | toxic | -0.50 | +0.00 |  | 0.25 |",
        "| tga | guided | stage1 | 200 | toxic | +0.25 | +0.00 |  | 0.25 |",
        "| paper | guided | s | 1 | toxic |  | +0.12 | +0.00 | 0.25 |",
    ]
    path.write_text(json.dumps(plain) + "\n")
    assert conflict_table(path) == ""


def test_a_line_lost_to_a_kill_comes_back(seen, tmp_path):
    run(tmp_path)
    run(tmp_path, "companions=0.5")
    before = (tmp_path / "results.jsonl").read_text()
    (tmp_path / "results.jsonl").unlink()
    run(tmp_path)
    assert (tmp_path / "results.jsonl").read_text() == before
