"""The one schema of a training run, validated before anything is loaded."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tgalign.data.encode import GuideSpan
from tgalign.diagnose.diagnosed_layers import DIAGNOSED, diagnosed_layers
from tgalign.errors import UserError
from tgalign.files import INCOMPLETE
from tgalign.limits import MAX_LENGTH, MAX_SEED
from tgalign.objective import Form, Pair, Similarity


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ObjectiveConfig(_Strict):
    """What is added to the cross-entropy, and how strongly.

    Attributes:
        form: The guide loss (``tgalign.objective.guide_loss``).
        similarity: How states are compared.
        pair: What the image-caption similarity has to exceed.
        reference: Whose states the captions and retrieved texts have: the model under training
            (``live``, as the released code) or a copy of its LLM from the start of the stage
            (``frozen``). Neither carries a gradient.
        layers: ``all`` (1..N as the paper; 0 is the embeddings), a list, or ``"a-b"``; or, with a
            ``diagnosis``, ``safety`` (where refusal arises, by the paper's rule or, where that
            finds nothing, the released code's) or ``causal`` (where patching restores refusals).
        diagnosis: The diagnosis.json that the last two are read from. They are read once, with the
            config: what is kept of it are the layers.
        weight: Factor of the guide loss; 0 is plain LLaVA training, bit for bit.
        schedule: ``constant``, or ``linear_decay`` from ``weight`` to 0 over the stage.
        temperature: Of the form ``contrastive``.
    """

    form: Form = "paper"
    similarity: Similarity = "cosine"
    pair: Pair = "caption"
    reference: Literal["live", "frozen"] = "live"
    layers: Literal["all"] | list[int] | str = "all"
    diagnosis: Path | None = None
    weight: float = Field(1.0, ge=0)
    schedule: Literal["constant", "linear_decay"] = "constant"
    temperature: float = Field(0.1, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _layers_of_a_diagnosis(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        given, path = data.get("layers"), data.get("diagnosis")
        if given not in DIAGNOSED:
            if path is not None:
                raise ValueError(f"a diagnosis is for layers {' or '.join(DIAGNOSED)}")
            return data
        if path is None:
            raise ValueError(f"layers {given!r} need a diagnosis: the path of a diagnosis.json")
        return data | {"layers": diagnosed_layers(Path(path), given), "diagnosis": None}

    @property
    def guides(self) -> bool:
        """Whether the guide loss moves any weight."""
        return self.weight > 0 and self.form != "released_nograd"

    def weight_at(self, progress: float) -> float:
        """The factor of the guide loss after a share of the stage's steps."""
        return self.weight * (1.0 - progress) if self.schedule == "linear_decay" else self.weight


class StageConfig(_Strict):
    """One stage of training.

    Attributes:
        name: Names the stage's folder.
        train: The parts that are trained; everything else is frozen.
        steps: Optimizer steps.
        batch_size: Rows per forward pass.
        accumulation: Forward passes per optimizer step. Several processes share them, so that a
            recipe trains the same on any number; the number must divide it.
        projector_lr: Peak learning rate of the projector.
        llm_lr: Peak learning rate of the LLM; needed if it is trained.
        warmup: Share of the steps with rising learning rate; then it falls as a cosine.
        weight_decay: AdamW's, on matrices only.
        max_grad_norm: Gradients are clipped to this norm.
        retrieved_in_prompt: Share of the rows with an R in which it stands before the image in the
            first user turn: 1 in the released code, which then never retrieves at inference.
        objective: What is added to the cross-entropy.
    """

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    train: list[Literal["projector", "llm"]] = Field(min_length=1)
    steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    accumulation: int = Field(1, gt=0)
    projector_lr: float = Field(gt=0)
    llm_lr: float | None = Field(None, gt=0)
    warmup: float = Field(0.03, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    retrieved_in_prompt: float = Field(0.0, ge=0, le=1)
    objective: ObjectiveConfig = ObjectiveConfig()

    @model_validator(mode="after")
    def _llm_needs_a_rate(self) -> StageConfig:
        if "llm" in self.train and self.llm_lr is None:
            raise ValueError("train names the llm, so llm_lr must be given")
        return self


class SyntheticConfig(_Strict):
    """Synthetic picture features from texts (``tgalign.synthetic``).

    Attributes:
        clip: Folder of the CLIP whose vision tower the LLaVA has, with its tokenizer.
        texts: JSONL file, ``{"text": ...}`` a line: the retrieval corpus.
        ridge: L2 penalty of the map from texts to features.
    """

    clip: Path
    texts: Path
    ridge: float = Field(1.0, gt=0)


class LoraConfig(_Strict):
    """Low-rank adapters in place of the LLM's own weights, merged when a stage ends.

    The defaults are those of LLaVA-1.5's LoRA script, but for its dropout of 0.05: its draws would
    depend on how a step is cut into batches.

    Attributes:
        r: Rank.
        alpha: Scale of the adapters, over the rank.
        dropout: On the adapters' inputs.
        target_modules: Names of the LLM's linear layers that get one; by default all of them but
            the output head.
    """

    r: int = Field(128, gt=0)
    alpha: float = Field(256, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: list[str] | None = Field(None, min_length=1)


class TrainConfig(_Strict):
    """A training run: a LLaVA checkpoint, records, and the stages in order.

    Attributes:
        model: Folder of a stock LLaVA checkpoint.
        architecture: JSON file, a LLaVA's ``config.json``: what ``--dry-run`` builds while
            ``model`` is not there.
        records: File or folder of rows, of any kind that ``tgalign.data.sources`` reads.
        image_root: Folder that image paths are relative to; by default the records' own, or the
            records, if they are a folder.
        max_bad_share: Share of the rows that may be bad (``tgalign check``): these are left out,
            counted and named; if more are bad, nothing is trained.
        out: Folder for the trained checkpoint, metrics and intermediate state.
        seed: Of the order of rows and of everything else that is drawn.
        max_length: Longest row in tokens; longer rows are refused, never cut.
        precision: ``bf16`` computes matrix products in bfloat16; trained weights stay float32.
        frozen_weights: ``bf16`` keeps the weights that no stage trains, all but the adapters with
            ``lora``, in bfloat16, at half the memory; in the checkpoint they are rounded too.
        attention: The attention implementation; ``eager`` is the fastest for tiny models on CPU.
        compile: Compile the layers of the LLM (``torch.compile``).
        activation_checkpointing: Keep only the input of every layer of the LLM and compute the rest
            anew for the gradients: a third more compute for most of the activations' memory.
        parallel: What several processes do with the model: ``ddp`` gives each a whole one,
            ``fsdp2`` a share of the weights, gradients and optimizer state.
        lora: Train the LLM through low-rank adapters.
        workers: Processes that read pictures and make batches, beside each training process.
        cache_vision: Keep the frozen vision tower's features of every picture in memory.
        cache_text: Keep the states of captions and retrieved texts wherever the reference does not
            move: true, in memory; a folder, on disk, where other runs find them too, and what the
            text gate was answered.
        guide_span: Whose mean states the guide pulls: those of the ``picture``, towards those of
            the caption (the paper), or those of the ``question`` read after the picture, up to the
            answer, towards those of the same question read after the caption; ``question_words``
            leaves out what the chat template writes between the two, from which the answer begins.
        text_gate: Learn no answer about a picture where the LLM, told the caption in the picture's
            place, refuses (``tgalign.text_gate``).
        companions: Share of the rows beside which such a picture, for the guide alone, is put into
            the batch.
        synthetic: Make pictures also of the texts that the LLM refuses, as further companions;
            needs ``cache_vision``.
        probes: Record files by name, say ``{"toxic": ..., "benign": ...}``: in each, every
            ``save_steps`` steps, the gradients of cross-entropy and guide are compared by layer and
            logged (``tgalign.diagnose.conflict``). Nothing is learnt from them. Image paths are
            relative to ``image_root`` or, without one, to the file; a file is one batch.
        save_steps: Steps between two points from which a killed run can go on.
        logging_steps: Steps between two lines of ``metrics.jsonl``.
        stages: The stages.
    """

    model: Path
    architecture: Path | None = None
    records: Path
    image_root: Path | None = None
    max_bad_share: float = Field(0.01, ge=0, le=1)
    out: Path
    seed: int = Field(0, ge=0, le=MAX_SEED)
    max_length: int = Field(2048, gt=0, le=MAX_LENGTH)
    precision: Literal["fp32", "bf16"] = "fp32"
    frozen_weights: Literal["fp32", "bf16"] = "fp32"
    attention: Literal["eager", "sdpa", "flash_attention_2", "flex_attention"] = "sdpa"
    compile: bool = False
    activation_checkpointing: bool = False
    parallel: Literal["ddp", "fsdp2"] = "ddp"
    lora: LoraConfig | None = None
    workers: int = Field(0, ge=0)
    cache_vision: bool = False
    cache_text: bool | Path = False
    guide_span: GuideSpan = "picture"
    text_gate: bool = False
    companions: float = Field(0.0, ge=0, le=1)
    synthetic: SyntheticConfig | None = None
    probes: dict[str, Path] = {}
    save_steps: int = Field(500, gt=0)
    logging_steps: int = Field(10, gt=0)
    stages: Annotated[list[StageConfig], Field(min_length=1)]

    @model_validator(mode="after")
    def _these_go_together(self) -> TrainConfig:
        if self.companions > 0 and not self.text_gate:
            raise ValueError("companions are what the text gate finds, so text_gate must be true")
        if self.synthetic is not None and not self.companions > 0:
            raise ValueError("synthetic pictures are companions, so give a share of companions")
        if self.synthetic is not None and not self.cache_vision:
            raise ValueError("synthetic pictures are features, so cache_vision must be true")
        if not any(stage.objective.guides for stage in self.stages):
            if self.companions > 0:
                raise ValueError("companions are for the guide, and no stage has one that trains")
            if self.probes:
                raise ValueError("probes compare gradients, and no stage has a guide that trains")
        if self.frozen_weights == "bf16" and self.precision != "bf16":
            raise ValueError("frozen_weights bf16 needs precision bf16: float32 cannot use them")
        if self.attention == "flash_attention_2" and self.precision != "bf16":
            raise ValueError("flash attention needs precision bf16")
        if self.lora is not None and not any("llm" in stage.train for stage in self.stages):
            raise ValueError("lora trains the llm, and no stage names it in train")
        if self.parallel == "fsdp2":
            if self.probes:
                raise ValueError("probes need whole weights in every process: parallel must be ddp")
            if self.compile:
                raise ValueError("compile is not supported with fsdp2: set one of the two back")
        return self

    @model_validator(mode="after")
    def _folders_differ(self) -> TrainConfig:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stages must have different names, got {names}")
        if "checkpoint" in names:
            raise ValueError("no stage may be called checkpoint: the result's folder is")
        out = self.out.resolve()
        texts = self.cache_text.resolve() if isinstance(self.cache_text, Path) else None
        if texts is not None and texts.is_relative_to(out):
            first = texts.relative_to(out).parts[:1]
            if not first or first[0] in {*names, "checkpoint"} or first[0].endswith(INCOMPLETE):
                where = " in ".join([*first, "out"])
                raise ValueError(f"cache_text is {where}: name another folder, or a new one in out")
        return self


def parse_config(data: dict[str, Any], source: str) -> TrainConfig:
    """Validate a run's settings.

    Args:
        data: The settings.
        source: Where they come from, for messages.

    Raises:
        UserError: Naming every setting that is wrong, what was given and what is allowed.
    """
    try:
        return TrainConfig.model_validate(data)
    except ValidationError as fault:
        lines = []
        for error in fault.errors():
            where = ".".join(str(part) for part in error["loc"]) or "(whole file)"
            whole = isinstance(error["input"], dict)  # of what lacks a key, or does not go together
            given = "" if whole else f", got {error['input']!r:.80}"
            said = error["msg"].removeprefix("Value error, ")
            if error["type"] == "extra_forbidden":
                said, given = "unknown key", given + _meant(str(error["loc"][-1]))
            lines.append(f"  {where}: {said}{given}")
        raise UserError(f"{source} is not a valid training config:\n" + "\n".join(lines)) from None


def _meant(name: str) -> str:
    """A setting that an unknown name is close to, as a question."""
    schemas = (TrainConfig, StageConfig, ObjectiveConfig, SyntheticConfig, LoraConfig)
    known = {field for schema in schemas for field in schema.model_fields}
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""
