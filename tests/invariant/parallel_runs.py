"""Train on two processes, as ``torchrun`` would start them; run by test_parallel_trajectory.

Reads a list of ``{"config", "kill", "misread"}`` from stdin, where ``kill`` is null or a stage and
a step in whose last batch process 1 kills itself, and ``misread`` whether process 0 fails to read
the first picture that it opens. Where a text gate asks, captions of an even number of letters are
refused. Prints a JSON line per run: the processes' exit codes and,
per stage, how process 1 trained it. Every process is a fork, so that torch is imported once.
"""

import gc
import json
import os
import signal
import socket
import sys

import torch
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import tgalign.data.records
import tgalign.text_gate
import tgalign.train
from tgalign.config import parse_config
from tgalign.trainer import TGATrainer


def facts(trainer: TGATrainer) -> dict:
    """What a trainer really did to its model."""
    weights = list(trainer.task.named_parameters())
    return {
        "stage": trainer.stage.name,
        "ddp": isinstance(trainer.model_wrapped, DistributedDataParallel),
        "sharded": sorted({n.split(".")[1] for n, w in weights if isinstance(w, DTensor)}),
        "here": sum(w.to_local().numel() for _, w in weights if isinstance(w, DTensor)),
        "whole": sum(w.numel() for _, w in weights),
        "checkpointed": sum(
            getattr(module, "gradient_checkpointing", False) is True and module.training
            for module in trainer.task.lvlm.model.language_model.layers
        ),
        "rows": len(trainer._rows.dataset),
        "passes": trainer.args.gradient_accumulation_steps,
    }


def wire(kill: list | None, notes: int) -> None:
    """Note down how this process trains, and make it die at the moment."""
    compute, train = TGATrainer.compute_loss, TGATrainer.train_or_resume
    seen = []

    def compute_loss(self, *args, **options):
        if kill == [self.stage.name, self.state.global_step]:
            seen.append(1)
            if len(seen) == self.current_gradient_accumulation_steps:
                os.kill(os.getpid(), signal.SIGKILL)
        return compute(self, *args, **options)

    def train_or_resume(self):
        train(self)
        os.write(notes, (json.dumps(facts(self)) + "\n").encode())

    TGATrainer.compute_loss, TGATrainer.train_or_resume = compute_loss, train_or_resume


def misread_one() -> None:
    """Make this process fail once where it opens a picture, as a network's disk may."""
    check = tgalign.data.records.read_picture
    failed = []

    def read_picture(picture):
        if not failed:
            failed.append(picture)
            raise ValueError("input/output error")
        check(picture)

    tgalign.data.records.read_picture = read_picture


def refuse_even_captions(
    model: object, processor: object, captions: list, questions: list, title: str | None = None
) -> list[str]:
    """What a language model says that refuses captions of an even number of letters."""
    return ["i can not ." if len(caption) % 2 == 0 else "a dog ." for caption in captions]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(config: dict, kill: list | None, misread: bool) -> dict:
    port = str(free_port())
    read, write = os.pipe()
    children = []
    for rank in ("0", "1"):
        child = os.fork()
        if child == 0:
            os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}
            os.environ |= {"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            if rank == "1":
                wire(kill, write)
            elif misread:
                misread_one()
            code = 1
            try:
                tgalign.train.train(parse_config(config, "test"), progress_bar=False)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    os.close(write)
    codes = {}
    while len(codes) < len(children):
        child, status = os.wait()
        codes[child] = os.waitstatus_to_exitcode(status)
        if codes[child]:
            for other in set(children) - codes.keys():
                os.kill(other, signal.SIGKILL)  # as torchrun does
    with os.fdopen(read) as notes:
        stages = [json.loads(line) for line in notes]
    return {"codes": [codes[child] for child in children], "stages": stages}


def main() -> None:
    torch.set_num_threads(1)
    tgalign.text_gate.answers = refuse_even_captions
    gc.freeze()  # what is imported needs no looking through, again and again in every process
    for job in json.load(sys.stdin):
        print(json.dumps(run(**job)), flush=True)


if __name__ == "__main__":
    main()
