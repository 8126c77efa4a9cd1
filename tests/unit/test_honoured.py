"""What is given beside a mode of a command that has no use for it is refused by name."""

import pytest
import typer
from typer.testing import CliRunner

from tgalign.commands.honoured import refuse_others
from tgalign.errors import UserError

LMMS = ["evaluate", "--write-lmms-task", "tasks"]
JUDGE = ["evaluate", "--judge-report", "labelled.csv"]
SERVED = ["evaluate", "M", "--out", "out", "--url", "http://127.0.0.1:1"]
CHECK = ["check", "rows.jsonl"]
ABLATION = ["compare", "--out", "out", "--ablation", "layers"]

BUILD = ["retrieve", "build", "c.txt", "--out", "out"]
ATTACH = ["retrieve", "attach", "r.jsonl", "--index", "index", "--out", "out"]


@pytest.mark.parametrize(
    ("command", "mode", "more"),
    [
        (LMMS, "--write-lmms-task", ["MODEL"]),
        (LMMS, "--write-lmms-task", ["--defence", "ecso"]),
        (LMMS, "--write-lmms-task", ["--batch-size", "32"]),
        (LMMS, "--write-lmms-task", ["--pictures"]),
        (JUDGE, "--judge-report", ["MODEL"]),
        (JUDGE, "--judge-report", ["--suite", "lab"]),
        (ABLATION, "--ablation", ["--style", "emoji"]),
        (SERVED, "--url", ["--dtype", "auto"]),
        (SERVED, "--url", ["--device", "cpu"]),
        (CHECK, "check without --tokenizer", ["--image-tokens", "9"]),
        ([*CHECK, "--model", "m"], "check without --tokenizer", ["--image-tokens", "9"]),
        (CHECK, "check without --model or --tokenizer", ["--max-length", "9"]),
        (CHECK, "check without --model or --tokenizer", ["--guide-span", "picture"]),
        (["train", "r.yaml"], "train without --dry-run", ["--processes", "8"]),
        (BUILD, "build without --engine ray", ["--workers", "4"]),
        (ATTACH, "attach without --engine ray", ["--workers", "4"]),
        (ATTACH, "attach without --random or --shuffled", ["--seed", "3"]),
        (["lab", "build", "--check"], "--check", ["--seed", "3"]),
        (["lab", "build", "--gates"], "--gates", ["--seed", "0"]),
    ],
    ids=lambda it: " ".join(it) if isinstance(it, list) else "",
)
def test_what_has_no_use_is_refused(tgalign, tmp_path, monkeypatch, command, mode, more) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, said = tgalign(*command, *more)
    mend = "give " if "without" in mode else "leave out one or the other"
    wanted = f"{mode} has no use for {more[0]}: {mend}"
    assert (status, wanted in said) == (2, True), said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["--padded", "--no-padded"])
def test_a_flag_is_named_in_the_form_given(form) -> None:
    app = typer.Typer()

    @app.command()
    def command(context: typer.Context, padded: bool = True) -> None:
        refuse_others(context, "--mode", ())

    fault = CliRunner().invoke(app, [form]).exception
    assert isinstance(fault, UserError)
    assert str(fault) == f"--mode has no use for {form}: leave out one or the other"


def test_a_log_without_bars_may_be_asked_of_every_mode(tgalign) -> None:
    said = tgalign(*LMMS, "--suite", "nowhere", "--no-progress")[2]
    assert "nowhere" in said and "has no use for" not in said
