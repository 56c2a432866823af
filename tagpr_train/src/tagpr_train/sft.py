"""Supervised fine-tuning on a corpus of traces: a run folder with an adapter (or weights) and a tokenizer.

trl's SFTTrainer runs the loop; `SftTrainer` replaces what a small machine needs otherwise: the loss at label positions
(`label_loss`), float32 masters of bfloat16 weights (`master_adamw`), batches of similar length in an order that depends
on seed and epoch alone, a learning rate that can follow the clock, checkpoints that appear whole or not at all.
The paper's hyper-parameters are not public; every setting is ours.

Guarantee: the same config, corpus, versions and machine give the same weights bit for bit on a CPU, and a run that was
interrupted and resumed gives what an uninterrupted one gives; both without `max_minutes`, which follows the clock.
"""

import dataclasses
import difflib
import json
import logging
import math
import resource
import shutil
import signal
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    set_seed,
)
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from tagpr_data.errors import CheckFailed, InputError
from tagpr_data.journal import folder_lock
from tagpr_data.records import RunManifest
from tagpr_data.tables import write_text
from tagpr_data.tags import TagSet
from tagpr_train import base_model, dataset, label_loss, runs, tag_tokens
from tagpr_train.config import CHECKPOINTING, Sft
from tagpr_train.master_adamw import MasterAdamW

logger = logging.getLogger(__name__)

Report = Callable[[dict[str, Any]], None]

_SAVED_CHECKPOINTS = 2


def train(config: Sft, *, resume: bool = False, report: Report | None = None) -> RunManifest:
    """Train as `config` says into `config.output`; give the run's manifest.

    Its status is `running` when SIGTERM or SIGINT stopped it: the folder then holds a checkpoint, and `resume` goes on.
    A complete run is given back as it is when `resume` is set. `report` gets every line of metrics.jsonl.
    """
    arguments = trainer_arguments(config)
    corpus = dataset.read_manifest(config.corpus)
    tagset = dataset.corpus_tagset(corpus, config.tagset)
    name = base_model.resolve(config.model)
    with folder_lock(config.output):
        manifest = runs.open_run(config.output, "sft", config, {corpus.name: corpus.content_hash}, config.seed, resume)
        if manifest.status == "complete":
            return manifest
        if config.threads:
            torch.set_num_threads(config.threads)
        set_seed(config.seed)
        model, tokenizer = load(name, config)
        row_ids = tag_tokens.add_marks(model, tokenizer, tagset) if config.single_token_tags else []
        train_set, validation_set = (
            _examples(config, corpus, split, model, tokenizer, tagset) for split in ("train", "validation")
        )
        _check_not_empty(train_set, config)
        label_loss.install(model, prompt_gradient=config.prompt_gradient)
        model = with_adapter(model, config, row_ids)
        trainer = SftTrainer(config, arguments, model, tokenizer, train_set, validation_set, report)
        with _stopping_on_signals(trainer):
            trainer.train(resume_from_checkpoint=_newest_checkpoint(config.output))
        if trainer.stopped_by is not None:
            return manifest
        results = trainer.results() | {"counts": train_set.counts, "trainable_rows": len(row_ids)}
        with runs.atomic_folder(config.output / "model") as folder:
            save(trainer.network, tokenizer, folder, merge=config.merge)
        runs.finish_run(config.output, manifest, "complete", results)
        shutil.rmtree(config.output / "checkpoints", ignore_errors=True)
        return manifest.model_copy(update={"status": "complete", "results": results})


def trainer_arguments(config: Sft) -> SFTConfig:
    """Give trl's settings: ours where trl's defaults do not fit, then those under `[trainer]`. InputError on an
    option trl does not know or a value it refuses."""
    known = {field.name for field in dataclasses.fields(SFTConfig)}
    for name in config.trainer:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"trainer.{name} is not an option of trl.SFTConfig{hint}")
    options: dict[str, Any] = {}
    if not any(name in config.trainer for name in CHECKPOINTING):
        options[next(name for name in CHECKPOINTING if name in known)] = False  # trl's default is on
    options |= {
        "per_device_train_batch_size": 6,
        "num_train_epochs": 10_000 if config.max_minutes else 1,  # the budget ends the run
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_steps": 100,
        "report_to": "none",
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    fixed: dict[str, Any] = {
        "output_dir": str(config.output),
        "seed": config.seed,
        "data_seed": config.seed,
        "bf16": False,  # the weights themselves are bfloat16; autocast would cast them in every step
        "max_length": None,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "remove_unused_columns": False,
        "disable_tqdm": True,
    }
    try:
        return SFTConfig(**(options | config.trainer | fixed))
    except (TypeError, ValueError) as error:
        raise InputError(f"trl refuses the options under [trainer]: {error}") from None


def load(name: str, config: Sft) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load model and tokenizer; safetensors only, no remote code."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=config.revision)
        model = AutoModelForCausalLM.from_pretrained(
            name, revision=config.revision, dtype=getattr(torch, config.dtype), use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise InputError(f"model {config.model!r} cannot be loaded: {str(error).splitlines()[0]}") from None
    end = dataset.end_of_turn(tokenizer)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)  # generation stops where the trained turn ends
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return model, tokenizer


def with_adapter(model: PreTrainedModel, config: Sft, row_ids: list[int]) -> Any:
    """Wrap the model in a LoRA adapter that also trains the rows of the added tokens; as it is without one."""
    if config.adapter == "none":
        return model
    from peft import LoraConfig, get_peft_model

    targets = config.lora.target_modules
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora.r,
        lora_alpha=config.lora.alpha,  # pyright: ignore[reportArgumentType] - a float works; peft says int
        lora_dropout=config.lora.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        trainable_token_indices=tag_tokens.trainable_rows(model, row_ids) or None,
    )
    try:
        return get_peft_model(model, lora, autocast_adapter_dtype=False)
    except ValueError as error:
        raise InputError(f"lora.target_modules = {targets!r} does not fit the model: {error}") from None


def save(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path, *, merge: bool) -> None:
    """Write what an evaluation loads: the adapter, or with `merge` (and without an adapter) whole weights, and the
    tokenizer. For an adapter the base model must first be widened to `len(tokenizer)` where that is larger."""
    if merge and hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    _save_weights(model, folder)
    tokenizer.save_pretrained(folder)


class SftTrainer(SFTTrainer):
    """trl's trainer with our loss, order, schedule, optimiser and checkpoints."""

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        config: Sft,
        arguments: SFTConfig,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        train_set: dataset.Encoded,
        validation_set: dataset.Encoded,
        report: Report | None = None,
    ) -> None:
        self.config = config
        self.stopped_by: int | None = None
        self.validation_examples = validation_set.examples
        self.lengths = [len(example) for example in train_set.examples]
        self._staging: Path | None = None
        rows = Dataset.from_list([dataclasses.asdict(example) for example in train_set.examples])
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=rows,
            processing_class=tokenizer,
            data_collator=dataset.Collator(tokenizer.pad_token_id),  # pyright: ignore[reportArgumentType]
        )
        self.network: Any = self.model
        self.remove_callback(PrinterCallback)
        self.clock = _Clock(config, report)
        self.add_callback(_Steps(self))

    def train(self, resume_from_checkpoint: Path | None = None, **kwargs: Any) -> Any:
        """Train to the end, or until a signal comes; from a checkpoint's step, clock and random state if given."""
        step = 0
        if resume_from_checkpoint is not None:
            step = int(resume_from_checkpoint.name.rpartition("-")[2])
            self.clock.load(resume_from_checkpoint)
            logger.info("resuming after step %d", step)
        self.metrics_file = runs.Metrics(self.config.output / "metrics.jsonl", after_step=step)
        try:
            return super().train(
                resume_from_checkpoint=str(resume_from_checkpoint) if resume_from_checkpoint else None, **kwargs
            )
        finally:
            self.metrics_file.close()

    def results(self) -> dict[str, Any]:
        """Give the run's headline numbers; measures the validation loss. Losses are nats per completion token."""
        losses = [line["loss"] for line in self.state.log_history if "loss" in line]
        return {
            "steps": self.state.global_step,
            "train_loss_last_10": sum(losses[-10:]) / max(1, len(losses[-10:])),
            "validation_loss": self.validation_loss(),
            "validation_examples": len(self.validation_examples),
            **self.clock.totals(),
        }

    @torch.no_grad()
    def validation_loss(self) -> float | None:
        """Give the mean loss per completion token, unweighted, over the validation examples; None without any."""
        if not self.validation_examples:
            return None
        was_training = self.network.training
        self.network.eval()
        total, tokens = 0.0, 0
        examples = sorted(self.validation_examples, key=len)
        size = self.args.per_device_train_batch_size * 2
        for start in range(0, len(examples), size):
            rows = [dataclasses.asdict(example) for example in examples[start : start + size]]
            batch = self._prepare_inputs(self.data_collator(rows))
            batch["weights"] = (batch["labels"] != dataset.IGNORED).float()
            total += self._summed_loss(self.network, batch).item()
            tokens += int(batch["weights"].sum().item())
        self.network.train(was_training)
        return total / tokens

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Give Σ weight · −log p / Σ weight, the lower sum over all batches of the step on all ranks."""
        assert not return_outputs, "there are no logits to return"
        weight = inputs["weights"].sum() if num_items_in_batch is None else num_items_in_batch
        loss = self._summed_loss(model, inputs) / weight
        return loss * self.accelerator.num_processes if num_items_in_batch is not None else loss

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Take forward and backward; a loss that is not finite stops the run before it reaches a weight."""
        self.clock.examples += len(inputs["ids"])
        self.clock.tokens += int(inputs["prefix_mask"].sum() + inputs["attention_mask"].sum())
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not math.isfinite(loss.item()):
            path = self.config.output / "bad_batch.json"
            batch = {name: value.tolist() if torch.is_tensor(value) else value for name, value in inputs.items()}
            write_text(path, json.dumps({"step": self.state.global_step, "loss": str(loss.item()), **batch}))
            raise CheckFailed(
                f"the loss is {loss.item()} in step {self.state.global_step + 1}; the batch is in {path}. "
                'A lower trainer.learning_rate or dtype = "float32" may help'
            )
        return loss

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Make the optimiser; AdamW on float32 masters where weights are narrower."""
        trained = [weight for weight in self.network.parameters() if weight.requires_grad]
        if any(weight.dtype != torch.float32 for weight in trained):
            optimiser, options = self.get_optimizer_cls_and_kwargs(self.args, self.network)
            if optimiser is not torch.optim.AdamW:
                raise InputError(
                    f'trainer.optim = {self.config.trainer["optim"]!r} needs dtype = "float32"; AdamW does not'
                )
            self.optimizer_cls_and_kwargs = (MasterAdamW, options)
        return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Make the schedule: warm-up by steps, hold, linear decay to 0; by the clock where there is a budget."""
        if "lr_scheduler_type" in self.config.trainer:
            return super().create_scheduler(num_training_steps, optimizer)

        def factor(step: int) -> float:
            progress = max(step / num_training_steps, self.clock.share())
            return learning_rate_factor(step, progress, self.config.warmup_steps, self.config.hold)

        optimiser: Any = optimizer or self.optimizer
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def floating_point_ops(self, inputs: Any) -> int:
        """Count nothing; tokens per second are measured instead."""
        return 0

    def _summed_loss(self, model: Any, inputs: Any) -> torch.Tensor:
        return model(**{name: value for name, value in inputs.items() if name != "ids"})

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor:
        weight = torch.stack([batch["weights"].sum() for batch in batch_samples]).sum().to(device)
        return self.accelerator.gather(weight).sum() if self.args.world_size > 1 else weight  # pyright: ignore

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler:
        return _Order(self)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or self.args.output_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = self.config.output / "checkpoints"
        with runs.atomic_folder(folder / f"step-{self.state.global_step}") as self._staging:
            Trainer._save_checkpoint(self, model, trial)  # trl's own writes a model card around it
            for inner in self._staging.glob("checkpoint-*"):
                for file in inner.iterdir():
                    file.rename(self._staging / file.name)
                inner.rmdir()
            self.clock.save(self._staging)
        self._staging = None
        for old in _checkpoints(self.config.output)[:-_SAVED_CHECKPOINTS]:
            shutil.rmtree(old)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        assert output_dir is not None
        _save_weights(self.network, Path(output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        adapter = Path(resume_from_checkpoint) / "adapter_model.safetensors"
        if not adapter.is_file():
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        set_peft_model_state_dict(self.network, load_file(adapter))  # transformers' way would make it float32


def learning_rate_factor(step: int, progress: float, warmup_steps: int, hold: float) -> float:
    """Give the share of the full learning rate: linear warm-up over `warmup_steps`, 1 until `progress` (0 to 1)
    reaches `hold`, then linear decay to 0 at progress 1. `step` counts from 0."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if progress <= hold:
        return 1.0
    return max(0.0, (1 - progress) / (1 - hold))


class _Order(torch.utils.data.Sampler):
    """`dataset.batch_order` of the epoch the trainer is in, also after a resume in its middle."""

    def __init__(self, trainer: SftTrainer) -> None:
        self._trainer = trainer

    def __len__(self) -> int:
        return len(self._trainer.lengths)

    def __iter__(self) -> Iterator[int]:
        arguments = self._trainer.args
        size = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
        epoch = int(self._trainer.state.epoch or 0)
        return iter(dataset.batch_order(self._trainer.lengths, size, self._trainer.config.seed, epoch))


class _Clock:
    """How long and how much has been trained, over all sittings of a run."""

    def __init__(self, config: Sft, report: Report | None) -> None:
        self.examples = self.tokens = 0
        self.report = report
        self._budget = config.max_minutes * 60 if config.max_minutes else None
        self._earlier = 0.0
        self._start: float | None = None
        self._last = (0.0, 0)
        self._step_end = 0.0

    def start(self) -> None:
        """Begin a sitting."""
        self._start = time.monotonic()
        self._last = (self.seconds(), self.tokens)
        self._step_end = self.seconds()

    def seconds(self) -> float:
        """Give the seconds trained."""
        return self._earlier + (time.monotonic() - self._start if self._start is not None else 0.0)

    def share(self) -> float:
        """Give the share of the time budget that is spent; 0 without a budget."""
        return self.seconds() / self._budget if self._budget else 0.0

    def is_spent(self) -> bool:
        """Tell, after a step, whether another one as long would overrun the budget."""
        seconds = self.seconds()
        step_seconds, self._step_end = seconds - self._step_end, seconds
        return self._budget is not None and seconds + step_seconds > self._budget

    def line(self, state: Any) -> dict[str, Any]:
        """Give the fields of a metrics line about speed and memory since the last one."""
        seconds, tokens = self.seconds(), self.tokens
        since, before = self._last
        self._last = (seconds, tokens)
        left = seconds * (state.max_steps / max(1, state.global_step) - 1)
        if self._budget:
            left = min(left, max(0.0, self._budget - seconds))
        return {
            "tokens_per_second": round((tokens - before) / max(1e-9, seconds - since), 1),
            "seconds": round(seconds, 3),
            "seconds_left": round(left, 1),
            "memory_gib": round(_peak_memory() / 2**30, 3),
        }

    def totals(self) -> dict[str, Any]:
        """Give the whole run's figures."""
        return {
            "examples": self.examples,
            "tokens": self.tokens,
            "seconds": round(self.seconds(), 1),
            "tokens_per_second": round(self.tokens / max(1e-9, self.seconds()), 1),
            "peak_memory_gib": round(_peak_memory() / 2**30, 2),
        }

    def save(self, folder: Path) -> None:
        """Write what `load` needs."""
        (folder / "clock.json").write_text(json.dumps([self.seconds(), self.examples, self.tokens]))

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint."""
        self._earlier, self.examples, self.tokens = json.loads((folder / "clock.json").read_text())

    def stop(self) -> None:
        """End a sitting; later work (validation, saving) is not training time."""
        self._earlier, self._start = self.seconds(), None


class _Steps(TrainerCallback):
    """What happens between steps: metrics, validation, and the reasons to stop."""

    def __init__(self, trainer: SftTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer.clock.start()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer.clock.stop()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self._trainer
        if trainer.clock.is_spent():
            control.should_training_stop = True
        self._stop_if_asked(control)
        every = trainer.config.eval_every_steps
        if every and state.global_step % every == 0 and (loss := trainer.validation_loss()) is not None:
            self._write({"step": state.global_step, "validation_loss": loss})

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs and state.is_world_process_zero:
            line = {name: logs[name] for name in ("loss", "learning_rate", "grad_norm", "epoch") if name in logs}
            speed = self._trainer.clock.line(state)
            self._write({"step": state.global_step, "steps": state.max_steps, **line, **speed})
            self._stop_if_asked(control)

    def _stop_if_asked(self, control: Any) -> None:
        if self._trainer.stopped_by is not None:
            control.should_save = control.should_training_stop = True

    def _write(self, line: dict[str, Any]) -> None:
        self._trainer.metrics_file.append(line)
        if self._trainer.clock.report is not None:
            self._trainer.clock.report(line)


@contextmanager
def _stopping_on_signals(trainer: SftTrainer) -> Generator[None, None, None]:
    """Let SIGTERM and SIGINT end the run after the step at hand; a second one acts as ever."""

    def stop(number: int, frame: Any) -> None:
        trainer.stopped_by = number
        signal.signal(number, before[signal.Signals(number)])
        logger.info("stopping after this step; a checkpoint will be written")

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _examples(
    config: Sft,
    corpus: Any,
    split: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tagset: TagSet,
) -> dataset.Encoded:
    traces = dataset.read_traces(config.corpus, corpus, split, config.tasks)
    if split == "validation":
        traces = _spread(traces, config.eval_examples)
    own = model.config.get_text_config().max_position_embeddings
    encoded = dataset.encode(
        traces,
        tokenizer,
        tagset,
        context=min(config.max_tokens or own, own),
        target=config.target,
        answer_weight=config.answer_weight,
    )
    for reason, count in encoded.counts.items():
        if count:
            logger.warning("%s: %d of %d traces: %s", split, count, len(traces), reason)
    return encoded


def _spread(rows: Sequence[Any], count: int) -> list[Any]:
    """Give `count` rows at even distances."""
    if count >= len(rows):
        return list(rows)
    return [rows[index * len(rows) // count] for index in range(count)]


def _check_not_empty(train_set: dataset.Encoded, config: Sft) -> None:
    if not train_set.examples:
        why = f"; {train_set.counts}" if any(train_set.counts.values()) else ""
        raise InputError(f"{config.corpus} holds no trace to train on (tasks: {config.tasks or 'all'}){why}")


def _save_weights(model: Any, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if hasattr(model, "peft_config"):
        model.save_pretrained(folder, save_embedding_layers=False)  # the trained rows are in the adapter already
        model.get_base_model().generation_config.save_pretrained(folder)
    else:
        model.save_pretrained(folder)


def _checkpoints(folder: Path) -> list[Path]:
    """Give the checkpoints of a run, oldest first."""
    found = (folder / "checkpoints").glob("step-*")
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def _newest_checkpoint(folder: Path) -> Path | None:
    return (_checkpoints(folder) or [None])[-1]


def _peak_memory() -> int:
    """Give the most memory held so far, in bytes: the GPU's where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
