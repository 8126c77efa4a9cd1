"""Every reader of files from outside: a valid folder for it, and the file in it that is damaged."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from tgalign.app.comparison_files import read_comparison
from tgalign.baselines.calibration_folder import read_calibration
from tgalign.caption import _read as caption_rows
from tgalign.data.pictures import PictureError, read_picture
from tgalign.data.records import read_records
from tgalign.diagnose.diagnosed_layers import diagnosed_layers
from tgalign.diagnose.probes import read_probes
from tgalign.errors import UserError
from tgalign.evaluate.compare import compare, load_pairs
from tgalign.evaluate.judge_report import judge_report, print_judge_report, read_labelled
from tgalign.evaluate.pictures import open_picture
from tgalign.evaluate.pool import pool
from tgalign.evaluate.suites import load_suite
from tgalign.evaluate.suites.folder import folder_suite
from tgalign.evaluate.suites.table import shipped_specs, table_suite
from tgalign.lab.experiment_tables import conflict_table, table
from tgalign.metrics import read_metrics
from tgalign.recipe import load_recipe
from tgalign.report.runs import report_runs
from tgalign.retrieval.corpus import Source
from tgalign.retrieval.index import Index
from tgalign.synthetic import read_texts

SEEDS = Path(__file__).parent / "seeds"
"""Results that small runs of the commands wrote."""
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Reader:
    """A reader under attack.

    Attributes:
        form: As ``damage.damaged`` takes it.
        files: The valid folder by name; the first file is the one that is damaged.
        read: Reads the folder, by a name of its own.
    """

    form: str
    files: dict[str, bytes]
    read: Callable[[Path], Any]

    @property
    def target(self) -> str:
        """The file that is damaged."""
        return next(iter(self.files))

    def prepare(self, folder: Path) -> Path:
        """Write the valid folder."""
        for name, content in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return folder

    def attack(self, folder: Path, content: bytes) -> None:
        """Read the prepared folder with other bytes in the target.

        Raises:
            Exception: What is no clear error: neither a result nor a ``UserError`` that names the
                file or its folder.
        """
        (folder / self.target).write_bytes(content)
        try:
            self.read(folder)
        except UserError as fault:
            said = str(fault)
            assert Path(self.target).name in said or folder.name in said, f"names no file: {said}"


def _picture(form: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (9, 7), "red").save(out, form)
    return out.getvalue()


def _jsonl(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _yaml(path: Path) -> bytes:
    return json.dumps(yaml.safe_load(path.read_text(encoding="utf-8"))).encode()


def _seed(name: str) -> bytes:
    return (SEEDS / name).read_bytes()


def _npy() -> bytes:
    out = io.BytesIO()
    np.save(out, np.eye(3, 4, dtype=np.float32))
    return out.getvalue()


def _records(name: str) -> Callable[[Path], Any]:
    def run(folder: Path) -> None:
        records, problems = read_records(folder / name, folder)
        for record in records:
            assert record.image is None or record.image.is_relative_to(folder.resolve())
            for text in (record.caption, record.retrieved, *(said for _, said in record.messages)):
                (text or "").encode()
        assert all(problem.file == name for problem in problems)
        caption_rows(folder / name, None, None)

    return run


def _shown(path: Path) -> None:
    for opener, fault in ((read_picture, ValueError), (open_picture, PictureError)):
        try:
            assert opener(path).mode == "RGB"
        except fault as said:
            assert path.name in str(said)


def _judge(folder: Path, name: str) -> None:
    print_judge_report(judge_report([read_labelled(folder / name)]), lambda _: None)


def _evaluations(folder: Path) -> None:
    """One damaged evaluation beside a valid one."""
    faults = []
    for use in (
        lambda: read_comparison(folder, []),
        lambda: compare(load_pairs(folder / "a", folder / "b")[0], "b"),
        lambda: pool({"x": [folder / "a"]}),
        lambda: _judge(folder, "a/items.jsonl"),
    ):
        try:
            use()
        except UserError as fault:
            faults.append(fault)
    if faults:
        raise faults[0]


def _demo(folder: Path) -> None:
    fault = None
    try:
        read_comparison(folder, [])
    except UserError as said:
        fault = said
    report_runs([folder], folder / "all")
    if fault is not None:
        raise fault


def _diagnosis(folder: Path) -> None:
    for choice in ("causal", "safety"):
        with contextlib.suppress(UserError):
            diagnosed_layers(folder / "diagnosis.json", choice)
    report_runs([folder], None)


def _experiments(folder: Path) -> None:
    table(folder / "results.jsonl")
    conflict_table(folder / "results.jsonl")


def _corpus(name: str) -> Callable[[Path], Any]:
    def run(folder: Path) -> None:
        source = Source(folder / name)
        for text in source:
            text.text.encode()
        source.faults()

    return run


def _manifest() -> bytes:
    about = {"file": "c.jsonl", "sha256": "0", "kept": 3, "skipped": 0, "faults": []}
    return json.dumps({
        "format": 1, "dimension": 4, "normalised": True, "count": 3, "corpus": about,
        "encoder": {"path": "lab", "kind": "image-text", "model_type": "clip", "revision": "3"},
        "shards": [{"rows": 3, "vectors_sha256": "0", "texts_sha256": "0"}], "toxic": None,
        "toxic_share": None, "shard_rows": 64, "faiss": None,
    }).encode()  # fmt: skip


TALK = [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "a thing"}]
LLAVA = [
    {"from": "human", "value": "<image>\nwhat?"},
    {"from": "gpt", "value": "a thing"},
]
RECORDS = [
    {"image": "a.png", "caption": "a fox", "retrieved": [{"text": "fox", "score": 1.0, "id": 3}]},
    {"image": "a.png", "caption": "a fox", "messages": TALK, "id": 7},
    {"messages": TALK},
]
TRL = {"images": ["a.png"], "messages": [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}, TALK[1],
]}  # fmt: skip
TABLE = b'image,caption,question,answer\na.png,a fox,what?,"a, thing"\na.png,"two\nlines",,\n'
PROBES = [
    row
    for at in range(8)
    for row in (
        {"id": f"t{at}", "image": "a.png", "caption": "a gun", "scene": "gun", "toxic_text": "gun",
         "box": [0.1, 0.1, 0.5, 0.5], "names": ["gun"]},
        {"id": f"b{at}", "image": "a.png", "caption": "a fox", "matches": f"t{at}"},
    )
]  # fmt: skip
VLSAFE = {"image": "a.png", "category": "x", "question": "what?"}
SUITE = {"own": {
    "about": "x", "source": "x", "licence": "x", "tables": "*.jsonl", "items": [
        {"kind": "toxic", "id": "{id}", "question": "{turn[0][q]}", "picture": "{image}",
         "when": {"safe": False}},
    ]}}  # fmt: skip
SUITE_ROWS = [{"id": 3, "turn": [{"q": "what?"}], "image": "a.png", "safe": False}]
PICTURE = {"a.png": _picture()}
ITEMS, EVALUATION = _seed("items.jsonl"), _seed("evaluation.json")
_SUITE = json.dumps(SUITE).encode()
_TWO = {"a/items.jsonl": ITEMS, "a/results.json": EVALUATION,
        "b/items.jsonl": ITEMS, "b/results.json": EVALUATION}  # fmt: skip
_DEMO = {"results.json": _seed("demo_results.json"), "demo.json": b"{}",
         "seed0/ce/measurement.json": _seed("measurement.json"),
         "seed0/tga/measurement.json": _seed("measurement.json")}  # fmt: skip
_COMPARE = {"comparison.json": _seed("comparison.json"),
            "seed0/measured/tga-0.json": _seed("measured.json")}  # fmt: skip
_INDEX = {"manifest.json": _manifest(), "vectors-00000.npy": _npy(), "texts-00000.parquet": b""}


def _first(files: dict[str, bytes], name: str) -> dict[str, bytes]:
    return {name: files[name], **files}


def _suite(folder: Path) -> Any:
    return load_suite(str(folder / "own.yaml"), folder)


def _own_table(name: str) -> Callable[[Path], Any]:
    return lambda folder: table_suite(name, shipped_specs()[name], folder)


READERS = {
    "records": Reader("jsonl", {"r.jsonl": _jsonl(*RECORDS, TRL), **PICTURE}, _records("r.jsonl")),
    "llava": Reader(
        "json",
        {"r.json": json.dumps([{"id": "1", "image": "a.png", "conversations": LLAVA}] * 2).encode(),
         **PICTURE},
        _records("r.json"),
    ),
    "records_csv": Reader("csv", {"r.csv": TABLE, **PICTURE}, _records("r.csv")),
    **{
        f"picture_{form.lower()}": Reader(
            "bytes", {"a.img": _picture(form)}, lambda folder: _shown(folder / "a.img")
        )
        for form in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP")
    },
    "folder_captions": Reader(
        "jsonl",
        {"captions.jsonl": _jsonl({"image": "gun/a.png", "caption": "a gun"}),
         "gun/a.png": _picture(), "gun/a.txt": b"a gun", "benign/b.png": _picture()},
        folder_suite,
    ),
    "suite_yaml": Reader("json", {"own.yaml": _SUITE, "t.jsonl": _jsonl(*SUITE_ROWS), **PICTURE},
                         _suite),
    "suite_jsonl": Reader("jsonl", {"t.jsonl": _jsonl(*SUITE_ROWS), "own.yaml": _SUITE, **PICTURE},
                          _suite),
    "suite_csv": Reader(
        "csv", {"xstest_prompts.csv": b"id,prompt,type,label\nv2-1,How?,homonyms,safe\n"},
        _own_table("xstest"),
    ),
    "recipe": Reader("json", {"r.yaml": _yaml(ROOT / "recipes" / "lab.yaml")},
                     lambda folder: load_recipe(folder / "r.yaml")),
    "recipe_text": Reader("bytes", {"r.yaml": (ROOT / "recipes" / "lab.yaml").read_bytes()},
                          lambda folder: load_recipe(folder / "r.yaml")),
    "judge_csv": Reader(
        "csv",
        {"j.csv": b"prompt,completion,final_label\nHow?,\"No, I can't.\",2_full_refusal\n"
                  b"How?,So.,1_full_compliance\n"},
        lambda folder: _judge(folder, "j.csv"),
    ),
    "index_manifest": Reader("json", _INDEX, lambda folder: Index.open(folder, verify=False)),
    "index_vectors": Reader("bytes", _first(_INDEX, "vectors-00000.npy"),
                            lambda folder: Index.open(folder, verify=False)),
    "corpus_jsonl": Reader("jsonl", {"c.jsonl": _jsonl({"text": "a fox"}, {"caption": "b"})},
                           _corpus("c.jsonl")),
    "corpus_text": Reader("bytes", {"c.txt": b"a fox\na taco\n"}, _corpus("c.txt")),
    "texts": Reader("jsonl", {"t.jsonl": _jsonl({"text": "a fox"}, {"text": "b"})},
                    lambda folder: read_texts(folder / "t.jsonl")),
    "items": Reader("jsonl", _TWO, _evaluations),
    "evaluation_results": Reader("json", _first(_TWO, "a/results.json"), _evaluations),
    "demo_results": Reader("json", _DEMO, _demo),
    "demo_measurement": Reader("json", _first(_DEMO, "seed0/tga/measurement.json"),
                               lambda folder: read_comparison(folder, [])),
    "comparison": Reader("json", _COMPARE, lambda folder: read_comparison(folder, [])),
    "comparison_items": Reader("json", _first(_COMPARE, "seed0/measured/tga-0.json"),
                               lambda folder: read_comparison(folder, [])),
    "diagnosis": Reader("json", {"diagnosis.json": _seed("diagnosis.json")}, _diagnosis),
    "experiments": Reader(
        "jsonl",
        {"results.jsonl": (ROOT / "docs" / "experiments.jsonl").read_bytes().split(b"\n")[0]},
        _experiments,
    ),
    "metrics": Reader("jsonl", {"metrics.jsonl": _jsonl({"step": 1, "loss": 0.5})}, read_metrics),
    "probes": Reader("jsonl", {"probes.jsonl": _jsonl(*PROBES), **PICTURE}, read_probes),
    "calibration": Reader(
        "jsonl",
        {"harmless.jsonl": _jsonl(RECORDS[0]), "toxic.jsonl": _jsonl({"text": "a gun"}), **PICTURE},
        read_calibration,
    ),
}  # fmt: skip
"""By name."""


def fresh(name: str, folder: Path) -> tuple[Reader, Path]:
    """A reader and its valid folder, made anew below ``folder``."""
    reader = READERS[name]
    place = folder / f"fuzz-{name}"
    shutil.rmtree(place, ignore_errors=True)
    return reader, reader.prepare(place)
