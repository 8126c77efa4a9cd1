"""Agreement of the judge with people.

XSTest's completions (Röttger et al., NAACL 2024, CC BY 4.0) are not part of the repository: they
are looked for in `TGALIGN_XSTEST`, then in `shared/data/xstest` beside it. `refusal_wording.csv` is
ours: three sets of sentences written from how many models word things, each judged once (column
`first`) before the rules were changed on its account. `tgalign evaluate --judge-report FILE` prints
the confusion matrices.
"""

import csv
import os
from pathlib import Path

import pytest

from tgalign.errors import UserError
from tgalign.evaluate.judge_report import judge_report, read_labelled

BESIDE = Path(__file__).parents[3] / "shared" / "data" / "xstest"
FOLDER = Path(os.environ.get("TGALIGN_XSTEST", BESIDE))
WORDING = Path(__file__).parents[1] / "data" / "refusal_wording.csv"


def against_people(path: Path):
    agreements = judge_report([read_labelled(path)])[str(path)]
    return next(found for found in agreements if found["judges"] == ["human", "rules"])


@pytest.mark.parametrize("model", ["gpt4", "llama2orig"])
def test_agreement_on_full_refusals_and_full_compliances(model: str) -> None:
    path = FOLDER / f"completions_{model}.csv"
    if not path.is_file():
        pytest.skip(f"no XSTest completions at {path}; set TGALIGN_XSTEST to their folder")
    found = against_people(path)
    assert found["n"] == 450
    assert sum(sum(row.values()) for row in found["confusion"].values()) == 450
    assert found["accuracy_on_full_labels"]["rate"] >= 0.97


def test_agreement_on_the_wording_of_many_models() -> None:
    found = against_people(WORDING)
    assert found["n"] > 180
    assert found["accuracy_on_full_labels"]["rate"] == 1.0
    assert found["kappa"] == pytest.approx(1.0)


def test_a_labelled_file_of_another_form_is_named(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    with pytest.raises(UserError, match="cannot be read"):
        read_labelled(path)
    path.write_text("prompt;completion\na;b,c\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"columns prompt;completion: .* separated by commas"):
        read_labelled(path)
    path.write_text("prompt,completion,label\na,b,maybe\n", encoding="utf-8")
    with pytest.raises(UserError, match="'maybe'; expected one of"):
        read_labelled(path)


def test_files_of_one_name_in_two_folders_are_two(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "labels.csv", tmp_path / "b" / "labels.csv"]
    for path, label in zip(paths, ("refused", "answered"), strict=True):
        path.parent.mkdir()
        path.write_text(f"prompt,completion,label\nq,a,{label}\n", encoding="utf-8")
    report = judge_report([read_labelled(path) for path in paths])
    assert list(report) == [str(path) for path in paths]
    assert report[str(paths[0])] != report[str(paths[1])]


def test_confusion_counts_every_item_and_kappa_is_of_three_labels(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(
        "prompt,completion,label\n"
        "q,I cannot help with that.,refused\n"
        "q,A red apple.,answered\n"
        "q,A red apple.,refused\n"
        'q,"I cannot do it. However, here is how: cut.",undetermined\n',
        encoding="utf-8",
    )
    found = against_people(path)
    assert found["confusion"]["refused"] == {"answered": 1, "refused": 1, "undetermined": 0}
    assert found["confusion"]["undetermined"]["undetermined"] == 1
    assert found["accuracy_on_full_labels"]["n"] == 3
    assert found["kappa"] == pytest.approx((0.75 - 0.3125) / (1 - 0.3125))


def test_the_document_says_how_the_wording_was_judged_at_first() -> None:
    """`docs/evaluation.md` gives the shares; this prints and checks them."""
    with WORDING.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    shares = []
    for number in "123":
        right = [row["first"] == "right" for row in rows if row["set"] == number]
        shares.append(f"{100 * sum(right) / len(right):.0f} %")
    said = f"{shares[0]}, {shares[1]} and {shares[2]}"
    print(said, "right at first, of", len(rows))
    document = (WORDING.parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert said in " ".join(document.split())
    assert f"{len(rows)} sentences" in document
    wrong = [row["label"] for row in rows if row["first"] == "wrong"]
    assert wrong.count("refused") == len(wrong) - 2
