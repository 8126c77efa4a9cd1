"""TGATrainer: transformers' Trainer with two learning rates, exact loss scaling and safe saving.

Departures from ``transformers.Trainer``, each for one reason:

- losses are normalised by the learnt tokens and the captioned rows of the WHOLE optimizer step, so
  that 1 × 8, 8 × 1 and 8 in one give the same step, on one process or several (but for the form
  ``contrastive``, whose negatives are the captions of one forward pass);
- projector and LLM have their own learning rates;
- every named loss and per-layer figure goes to ``metrics.jsonl``, which a resumed run continues;
- intermediate state is written beside and renamed, so that a kill never leaves a broken one, and
  holds only what is trained;
- FSDP2 runs on CPUs too, for tests.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import DistributedType, FullyShardedDataParallelPlugin, PartialState
from accelerate.optimizer import AcceleratedOptimizer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, SequentialSampler, Subset
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import get_last_checkpoint

from tgalign.callbacks import ConflictLog, SaveAndStop, StageProgress
from tgalign.config import StageConfig, TrainConfig
from tgalign.data.collate import Collator
from tgalign.data.encode import EncodedRecord
from tgalign.data.order import row_order
from tgalign.errors import UserError
from tgalign.files import read_json, write_json
from tgalign.metrics import METRICS, REMEDY, MetricsLog, keep_until
from tgalign.parallel import all_finite, fsdp_arguments, share_of_accumulation, trained_weights
from tgalign.sharded_state import load_sharded_optimizer, load_sharded_weights, save_sharded
from tgalign.task import AlignmentTask
from tgalign.termination import heed_parent_alone, postponed
from tgalign.training_arguments import training_arguments

WEIGHTS = "trained.safetensors"
SHARDS = "shards"
SCHEDULER = "scheduler.json"


class TGATrainer(Trainer):
    """Train an ``AlignmentTask`` for one stage.

    Args:
        task: The model and its objective; parameters that require a gradient are trained.
        config: The run. Metrics and intermediate state go into the stage's folder in its ``out``.
        stage: The stage of it.
        rows: The encoded records.
        collator: Makes batches of them.
        probes: Batches by name, in which the gradients of the two losses are compared every
            ``save_steps`` steps, from the first on.
        progress_bar: Whether to draw one.

    Attributes:
        sharded: Whether several processes shard the weights; else each has them all.
    """

    def __init__(
        self,
        task: AlignmentTask,
        config: TrainConfig,
        stage: StageConfig,
        rows: Sequence[EncodedRecord],
        collator: Collator,
        *,
        probes: dict[str, dict[str, Tensor]] | None = None,
        progress_bar: bool = True,
    ) -> None:
        self.stage = stage
        self.folder = config.out / stage.name
        self.task = task
        self.sharded = config.parallel == "fsdp2" and PartialState().num_processes > 1
        self._collator = collator
        order = row_order(
            [len(row.input_ids) for row in rows],
            steps=stage.steps,
            rows_per_step=stage.batch_size * stage.accumulation,
            seed=config.seed,
        )
        self._rows = Subset(cast("Dataset[EncodedRecord]", rows), order)
        args = training_arguments(config, stage, progress_bar)
        self._sharding = fsdp_arguments(task.lvlm, args.bf16) if self.sharded else None
        args.gradient_accumulation_steps = share_of_accumulation(
            stage.accumulation, stage.name, args.world_size
        )
        args._n_gpu = min(args.n_gpu, 1)  # one process, one device: no DataParallel
        args.fsdp_plugin_args = self._sharding
        super().__init__(model=task, args=args, train_dataset=self._rows, data_collator=collator)
        self.loss_is_scaled_for_ga = True
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self._metrics = MetricsLog(self.folder, writes=args.should_save)
        self._stopping = SaveAndStop()
        self.add_callback(self._stopping)
        if progress_bar:
            self.add_callback(StageProgress(stage.name))
        if probes and stage.objective.guides:
            log = ConflictLog(task, probes, self.folder / "conflict.jsonl", config.save_steps)
            self.add_callback(log)

    def create_accelerator_and_postprocess(self) -> None:
        """Let accelerate shard on CPUs too, where it would quietly train as with DDP."""
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        if self._sharding and state.distributed_type == DistributedType.MULTI_CPU:
            state.distributed_type = DistributedType.FSDP
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**self._sharding)
            self.is_fsdp_enabled = True

    def train_or_resume(self) -> None:
        """Train the stage to its end, from the last intermediate state if there is one.

        SIGTERM ends it after the step under way, saved; with several processes all stop after the
        same step, whichever was told.

        Raises:
            UserError: The training has gone to NaN or infinity; nothing of that is saved.
        """
        with self.accelerator.main_process_first():
            self.folder.mkdir(parents=True, exist_ok=True)
            checkpoint = get_last_checkpoint(str(self.folder))
            done = int(checkpoint.rsplit("-", 1)[1]) if checkpoint else 0
            if self.args.should_save:
                shutil.rmtree(self.folder / "incomplete", ignore_errors=True)
                for name in (METRICS, "conflict.jsonl"):
                    keep_until(self.folder / name, done)
        if checkpoint and done >= self.stage.steps:  # transformers would make one step more
            self._load_from_checkpoint(checkpoint)
            return
        self._metrics.begin(done)
        with postponed() as self._stopping.stop:
            self.train(resume_from_checkpoint=checkpoint)
        self._require_finite()

    def _require_finite(self) -> None:
        """Write the metrics so far and see that neither they nor the weights are ruined."""
        step = self.state.global_step
        self._metrics.write(step, {})
        if not all_finite(self.task):
            raise UserError(
                f"stage {self.stage.name}, step {step}: weights are NaN or infinite. {REMEDY}"
            )

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

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Transformers' own, whose workers give the batches of a last step after SIGTERM too."""
        loader = super().get_train_dataloader()
        inner = getattr(loader, "base_dataloader", loader)  # accelerate's wrapping
        inner.worker_init_fn = heed_parent_alone  # nothing drawn in a worker needs a seed
        return loader

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """Collect an optimizer step's batches and tell each the step's totals."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        totals = torch.tensor(
            [
                sum(int(batch["labels"][:, 1:].ne(-100).sum()) for batch in batches),
                sum(int(batch["caption_mask"].sum()) for batch in batches),
                int(self._stopping.stop.asked),
            ],
            device=device,
        )
        if self.args.world_size > 1:
            totals = self.accelerator.gather(totals).view(-1, 3).sum(0)
            self._stopping.agreed = bool(totals[2])
        for batch in batches:
            batch["num_items"], batch["num_guide_rows"] = totals[0], totals[1]
            if self.is_fsdp_enabled and not batch["caption_mask"].any():
                # Every process must make the same forward passes through sharded weights.
                batch.update(self._collator.no_texts())
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
        self._metrics.add(outputs)
        # Gradients are averaged over processes, the totals are over all of them.
        loss = outputs["loss"] * self.args.world_size
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Write the named losses of the steps since the last line, too."""
        if "loss" in logs:
            names = "grad_norm", "learning_rate"
            self._metrics.write(self.state.global_step, {k: logs[k] for k in names if k in logs})
        super().log(logs, start_time)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.folder / "incomplete")

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._require_finite()  # a resumed run starts its sums after this step
        super()._save_checkpoint(model, trial)
        name = f"checkpoint-{self.state.global_step}"
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            (self.folder / "incomplete" / name).replace(self.folder / name)
            for old in self.folder.glob("checkpoint-*"):
                if old.name != name:
                    shutil.rmtree(old)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        assert output_dir is not None
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        weights = trained_weights(self.task)
        weights["center_LD"] = self.task.center_LD
        save_file(weights, Path(output_dir) / WEIGHTS)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        shards = Path(resume_from_checkpoint) / SHARDS
        if shards.is_dir():
            load_sharded_weights(self.task, shards)
            return
        if self.is_fsdp_enabled:
            raise UserError(
                f"{resume_from_checkpoint} was written by one process, whole, and several cannot "
                "shard it: go on with one process"
            )
        weights = load_file(Path(resume_from_checkpoint) / WEIGHTS)
        unexpected = self.task.load_state_dict(weights, strict=False).unexpected_keys
        assert not unexpected, unexpected

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        optimizer, scheduler = self._prepared()
        save_sharded(self.task, optimizer, Path(output_dir) / SHARDS)
        if self.args.should_save:
            write_json(Path(output_dir) / SCHEDULER, scheduler.state_dict())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not (Path(checkpoint) / SHARDS).is_dir():
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        optimizer, scheduler = self._prepared()
        load_sharded_optimizer(self.task, optimizer, Path(checkpoint) / SHARDS)
        scheduler.load_state_dict(read_json(Path(checkpoint) / SCHEDULER))
        for group, rate in zip(optimizer.param_groups, scheduler.get_last_lr(), strict=True):
            group["lr"] = rate

    def _prepared(self) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
        """AdamW, out of accelerate's wrapping, and the scheduler."""
        assert isinstance(self.optimizer, AcceleratedOptimizer) and self.lr_scheduler is not None
        return self.optimizer.optimizer, self.lr_scheduler
