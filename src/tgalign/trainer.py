"""TGATrainer: transformers' Trainer with two learning rates, exact loss scaling and safe saving.

Departures from ``transformers.Trainer``, each for one reason:

- losses are normalised by the learnt tokens and the captioned rows of the WHOLE optimizer step, so
  that 1 × 8, 8 × 1 and 8 in one give the same step (but for the form ``contrastive``, whose
  negatives are the captions of one forward pass);
- projector and LLM have their own learning rates;
- every named loss and per-layer figure goes to ``metrics.jsonl``, which a resumed run continues;
- intermediate state is written beside and renamed, so that a kill never leaves a broken one, and
  holds only what is trained.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler, Subset
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import get_last_checkpoint

from tgalign.callbacks import ConflictLog, StageProgress, keep_until
from tgalign.config import StageConfig
from tgalign.data.collate import Collator
from tgalign.data.encode import EncodedRecord
from tgalign.data.order import row_order
from tgalign.task import AlignmentTask

WEIGHTS = "trained.safetensors"
PER_LAYER = ("cosine", "centered_cosine", "caption_retrieval")


class TGATrainer(Trainer):
    """Train an ``AlignmentTask`` for one stage.

    Args:
        task: The model and its objective; parameters that require a gradient are trained.
        stage: The stage's settings.
        rows: The encoded records.
        collator: Makes batches of them.
        folder: Where metrics and intermediate state go.
        seed: Of the order of the rows.
        save_steps: Steps between two points to resume from.
        logging_steps: Steps between two lines of metrics.
        probes: Batches by name, in which the gradients of the two losses are compared every
            ``save_steps`` steps, from the first on.
        bf16: Whether matrix products are computed in bfloat16 (autocast).
        progress_bar: Whether to draw one.
    """

    def __init__(
        self,
        task: AlignmentTask,
        stage: StageConfig,
        rows: Sequence[EncodedRecord],
        collator: Collator,
        folder: Path,
        *,
        seed: int,
        save_steps: int,
        logging_steps: int,
        probes: dict[str, dict[str, Tensor]] | None = None,
        bf16: bool = False,
        progress_bar: bool = True,
    ) -> None:
        self.stage = stage
        self.folder = folder
        self.task = task
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = defaultdict(int)
        self._logged_step, self._logged_at = 0, time.monotonic()
        order = row_order(
            [len(row.input_ids) for row in rows],
            steps=stage.steps,
            rows_per_step=stage.batch_size * stage.accumulation,
            seed=seed,
        )
        self._rows = Subset(cast("Dataset[EncodedRecord]", rows), order)
        super().__init__(
            model=task,
            args=TrainingArguments(
                output_dir=str(folder),
                max_steps=stage.steps,
                per_device_train_batch_size=stage.batch_size,
                gradient_accumulation_steps=stage.accumulation,
                learning_rate=stage.projector_lr,
                lr_scheduler_type="cosine",
                warmup_steps=stage.warmup,
                weight_decay=stage.weight_decay,
                max_grad_norm=stage.max_grad_norm,
                bf16=bf16,
                use_cpu=not torch.accelerator.is_available(),
                seed=seed,
                data_seed=seed,
                save_strategy="steps",
                save_steps=save_steps,
                save_total_limit=1,
                logging_steps=logging_steps,
                report_to="none",
                remove_unused_columns=False,
                label_names=["labels"],
                dataloader_pin_memory=False,
                disable_tqdm=not progress_bar,
            ),
            train_dataset=self._rows,
            data_collator=collator,
        )
        self.loss_is_scaled_for_ga = True
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        if progress_bar:
            self.add_callback(StageProgress(stage.name))
        if probes and stage.objective.guides:
            self.add_callback(ConflictLog(task, probes, folder / "conflict.jsonl", save_steps))

    def train_or_resume(self) -> None:
        """Train the stage to its end, from the last intermediate state if there is one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.folder / "incomplete", ignore_errors=True)
        checkpoint = get_last_checkpoint(str(self.folder))
        done = int(checkpoint.rsplit("-", 1)[1]) if checkpoint else 0
        for name in ("metrics.jsonl", "conflict.jsonl"):
            keep_until(self.folder / name, done)
        if checkpoint and done >= self.stage.steps:  # transformers would make one step more
            self._load_from_checkpoint(checkpoint)
            return
        self._logged_step, self._logged_at = done, time.monotonic()
        self.train(resume_from_checkpoint=checkpoint)
        self._write_metrics({})

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with a group per part (projector, LLM), decay on matrices only."""
        if self.optimizer is None:
            groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
            for name, weight in (model or self.task).named_parameters():
                if weight.requires_grad:
                    projector = "multi_modal_projector" in name
                    rate = self.stage.projector_lr if projector else self.stage.llm_lr
                    assert rate is not None
                    decay = self.stage.weight_decay if weight.ndim > 1 else 0.0
                    groups[rate, decay].append(weight)
            self.optimizer = torch.optim.AdamW(
                [
                    {"params": weights, "lr": rate, "weight_decay": decay}
                    for (rate, decay), weights in groups.items()
                ]
            )
        return self.optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self._rows)  # their order is drawn already

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """Collect an optimizer step's batches and tell each the step's totals."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        totals = torch.tensor(
            [
                sum(int(batch["labels"][:, 1:].ne(-100).sum()) for batch in batches),
                sum(int(batch["caption_mask"].sum()) for batch in batches),
            ],
            device=device,
        )
        if self.args.world_size > 1:
            totals = self.accelerator.gather(totals).view(-1, 2).sum(0)
        for batch in batches:
            batch["num_items"], batch["num_guide_rows"] = totals[0], totals[1]
        return batches, None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The task's loss; its named parts are kept for the log."""
        outputs = model(**inputs, progress=self.state.global_step / self.stage.steps)
        for name, value in outputs.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach()
            self._counts[name] += 1
        # Gradients are averaged over processes, the totals are over all of them.
        loss = outputs["loss"] * self.args.world_size
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the named losses of the steps since the last line, and append to ``metrics.jsonl``.

        Losses are sums over a step's batches, averaged over steps; per-layer figures are averaged
        over batches.
        """
        if "loss" in logs:
            self._write_metrics({k: logs[k] for k in ("grad_norm", "learning_rate") if k in logs})
        super().log(logs, start_time)

    def _write_metrics(self, more: dict[str, float]) -> None:
        if self._sums:
            steps = self.state.global_step - self._logged_step
            line: dict[str, Any] = {"step": self.state.global_step, "stage": self.stage.name}
            for name, total in self._sums.items():
                if name in PER_LAYER:
                    line[name] = (total / self._counts[name]).tolist()
                else:
                    line[name] = float(total / steps)
            now = time.monotonic()
            line["step_seconds"] = (now - self._logged_at) / steps
            self._logged_step, self._logged_at = self.state.global_step, now
            line |= more
            with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            self._sums.clear()
            self._counts.clear()

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.folder / "incomplete")

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._write_metrics({})  # a resumed run starts its sums after this step
        super()._save_checkpoint(model, trial)
        name = f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            (self.folder / "incomplete" / name).replace(self.folder / name)
            for old in self.folder.glob("checkpoint-*"):
                if old.name != name:
                    shutil.rmtree(old)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        assert output_dir is not None
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        weights = {
            name: weight.detach().contiguous()
            for name, weight in self.task.named_parameters()
            if weight.requires_grad
        }
        weights["center_LD"] = self.task.center_LD
        save_file(weights, Path(output_dir) / WEIGHTS)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        weights = load_file(Path(resume_from_checkpoint) / WEIGHTS)
        unexpected = self.task.load_state_dict(weights, strict=False).unexpected_keys
        assert not unexpected, unexpected
