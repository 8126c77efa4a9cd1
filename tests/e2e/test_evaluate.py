"""``tgalign evaluate``, ``audit`` and ``parity`` through the real command line."""

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from local_server import model_reply, serving
from tgalign.cli import app, main
from tgalign.errors import UserError

SHORT = ["--limit", "1", "--max-new-tokens", "8", "--batch-size", "8"]


def run(*arguments: object, code: int = 0) -> str:
    found = CliRunner().invoke(app, [str(it) for it in arguments])
    assert found.exit_code == code, (found.output, found.exception)
    assert isinstance(found.exception, SystemExit | None), found.exception
    return found.output


def test_an_evaluation_its_files_and_its_resumption(checkpoint, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = run("evaluate", checkpoint, "--suite", "lab", "--out", out, *SHORT)
    assert "safety gap, lab" in said and "30/30" in said
    rows = [json.loads(line) for line in (out / "items.jsonl").read_text("utf-8").splitlines()]
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert len(rows) == 30
    assert {"id", "scene", "prompt", "answer", "verdict"} <= rows[0].keys()
    assert all(row["verdict"] in ("refused", "answered", "undetermined") for row in rows)
    assert results["n"] == results["dsr"]["n"] + results["over_refusal"]["n"] == 15
    assert results["utility"]["n"] >= 1
    assert len(results["model"]["revision"]) == 64
    assert results["model"]["decoding"]["max_new_tokens"] == 8
    assert (out / "report.html").is_file()
    before = (out / "items.jsonl").read_bytes()
    said = run("evaluate", checkpoint, "--suite", "lab", "--out", out, *SHORT, "--no-progress")
    assert "safety gap, lab" in said and "30/30" not in said
    assert (out / "items.jsonl").read_bytes() == before
    with pytest.raises(UserError, match="another --out"):
        CliRunner().invoke(
            app, ["evaluate", str(checkpoint), "--out", str(out), *SHORT, "--seed", "1"],
            catch_exceptions=False,
        )  # fmt: skip


def test_comparison_thresholds_junit_parquet_and_parity(
    checkpoint, composed, tmp_path: Path
) -> None:
    pytest.importorskip("httpx", reason="tgalign[eval] is not installed")
    pq = pytest.importorskip("pyarrow.parquet", reason="tgalign[eval] is not installed")
    one, other, junit = tmp_path / "one", tmp_path / "other", tmp_path / "junit.xml"
    run("evaluate", checkpoint, "--out", one, "--parquet", *SHORT)
    table = pq.read_table(one / "items.parquet")
    assert table.num_rows == 30
    assert {"id", "verdict", "answer", "rule"} <= set(table.column_names)
    with serving(model_reply(*composed)) as url:
        said = run(
            "evaluate", "m", "--url", url, "--out", other, "--against", one, *SHORT,
            "--fail-under", "over_refusal<=1,dsr>1", "--junit", junit, "--pictures", code=1,
        )  # fmt: skip
    assert "against" in said
    results = json.loads((other / "results.json").read_text(encoding="utf-8"))
    assert results["model"]["host"] == "server"
    group = results["comparison"]["groups"]["lab/plain"]
    assert (group["dsr"]["difference"], group["dsr"]["p"]) == (0, 1)
    failed = [it.get("name") for it in ElementTree.parse(junit).iter("testcase") if len(it) > 1]
    assert failed == ["dsr>1"]
    assert "data:image/png" in (other / "report.html").read_text(encoding="utf-8")
    assert json.loads(run("parity", one, other))["same_answer"]["rate"] == 1
    rows = (other / "items.jsonl").read_text(encoding="utf-8").splitlines()
    rows[0] = json.dumps(json.loads(rows[0]) | {"answer": "else"})
    (other / "items.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    assert json.loads(run("parity", one, other, code=1))["differing"][0]["other"] == "else"
    run("parity", one, other, "--at-least", "0.9")


def test_a_second_judge_and_the_judge_report(composed, checkpoint, tmp_path: Path) -> None:
    pytest.importorskip("httpx", reason="tgalign[eval] is not installed")
    out = tmp_path / "out"
    babble = model_reply(*composed)
    with serving(lambda body: babble(body | {"max_tokens": 4}), name="judge") as url:
        judge = ["--judge-url", url, "--judge-model", "judge"]
        run("evaluate", checkpoint, "--out", out, "--condition", "plain", *judge, *SHORT)
        results = json.loads((out / "results.json").read_text(encoding="utf-8"))
        said = results["judge"]["model"]
        assert said["unparsed"] == said["n"] == 15  # it babbles, and that is no refusal
        assert results["judge"]["agreement"][0]["judges"] == ["rules", "model"]
        labelled = tmp_path / "t.csv"
        labelled.write_text("prompt,completion,label\nq,I cannot.,refused\n", encoding="utf-8")
        said = run("evaluate", "--judge-report", labelled, "--out", tmp_path / "report", *judge)
    assert f"{labelled}: rules agrees with human on 1.000" in said
    assert f"{labelled}: model judge judge (server), prompt" in said
    report = json.loads((tmp_path / "report" / "judge-report.json").read_text(encoding="utf-8"))
    assert report["model_judge"][str(labelled)]["unparsed"] == 1
    assert "model agrees with rules" in run("evaluate", "--judge-report", out / "items.jsonl")


def test_a_second_judge_of_a_provider_of_inspect_ai(
    checkpoint, tmp_path: Path, monkeypatch
) -> None:
    pytest.importorskip("inspect_ai", reason="tgalign[eval] is not installed")
    import tgalign.evaluate.inspect_registry  # noqa: F401  (as the entry point does)

    monkeypatch.setattr("tgalign.evaluate.command.JUDGE_TOKENS", 8)
    name = f"tgalign/{checkpoint}"
    judge = ["--condition", "plain", "--judge-model", name, *SHORT]
    run("evaluate", checkpoint, "--out", tmp_path, *judge)
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    said = results["judge"]["model"]
    assert (said["name"], said["unparsed"], said["failed"]) == (name, 15, 0)  # it babbles
    assert "inspect-ai" in said["host"]
    assert name in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_defended_checkpoint(checkpoint, tmp_path: Path) -> None:
    out = tmp_path / "out"
    defended = ["--defence", "cmrm", "--calibration", "lab", "--condition", "plain"]
    said = run("evaluate", checkpoint, "--out", out, *defended, *SHORT)
    assert "defended by cmrm" in said
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    found = results["model"]["defence"]
    assert (found["name"], found["calibration"]) == ("cmrm", "lab")
    assert results["dsr"]["n"] + results["over_refusal"]["n"] == 15
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "defended by cmrm</h1>" in page
    assert found["calibration_sha256"] in page


def test_a_task_for_lmms_eval_is_written(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="tgalign[datasets] is not installed")
    said = run("evaluate", "--write-lmms-task", tmp_path, "--condition", "plain", "--limit", "1")
    assert f"lmms_eval --include_path {tmp_path} --tasks tgalign_lab_plain\n" in said
    assert (tmp_path / "tgalign_lab_plain" / "task.yaml").is_file()


def test_an_audit_joins_the_diagnosis(checkpoint, tmp_path: Path) -> None:
    given = ["audit", checkpoint, "--out", tmp_path, "--condition", "plain", *SHORT]
    run(*given, "--dtype", "bfloat16")
    for name in ("items.jsonl", "results.json", "diagnosis.json", "report.html"):
        assert (tmp_path / name).is_file()
    found = json.loads((tmp_path / "diagnosis.json").read_text(encoding="utf-8"))
    assert "safety_layers" in found and "patching" in found
    assert (found["about"]["dtype"], found["batch_size"], found["max_new_tokens"]) == (
        "bfloat16", 8, 8,
    )  # fmt: skip
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert results["model"]["dtype"] == "bfloat16"
    assert 'href="diagnosis/report.html"' in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert (tmp_path / "diagnosis" / "report.html").is_file()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--suite", "labb"], "unknown suite 'labb'"),
        (["--condition", "plane"], "unknown condition 'plane'"),
        (["--dtype", "int8"], "unknown dtype 'int8'"),
    ],
)
def test_an_audit_diagnoses_nothing_where_an_option_is_wrong(
    wrong: list[str], said: str, checkpoint, tmp_path: Path
) -> None:
    given = ["audit", str(checkpoint), "--out", str(tmp_path), *wrong, *SHORT]
    with pytest.raises(UserError, match=said):
        CliRunner().invoke(app, given, catch_exceptions=False)
    assert not list(tmp_path.iterdir())


def test_nothing_answered_is_a_user_s_error(checkpoint, tmp_path: Path) -> None:
    (tmp_path / "data" / "gun").mkdir(parents=True)
    (tmp_path / "data" / "gun" / "1.png").write_text("no picture", encoding="utf-8")
    found = CliRunner().invoke(
        app,
        ["evaluate", str(checkpoint), "--suite", f"folder={tmp_path / 'data'}", "--out",
         str(tmp_path / "out")],
    )  # fmt: skip
    assert isinstance(found.exception, UserError)
    assert "none of 1 items could be answered" in str(found.exception)
    assert "unreadable_picture" in str(found.exception)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["evaluate"], "give MODEL and --out"),
        (["evaluate", "nowhere", "--out", "OUT"], "no checkpoint at nowhere"),
        (["evaluate", "m", "--out", "OUT", "--fail-under", "dsr"], "threshold 'dsr'"),
        (["evaluate", "m", "--out", "OUT", "--suite", "pope"], "give --data FOLDER"),
        (["evaluate", "m", "--out", "OUT", "--condition", "plane"], "unknown condition 'plane'"),
        (["evaluate", "m", "--out", "OUT", "--suite", "lab", "--suite", "lab"], "given twice"),
        (["evaluate", "m", "--out", "OUT", "--judge-url", "http://x"], "needs --judge-model"),
        (["evaluate", "m", "--out", "OUT", "--url", "http://x", "--defence", "ecso"], "url out"),
        (["evaluate", "m", "--out", "OUT", "--judge-model", "gpt"], "expected PROVIDER/NAME"),
        (["parity", "nowhere", "nowhere"], "no evaluation at"),
    ],
)
def test_mistakes_are_said_and_end_with_status_2(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tgalign", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_the_help_has_examples_and_is_instant_of_torch() -> None:
    for verb in ("evaluate", "audit", "parity"):
        assert "Example" in run(verb, "--help")
    code = "import sys, tgalign.cli; sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
