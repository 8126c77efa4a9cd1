"""`tgalign check`: every kind of problem by file and row, counts, JSON, preview and exit status."""

import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tgalign.data.check import check
from tgalign.data.encode import Encoder
from tgalign.data.sources import open_source

WHAT = "what color is the background ?"


def llava(*values, **keys):
    roles = ("human", "gpt") * len(values)
    turns = zip(roles, values, strict=False)
    return {"conversations": [{"from": who, "value": value} for who, value in turns]} | keys


@pytest.fixture(scope="module")
def root(tmp_path_factory, png_header):
    top = tmp_path_factory.mktemp("top")
    root = top / "root"
    root.mkdir()
    Image.new("RGB", (8, 8), "red").save(root / "good.png")
    Image.effect_noise((40, 30), 60).save(top / "outside.png")
    (root / "cut.png").write_bytes((top / "outside.png").read_bytes()[:100])
    (root / "text.png").write_text("no picture")
    (root / "bomb.png").write_bytes(png_header(60_000, 60_000))
    (root / "large.png").write_bytes(png_header(9_000, 8_000))
    (root / "link.png").symlink_to(top / "outside.png")
    return root


GOOD = llava(f"<image>\n{WHAT}", "red .", image="good.png")
# Every kind of problem, a row that has it, and a word of the reason. Those marked need a tokenizer.
KINDS = {
    "not JSON": ("{", "not valid JSON"),
    "picture missing": (GOOD | {"image": "none.png"}, "does not exist"),
    "picture unreadable": (GOOD | {"image": "text.png"}, "no picture that PIL can read"),
    "picture damaged": (GOOD | {"image": "cut.png"}, "cannot be read"),
    "decompression bomb": (GOOD | {"image": "bomb.png"}, "could be decompression bomb"),
    "too many pixels": (GOOD | {"image": "large.png"}, "9000×8000 pixels, more than 64,000,000"),
    "path outside the root": (GOOD | {"image": "../outside.png"}, "leads outside the image root"),
    "link outside the root": (GOOD | {"image": "link.png"}, "leads outside the image root"),
    "absolute path": (GOOD | {"image": "/etc/passwd"}, "leads outside the image root"),
    "more images than placeholders": (llava(WHAT, "red .", image="good.png"), "0 image placehol"),
    "more placeholders than images": (llava(f"<image>\n{WHAT}", "red ."), "1 image placeholder(s)"),
    "an answer without a question": (llava("", "red ."), "turn 1 (user) is empty"),
    "nothing to learn": ({"image": "good.png"}, "no assistant turn to learn and no caption"),
    "no trainable token *": ({"image": "good.png"}, "no token to learn"),
    "image over the limit *": (GOOD, "more than the limit of 10"),
    "row over the limit *": (llava(WHAT, "red " * 60), "more than the limit of 50"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_problem_is_named_by_file_and_row(kind, root, tgalign, checkpoint, tmp_path):
    row, reason = KINDS[kind]
    path = tmp_path / "data.jsonl"
    good = GOOD if kind != "image over the limit *" else llava("what ?", "red .")
    lines = [good, row, good]
    path.write_text("\n".join(it if isinstance(it, str) else json.dumps(it) for it in lines))
    options = []
    if kind.endswith("*"):
        limit = reason.rsplit(" ", 1)[1]
        options = ["--model", checkpoint, *(["--max-length", limit] if limit.isdigit() else [])]
    status, out, err = tgalign("check", path, "--images", root, "--no-progress", *options)
    assert status == 1, err
    first = out.splitlines()[0]
    assert first.startswith("data.jsonl:2: ")
    assert reason in first
    assert "3 rows: 2 good, 1 bad" in out
    status, out, _ = tgalign("check", path, "--images", root, "--json", "--no-progress", *options)
    assert status == 1
    found = json.loads(out)
    assert (found["rows"], found["good"], found["bad"]) == (3, 2, 1)
    (problem,) = found["problems"]
    assert problem.keys() == {"file", "row", "reason"}
    assert (problem["file"], problem["row"]) == ("data.jsonl", 2)
    assert reason in problem["reason"]


def test_good_data_ends_with_0_and_says_what_was_not_checked(root, tgalign, checkpoint):
    path = root / "llava.json"
    path.write_text(json.dumps([GOOD, llava("what ?", "a cat .")]))
    status, out, err = tgalign("check", path)
    assert (status, "check llava.json" in err) == (0, True)
    assert out.splitlines()[0] == "2 rows: 2 good, 0 bad"
    assert out.count("not checked, for want of --model or --tokenizer") == 2
    status, out, err = tgalign("check", path, "--model", checkpoint, "--json", "--no-progress")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert (found["rows"], found["good"], found["bad"]) == (2, 2, 0)
    assert found["problems"] == found["not_checked"] == []
    assert found["tokens"]["longest"] < found["tokens"]["all"]
    assert 0 < found["tokens"]["learnt"] < found["tokens"]["all"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--preview", "3"], "give --model or --tokenizer"),
        (["--images", "/nowhere"], "no image root at /nowhere"),
        (["--model", "/nowhere"], "no checkpoint at /nowhere"),
        (["--tokenizer", "/nowhere"], "no tokenizer at /nowhere: expected a folder"),
        (["--model", "a", "--tokenizer", "b"], "give one of --model and --tokenizer"),
        (["--max-length", "0"], "--max-length"),
    ],
)
def test_misuse_ends_with_2(options, said, root, tgalign):
    (root / "one.jsonl").write_text(json.dumps(GOOD))
    status, out, err = tgalign("check", root / "one.jsonl", *options)
    assert status == 2
    assert out == ""
    assert said in err


def test_of_many_bad_rows_the_first_are_named_and_the_rest_are_counted(root, tgalign):
    path = root / "many.jsonl"
    path.write_text("\n".join(json.dumps(GOOD | {"image": f"{row}.png"}) for row in range(25)))

    def named(*options):
        status, out, _ = tgalign("check", path, "--no-progress", *options)
        assert status == 1
        assert "25 rows: 0 good, 25 bad" in out
        return [line for line in out.splitlines() if line.startswith("many.jsonl:")], out

    rows, out = named()
    assert len(rows) == 20 and rows[-1].startswith("many.jsonl:20: ")
    assert "… and 5 more bad rows: --all or --json names every one" in out
    rows, out = named("--all")
    assert len(rows) == 25 and "more bad rows" not in out
    _, out, _ = tgalign("check", path, "--no-progress", "--json")
    assert len(json.loads(out)["problems"]) == 25


def test_nothing_to_check_is_misuse(tgalign, tmp_path):
    assert tgalign("check", tmp_path / "none.json")[0] == 2
    (tmp_path / "empty.json").write_text("[]")
    status, _, err = tgalign("check", tmp_path / "empty.json")
    assert (status, "holds no record" in err) == (2, True)


def test_a_tokenizer_without_a_place_for_images_is_refused(tgalign, tokenizer, root, tmp_path):
    (root / "one.jsonl").write_text(json.dumps(GOOD))
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    options = ["check", root / "one.jsonl", "--tokenizer", tmp_path / "tokenizer", "--no-progress"]
    status, out, _ = tgalign(*options, "--image-tokens", 9, "--json")
    assert status == 0
    assert json.loads(out)["tokens"]["all"] > 9
    (tmp_path / "tokenizer" / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    status, _, err = tgalign(*options)
    assert (status, "no chat template that makes one <image> token" in err) == (2, True)


def test_a_preview_shows_what_is_learnt_and_what_is_averaged(root, tgalign, checkpoint, composed):
    path = root / "preview.jsonl"
    row = GOOD | {"caption": "a cat on a red background .", "retrieved": "a dog ."}
    path.write_text("\n".join(json.dumps(it) for it in (row, llava("what ?", "a cat ."), GOOD)))
    options = ["check", path, "--model", checkpoint, "--no-progress"]
    status, out, _ = tgalign(*options, "--preview", 2)
    assert status == 0
    patches = composed[0].config.image_seq_length
    assert f"<image>×{patches}" in out
    assert re.findall("⟦(.*?)⟧", out) == ["red . <eos>", "a cat . <eos>"]
    assert "C (caption): a cat on a red background ." in out
    assert "R (retrieved): a dog ." in out
    assert out.count("C (caption): none") == 1
    status, out, _ = tgalign(*options, "--preview", 2, "--json")
    first, second = json.loads(out)["previews"]
    assert [piece["text"] for piece in first["pieces"] if piece["learnt"]] == ["red . <eos>"]
    assert (first["caption"], first["retrieved"]) == ("a cat on a red background .", "a dog .")
    assert (second["image"], second["caption"]) == (None, None)
    coloured = tgalign_coloured(found=first)
    assert "\x1b[" in coloured


def tgalign_coloured(found):
    from io import StringIO

    from rich.console import Console

    from tgalign.data.preview import painted

    said = StringIO()
    Console(file=said, force_terminal=True, color_system="standard").print(painted(found))
    return said.getvalue()


def test_what_data_says_cannot_reach_the_terminal_or_break_the_output(root, tgalign):
    path = root / "hostile.jsonl"
    rows = ['{"image": "\\u001b[2Jx.png"}', '{"image": "\\ud800"}', '{"\\u001b]0;": 1}', "[bold]"]
    path.write_text("\n".join(rows))
    status, out, _ = tgalign("check", path, "--no-progress")
    assert status == 1
    assert "\x1b" not in out
    assert "\\x1b[2Jx.png" in out
    assert len([line for line in out.splitlines() if line.startswith("hostile.jsonl:")]) == 4


@given(
    rows=st.lists(
        st.sampled_from(
            [GOOD, GOOD | {"image": "none.png"}, llava("what ?"), {"image": "good.png"}]
        )
        | st.dictionaries(st.sampled_from(["image", "caption", "messages"]), st.text(max_size=4)),
        min_size=1,
        max_size=6,
    ),
    limit=st.sampled_from([12, 30, 200]),
)
@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_every_row_is_counted_once_as_good_or_bad(rows, limit, root, tokenizer, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    encoder = Encoder(tokenizer, 9, max_length=limit, retrieved_in_prompt=0.0)
    for used in (None, encoder):
        report = check(open_source(path), root, used)
        assert report.rows == len(rows) == report.good + len(report.problems)
        assert len({it.row for it in report.problems}) == len(report.problems)


def test_what_the_data_as_a_whole_lacks_is_said(root, tgalign, checkpoint):
    path = root / "kinds.jsonl"
    known = {"image": "good.png", "caption": "a cat ."}
    path.write_text("\n".join(json.dumps(row) for row in (known, known | {"caption": "a zyzzy ."})))
    status, out, _ = tgalign("check", path, "--model", checkpoint, "--no-progress")
    assert status == 0
    assert "of the good: 2 with a picture, 2 with a caption, 0 with R, 0 of text alone" in out
    assert "warning: no row has R" in out and "warning: no row is text alone" in out
    assert (
        "warning: in 1 rows a word that is learnt, averaged or read by what is averaged is unknown"
        in out
    )
    told = known | {"retrieved": "a dog .", "messages": llava_turns("what ?", "a zyzzy .")}
    text = {"messages": llava_turns("what is a zyzzy ?", "a cat .")}  # asked, not learnt
    path.write_text("\n".join(json.dumps(row) for row in (told, text)))
    status, out, _ = tgalign("check", path, "--model", checkpoint, "--json", "--no-progress")
    found = json.loads(out)
    assert found["kinds"] == {"picture": 1, "caption": 1, "retrieved": 1, "text_only": 1}
    assert found["tokens"]["unknown_rows"] == 1
    _, out, _ = tgalign("check", path, "--no-progress")
    assert "warning" not in out


def test_rows_that_repeat_an_earlier_one_are_counted_and_good(root, tgalign):
    path = root / "repeated.jsonl"
    row = {"image": "good.png", "caption": "a cat ."}
    rows = [row, row, row | {"caption": "a dog ."}, row, row | {"retrieved": "a dog ."}]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    status, out, _ = tgalign("check", path, "--no-progress")
    assert (status, "warning: 2 rows repeat an earlier one" in out) == (0, True)
    assert json.loads(tgalign("check", path, "--json", "--no-progress")[1])["repeated"] == 2


def llava_turns(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def test_a_long_cell_of_a_csv_file_is_told_in_tokens(root, tgalign, checkpoint):
    path = root / "long.csv"
    path.write_text(f"image,caption\ngood.png,{'a cat ' * 30_000}\ngood.png,a cat .\n")
    status, out, _ = tgalign("check", path, "--model", checkpoint, "--no-progress")
    assert status == 1
    assert re.match(r"long.csv:2: 6\d{4} tokens, more than the limit of", out)
    path.unlink()


def test_rows_are_encoded_with_the_span_that_is_to_be_guided(root, tgalign, checkpoint):
    """After a caption the question has to fit too."""
    path = root / "spans.jsonl"
    row = {"image": "good.png", "caption": "cat " * 20, "messages": llava_turns("cat " * 4, "cat")}
    path.write_text(json.dumps(row))
    asked = ("check", path, "--model", checkpoint, "--max-length", 25, "--no-progress")
    status, out, _ = tgalign(*asked)
    assert status == 0, out
    status, out, _ = tgalign(*asked, "--guide-span", "question")
    assert status == 1
    assert "more than the limit of 25" in out
