"""Each reader either reads a damaged file or says clearly what is wrong with it."""

import json

import pytest
from damage import damaged
from fuzzed_readers import READERS, SUITE, fresh
from hypothesis import HealthCheck, given, settings

from tgalign.errors import UserError

EXAMPLES = 25
"""Of each reader; ``python tests/fuzz --minutes 10`` looks for longer."""


@pytest.mark.parametrize("name", READERS)
def test_the_valid_file_is_read(name, tmp_path):
    reader, folder = fresh(name, tmp_path)
    reader.read(folder)


@pytest.mark.parametrize("name", READERS)
def test_damage_is_named(name, tmp_path):
    reader, folder = fresh(name, tmp_path)

    @settings(max_examples=EXAMPLES, deadline=None, database=None, derandomize=True,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(damaged(reader.files[reader.target], reader.form))
    def attack(content):
        reader.attack(folder, content)

    attack()


def without(name, key):
    """The valid rows of a reader's file without a key in the first."""
    rows = [json.loads(line) for line in READERS[name].files[READERS[name].target].splitlines()]
    del rows[0][key]
    return "\n".join(map(json.dumps, rows))


DEEP = "[" * 100_000
FOUND = [
    ("texts", b"\xff", r"t\.jsonl:1: expected"),
    ("texts", f'{{"text": {DEEP}', r"t\.jsonl:1: expected"),
    ("texts", '{"text": "\\ud800"}', r"t\.jsonl:1: the text holds what is no character"),
    ("folder_captions", '{"image": "gun/a.png", "caption": 3}', r"captions\.jsonl:1: expected"),
    ("folder_captions", '{"image": "gun/a.png", "caption": "\\ud800"}', r"captions\.jsonl:1: a t"),
    ("folder_captions", b"\xff", r"captions\.jsonl:1: expected"),
    ("items", without("items", "scene"), r"items\.jsonl:1 is damaged \(scene: Field required"),
    ("items", without("items", "cut"), r"items\.jsonl:1 is damaged .*whether the answer was cut"),
    ("items", without("items", "condition"), r"items\.jsonl:1 is damaged \(condition"),
    ("items", READERS["items"].files["a/items.jsonl"].replace(b'"hits": 0', b'"hits": 7'),
     r"items\.jsonl:\d is damaged .*more hits than targets"),
    ("items", '{"id": "abc"}', r"items\.jsonl:1 is damaged \(id: String should match"),
    ("evaluation_results", '{"schema_version": 1}', r"results\.json is damaged \(no seeds"),
    ("evaluation_results", DEEP, r"results\.json is damaged"),
    ("demo_results", '{"schema_version": 2}', "is damaged or of another version"),
    ("comparison", '{"schema_version": 1, "methods": 3}', "is damaged or of another version"),
    ("diagnosis", '{"schema_version": 1}', "is damaged or of another version"),
    ("experiments", '{"condition": 3}', "is damaged or of another version"),
    ("experiments", "[]", "is damaged or of another version"),
    ("metrics", "3\n", r"metrics\.jsonl is damaged"),
    ("recipe", '{"out": "\\ud800"}', r"r\.yaml"),
    *(("suite_yaml", json.dumps({"own": SUITE["own"] | {"tables": it}}), "own cannot be looked for")
      for it in ("", "/etc/*", "a" * 5000)),
    ("suite_yaml", json.dumps({"own": SUITE["own"] | {"pictures": ".."}}), "leads outside"),
    ("suite_yaml", json.dumps({"own": SUITE["own"] | {"tables": "../*.csv"}}), "lead outside"),
    ("suite_yaml", "[]", r"own\.yaml does not describe suites"),
    ("suite_jsonl", "3", r"t\.jsonl, row 1: expected a row"),
    ("suite_jsonl", '{"id": 3, "turn": [{"q": "\\ud800"}], "image": "a.png", "safe": false}',
     r"t\.jsonl, row 1: a column holds what is no character"),
    ("suite_jsonl", '{"id": 3, "turn": [{"q": "?"}], "image": "a\\u0000", "safe": false}',
     r"t\.jsonl, row 1: image must be"),
    ("suite_csv", "id,prompt,type,label\nv2-1,How?\n", "row 1: not as many cells"),
    ("judge_csv", "prompt,completion,final_label\nHow?\n", r"j\.csv, row 2: not as many cells"),
    ("index_vectors", b"PK\x03\x04", r"vectors-00000\.npy is damaged"),
    ("index_vectors", b"\x93NUMPY\x01\0\x08\0{'a': (\n", r"vectors-00000\.npy is damaged"),
    ("probes", b"\xff", r"probes\.jsonl:1: "),
]  # fmt: skip
"""What fuzzing found, or reading the code for it: reader, file, message."""


@pytest.mark.parametrize(("name", "content", "said"), FOUND)
def test_what_was_found_is_mended(name, content, said, tmp_path):
    reader, folder = fresh(name, tmp_path)
    damage = content if isinstance(content, bytes) else content.encode()
    (folder / reader.target).write_bytes(damage)
    with pytest.raises(UserError, match=said):
        reader.read(folder)
    reader.attack(folder, damage)
