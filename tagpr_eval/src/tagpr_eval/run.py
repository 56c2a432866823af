"""One evaluation, from settings to predictions: the stage behind `tagpr-eval run` and `tagpr-eval ablate`.

    RUN/run.json             records.RunManifest: settings, data hash, versions; status `complete` at the end
    RUN/samples.jsonl        what models wrote, appended as it arrives (store.py)
    RUN/prompts/             the cells' prompts, which any lighteval model can be run on (lighteval_tasks.py)
    RUN/predictions.parquet  records.Prediction, one row per model, cell and example; written last but run.json
    RUN/lighteval/           results and details in lighteval's own format

Guarantee: after `kill -9` the same command goes on, asks for no kept sample again, and ends in the same
predictions.parquet, run.json and samples.jsonl as an uninterrupted run. Price: all prompts are in memory.
"""

import platform
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tagpr_data import answers
from tagpr_data.cache import cache_folder
from tagpr_data.dataset import Dataset
from tagpr_data.errors import InputError, shorten
from tagpr_data.journal import folder_lock
from tagpr_data.lamp import metrics
from tagpr_data.records import Example, Prediction, RunManifest, Task
from tagpr_data.retrieve import Encode
from tagpr_data.tables import frame_from_records, read_json, write_json, write_table
from tagpr_data.tags import load_tagset
from tagpr_eval import harness
from tagpr_eval.baselines import BASELINES, READS_PROFILE, Situation
from tagpr_eval.config import EvaluationConfig
from tagpr_eval.grid import Cell, Prompter, Question, baseline_cells, cells, draw
from tagpr_eval.meter import Meter, NoMeter
from tagpr_eval.models import Completion, Model, Prompt, Spec, effective_seed, open_model, parse_spec
from tagpr_eval.store import SampleStore, sample_key

PREDICTIONS = "predictions.parquet"
PREDICTION_KEY = ("model", "task", "retriever", "k", "style", "seed", "example_id")
_PACKAGES = ("tagpr-data", "tagpr-eval", "lighteval", "torch", "transformers", "peft", "tokenizers")
_SPEED_SETTINGS = ("concurrency", "timeout_seconds", "retries", "backoff_seconds")
"""Settings of `server` that change no answer, so a run may go on with other ones."""


def evaluate(
    config: EvaluationConfig,
    output: Path,
    meter: Meter | None = None,
    make_model: Callable[[Spec, EvaluationConfig], Model] = open_model,
    score: Callable[[Path, str, harness.Answers, Path], Any] = harness.score,
) -> RunManifest:
    """Answer all cells with all models and write the run folder; give its manifest.

    A finished run of the same settings, data and models is left as it is. InputError for settings that cannot be,
    or a folder that holds something else; CheckFailed when a model stays unreachable: everything is kept.
    """
    specs = _specs(config)
    plan = _plan(config)
    models = {spec.name: make_model(spec, config) for spec in specs if spec.kind != "baseline"}
    identities = {name: model.identity for name, model in models.items()}
    with folder_lock(output):
        manifest = _open(output, config, plan.dataset, identities)
        if manifest.status == "complete":
            return manifest
        store = SampleStore(output)
        try:
            predictions: list[Prediction] = []
            if models:
                harness.write_prompts(output / "prompts", plan.questions, plan.tasks, config.split, config.sampling)
                shutil.rmtree(output / "lighteval", ignore_errors=True)
            for spec in specs:
                if spec.kind == "baseline":
                    predictions += _baseline_predictions(spec, plan, config)
                else:
                    asked = _Asked(spec.name, models[spec.name], identities[spec.name], plan, config, store)
                    score(output / "prompts", spec.name, asked.answer_with(meter or NoMeter()), output / "lighteval")
                    predictions += asked.predictions()
            store.tidy()
        finally:
            store.close()
        frame = frame_from_records(predictions, Prediction)
        write_table(output / PREDICTIONS, frame, Prediction, PREDICTION_KEY)
        results = _results(predictions, plan, identities, len(store))
        done = manifest.model_copy(update={"status": "complete", "results": results})
        write_json(output / "run.json", done)
        return done


def summary(manifest: RunManifest) -> str:
    """Give the headline numbers of a finished run as a table of text."""
    lines = [f"data {', '.join(f'{name} {value[:12]}' for name, value in manifest.data.items())}, "
             f"split {manifest.config['split']}, answers as extracted"]  # fmt: skip
    for row in manifest.results["cells"]:
        scores = "  ".join(f"{name} {value:.4f}" for name, value in row["metrics"].items())
        lines.append(f"{row['model']:<16} {row['cell']:<48} n={row['n']:<6} {scores}")
    return "\n".join(lines)


@dataclass(frozen=True)
class _Plan:
    """What is asked, the same for every model."""

    dataset: Dataset
    tasks: dict[str, Task]
    examples: list[Example]
    grid: list[Cell]
    questions: dict[Cell, list[Question]]
    prompter: Prompter


def _specs(config: EvaluationConfig) -> list[Spec]:
    specs = [parse_spec(text) for text in config.models]
    twice = [name for name, times in Counter(spec.name for spec in specs).items() if times > 1]
    if twice:
        raise InputError(f"two models are called {twice[0]!r}; give one another name: NAME=hf:…")
    return specs


def _plan(config: EvaluationConfig) -> _Plan:
    dataset = Dataset.load(Path(config.dataset))
    tagset = load_tagset(Path(config.tagset) if config.tagset else None)
    named = [dataset.task(name) for name in config.tasks] or list(dataset.manifest.tasks)
    tasks = {task.name: task for task in named}
    grid = cells(config, list(tasks))
    pool = [row for row in dataset.examples(config.split) if row.task in tasks]
    examples = [row for name in tasks for row in draw([row for row in pool if row.task == name], config.examples)]
    for name in tasks:
        if not any(row.task == name for row in examples):
            raise InputError(f"data set {config.dataset} has no example of task {name} in split {config.split}")
    prompter = Prompter(dataset, examples, pool, tagset, _encoder(config))
    questions = {cell: prompter.questions(cell, config.prompt_options(cell.style)) for cell in grid}
    return _Plan(dataset, tasks, examples, grid, questions, prompter)


def _encoder(config: EvaluationConfig) -> Encode | None:
    if not {"dense", "hybrid"} & set(config.retrievers):
        return None
    from tagpr_eval.encoders import cached_encoder

    return cached_encoder(config.encoder, cache_folder() / "embeddings")


class _Asked:
    """One model and its answers to all questions of a plan."""

    def __init__(
        self, name: str, model: Model, identity: str, plan: _Plan, config: EvaluationConfig, store: SampleStore
    ) -> None:
        self._name = name
        self._model = model
        self._plan = plan
        self._store = store
        self._keys: dict[tuple[str, str], str] = {}
        prompts: dict[str, Prompt] = {}
        for cell, rows in plan.questions.items():
            seed = effective_seed(config.sampling, cell.seed)
            for row in rows:
                key = sample_key(identity, row.prompt_hash, config.sampling, seed)
                self._keys[cell.name, row.example.id] = key
                prompts.setdefault(key, Prompt(row.messages, seed))
        self._sample_keys = sorted(prompts)  # so that the plan of batches does not depend on the order of cells
        self._prompts = [prompts[key] for key in self._sample_keys]

    def answer_with(self, meter: Meter) -> harness.Answers:
        """Give the function that lighteval's model answers through."""

        def answers_of(pairs: Sequence[tuple[str, str]]) -> list[str]:
            self._answer_all(meter)
            return [self._store[self._keys[pair]].text for pair in pairs]

        return answers_of

    def predictions(self) -> list[Prediction]:
        """Give one prediction per question."""
        return [
            _prediction(self._name, row, self._store[self._keys[cell.name, row.example.id]])
            for cell, rows in self._plan.questions.items()
            for row in rows
        ]

    def _answer_all(self, meter: Meter) -> None:
        """Have every batch generated that has a sample missing, whole, so that its bits are those of a first run."""
        is_missing = [key not in self._store for key in self._sample_keys]
        meter.start(self._name, len(is_missing), len(is_missing) - sum(is_missing))
        if not any(is_missing):
            return
        batches = self._model.batches(self._prompts)

        def finished(index: int, completion: Completion) -> None:
            if self._sample_keys[index] not in self._store:
                self._store.add(self._sample_keys[index], completion)
                meter.advance((completion.input_tokens or 0) + (completion.output_tokens or 0))

        todo = [batch for batch in batches if any(is_missing[index] for index in batch)]
        self._model.generate(self._prompts, todo, finished)


def _baseline_predictions(spec: Spec, plan: _Plan, config: EvaluationConfig) -> list[Prediction]:
    baseline = BASELINES[spec.place]
    train = plan.dataset.examples("train") if "train" in plan.dataset.splits else []
    golds = {name: [row.output for row in train if row.task == name and row.output is not None] for name in plan.tasks}
    predictions: list[Prediction] = []
    for cell in baseline_cells(plan.grid, spec.place in READS_PROFILE):
        for row in plan.prompter.baseline_questions(cell, config.prompt_options(cell.style)):
            profile = plan.prompter.profile(row.example, cell.retriever, cell.seed)
            situation = Situation(plan.tasks[cell.task], row.example, profile, golds[cell.task])
            predictions.append(_prediction(spec.name, row, Completion(baseline(situation), "stop")))
    return predictions


def _prediction(model: str, row: Question, answer: Any) -> Prediction:
    return Prediction(
        model=model,
        task=row.cell.task,
        retriever=row.cell.retriever,
        k=row.cell.k,
        style=row.cell.style,
        seed=row.cell.seed,
        example_id=row.example.id,
        user_id=row.example.user_id,
        profile_size=row.example.profile_size,
        item_ids=row.item_ids,
        prompt_hash=row.prompt_hash,
        text=answer.text,
        finish_reason=answer.finish_reason,
        input_tokens=answer.input_tokens,
        output_tokens=answer.output_tokens,
        gold=row.example.output,
    )


def _open(output: Path, config: EvaluationConfig, dataset: Dataset, identities: dict[str, str]) -> RunManifest:
    """Give the manifest of the run in `output`: the one found there, or a new one, written now."""
    path = output / "run.json"
    settings = config.model_dump(mode="json")
    data = {dataset.manifest.name: dataset.manifest.content_hash}
    if path.exists():
        found = read_json(path, RunManifest)
        _same(output, "settings", _without_speed(found.config), _without_speed(settings))
        _same(output, "data", found.data, data)
        if found.status == "complete":
            _same(output, "models", found.results.get("models", {}), identities)
        return found
    strangers = [entry.name for entry in output.iterdir() if entry.name != ".lock"]
    if strangers:
        raise InputError(f"{output} is no run folder and not empty (it holds {shorten(strangers[0])}); choose another")
    manifest = RunManifest(
        kind="evaluation",
        status="running",
        config=settings,
        data=data,
        seed=config.seeds[0],
        versions=_versions(),
        git_revision=_git_revision(),
    )
    write_json(path, manifest)
    return manifest


def _same(output: Path, what: str, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for key in sorted({*found, *wanted}):
        if found.get(key) != wanted.get(key):
            raise InputError(
                f"{output} holds a run of other {what}: {key} is {shorten(found.get(key))} there and "
                f"{shorten(wanted.get(key))} here; choose another folder"
            )


def _without_speed(settings: dict[str, Any]) -> dict[str, Any]:
    server = {key: value for key, value in settings.get("server", {}).items() if key not in _SPEED_SETTINGS}
    return {**settings, "server": server}


def _results(
    predictions: Sequence[Prediction], plan: _Plan, identities: dict[str, str], samples: int
) -> dict[str, Any]:
    """Headline numbers: metrics of the extracted answers by model and cell, and what was counted on the way."""
    by_cell: dict[tuple[str, Cell], list[Prediction]] = {}
    for row in predictions:
        cell = Cell(row.task, row.retriever, row.k, row.style, row.seed)  # pyright: ignore[reportArgumentType] - was one
        by_cell.setdefault((row.model, cell), []).append(row)
    return {
        "models": identities,
        "predictions": len(predictions),
        "samples": samples,
        "cells": [
            {
                "model": model,
                "cell": cell.name,
                "n": len(rows),
                "metrics": _metrics(plan.tasks[cell.task], rows),
                "cut_at_length": sum(row.finish_reason == "length" for row in rows),
                "shorter_profiles": sum(row.profile_size < cell.k for row in rows),
            }
            for (model, cell), rows in by_cell.items()
        ],
    }


def _metrics(task: Task, rows: Iterable[Prediction]) -> dict[str, float]:
    """The task's metrics of the extracted answers; empty where no gold is known."""
    golds = {row.example_id: row.gold for row in rows if row.gold is not None}
    given = {row.example_id: answers.parsed(row.text, task).answer or "" for row in rows if row.gold is not None}
    return metrics.evaluate(task, golds, given).metrics if golds else {}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "platform": f"{platform.system()}-{platform.machine()}"}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _git_revision() -> str | None:
    """Commit of the checkout this code lies in, `+dirty` when it has changes; None outside a checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ("git", "-C", str(here), *arguments)
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        dirty = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+dirty" if dirty else "")
    except (OSError, subprocess.CalledProcessError):
        return None
