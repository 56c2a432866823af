"""Training runs as tagpr_train leaves them, read as files: run.json, metrics.jsonl, prmu_eval.json and completions.

The two packages meet in these files only. Guarantee: a run that is given back was finished and read whole; an
unfinished one, another layout or a damaged line is an InputError that names the file, the line and the value.
Price: all metrics are in memory; of the completions, those of the first and the last step are read.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from tagpr_data.errors import InputError, shorten
from tagpr_data.records import Rollout, RunManifest
from tagpr_data.tables import explain, read_json, read_records

_PRODUCTS = {"sft": "model", "prmu": "prmu", "rl": "model"}
"""Kind of a run → the folder in it that later runs start from."""


class _Figures(BaseModel):
    """Base of what is read here. A figure that tagpr_train adds is no fault, so unknown keys are let pass."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)


class Interval(_Figures):
    """A figure with its 95 % interval, over users."""

    estimate: float
    """On all pairs."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""


class PairGroup(_Figures):
    """Pair accuracies of one group of held-out pairs: the share with the preferred completion scored higher."""

    pairs: int
    """Pairs."""
    users: int
    """Users they come from."""
    right: Interval
    """Scored for the user whose preference it is."""
    swapped: Interval
    """Scored for another user."""
    user_off: Interval
    """Scored for the average user."""
    length: Interval
    """A judge that sees lengths only."""
    text: Interval
    """A judge that sees prompt and completion, but not the user."""
    right_minus: dict[Literal["swapped", "user_off", "length", "text"], Interval]
    """`right` minus each of the others, paired."""


class Calibration(_Figures):
    """Whether the model knows how sure it may be."""

    expected_calibration_error: float
    """Mean distance of confidence and accuracy."""


class PrmuSplit(_Figures):
    """The held-out pairs of seen or of unseen users."""

    groups: dict[str, PairGroup]
    """By `all`, `kind …`, `task …` and `task …, kind …`."""
    calibration: Calibration
    """Over all its pairs."""


class PrmuEvaluation(_Figures):
    """prmu_eval.json."""

    format_version: Literal[1]
    """Version of its layout."""
    splits: dict[Literal["seen", "unseen"], PrmuSplit]
    """Evaluation by users that were in training, or not."""


class Change(_Figures):
    """A paired change with its 95 % interval, over users."""

    mean: float
    """Last minus first."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""


class Results(_Figures):
    """What the manifest of every training run says at its end."""

    steps: int
    """Optimiser steps taken."""
    examples: int
    """Examples, pairs or completions learned from."""
    tokens: int
    """Tokens in them."""
    seconds: float
    """Time of the training steps."""
    tokens_per_second: float
    """Over that time."""
    peak_memory_gib: float
    """Most memory held."""
    train_loss_last_10: float | None = None
    """sft, prmu: mean loss of the last ten logged steps, in nats."""
    validation_loss: float | None = None
    """sft, prmu: held-out loss at the end, in nats; None where it was not measured."""
    gate_passed: bool | None = None
    """prmu: whether it may steer RL."""
    gate: tuple[str, ...] = ()
    """prmu: the conditions of that, a sentence each."""


class RlResults(Results):
    """What the manifest of an RL stage says besides."""

    stage: Literal["guided", "exploratory"]
    """Which one it was."""
    stopped: str | None
    """Why the hacking stop ended it; None where it did not."""
    held_out_examples: int
    """Held-out examples, answered greedily."""
    held_out_answer_first: float
    """Mean of their task metric, in [0, 1], before the first step."""
    held_out_answer: float
    """After the last."""
    held_out_best: float
    """The best there was."""
    held_out_change: Change
    """Last minus first."""


R = TypeVar("R", bound=Results)


@dataclass(frozen=True)
class TrainingRun:
    """One run folder of tagpr_train, read."""

    name: str
    """The end of its path, as long as it takes to tell the runs of a report apart."""
    folder: Path
    """Where it lies."""
    manifest: RunManifest
    """Its run.json."""
    results: Results
    """The headline numbers in it; `RlResults` of an RL stage."""
    lines: tuple[Mapping[str, float], ...]
    """metrics.jsonl: each line's numbers by name, `step` among them."""
    evaluation: PrmuEvaluation | None
    """prmu: its prmu_eval.json."""

    @property
    def start(self) -> str:
        """What it started from: a path, or the name of a model."""
        return str(self.manifest.config.get("model"))

    def made(self, place: str) -> bool:
        """Whether a path is that of the model it made: where that lies, or where it lay when it was trained."""
        product = _PRODUCTS[self.manifest.kind]
        trained = PurePath(str(self.manifest.config.get("output")), product)
        return PurePath(place) == trained or Path(place).resolve() == (self.folder / product).resolve()

    def follows(self, other: "TrainingRun") -> bool:
        """Whether it started from what `other` made."""
        return other.made(self.start)

    def reads(self, other: "TrainingRun") -> bool:
        """Whether it started from what `other` made, or was rewarded by it."""
        prmu = self.manifest.config.get("prmu")
        return self.follows(other) or (prmu is not None and other.made(str(prmu)))

    def series(self, name: str) -> list[tuple[int, float]]:
        """Give (step, value) of one figure, in the order logged."""
        return [(int(line["step"]), line[name]) for line in self.lines if name in line]

    def first_completions(self) -> list[Rollout]:
        """Give the completions of the first step; none where they were not kept."""
        return self._completions(0)

    def last_completions(self) -> list[Rollout]:
        """Give the completions of the last step that is not the first; none where there is none."""
        return self._completions(-1) if len(self._completion_files()) > 1 else []

    def _completion_files(self) -> list[Path]:
        """One file a step, oldest first: of several processes the first one's."""
        files = sorted((self.folder / "completions").glob("step-*.parquet"))
        return list({path.name.partition(".")[0]: path for path in reversed(files)}.values())[::-1]

    def _completions(self, place: int) -> list[Rollout]:
        files = self._completion_files()
        return read_records(files[place], Rollout) if files else []


def load_training(folders: Sequence[Path]) -> list[TrainingRun]:
    """Read training run folders. Raises InputError for one that is no finished training run or is damaged."""
    return [_load(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]


def rl_chains(runs: Sequence[TrainingRun]) -> list[tuple[TrainingRun, ...]]:
    """Give the RL stages that follow each other, as each run's settings say what it started from, first stage first; a
    stage that several others started from stands in front of each of them."""
    stages = [run for run in runs if isinstance(run.results, RlResults)]
    before = {run.name: next((other for other in stages if run.follows(other)), None) for run in stages}
    continued = {other.name for other in before.values() if other is not None}
    chains: list[tuple[TrainingRun, ...]] = []
    for run in stages:
        if run.name in continued:
            continue
        chain = [run]
        while (earlier := before[chain[0].name]) is not None and earlier not in chain:
            chain.insert(0, earlier)
        chains.append(tuple(chain))
    return chains


def _load(folder: Path, name: str) -> TrainingRun:
    path = folder / "run.json"
    manifest = read_json(path, RunManifest)
    if manifest.kind not in _PRODUCTS:
        raise InputError(f"{folder} is a run of kind {manifest.kind!r}; --training takes kinds {', '.join(_PRODUCTS)}")
    if manifest.status == "running":
        raise InputError(f"{folder} is an unfinished run; tagpr-train {manifest.kind} … --resume finishes it")
    results = _checked(path, manifest.results, RlResults if manifest.kind == "rl" else Results, "results of ")
    evaluation = None
    if manifest.kind == "prmu":
        evaluation = _checked(folder / "prmu_eval.json", _read(folder / "prmu_eval.json"), PrmuEvaluation)
    return TrainingRun(name, folder, manifest, results, _metrics(folder / "metrics.jsonl"), evaluation)


def _metrics(path: Path) -> tuple[dict[str, float], ...]:
    lines: list[dict[str, float]] = []
    for number, text in enumerate(_text(path).splitlines(), start=1):
        try:
            line: Any = json.loads(text)
        except ValueError:
            raise InputError(f"{path}, line {number}: {shorten(text)} is not JSON; the line is damaged") from None
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):  # pyright: ignore[reportUnknownMemberType]
            raise InputError(f"{path}, line {number}: {shorten(text)} is no object with a whole number `step`")
        found: dict[str, Any] = line
        for name, value in found.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise InputError(f"{path}, line {number}, field {name!r}: {shorten(value)} is no number")
        lines.append(found)
    if not lines:
        raise InputError(f"{path} holds no line; a finished run logs every step")
    return tuple(lines)


M = TypeVar("M", bound=BaseModel)


def _checked(path: Path, value: Any, model: type[M], what: str = "") -> M:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise InputError(
            f"{path}: the {what}{model.__name__} cannot be read, as of another version: {explain(error)}"
        ) from None


def _read(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from None


def _text(path: Path) -> str:
    if not path.is_file():
        raise InputError(f"{path} does not exist; it belongs to a finished training run")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}") from None


def _names(folders: Sequence[Path]) -> list[str]:
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        twice = next(folder for folder, own in zip(folders, parts, strict=True) if parts.count(own) > 1)
        raise InputError(f"--training {twice} is given twice")
    length = 1
    while len({own[-length:] for own in parts}) < len(parts):
        length += 1
    return ["/".join(own[-length:]) for own in parts]
