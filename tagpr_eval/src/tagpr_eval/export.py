"""A finished run for others to read.

    lamp           predictions in LaMP's own format, for its evaluators and its hidden test set: one folder per model
                   and setting, in it one file per task (`LaMP_3.json`), and `lamp.zip` where all seven tasks that the
                   official all-task evaluator wants are there
    eval-results   scores as the Hub shows them on a model's page: one folder per model, to be copied into its
                   repository, in it `.eval_results/TASK.yaml` with an entry per setting

lighteval's own results and details need no export: a run writes them (RUN/lighteval).
"""

import re
import zipfile
from pathlib import Path
from typing import Literal

from tagpr_data import answers
from tagpr_data.data_source import find_dataset
from tagpr_data.dataset import Dataset
from tagpr_data.errors import CheckFailed, InputError
from tagpr_data.lamp.files import write_outputs
from tagpr_data.records import Prediction, RunManifest
from tagpr_data.tables import atomic_path, read_json, read_records, write_text
from tagpr_eval.grid import WRONG_USER
from tagpr_eval.harness import file_name

Format = Literal["lamp", "eval-results"]
_SEVEN = ("LaMP-1", "LaMP-2", "LaMP-3", "LaMP-4", "LaMP-5", "LaMP-6", "LaMP-7")


def export_lamp(run: Path, output: Path, mode: Literal["parsed", "strict"], dataset: Path | None = None) -> list[Path]:
    """Write the predictions of a run; `parsed` writes extracted answers (the empty text where none is found),
    `strict` the completions as they are. CheckFailed for a run that is not complete."""
    manifest = read_json(run / "run.json", RunManifest)
    if manifest.status != "complete":
        raise CheckFailed(f"{run} is {manifest.status}: an export would lack answers; finish it first")
    tasks = {
        task.name: task for task in Dataset.load(dataset or find_dataset(manifest.config["dataset"])).manifest.tasks
    }
    settings: dict[str, dict[str, dict[str, str]]] = {}
    for row in read_records(run / "predictions.parquet", Prediction):
        name = f"{file_name(row.model)}.{row.retriever}.k{row.k}.{row.style}.seed{row.seed}"
        name += "" if row.protocol == "generation" else f".{row.protocol}"
        found = answers.parsed(row.text, tasks[row.task]).answer or ""
        answer = answers.strict(row.text) if mode == "strict" else found
        settings.setdefault(name, {}).setdefault(row.task, {})[row.example_id] = answer
    written: list[Path] = []
    for name, by_task in settings.items():
        files = [output / name / f"{task.replace('-', '_')}.json" for task in by_task]
        for path, (task, outputs) in zip(files, by_task.items(), strict=True):
            write_outputs(path, task, outputs)
        written += files
        if set(by_task) == set(_SEVEN):
            with atomic_path(output / name / "lamp.zip") as temporary, zipfile.ZipFile(temporary, "w") as archive:
                for path in files:
                    archive.writestr(zipfile.ZipInfo(path.name), path.read_bytes(), zipfile.ZIP_DEFLATED)
            written.append(output / name / "lamp.zip")
    return written


def export_eval_results(run: Path, output: Path, dataset_id: str | None = None) -> list[Path]:
    """Write the scores of a run as the Hub's evaluation results: the headline metric of the extracted answers, and in
    the notes all that the number depends on. Rules and the control wrong-user are no result of a model and stay out.

    `dataset_id` is the benchmark's OWNER/NAME; None takes the run's own, where that is one. CheckFailed for a run that
    is not complete, InputError without a dataset id.
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
    from huggingface_hub.utils import yaml_dump

    manifest = read_json(run / "run.json", RunManifest)
    if manifest.status != "complete":
        raise CheckFailed(f"{run} is {manifest.status}: its scores are not those of the whole split; finish it first")
    own, _, revision = str(manifest.config["dataset"]).partition("@")
    benchmark = dataset_id or own
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", benchmark) or (dataset_id is None and Path(own).exists()):
        raise InputError(f"data set {benchmark!r} is no OWNER/NAME of the Hub; say which benchmark it is: --dataset-id")
    entries: dict[Path, list[EvalResultEntry]] = {}
    for cell in manifest.results["cells"]:
        model, (task, retriever, *_) = cell["model"], cell["cell"].split(".")
        if model not in manifest.results["models"] or retriever == WRONG_USER or not cell["metrics"]:
            continue
        (metric, value), *others = cell["metrics"].items()
        notes = [
            metric,
            cell["cell"].removeprefix(f"{task}."),
            f"split {manifest.config['split']}",
            f"n = {cell['n']}",
            *(f"{name} {number:.4f}" for name, number in others),
            "extracted answers",
            *(f"data {name} {digest[:12]}" for name, digest in manifest.data.items()),
            f"model {manifest.results['models'][model][:12]}",
        ]
        entries.setdefault(output / file_name(model) / ".eval_results" / f"{file_name(task)}.yaml", []).append(
            EvalResultEntry(
                dataset_id=benchmark,
                task_id=task,
                value=value,
                dataset_revision=revision or None,
                notes=", ".join(notes),
            )
        )
    if not entries:
        raise CheckFailed(f"{run} has no score of a model to export; it holds rules and controls only")
    for path, found in entries.items():
        write_text(path, yaml_dump(eval_result_entries_to_yaml(found)))
    return list(entries)
