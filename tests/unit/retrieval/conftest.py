"""A small corpus, records with pictures, and an index of the corpus by the lab's CLIP."""

import json
import random
import shutil
from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="the index on disk needs the extra [retrieval]")

from tgalign.data.pictures import read_picture
from tgalign.lab.language import scene_caption
from tgalign.lab.objects import benign_things
from tgalign.lab.pictures import draw, sample_scene
from tgalign.retrieval.build import build_index
from tgalign.retrieval.embed import Embedder

TEXTS, PICTURES = 230, 11


@pytest.fixture(scope="session")
def lab_encoder():
    return Embedder.load()


@pytest.fixture(scope="session")
def scenes():
    rng = random.Random("retrieval")
    return [sample_scene(benign_things(), rng) for _ in range(TEXTS)]


@pytest.fixture(scope="session")
def texts(scenes):
    rng = random.Random("texts")
    return list(dict.fromkeys(scene_caption(scene, rng) for scene in scenes))


@pytest.fixture(scope="session")
def corpus(texts, tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="session")
def records(scenes, texts, tmp_path_factory):
    """Pictures of the corpus' first scenes with its very texts as captions, and a text-only row."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = random.Random("pictures")
    rows = []
    for number, scene in enumerate(scenes[:PICTURES]):
        draw(scene, rng).save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "caption": texts[number], "id": number})
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    rows.insert(4, {"messages": turns})
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def built(corpus, tmp_path_factory):
    """The index. Not to be changed; ``index_copy`` is one that may be."""
    out = tmp_path_factory.mktemp("built") / "index"
    return build_index(corpus, out, shard_rows=64, progress_bar=False)


@pytest.fixture
def index_copy(built, tmp_path):
    return Path(shutil.copytree(built.folder, tmp_path / "copy"))


@pytest.fixture(scope="session")
def embedded(records, lab_encoder):
    """Rows with a picture, and the embeddings of pictures and captions."""
    rows = [json.loads(line) for line in records.read_text().splitlines()]
    rows = [row for row in rows if "image" in row]
    pictures = [read_picture(records.parent / row["image"]) for row in rows]
    return rows, lab_encoder.pictures(pictures), lab_encoder.texts([row["caption"] for row in rows])
