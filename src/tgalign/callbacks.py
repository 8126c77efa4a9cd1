"""What is drawn and logged while a stage is trained, beside the trainer's own metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback, TrainerCallback

from tgalign.diagnose.conflict import gradient_conflict
from tgalign.metrics import append_line
from tgalign.task import AlignmentTask
from tgalign.termination import Stop


class ConflictLog(TrainerCallback):
    """Log by layer where cross-entropy and guide pull apart, on batches that are not learnt."""

    def __init__(
        self, task: AlignmentTask, probes: dict[str, dict[str, Tensor]], path: Path, every: int
    ) -> None:
        self.task, self.probes, self.path, self.every = task, probes, path, every

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Compare the gradients after the first step and after every ``every``-th."""
        if state.global_step % self.every and state.global_step != 1:
            return
        for name, batch in self.probes.items():
            moved = {key: value.to(args.device) for key, value in batch.items()}
            with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16):
                found = gradient_conflict(self.task, moved)
            line: dict[str, Any] = {"step": state.global_step, "probe": name}
            line["layers"] = self.task.layers
            line |= {key: values_L.tolist() for key, values_L in found.items()}
            if not state.is_world_process_zero:
                continue
            append_line(self.path, line)


class SaveAndStop(TrainerCallback):
    """Save after a step and end the training there; several processes agree on the step first.

    Attributes:
        stop: Whether this process was asked to.
        agreed: Whether several processes have agreed that the step under way is the last.
    """

    def __init__(self) -> None:
        self.stop, self.agreed = Stop(), False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End the training if it is to stop."""
        if self.agreed or (args.world_size == 1 and self.stop.asked):
            self.stop.asked = True
            control.should_save = control.should_training_stop = True


class StageProgress(ProgressCallback):
    """A bar with ETA that shows the loss, in place of printed lines."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the bar under the stage's name."""
        super().on_train_begin(args, state, control, **kwargs)  # type: ignore[no-untyped-call]
        if self.training_bar is not None:
            self.training_bar.set_description(self.name)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the loss beside the bar."""
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}")
