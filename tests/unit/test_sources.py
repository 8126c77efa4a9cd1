"""Sources: every kind of data gives the same records; no content of a file raises."""

import csv
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tgalign.data import sources
from tgalign.data.records import Problem, Record, read, read_records
from tgalign.data.sources import open_source, with_bar
from tgalign.errors import UserError

datasets = pytest.importorskip("datasets")

ASKED, SAID = "what is this ?", "a cat ."
OURS = {
    "image": "a.png",
    "caption": "a cat",
    "retrieved": [{"text": "a dog", "score": 0.5, "id": 3}],
    "messages": [{"role": "user", "content": ASKED}, {"role": "assistant", "content": SAID}],
}
BESIDE = {key: OURS[key] for key in ("caption", "retrieved")}
LLAVA = BESIDE | {
    "id": "1",
    "image": "a.png",
    "conversations": [
        {"from": "human", "value": f"<image>\n{ASKED}"},
        {"from": "gpt", "value": SAID},
    ],
}
TRL = BESIDE | {
    "images": ["a.png"],
    "messages": [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": ASKED}]},
        {"role": "assistant", "content": [{"type": "text", "text": SAID}]},
    ],
}
TABLE = {
    "file_name": "a.png",
    "text": "a cat",
    "retrieved": "a dog",
    "question": ASKED,
    "answer": SAID,
    "licence": "CC0",
}
TEXT_ONLY = {"messages": OURS["messages"]}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    Image.new("RGB", (4, 4), "red").save(root / "a.png")
    return root


def write_jsonl(path, rows):
    path = path.with_suffix(".jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_json(path, rows):
    path = path.with_suffix(".json")
    path.write_text(json.dumps(rows, indent=1))
    return path


def write_csv(path, rows):
    path = path.with_suffix(".csv")
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, sorted({key for row in rows for key in row}))
        table.writeheader()
        table.writerows(rows)
    return path


def write_parquet(path, rows):
    path = path.with_suffix(".parquet")
    datasets.Dataset.from_list(rows).to_parquet(str(path))
    return path


def save_dataset(path, rows):
    datasets.Dataset.from_list(rows).save_to_disk(str(path))
    return path


def streamed(path, rows):
    return datasets.Dataset.from_list(rows).to_iterable_dataset()


FILES = {
    "JSON lines": write_jsonl,
    "a JSON array": write_json,
    "parquet": write_parquet,
    "a saved data set": save_dataset,
    "a streamed data set": streamed,
}
SHAPES = {"ours": OURS, "LLaVA's": LLAVA, "TRL's": TRL}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("file", FILES)
def test_every_kind_of_data_gives_the_same_records(file, shape, root, tmp_path):
    data = FILES[file](tmp_path / "data", [SHAPES[shape]] * 2)
    records, problems = read_records(data, root)
    assert not problems
    turns = (("user", ASKED), ("assistant", SAID))
    assert records == [Record(row, root / "a.png", "a cat", "a dog", turns) for row in (1, 2)]


@pytest.mark.parametrize("write", [write_csv, write_parquet, save_dataset])
def test_a_table_of_pictures_gives_the_same_records(write, root, tmp_path):
    data = write(tmp_path / "data", [TABLE])
    (record,), problems = read_records(data, root)
    assert not problems
    turns = (("user", ASKED), ("assistant", SAID))
    first = 2 if write is write_csv else 1  # as a spreadsheet numbers them
    assert record == Record(first, root / "a.png", "a cat", "a dog", turns)


def test_a_folder_of_pictures_with_one_csv_file(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    write_csv(tmp_path / "captions", [{"image": "a.png", "caption": "a cat"}])
    (record,), problems = read_records(tmp_path, tmp_path)
    assert (record.image, record.caption, problems) == (tmp_path / "a.png", "a cat", [])
    write_csv(tmp_path / "more", [])
    with pytest.raises(UserError, match="holds 2 CSV files: expected"):
        read_records(tmp_path, tmp_path)


def test_a_column_that_stands_twice_is_refused(root, tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("image,caption,caption\na.png,a cat,a dog\n")
    with pytest.raises(UserError, match=r"data\.csv: the column 'caption' stands twice: rename or"):
        read_records(path, root)
    path.write_text("image,caption,,\na.png,a cat,,\n")  # as spreadsheets write empty columns
    (record,), problems = read_records(path, root)
    assert (record.caption, problems) == ("a cat", [])


def test_a_folder_of_parquet_shards_is_one_data_set(root, tmp_path):
    for number in range(3):
        write_parquet(tmp_path / f"train-{number:05d}", [OURS] * 2)
    records, problems = read_records(tmp_path, root)
    assert [record.row for record in records] == [1, 2, 3, 4, 5, 6]
    assert not problems


def test_text_only_rows_stand_beside_pictures_in_every_kind(root, tmp_path):
    for name, write in FILES.items():
        records, problems = read_records(write(tmp_path / name, [OURS, TEXT_ONLY]), root)
        assert not problems, name
        assert [record.image for record in records] == [root / "a.png", None]


def picture_bytes():
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), "blue").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(params=["parquet", "saved", "streamed"])
def with_pictures(request, tmp_path):
    """Data whose pictures stand in its rows: two are the same, one is damaged, one leads out."""
    whole = picture_bytes()
    pictures = [
        {"bytes": whole, "path": None},
        {"bytes": whole, "path": "b.png"},
        {"bytes": whole[:40], "path": None},
        {"bytes": None, "path": "/etc/passwd"},
    ]
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    made = datasets.Dataset.from_dict(
        {"image": pictures, "caption": ["a cat"] * 4}, features=features
    )
    if request.param == "saved":
        made.select(range(3)).save_to_disk(str(tmp_path / "saved"))
        return tmp_path / "saved"
    if request.param == "parquet":
        made.select(range(3)).to_parquet(str(tmp_path / "data.parquet"))
        return tmp_path / "data.parquet"
    return made.to_iterable_dataset()


def test_pictures_in_rows_are_checked_and_unpacked_once(with_pictures, root, tmp_path):
    folder = tmp_path / "unpacked"
    found = list(read(open_source(with_pictures), root, unpack=folder))
    first, second, *bad = found
    assert first.image == second.image
    assert first.image.read_bytes() == picture_bytes()
    assert [path.name for path in folder.iterdir()] == [first.image.name]
    assert "cannot be read" in bad[0].reason or "no picture" in bad[0].reason
    assert all("leads outside the image root" in problem.reason for problem in bad[1:])
    checked = list(read(open_source(with_pictures), root))
    assert [type(it) for it in checked] == [type(it) for it in found]
    assert not checked[0].image.exists()


def test_a_dataset_of_several_splits_asks_for_one(tmp_path):
    made = datasets.Dataset.from_list([OURS])
    datasets.DatasetDict({"train": made, "test": made}).save_to_disk(str(tmp_path / "both"))
    with pytest.raises(UserError, match=r"several splits: give one of .*/\{test,train\}"):
        open_source(tmp_path / "both")
    assert open_source(tmp_path / "both" / "train").total == 1


def test_a_damaged_dataset_is_the_users_mistake_or_a_problem(root, tmp_path):
    write_parquet(tmp_path / "data", [OURS])
    damaged = tmp_path / "data.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-20])
    try:
        records, problems = read_records(damaged, root)
    except UserError as fault:
        assert "data.parquet" in str(fault)
    else:
        assert not records
        assert "nothing after this row can be read" in problems[0].reason


@pytest.mark.parametrize("content", ["", "nothing", "{}"])
def test_what_is_no_data_is_the_users_mistake(content, root, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="holds none of these: expected a file of JSON lines"):
        open_source(tmp_path / "folder")
    with pytest.raises(UserError, match="no records at"):
        open_source(tmp_path / "nowhere")
    (tmp_path / "data.csv").write_text(content)
    with pytest.raises(UserError, match=r"the columns|holds no record"):
        read_records(tmp_path / "data.csv", root)


def array(path, content):
    """The rows of a JSON array, and why no more could be read."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    rows = list(open_source(path).rows)
    assert [row.number for row in rows] == list(range(1, len(rows) + 1))
    faults = [row.content for row in rows if isinstance(row.content, ValueError)]
    assert all(row.content is faults[-1] for row in rows[len(rows) - len(faults) :])
    return [row.content for row in rows if not isinstance(row.content, ValueError)], faults


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=10,
)


@given(rows=st.lists(JSON, max_size=6), indent=st.sampled_from([None, 0, 2]), bom=st.booleans())
@settings(deadline=None, max_examples=150)
def test_an_array_is_read_as_json_does_whatever_its_pieces(rows, indent, bom, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "array.json"
    content = json.dumps(rows, indent=indent, ensure_ascii=False).encode("utf-8", "surrogatepass")
    before = sources._PIECE
    for piece in (1, 5, 2**20):
        sources._PIECE = piece
        try:
            read_back, faults = array(path, b"\xef\xbb\xbf" * bom + content + b"\n")
        finally:
            sources._PIECE = before
        if b"\xed" not in content:  # halves of characters are no UTF-8
            assert (read_back, faults) == (rows, [])
        else:
            assert len(read_back) + len(faults) == len(rows)


@pytest.mark.parametrize(
    ("content", "good"),
    [
        ('[{"a": 1}, {"a": ', 1),
        ('[{"a": 1} {"a": 2}]', 1),
        ('[{"a": 1}, ]', 1),
        ('[{"a": 1}]]', 1),
        ('[{"a": 1}] trailing', 1),
        ('[{"a": 1},, {"a": 2}]', 1),
        ("[", 0),
        ("[,]", 0),
        ("[nul]", 0),
        ("[" + "[" * 100_000, 0),
        ("[1, 2" + "0" * 6_000 + "]", 1),
        (b'[{"a": "\xff"}, 1', 2),
    ],
)
def test_a_broken_array_ends_in_one_problem(content, good, tmp_path):
    rows, faults = array(tmp_path / "data.json", content)
    assert len(rows) == good
    assert len(faults) == 1
    assert "nothing after this row can be read" in str(faults[0])


@pytest.mark.parametrize("content", [{"data": [{"messages": []}]}, {"a": 1}, {}])
def test_one_object_over_several_lines_is_one_problem(content, tmp_path):
    path = tmp_path / "data.json"
    path.write_text("\ufeff\n" + json.dumps(content, indent=1).replace("{}", "{\n}"))
    _, problems = read_records(path, tmp_path)
    assert [problem.row for problem in problems] == [1]
    assert "one JSON object over several lines" in problems[0].reason


def test_an_element_without_end_is_not_read_into_memory_forever(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_ROW", 100)
    monkeypatch.setattr(sources, "_PIECE", 10)
    path = tmp_path / "data.json"
    path.write_text('[1, "' + "x" * 10_000 + '"]')
    first, fault = open_source(path).rows
    assert first.content == 1
    assert isinstance(fault.content, ValueError)
    assert fault.done < 1_000


@given(content=st.binary(max_size=200) | st.text(max_size=200))
@settings(deadline=None, max_examples=150)
@pytest.mark.parametrize("name", ["data.json", "data.jsonl", "data.csv", "data"])
def test_any_file_is_rows_and_problems(name, content, tmp_path_factory, root):
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "replace"))
    try:
        found = list(read(open_source(path), root))
    except UserError as fault:
        assert "holds no record" in str(fault) or "has the columns" in str(fault)
        return
    assert all(isinstance(it, Record | Problem) for it in found)
    assert sorted({it.row for it in found}) == [it.row for it in found]


@given(
    cells=st.lists(
        st.lists(st.text(max_size=8) | st.sampled_from(["a.png", '"', "\n", ","]), max_size=5),
        min_size=1,
        max_size=6,
    )
)
@settings(deadline=None, max_examples=150)
def test_any_table_is_rows_and_problems(cells, tmp_path_factory, root):
    path = tmp_path_factory.getbasetemp() / "table.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["image", "caption", "answer"], *cells])
    try:
        records, problems = read_records(path, root)
    except UserError as fault:
        assert "holds no record" in str(fault)
        assert not any(cells)
        return
    assert len(records) + len(problems) == sum(bool(row) for row in cells)
    for record in records:
        assert record.image == root / "a.png" or record.image is None


def test_a_byte_order_mark_is_passed_over_in_every_file(root, tmp_path):
    for write in (write_jsonl, write_json, write_csv):
        path = write(tmp_path / "data", [{"image": "a.png", "caption": "a cat"}])
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        (record,), problems = read_records(path, root)
        assert (record.caption, problems) == ("a cat", []), path.name


def test_a_bar_gives_the_same_rows_and_ends_at_the_total(root, tmp_path, capsys):
    path = write_jsonl(tmp_path / "data", [OURS] * 5)
    plain = list(open_source(path).rows)
    assert list(with_bar(open_source(path), "reading").rows) == plain
    assert plain[-1].done == path.stat().st_size == open_source(path).total
    said = capsys.readouterr()
    assert said.out == ""
    assert "reading" in said.err
    assert "100%" in said.err
