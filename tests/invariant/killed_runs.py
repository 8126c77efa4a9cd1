"""Start trainings that kill themselves with SIGKILL at a named moment; run by test_trajectory.

Reads a list of ``{"config", "moment", "stage", "step"}`` from stdin and prints, per run, the
signal that ended it. Every run is a fork, so that torch is imported once.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import torch
from transformers import LlavaProcessor

import tgalign.stage
import tgalign.train
from tgalign.config import parse_config
from tgalign.trainer import WEIGHTS, TGATrainer


def die(*_args, **_options):
    os.kill(os.getpid(), signal.SIGKILL)


def wire(moment: str, stage: str, step: int, out: Path) -> None:
    """Make the training of this process die at the moment."""

    def here(trainer: TGATrainer) -> bool:
        return trainer.stage.name == stage and trainer.state.global_step == step

    if moment == "step":  # in the last batch of an optimizer step
        compute, seen = TGATrainer.compute_loss, []

        def compute_loss(self, *args, **options):
            if here(self):
                seen.append(1)
                if len(seen) == self.current_gradient_accumulation_steps:
                    die()
            return compute(self, *args, **options)

        TGATrainer.compute_loss = compute_loss
    elif moment == "state":  # with a state half written
        save = TGATrainer._save

        def save_or_die(self, output_dir=None, state_dict=None):
            if here(self):
                Path(output_dir).mkdir(parents=True)
                (Path(output_dir) / WEIGHTS).write_bytes(b"half a file")
                die()
            save(self, output_dir, state_dict)

        TGATrainer._save = save_or_die
    elif moment == "end of stage":  # trained, its last state saved, its result not yet
        save_file = tgalign.stage.save_file

        def save_file_or_die(tensors, path, *args, **options):
            if Path(path).parent.name == stage:
                die()
            save_file(tensors, path, *args, **options)

        tgalign.stage.save_file = save_file_or_die
    elif moment == "checkpoint":  # the model written, the processor not yet
        LlavaProcessor.save_pretrained = die
    else:
        assert moment == "cleaning", moment
        rmtree = shutil.rmtree

        def rmtree_or_die(path, *args, **options):
            if (out / "checkpoint").is_dir():
                die()
            rmtree(path, *args, **options)

        shutil.rmtree = rmtree_or_die


def main() -> None:
    torch.set_num_threads(1)
    for job in json.load(sys.stdin):
        child = os.fork()
        if child == 0:
            config = parse_config(job["config"], "test")
            wire(job["moment"], job["stage"], job["step"], config.out)
            try:
                tgalign.train.train(config, progress_bar=False)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        print(os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, flush=True)


if __name__ == "__main__":
    main()
