"""What tests share: the lab's tokenizer, a tiny random LLaVA and a small set of records."""

from __future__ import annotations

import copy
import json
import os
import random
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # of this process and of those it starts

import pytest
import torch

from tgalign import cli
from tgalign.checkpoint import pixel_loader, save_checkpoint
from tgalign.compose import compose_models
from tgalign.data.collate import Collator
from tgalign.data.encode import EncodedRecord, Encoder
from tgalign.data.records import Record, read_records
from tgalign.evaluate.conditions import Request
from tgalign.evaluate.generate import Prompt
from tgalign.evaluate.pictures import picture_hash
from tgalign.lab.base_clip import image_processor, new_clip
from tgalign.lab.base_llm import new_llm
from tgalign.lab.language import Mention, ask, scene_caption, text_example
from tgalign.lab.objects import benign_things
from tgalign.lab.pictures import draw, sample_scene
from tgalign.lab.tokenizer import build_tokenizer

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of long tests first, so that two processes end together."""
    items.sort(key=lambda item: "unit" in item.path.parts)


CHANNELS = 48
LAYERS = 4


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """The lab's tokenizer."""
    return build_tokenizer()


@pytest.fixture(scope="session")
def llm(tokenizer: Any) -> Any:
    """A tiny random Llama of the lab's kind. Not to be changed."""
    from transformers import LlamaForCausalLM

    config = new_llm(tokenizer).config
    config.hidden_size, config.intermediate_size = CHANNELS, 2 * CHANNELS
    config.head_dim = CHANNELS // config.num_attention_heads
    config.num_hidden_layers = LAYERS
    torch.manual_seed(11)
    model = LlamaForCausalLM._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:  # 0.02 would leave every answer to the last token alone
                weight.mul_(50 if "embed_tokens" in name else 5)
            else:  # norms of 1 would hide one that is applied twice
                weight.uniform_(0.5, 1.5)
    return model


@pytest.fixture(scope="session")
def vision(tokenizer: Any) -> Any:
    """A tiny random CLIP vision encoder that takes the lab's pictures. Not to be changed."""
    from transformers import CLIPVisionModel

    config = new_clip(tokenizer).config.vision_config
    config.hidden_size, config.intermediate_size = CHANNELS, 2 * CHANNELS
    config.num_hidden_layers, config.num_attention_heads = 2, 4
    torch.manual_seed(12)
    return CLIPVisionModel._from_config(config, attn_implementation="eager").eval()


@pytest.fixture(scope="session")
def composed(llm: Any, tokenizer: Any, vision: Any) -> tuple[Any, Any]:
    """The tiny LLaVA and its processor. Not to be changed; ``llava`` is a copy that may be."""
    return compose_models(llm, tokenizer, vision, image_processor())


@pytest.fixture
def llava(composed: tuple[Any, Any]) -> Any:
    """A tiny random LLaVA of one's own."""
    return copy.deepcopy(composed[0])


@pytest.fixture(scope="session")
def processor(composed: tuple[Any, Any]) -> Any:
    """Its processor."""
    return composed[1]


@pytest.fixture(scope="session")
def checkpoint(composed: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny LLaVA's checkpoint."""
    path: Path = tmp_path_factory.mktemp("base") / "checkpoint"
    save_checkpoint(*composed, path)
    return path


@dataclass(frozen=True)
class Rows:
    """A small data set.

    Attributes:
        path: ``records.jsonl``; the pictures lie beside it.
        data: Its rows as written.
        records: Its rows as read.
    """

    path: Path
    data: list[dict[str, Any]]
    records: list[Record]


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """25 records: 8 complete, and others that lack R, C, an answer, all messages or the picture."""
    folder = tmp_path_factory.mktemp("records")
    rng = random.Random("rows")
    kinds = (
        ["complete"] * 8
        + ["no retrieved"] * 3
        + ["no caption"] * 3
        + ["no answer"] * 3
        + ["no messages"]
        + ["text"] * 7
    )
    rng.shuffle(kinds)
    data = [_row(kind, number, folder, rng) for number, kind in enumerate(kinds)]
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in data), encoding="utf-8")
    records, problems = read_records(path, folder)
    assert not problems, problems
    return Rows(path, data, records)


def _row(kind: str, number: int, folder: Path, rng: random.Random) -> dict[str, Any]:
    if kind == "text":
        example = text_example(rng)
        return {
            "messages": [
                {"role": "user", "content": example.prompt},
                {"role": "assistant", "content": example.answer},
            ]
        }
    scene, other = (sample_scene(benign_things(), rng) for _ in range(2))
    name = f"{number:02d}.png"
    draw(scene, rng).save(folder / name)
    row: dict[str, Any] = {"image": name}
    if kind != "no caption":
        row["caption"] = scene_caption(scene, rng)
    if kind != "no retrieved":
        row["retrieved"] = [{"text": scene_caption(other, rng), "score": 0.5, "id": number}]
    if kind != "no messages":
        mentions = tuple(Mention(thing) for thing in scene.things)
        row["messages"] = []
        for asked in ("describe", "color") if number % 3 == 0 else ("describe",):
            question, answer = ask(mentions, scene.color, asked, rng, "train")
            row["messages"].append({"role": "user", "content": question})
            row["messages"].append({"role": "assistant", "content": answer})
    if kind == "no answer":
        row["messages"] = row["messages"][:1]
    return row


@pytest.fixture(scope="session")
def encode(processor: Any, composed: tuple[Any, Any]) -> Callable[..., list[EncodedRecord]]:
    """A function that encodes records for the tiny LLaVA."""

    def encode_records(
        records: list[Record], retrieved_in_prompt: float = 0.0, **options: Any
    ) -> list[EncodedRecord]:
        encoder = Encoder(
            processor.tokenizer,
            composed[0].config.image_seq_length,
            max_length=200,
            retrieved_in_prompt=retrieved_in_prompt,
            **options,
        )
        return [encoder.encode(record) for record in records]

    return encode_records


@pytest.fixture(scope="session")
def collator(processor: Any) -> Collator:
    """The tiny LLaVA's collator."""
    return Collator(processor.tokenizer.pad_token_id, pixel_loader(processor))


@pytest.fixture
def tgalign(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[Any, str, str]]:
    """A function that runs the command line and gives exit status, stdout and stderr."""

    def run(*arguments: Any) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["tgalign", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        said = capsys.readouterr()
        assert "Traceback" not in said.out + said.err
        return exit_.value.code or 0, said.out, said.err

    return run


@pytest.fixture(scope="session")
def same_question() -> Callable[[Prompt, Request], None]:
    """A function that fails unless a prompt asks what a request does."""

    def check(prompt: Prompt, request: Request) -> None:
        assert (prompt.text, prompt.caption) == (request.prompt, None)
        assert prompt.turns == request.turns
        if request.picture is None:
            assert prompt.picture is None
        else:
            assert picture_hash(prompt.picture) == picture_hash(request.picture)

    return check


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Catch code that changes the number of threads behind the tests' back."""
    yield
    assert torch.get_num_threads() == 1


@pytest.fixture(scope="session")
def png_header() -> Callable[[int, int], bytes]:
    """A function that gives a PNG that claims a size and holds no pixel."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    def make(width: int, height: int) -> bytes:
        size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        parts = chunk(b"IHDR", size), chunk(b"IDAT", b""), chunk(b"IEND", b"")
        return b"\x89PNG\r\n\x1a\n" + b"".join(parts)

    return make
