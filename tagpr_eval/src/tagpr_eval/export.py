"""Predictions in LaMP's own format, for its evaluators and its hidden test set.

One folder per model and setting, in it one file per task (`LaMP_3.json`), and `lamp.zip` where all seven tasks that
the official all-task evaluator wants are there.
"""

import zipfile
from pathlib import Path
from typing import Literal

from tagpr_data import answers
from tagpr_data.dataset import Dataset
from tagpr_data.errors import CheckFailed
from tagpr_data.lamp.files import write_outputs
from tagpr_data.records import Prediction, RunManifest
from tagpr_data.tables import atomic_path, read_json, read_records
from tagpr_eval.data_source import find_dataset
from tagpr_eval.harness import file_name

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
