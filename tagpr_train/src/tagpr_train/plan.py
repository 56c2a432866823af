"""What a run will need, before it starts: memory, steps, tokens, hours and price, and what would need less.

No weights are loaded: bytes and FLOP come from the settings, the model's config.json and the data (`footprint`,
`workload`). Hours need a speed: tokens/s or FLOP/s as measured on the machine, or a probe, which takes a few real steps
of each stage. A stage that runs out of memory says what this module would change. How far predictions are off is
measured: README, "Plan".
"""

import dataclasses
import errno
import logging
import math
import os
import resource
import tempfile
import tomllib
import traceback
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tagpr_data.config import load
from tagpr_data.errors import CheckFailed, InputError, shorten
from tagpr_train import footprint, recipe, workload
from tagpr_train.config import CHECKPOINTING, RL_DEFAULTS, Prmu, Rl, Sft
from tagpr_train.footprint import Machine, Prediction, Settings, predict
from tagpr_train.recipe import Stage

logger = logging.getLogger(__name__)

GIB = 2**30

PROBE_STEPS = 4
"""Steps that a probe takes; the first does not count."""


@dataclasses.dataclass(frozen=True, slots=True)
class Planned:
    """One stage and what it will need."""

    stage: Stage
    """What was planned."""
    prediction: Prediction
    """By the settings."""
    hours: float | None
    """At the speed that was given or probed, `max_minutes` at most; None without one."""
    probed_gib: float | None = None
    """Most memory held in a probe."""


def stages(path: Path, overrides: Sequence[str] = ()) -> tuple[Stage, ...]:
    """Read the file of one stage, or a recipe, with overrides as in the command that would run it."""
    try:
        keys = tomllib.loads(path.read_text(encoding="utf-8")).keys() if path.is_file() else set[str]()
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        keys = set[str]()  # `load` says what is wrong
    if "stages" in keys:
        loaded, for_stages = recipe.load_recipe(path, overrides)
        return recipe.chain(loaded, path.parent, for_stages).stages
    given = {one.partition("=")[0].strip() for one in overrides} | set(keys)
    kind: recipe.Kind = "prmu" if "pairs" in given else "rl" if "dataset" in given else "sft"
    return (Stage(path.stem, kind, load(recipe.KINDS[kind][0], path, overrides)),)


def plan(
    found: Sequence[Stage],
    machine: Machine,
    tokens_per_second: float | None = None,
    flop_per_second: float | None = None,
    probing: bool = False,
) -> list[Planned]:
    """Predict stages in their order; later ones start from what earlier ones leave. In RL after SFT, completions are
    taken to be as long as those that SFT teaches."""
    products = _products(found)
    written: float | None = None
    made: list[Planned] = []
    for stage in found:
        settings, speed, probed = stage.settings, flop_per_second, None
        one = predict(settings, machine, products, written if isinstance(settings, Rl) else None)
        if isinstance(settings, Sft) and one.work.data_tokens:
            batches = one.work.batches
            written = sum(batch.labels for batch in batches) / sum(batch.rows for batch in batches)
        if probing:
            speed, probed = probe(_startable(settings, products))
        made.append(Planned(stage, one, hours(settings, one, machine, tokens_per_second, speed), probed))
    return made


def hours(
    settings: Settings,
    prediction: Prediction,
    machine: Machine,
    tokens_per_second: float | None = None,
    flop_per_second: float | None = None,
) -> float | None:
    """Give the hours of a stage at a speed, tokens/s of all processes together or FLOP/s of each, `max_minutes` at
    most; None without a speed."""
    work = prediction.work
    if work.steps is None or (tokens_per_second is None and flop_per_second is None):
        return None
    if flop_per_second is not None:
        time = prediction.flop / flop_per_second / 3600
    else:
        assert tokens_per_second is not None
        answers = work.drawing.held_out * (work.drawing.prompt + work.drawing.completion) if work.drawing else 0.0
        time = (work.tokens + answers * machine.processes) / tokens_per_second / 3600
    return min(time, settings.max_minutes / 60) if settings.max_minutes else time


def table(rows: Sequence[Planned], price_per_hour: float | None = None) -> str:
    """Give the stages as lines of text, with their sum where hours are known."""
    head = ["stage", "kind", "steps", "examples", "tokens", "PFLOP", "memory GiB", "hours", "price"]
    lines = [head]
    for row in rows:
        one, work, time = row.prediction, row.prediction.work, row.hours
        lines.append(
            [
                row.stage.name, row.stage.kind, "?" if work.steps is None else f"{work.steps:,}", f"{work.examples:,}",
                f"{work.tokens:,}", f"{one.flop / 1e15:.3g}", f"{one.peak / GIB:.1f}",
                "?" if time is None else f"{time:.3g}",
                "" if price_per_hour is None or time is None else f"{time * price_per_hour:.2f}",
            ]
        )  # fmt: skip
    times = [row.hours for row in rows if row.hours is not None]
    if len(rows) > 1 and len(times) == len(rows):
        price = "" if price_per_hour is None else f"{math.fsum(times) * price_per_hour:.2f}"
        lines.append(["all", "", "", "", "", "", "", f"{math.fsum(times):.3g}", price])
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    left = 2  # name and kind
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def suggestions(
    settings: Settings, machine: Machine | None = None, products: Mapping[str, Settings] | None = None
) -> list[tuple[str, int]]:
    """Give changes of the settings that save memory, each with the peak it would have, the smallest first."""
    base = predict(settings, machine, products)
    worth = 0.03 * (base.peak - base.memory["process"])
    found: list[tuple[str, int]] = []
    for words, changes in _changes(settings):
        with suppress(InputError):
            changed = settings.model_copy(update=changes)
            found.append((words, predict(changed, machine, products).peak))
    return sorted(((words, peak) for words, peak in found if base.peak - peak > worth), key=lambda one: one[1])


def remarks(rows: Sequence[Planned]) -> list[str]:
    """Give, for each stage, what its memory is for and what was assumed."""
    lines: list[str] = []
    for row in rows:
        one = row.prediction
        lines.append(
            f"{row.stage.name}: {one.weights / 1e6:,.1f} M weights, {one.trained / 1e6:,.1f} M trained; "
            f"memory in GiB: {_parts(one)}"
        )
        if row.probed_gib is not None:
            lines.append(f"{row.stage.name}: {row.probed_gib:.1f} GiB held in the probe")
        lines += [f"{row.stage.name}: {note}" for note in one.work.notes]
        trainer = row.stage.settings.trainer
        if trainer.get("use_vllm") and trainer.get("vllm_mode", "colocate") == "colocate":
            share = trainer.get("vllm_gpu_memory_utilization", 0.3)
            lines.append(f"{row.stage.name}: vLLM takes {share:.0%} of each GPU besides (vllm_gpu_memory_utilization)")
    if any(row.hours is None for row in rows):
        lines.append("hours need a speed: --tokens-per-second or --flops as measured, or --probe")
    return lines


def too_large(rows: Sequence[Planned], limit: float, machine: Machine) -> str | None:
    """Say which stage needs more than `limit` bytes and what would need less; None where none does."""
    products = _products([row.stage for row in rows])
    for row in rows:
        if row.prediction.peak > limit:
            return f"{row.stage.name}: {advice(row.stage.settings, row.prediction, limit, machine, products)}"
    return None


def advice(
    settings: Settings,
    prediction: Prediction,
    limit: float,
    machine: Machine | None = None,
    products: Mapping[str, Settings] | None = None,
) -> str:
    """Say what a stage is predicted to need, what there is (`limit` bytes), and which settings would need less."""
    ways = "; ".join(f"{words} ({peak / GIB:.1f} GiB)" for words, peak in suggestions(settings, machine, products)[:5])
    return f"predicted are {prediction.peak / GIB:.1f} GiB ({_parts(prediction)}), there are {limit / GIB:.1f}; " + (
        f"less would need: {ways}" if ways else "no setting would need much less: take a smaller model"
    )


@contextmanager
def within_memory(settings: Settings) -> Generator[None, None, None]:
    """Run a stage: warn before it when more memory is predicted than there is, and turn its running out of memory into
    a CheckFailed that says what would need less."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    machine, limit = Machine(device), memory_limit(device)
    with suppress(InputError):  # what is wrong there, the stage itself says better
        if (prediction := predict(settings, machine)).peak > limit:
            logger.warning("this may not fit into memory: %s", advice(settings, prediction, limit, machine))
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not _is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # and with them what the stage held
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "the system gave no more"
        words = f"out of memory ({shorten(reason, 160)})"
        with suppress(InputError, MemoryError):
            words += f": {advice(settings, predict(settings, machine), limit, machine)}"
        raise CheckFailed(f"{words}. `--resume` continues from the last checkpoint, if there is one") from None


def _products(found: Sequence[Stage]) -> dict[str, Settings]:
    """Folders that stages will leave, by their names in later ones, with what made them."""
    return {str(one.product): one.settings for one in found}


def _startable(settings: Settings, products: Mapping[str, Settings]) -> Settings:
    """Let a stage start from what is there: from what an earlier stage starts from, and without a PRMU to come."""
    while settings.model in products and not Path(settings.model).is_dir():
        settings = settings.model_copy(update={"model": products[settings.model].model})
    if isinstance(settings, Rl):
        is_there = settings.prmu is None or Path(settings.prmu).is_dir()
        weights = settings.rewards if is_there else settings.rewards.model_copy(update={"personal": 0.0})
        settings = settings.model_copy(update={"rewards": weights, "ignore_gate": True})
    return settings


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is one of Python's, torch's or the system's ways to say so."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in _OUT_OF_MEMORY)


_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")


def _parts(prediction: Prediction) -> str:
    return ", ".join(f"{name} {size / GIB:.2f}" for name, size in prediction.memory.items() if size > 0.005 * GIB)


def memory_limit(device: str = "cpu") -> int:
    """Give the bytes that a process may hold: of the GPU, or the least of machine, control group and address space."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_properties(0).total_memory
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), resource.getrlimit(resource.RLIMIT_AS)[0]]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            limits.append(int(Path(path).read_text(encoding="ascii")))
    return min(limit for limit in limits if limit > 0)


def probe(settings: Settings) -> tuple[float, float]:
    """Take `PROBE_STEPS` real steps in a temporary folder; give FLOP/s of this machine at this work, as the formulae
    count them, and the most memory held, in GiB."""
    lines: list[dict[str, Any]] = []

    def enough(line: dict[str, Any]) -> None:
        if "loss" in line:
            lines.append(line)
        if len(lines) == PROBE_STEPS:
            raise _Enough

    with tempfile.TemporaryDirectory() as folder, suppress(_Enough):
        short = settings.model_copy(update=_probing(settings) | {"output": Path(folder) / "run"})
        if isinstance(short, Sft):
            from tagpr_train.sft import train as train_sft

            train_sft(short, report=enough)
        elif isinstance(short, Prmu):
            from tagpr_train.prmu_fit import train as train_prmu

            train_prmu(short, report=enough)
        else:
            from tagpr_train.rl import train as train_rl

            train_rl(short, report=enough)
    if len(lines) < 2:
        raise InputError("the run is too short for a probe: it has fewer than two steps")
    first, last = lines[0], lines[-1]
    return footprint.flop_between(settings, first["step"], last["step"]) / (last["seconds"] - first["seconds"]), max(
        line["memory_gib"] for line in lines
    )


class _Enough(Exception):
    """A probe has taken its steps."""


def _probing(settings: Settings) -> dict[str, Any]:
    """Settings of a probe: as many steps as it takes, and nothing held out that could be left out."""
    if isinstance(settings, Rl):
        return {"steps": max(settings.steps, PROBE_STEPS), "eval_examples": 1, "eval_every_steps": None}
    held_out = {"eval_examples": 0} if isinstance(settings, Sft) else {"eval_pairs": 0}
    return {"max_minutes": None, "eval_every_steps": None, **held_out}


def _changes(settings: Settings) -> list[tuple[str, dict[str, Any]]]:
    """Changes that save memory, in words and as settings."""
    options = RL_DEFAULTS | settings.trainer if isinstance(settings, Rl) else settings.trainer
    default = workload.SFT_BATCH_SIZE if isinstance(settings, Sft) else workload.PRMU_BATCH_SIZE
    batch = int(options.get("per_device_train_batch_size", default))
    accumulation = footprint.accumulation(settings)
    least = int(options.get("num_generations", 1)) if isinstance(settings, Rl) else 1
    found: list[tuple[str, dict[str, Any]]] = []

    def trainer(**changes: Any) -> dict[str, Any]:
        return {"trainer": settings.trainer | changes}

    for divisor in (2, 4, 8):
        if batch % divisor == 0 and batch // divisor >= least:
            names = {
                "per_device_train_batch_size": batch // divisor,
                "gradient_accumulation_steps": accumulation * divisor,
            }
            words = " and ".join(f"trainer.{name} = {value}" for name, value in names.items())
            found.append((words, trainer(**names)))
    if not any(settings.trainer.get(name) for name in CHECKPOINTING) and (
        isinstance(settings, Prmu) or settings.prompt_gradient
    ):
        found.append(("trainer.gradient_checkpointing = true", trainer(gradient_checkpointing=True)))
    if settings.adapter == "none":
        found.append(('adapter = "lora"', {"adapter": "lora"}))
    if settings.dtype == "float32":
        found.append(('dtype = "bfloat16"', {"dtype": "bfloat16"}))
    if not isinstance(settings, Prmu) and settings.prompt_gradient:
        found.append(("prompt_gradient = false", {"prompt_gradient": False}))
    if isinstance(settings, Rl):
        shorter = int(options["max_completion_length"]) // 2
        found.append((f"trainer.max_completion_length = {shorter}", trainer(max_completion_length=shorter)))
    else:
        longest = predict(settings).work.largest
        shorter = max(32, (longest.prompt + longest.completion) * 3 // 4)
        found.append((f"max_tokens = {shorter}", {"max_tokens": shorter}))
    return found
