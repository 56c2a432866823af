"""Scores of a prediction file against a gold file, both in LaMP's own shape."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from tagpr_data.errors import CheckFailed, InputError
from tagpr_data.lamp.files import Outputs, load_outputs
from tagpr_data.lamp.metrics import Mode, Scores, evaluate
from tagpr_data.records import Task
from tagpr_data.tasks import LAMP_TASKS, find_task


@dataclass(frozen=True, slots=True)
class FileScore:
    """Scores with what a reader needs to place them."""

    task: str
    mode: Mode
    seed: int | None
    """Only where it matters: official ROUGE."""
    scores: Scores
    counts: dict[str, int]
    """The counts of `lamp.metrics.COUNTS`, and ids that stand twice in a file (the last one won)."""
    warnings: tuple[str, ...]

    def as_json(self) -> str:
        """Give one JSON object; metrics are not rounded."""
        value = {
            "task": self.task,
            "mode": self.mode,
            **({} if self.seed is None else {"seed": self.seed}),
            "n": self.scores.n,
            "metrics": self.scores.metrics,
            "counts": self.counts,
        }
        return json.dumps(value, indent=2, allow_nan=False)

    def as_text(self) -> str:
        """Give a few lines for people; counts that are 0 are left out."""
        seed = "" if self.seed is None else f" · seed {self.seed}"
        lines = [f"{self.task} · mode {self.mode}{seed} · n = {self.scores.n}"]
        lines += [f"{name:<10}{value:.6f}" for name, value in self.scores.metrics.items()]
        counted = [f"{count} {name.replace('_', ' ')}" for name, count in self.counts.items() if count]
        return "\n".join([*lines, *(["counts: " + ", ".join(counted)] if counted else [])])


def score_files(golds: Path, preds: Path, mode: str, seed: int = 0, task: str | None = None) -> FileScore:
    """Score `preds` against `golds`. The task is the one the files name (equal in both), or `task`.

    Raises InputError for unreadable files or tasks that differ, CheckFailed where the ids differ or a score cannot be.
    """
    known_mode = next((known for known in get_args(Mode) if known == mode), None)
    if known_mode is None:
        raise InputError(f"mode {mode!r} is unknown; known: {', '.join(get_args(Mode))}")
    gold_file, prediction_file = load_outputs(golds), load_outputs(preds)
    found = _task(golds, gold_file, preds, prediction_file, task)
    try:
        scores = evaluate(found, gold_file.outputs, prediction_file.outputs, known_mode, seed)
    except CheckFailed as error:
        raise CheckFailed(f"{preds} against {golds}: {error}") from None
    counts = {
        **scores.counts,
        "duplicate_golds": len(gold_file.duplicates),
        "duplicate_predictions": len(prediction_file.duplicates),
    }
    uses_seed = known_mode == "official" and found.kind == "generation"
    warnings = _warnings(golds, found, gold_file, scores)
    return FileScore(found.name, known_mode, seed if uses_seed else None, scores, counts, warnings)


def _task(golds: Path, gold_file: Outputs, preds: Path, prediction_file: Outputs, given: str | None) -> Task:
    named = {path: file.task for path, file in ((golds, gold_file), (preds, prediction_file)) if file.task is not None}
    if len(set(named.values())) > 1:
        raise InputError(f"{golds} is of task {gold_file.task}, {preds} of {prediction_file.task}; they must be equal")
    if given is None:
        if not named:
            raise InputError(f"neither {golds} nor {preds} names a task; give it with --task")
        return find_task(next(iter(named.values())))
    task = find_task(given)
    for path, name in named.items():
        if name != task.name and (task.name, name) != ("LaMP-2-old", "LaMP-2"):
            raise InputError(f"{path} is of task {name}, not {task.name}; leave --task out or give the right file")
    return task


def _warnings(golds: Path, task: Task, gold_file: Outputs, scores: Scores) -> tuple[str, ...]:
    unknown = scores.counts["unknown_gold"]
    if not unknown:
        return ()
    values = {output.strip() for output in gold_file.outputs.values()}
    fitting = [other.name for other in LAMP_TASKS if other.labels and values <= set(other.labels)]
    hint = f"; they are all labels of {fitting[0]}, try --task {fitting[0]}" if fitting else ""
    return (
        f"{unknown} golds of {golds} are no label of {task.name}, so any unknown prediction counts as right "
        f"(as officially){hint}",
    )
