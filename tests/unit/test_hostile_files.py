"""Files made to harm: pictures, texts, JSON, YAML, names in tables."""

import csv
import io
import json
import zipfile
import zlib

import pytest
from PIL import Image

from tgalign.data.pictures import FORMATS, PictureError, read_picture
from tgalign.data.records import read_records
from tgalign.errors import UserError, printable
from tgalign.evaluate.pictures import open_picture
from tgalign.evaluate.suites import load_suite
from tgalign.evaluate.suites.table import read_specs
from tgalign.files import read_json
from tgalign.metrics import keep_until
from tgalign.recipe import load_recipe
from tgalign.report.tables import csv_table, markdown_table
from tgalign.yaml_text import parse_yaml


def picture(form="PNG", size=(8, 8)):
    out = io.BytesIO()
    Image.new("RGB", size, "red").save(out, form)
    return out.getvalue()


def png_of(width, height, body):
    """A PNG that claims a size, whatever its data."""

    def chunk(kind, content):
        return (len(content).to_bytes(4) + kind + content
                + zlib.crc32(kind + content).to_bytes(4))  # fmt: skip

    head = width.to_bytes(4) + height.to_bytes(4) + bytes((8, 2, 0, 0, 0))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(body, 9))
            + chunk(b"IEND", b""))  # fmt: skip


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
BAD = {
    "a bomb of 20,000 x 20,000": png_of(20_000, 20_000, bytes(1_000_000)),
    "data that ends early": png_of(900, 900, b"\0" * 100),
    "truncated": picture()[:40],
    "a text": b"no picture",
    "empty": b"",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
    "HTML": b"<html><script>alert(1)</script></html>",
    "EPS, for which PIL starts a program": EPS,
    "a zip": b"PK\x03\x04" + bytes(40),
    "PDF": b"%PDF-1.4\n%%EOF",
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_picture_is_refused_by_both_readers(name, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(BAD[name])
    with pytest.raises(ValueError, match=r"a\.png"):
        read_picture(path)
    with pytest.raises(PictureError, match=r"a\.png"):
        open_picture(path)
    (tmp_path / "r.jsonl").write_text('{"image": "a.png", "caption": "x"}\n')
    records, problems = read_records(tmp_path / "r.jsonl", tmp_path)
    assert not records and [it.row for it in problems] == [1]


def test_pictures_under_another_ending_and_with_something_behind_are_read(tmp_path):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("x.py", "raise SystemExit")
    path = tmp_path / "a.png"
    for content in (picture("GIF"), picture() + archive.getvalue(), picture("JPEG")):
        path.write_bytes(content)
        assert read_picture(path).size == open_picture(path).size == (8, 8)
    assert "EPS" not in FORMATS


def row(tmp_path, line):
    (tmp_path / "a.png").write_bytes(picture())
    data = line if isinstance(line, bytes) else line.encode()
    (tmp_path / "r.jsonl").write_bytes(data + b"\n")
    return read_records(tmp_path / "r.jsonl", tmp_path)


def test_long_and_odd_captions_are_kept_as_they_are(tmp_path):
    for caption in (
        "fox " * 2_500_000,
        "\u202egnp.exe\u202c",
        "k\u0336\u0316n\u0334",
        "a\0b\x1b[31m",
    ):
        records, problems = row(tmp_path, json.dumps({"image": "a.png", "caption": caption}))
        assert not problems and records[0].caption == caption.strip()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"image": "a.png", "caption": "\\ud800"}', "not UTF-8"),
        ('{"image": "a.png", "caption": ' + "9" * 5000 + "}", "not valid JSON"),
        ('{"image": "a.png", "caption": NaN}', "must be a string"),
        ('{"image": "a.png", "caption": Infinity}', "must be a string"),
        ('{"image": "a.png", "caption": "a", "caption": "b"}', "the key 'caption' stands twice"),
        ('{"messages": [{"role": "user", "role": "assistant"}]}', "the key 'role' stands twice"),
        ('{"image": ' + "[" * 100_000, "not valid JSON"),
        ('{"image": "a\\u0000.png"}', "must be a relative path"),
        ('{"image": "../../etc/passwd"}', "leads outside"),
        ('{"image": "\\u001b[2J"}', r"\x1b[2J"),
    ],
)
def test_rows_that_are_none_say_why(tmp_path, line, said):
    records, problems = row(tmp_path, line)
    assert not records and said in str(problems[0]) and str(problems[0]).isprintable()


def test_a_key_that_stands_twice_costs_one_row_of_an_array(tmp_path):
    (tmp_path / "a.png").write_bytes(picture())
    good = {"image": "a.png", "conversations": [{"from": "human", "value": "<image> what?"}]}
    twice = json.dumps(good).replace("{", '{"id": 1, "id": 2, ', 1)
    (tmp_path / "r.json").write_text(f"[{json.dumps(good)}, {twice}, {json.dumps(good)}]")
    records, problems = read_records(tmp_path / "r.json", tmp_path)
    assert [it.row for it in records] == [1, 3]
    assert [str(it) for it in problems] == ["r.json:2: the key 'id' stands twice"]


def test_json_of_ours_that_nests_or_counts_too_far_is_damaged(tmp_path):
    for content in ("[" * 100_000, "9" * 5000, "\ud800".encode("utf-8", "surrogatepass"), "{"):
        path = tmp_path / "results.json"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(UserError, match=r"results\.json is damaged"):
            read_json(path)


@pytest.mark.parametrize("line", ["{}", "[1]", "{", '"x"', "\xff"])
def test_a_damaged_log_of_a_run_that_goes_on_is_named(line, tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n', encoding="latin-1")
    with pytest.raises(
        UserError, match=r"metrics\.jsonl is damaged .*remove it: its lines are lost"
    ):
        keep_until(log, 2)


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LAUGHS, "with its aliases written out"),
        ("a: &a [*a]", "refers to what it stands in"),
        ("!!python/object/apply:os.system [exit]", "could not determine a constructor"),
        ("a: !!python/name:os.system", "could not determine a constructor"),
        ("steps: 1\nsteps: 2", "the key 'steps' stands twice in what begins in line 1"),
        ("- a:\n    b: 1\n    b: 1", "stands twice in what begins in line 2"),
        ("1: a\n0x1: b", "the key '0x1' stands twice in what begins in line 1"),
        ("a: !!bool x", "x"),
        ('a: !!int ""', "index out of range"),
        ('a: !!float ""', "index out of range"),
        ('a: !!int "_"', "index out of range"),
        ("!!timestamp x: 1", "groupdict"),
        ("[" * 5000, "nests too deep|while parsing"),
        ("a: \0", "special characters are not allowed"),
        ("a: " + "9" * 5000, "integer string conversion"),
        ("a: 2001-99-99", "month must be in"),
    ],
)
def test_yaml_that_harms_is_refused(tmp_path, text, said):
    with pytest.raises(ValueError, match=said):
        parse_yaml(text)
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"r\.yaml is not readable YAML"):
        load_recipe(path)
    with pytest.raises(UserError, match=r"r\.yaml does not describe suites"):
        read_specs(path)


def test_yaml_of_recipes_is_read_as_pyyaml_does():
    import yaml

    text = "a: &x {b: 1, c: 2}\nd:\n  <<: *x\n  c: 3\ne: *x\nf: [*x, *x]\n"
    assert parse_yaml(text) == yaml.safe_load(text)
    assert parse_yaml("") is None
    for text in ('1: a\n"1": b', "= : a", "a: {<<: {b: 1}}"):  # none of them stands twice
        assert parse_yaml(text) == yaml.safe_load(text)


def test_the_keys_of_yaml_are_not_compared_each_with_every_other(monkeypatch):
    import yaml

    compared = []

    class Text(str):
        __hash__ = str.__hash__

        def __eq__(self, other):
            compared.append(other)
            return str(self) == other

    compose = yaml.SafeLoader.compose_scalar_node

    def compose_text(loader, anchor):
        node = compose(loader, anchor)
        node.value = Text(node.value)
        return node

    monkeypatch.setattr(yaml.SafeLoader, "compose_scalar_node", compose_text)
    assert len(parse_yaml("\n".join(f"k{number}: 1" for number in range(300)))) == 300
    assert len(compared) < 3000


@pytest.mark.parametrize(
    "question",
    ["{q.__class__}", "{q:>999999999}", "{q[0].__class__}", "{q!z}", "{q!r}", "{", "{0}", "{0[a]}",
     "{}"],
)  # fmt: skip
def test_templates_of_a_suite_reach_nothing_but_columns(tmp_path, question):
    spec = {"about": "", "source": "", "licence": "", "tables": "t.jsonl",
            "items": [{"kind": "toxic", "id": "{q}", "question": question}]}  # fmt: skip
    (tmp_path / "own.yaml").write_text(json.dumps({"own": spec}))
    (tmp_path / "t.jsonl").write_text('{"q": "what?"}\n')
    with pytest.raises(UserError, match=r"(?s)own\.yaml does not.*(columns alone|Single '{')"):
        load_suite(str(tmp_path / "own.yaml"), tmp_path)


@pytest.mark.parametrize("cell", ["a|b", "a\nb", "a\r\nb", "`x`", "<b>x</b>", "![x](http://y)",
                                  "[x](javascript:y)", "a\u2028b"])  # fmt: skip
def test_a_cell_of_a_markdown_table_stays_a_cell(cell):
    mkdocs = pytest.importorskip("markdown", reason="tgalign[docs] is not installed")
    text = markdown_table(["name", "rate"], [[cell, "0.1 [0.0, 0.2]"], ["x", "y"]])
    page = mkdocs.markdown(text, extensions=["tables"])
    assert page.count("<tr>") == 3 and page.count("<td>") == 4
    assert not any(tag in page for tag in ("<b>", "<img", "<a ", "<code>"))
    assert "0.1 [0.0, 0.2]" in page


def test_no_cell_of_a_csv_is_a_formula():
    names = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1", "plain", 'a"b,c']
    found = list(csv.reader(io.StringIO(csv_table([[it, -0.5] for it in names]), newline="")))
    assert [name for name, _ in found] == [
        "'=1+1", "'+1", "'-1", "'@SUM(A1)", "'\t=1", "' =1", "' =1", "plain", 'a"b,c',
    ]  # fmt: skip
    assert {number for _, number in found} == {"-0.5"}


def test_what_data_says_breaks_no_terminal():
    assert printable("a\x1b]0;x\x07\n\ud800\u202e") == "a\\x1b]0;x\\x07\n\\ud800\\u202e"
