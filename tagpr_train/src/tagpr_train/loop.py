"""The training loop that all stages share: what a small machine and a `kill -9` need beyond trl.

`Durable` is mixed into a trl trainer, before it: `class SftTrainer(Durable, SFTTrainer)`. It brings batches of similar
length in an order that depends on seed and epoch alone, float32 masters of bfloat16 weights, a learning rate that can
follow the clock, metrics as JSON lines, a stop at signals, at a spent budget and at a loss that is not finite, and
checkpoints that appear whole or not at all. Guarantee: an interrupted and resumed run takes the same steps as an
uninterrupted one (without `max_minutes`, which follows the clock); several ranks take the steps that one takes with
their batches put together, up to rounding, and stop all at the same step.
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
from transformers import PrinterCallback, Trainer, TrainerCallback
from transformers.integrations import get_reporting_integration_callbacks

from tagpr_data.errors import CheckFailed, InputError
from tagpr_data.tables import write_text
from tagpr_train import dataset, ranks, runs
from tagpr_train.config import CHECKPOINTING
from tagpr_train.master_adamw import MasterAdamW

logger = logging.getLogger(__name__)

Report = Callable[[dict[str, Any]], None]
Weights = dict[str, Any] | None

_SAVED_CHECKPOINTS = 2
_LOGGED = ("loss", "learning_rate", "grad_norm", "epoch", "accuracy", "margin")  # of what the trainers log


def trainer_arguments(kind: Any, config: Any, batch_size: int, fixed: dict[str, Any]) -> Any:
    """Give trl's settings as `kind` (SFTConfig, RewardConfig): ours where trl's defaults do not fit, then those under
    `[trainer]`, then `fixed`. InputError on an option trl does not know or a value it refuses."""
    known = {field.name for field in dataclasses.fields(kind)}
    for name in config.trainer:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"trainer.{name} is not an option of trl.{kind.__name__}{hint}")
    options: dict[str, Any] = {}
    if not any(name in config.trainer for name in CHECKPOINTING):
        options[next(name for name in CHECKPOINTING if name in known)] = False  # trl's default is on
    options |= {
        "per_device_train_batch_size": batch_size,
        "num_train_epochs": 10_000 if config.max_minutes else 1,  # the budget ends the run
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_steps": 100,
        "report_to": "none",
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "ddp_find_unused_parameters": kind.__name__ == "RewardConfig",  # a PRMU without users has some
    }
    fixed = {
        "output_dir": str(config.output),
        "seed": config.seed,
        "data_seed": config.seed,
        "bf16": False,  # the weights themselves are bfloat16; autocast would cast them in every step
        "max_length": None,
        "remove_unused_columns": False,
        "disable_tqdm": True,
        **fixed,
    }
    fixed = {name: value for name, value in fixed.items() if name in known}  # not every trainer knows `max_length`
    try:
        arguments = kind(**(options | config.trainer | fixed))
    except (TypeError, ValueError) as error:
        raise InputError(f"trl refuses the options under [trainer]: {error}") from None
    arguments.report_to = [name for name in arguments.report_to if name != "tensorboard"]  # `runs.Metrics` writes it
    try:
        for tracker in get_reporting_integration_callbacks(arguments.report_to):
            tracker()
    except (RuntimeError, ImportError, ValueError) as error:
        raise InputError(f"trainer.report_to = {config.trainer.get('report_to')!r}: {error}") from None
    return arguments


class Durable(Trainer):
    """A trl trainer's first base; see the module docstring. The stage gives what raises NotImplementedError here."""

    def __init__(self, config: Any, lengths: list[int], report: Report | None, **options: Any) -> None:
        self.config = config
        self.signalled: int | None = None
        self.stopped_by: int | None = None
        self.lengths = lengths
        self.metrics_file: runs.Metrics | None = None
        self._bad: str | None = None
        self._staging: Path | None = None
        super().__init__(**options)
        self.network: Any = self.model
        self.remove_callback(PrinterCallback)
        self.clock = Clock(config, report if ranks.is_first() else None)
        self.add_callback(_Steps(self))

    def validation_loss(self) -> float | None:
        """Give the loss on held-out data in nats; None without any."""
        raise NotImplementedError

    def save_weights(self, folder: Path, weights: Weights = None) -> None:
        """Write the weights of a checkpoint, as `_load_from_checkpoint` reads them, on the first rank; `weights` are
        those that `gathered` gave."""
        raise NotImplementedError

    def mute(self, inputs: Any) -> None:
        """Make a batch count for nothing in the loss; it stands in where there are fewer examples than ranks."""
        raise NotImplementedError

    def count(self, inputs: Any) -> tuple[int, int]:
        """Give how many examples and tokens a batch holds."""
        raise NotImplementedError

    def is_sharded(self) -> bool:
        """Whether a rank holds a part of the weights only (FSDP, DeepSpeed), so that every pass needs all ranks."""
        return self.is_fsdp_enabled or self.is_deepspeed_enabled

    def gathered(self) -> Weights:
        """Give the whole weights by name on the first rank, where they are sharded, from all ranks together; None where
        each rank has them in its model."""
        if not self.is_sharded():
            return None
        state = self.accelerator.get_state_dict(self.model_wrapped if self.is_deepspeed_enabled else self.model)
        once = {name for name, _ in (*self.network.named_parameters(), *self.network.named_buffers())}
        return {name: weight for name, weight in state.items() if name in once}  # a tied weight came under each name

    def refuse_sharded(self, what: str) -> None:
        """Raise InputError where weights are sharded and `what` needs them whole."""
        if self.is_sharded():
            raise InputError(f"{what} needs a whole model in every process, and FSDP or DeepSpeed splits it here")

    def batch(self, inputs: Any) -> dict[str, Any]:
        """Give the batch whose loss was taken, by name, to be saved when the loss is not finite."""
        return inputs

    def logged(self, logs: dict[str, Any]) -> dict[str, Any]:
        """Give the part of what the trainer logs that belongs into a line of metrics.jsonl."""
        return {name: logs[name] for name in _LOGGED if name in logs}

    def write(self, line: dict[str, Any]) -> None:
        """Add a line of held-out figures to the metrics, and tell it to the trackers of `trainer.report_to`, which hear
        by themselves of what trl logs in a step only."""
        self.add_line(line)
        if self.args.report_to:
            self.callback_handler.on_log(self.args, self.state, self.control, line)

    def add_line(self, line: dict[str, Any]) -> None:
        """Add a line to the metrics, on the first rank."""
        if self.metrics_file is not None:
            self.metrics_file.append(line)
        if self.clock.report is not None:
            self.clock.report(line)

    def train(self, resume_from_checkpoint: Path | None = None, **kwargs: Any) -> Any:
        """Train to the end, or until a signal comes; from a checkpoint's step, clock and random state if given."""
        metrics = self.config.output / "metrics.jsonl"
        step = -1 if metrics.exists() else 0  # killed before its first checkpoint: even the lines of step 0 come anew
        if resume_from_checkpoint is not None:
            step = int(resume_from_checkpoint.name.rpartition("-")[2])
            self.clock.load(resume_from_checkpoint)
            logger.info("resuming after step %d", step)
        if ranks.is_first():
            self.metrics_file = runs.Metrics(metrics, after_step=step)
        try:
            return super().train(
                resume_from_checkpoint=str(resume_from_checkpoint) if resume_from_checkpoint else None, **kwargs
            )
        finally:
            if self.metrics_file is not None:
                self.metrics_file.close()

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Take forward and backward; a loss that is not finite stops the run before it reaches a weight."""
        self.clock.count(*self.count(inputs))
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not math.isfinite(loss.item()):
            rank = f"_rank{ranks.index()}" if ranks.count() > 1 else ""
            path = self.config.output / f"bad_batch{rank}.json"
            batch = {
                name: value.tolist() if torch.is_tensor(value) else value for name, value in self.batch(inputs).items()
            }
            write_text(path, json.dumps({"step": self.state.global_step, "loss": str(loss.item()), **batch}))
            self._bad = (
                f"the loss is {loss.item()} in step {self.state.global_step + 1}; the batch is in {path}. "
                'A lower trainer.learning_rate or dtype = "float32" may help'
            )
            if ranks.count() == 1:
                raise CheckFailed(self._bad)
        return loss

    def agree(self) -> None:
        """Let all ranks know, before the weights change, what each of them counted, how long the first one has worked,
        which signal came to any of them, and whether a loss was not finite: then all of them stop."""
        if ranks.count() == 1:
            return
        seconds = self.clock.seconds() if ranks.is_first() else 0.0
        mine = (*self.clock.pending, seconds, self.signalled or 0, self._bad is not None)
        examples, tokens, seconds, signalled, bad = ranks.summed(*mine)
        self.clock.take(int(examples), int(tokens), seconds)
        if signalled and self.stopped_by is None:
            self.stopped_by = next(number for number in ranks.gathered([self.signalled]) if number)
        if bad:
            raise CheckFailed(next(message for message in ranks.gathered([self._bad]) if message))

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

    def get_train_dataloader(self) -> torch.utils.data.DataLoader[Any]:
        """Give this rank's share of the batches that `global_batches` gives."""
        arguments = self.args
        return torch.utils.data.DataLoader(
            _Rows(self.train_dataset),
            batch_sampler=_Batches(self),
            collate_fn=self._collate,
            num_workers=arguments.dataloader_num_workers,
            pin_memory=arguments.dataloader_pin_memory,
            persistent_workers=arguments.dataloader_persistent_workers,
            prefetch_factor=arguments.dataloader_prefetch_factor,
        )

    def global_batches(self) -> list[list[int]]:
        """Give the batches of the epoch the trainer is in, each for one forward pass of all ranks together."""
        size = self.args.train_batch_size * self.args.world_size
        epoch = int(self.state.epoch or 0)
        step = size * self.args.gradient_accumulation_steps
        order = dataset.batch_order(self.lengths, step, self.config.seed, epoch, self.config.length_group_batches)
        return [order[start : start + size] for start in range(0, len(order), size)]

    def share(self, batch: Sequence[int]) -> list[int]:
        """Give this rank's part of a batch."""
        return list(batch[self.args.process_index :: self.args.world_size])

    def _collate(self, rows: Sequence[tuple[Any, bool]]) -> Any:
        batch: Any = self.data_collator([row for row, _ in rows])
        if not all(counts for _, counts in rows):
            self.mute(batch)
        return batch

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or self.args.output_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = self.config.output / "checkpoints"
        with runs.atomic_folder(folder / f"step-{self.state.global_step}", shared=True) as self._staging:
            Trainer._save_checkpoint(self, model, trial)  # trl's own writes a model card around it
            ranks.wait()
            if ranks.is_first():
                for inner in self._staging.glob("checkpoint-*"):
                    for file in inner.iterdir():
                        file.rename(self._staging / file.name)
                    inner.rmdir()
                self.clock.save(self._staging)
        self._staging = None
        if self.metrics_file is not None:
            self.metrics_file.flush()
        if ranks.is_first():
            for old in _checkpoints(self.config.output)[:-_SAVED_CHECKPOINTS]:
                shutil.rmtree(old)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        assert output_dir is not None
        if ranks.is_first():
            self.save_weights(Path(output_dir), state_dict)


def weight_of_step(batches: Sequence[dict[str, Any]]) -> float:
    """Give the sum of `weights` over the micro-batches of a step on all ranks: what a step's loss is divided by."""
    return ranks.summed(sum(float(batch["weights"].sum()) for batch in batches))[0]


def learning_rate_factor(step: int, progress: float, warmup_steps: int, hold: float) -> float:
    """Give the share of the full learning rate: linear warm-up over `warmup_steps`, 1 until `progress` (0 to 1)
    reaches `hold`, then linear decay to 0 at progress 1. `step` counts from 0."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if progress <= hold:
        return 1.0
    return max(0.0, (1 - progress) / (1 - hold))


class _Rows(torch.utils.data.Dataset[Any]):
    """Rows, each with whether it counts: by its index; by the index's complement, one that does not."""

    def __init__(self, rows: Any) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Any, bool]:
        return self._rows[max(index, ~index)], index >= 0


class _Batches(torch.utils.data.Sampler[list[int]]):
    """This rank's part of each batch, also after a resume in the middle of an epoch; a stand-in where it has none."""

    def __init__(self, trainer: Durable) -> None:
        self._trainer = trainer

    def __len__(self) -> int:
        return len(self._trainer.global_batches())

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._trainer.global_batches():
            yield self._trainer.share(batch) or [~batch[0]]


class Clock:
    """How long and how much has been trained, over all sittings of a run."""

    def __init__(self, config: Any, report: Report | None) -> None:
        self.examples = self.tokens = 0
        self.pending = (0, 0)
        self.report = report
        self._agreed: float | None = None
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

    def count(self, examples: int, tokens: int) -> None:
        """Note what this rank has read; with several ranks it is in the totals after `take`."""
        if ranks.count() == 1:
            self.examples, self.tokens = self.examples + examples, self.tokens + tokens
        else:
            self.pending = (self.pending[0] + examples, self.pending[1] + tokens)

    def take(self, examples: int, tokens: int, seconds: float) -> None:
        """Add what all ranks have read since the last time, and take the first one's seconds for the budget."""
        self.examples, self.tokens, self._agreed = self.examples + examples, self.tokens + tokens, seconds
        self.pending = (0, 0)

    def share(self) -> float:
        """Give the share of the time budget that is spent, the same on all ranks; 0 without a budget."""
        return self._spent() / self._budget if self._budget else 0.0

    def _spent(self) -> float:
        if ranks.count() == 1:
            return self.seconds()
        return self._earlier if self._agreed is None else self._agreed

    def is_spent(self) -> bool:
        """Tell, after a step, whether another one as long would overrun the budget."""
        seconds = self._spent()
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
        (folder / "clock.json").write_text(json.dumps([self.seconds(), self.examples, self.tokens, ranks.count()]))

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint. InputError when it is of another number of processes: they read other batches."""
        self._earlier, self.examples, self.tokens, count = json.loads((folder / "clock.json").read_text())
        if count != ranks.count():
            raise InputError(
                f"{folder} was written by {count} processes and now there are {ranks.count()}; go on with {count}"
            )

    def stop(self) -> None:
        """End a sitting; later work (validation, saving) is not training time."""
        self._earlier, self._start = self.seconds(), None


class _Steps(TrainerCallback):
    """What happens between steps: metrics, validation, and the reasons to stop."""

    def __init__(self, trainer: Durable) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer.clock.start()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer.clock.stop()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer.agree()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self._trainer
        if trainer.clock.is_spent():
            control.should_training_stop = True
        self._stop_if_asked(control)
        every = trainer.config.eval_every_steps
        if every and state.global_step % every == 0 and (loss := trainer.validation_loss()) is not None:
            trainer.write({"step": state.global_step, "validation_loss": loss})

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs and state.is_world_process_zero:
            line = self._trainer.logged(logs)
            speed = self._trainer.clock.line(state)
            self._trainer.add_line({"step": state.global_step, "steps": state.max_steps, **line, **speed})
            self._stop_if_asked(control)

    def _stop_if_asked(self, control: Any) -> None:
        if self._trainer.stopped_by is not None:
            control.should_save = control.should_training_stop = True


@contextmanager
def stopping_on_signals(trainer: Durable) -> Generator[None, None, None]:
    """Let SIGTERM and SIGINT end the run after the step at hand; a second one acts as ever."""

    def stop(number: int, frame: Any) -> None:
        trainer.signalled = number
        if ranks.count() == 1:
            trainer.stopped_by = number  # else all ranks agree on the step
        signal.signal(number, before[signal.Signals(number)])
        logger.info("stopping after this step; a checkpoint will be written")

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _checkpoints(folder: Path) -> list[Path]:
    """Give the checkpoints of a run, oldest first."""
    found = (folder / "checkpoints").glob("step-*")
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def newest_checkpoint(folder: Path) -> Path | None:
    """Give the last whole checkpoint of a run; None before the first."""
    return (_checkpoints(folder) or [None])[-1]


def _peak_memory() -> int:
    """Give the most memory held so far, in bytes: the GPU's where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
