"""The cells of an evaluation as lighteval tasks, and our metrics in lighteval's form.

A *prompts folder* holds one Parquet file per cell, a README.md from which `datasets` reads it, and `cells.json`.
`tagpr-eval run` writes one (RUN/prompts) and hands its cells to lighteval's Pipeline. Any other lighteval model can
be run on the very same prompts: this module's name is what `--custom-tasks` takes, with the folder in the
environment variable TAGPR_PROMPTS, read when lighteval asks for `TASKS_TABLE`.

The metrics are those of `lamp.metrics` in mode `exact`, as the mean of per-sample values where they are one, twice:
on the extracted answer (`accuracy`, …) and on the raw completion (`accuracy_strict`, …). A cell of protocol
log-likelihood, whose name ends in it, has the labels as choices and each metric once, on the likeliest one. Only this
file and `harness.py` know lighteval.
"""

import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lighteval.metrics.metrics_corpus import CorpusLevelComputation
from lighteval.metrics.metrics_sample import SampleLevelComputation
from lighteval.metrics.utils.metric_utils import CorpusLevelMetric, Metric, SampleLevelMetric
from lighteval.models.model_output import ModelResponse
from lighteval.tasks.lighteval_task import LightevalTaskConfig
from lighteval.tasks.requests import Doc, SamplingMethod

from tagpr_data import answers
from tagpr_data.errors import InputError, shorten
from tagpr_data.lamp import metrics
from tagpr_data.records import Protocol, Task

CELLS = "cells.json"
_MEANS = {"classification": ("accuracy",), "rating": ("MAE",), "generation": ("rouge-1", "rouge-L")}
_OF_ALL = {"classification": ("f1",), "rating": ("RMSE",), "generation": ()}
_LOWER_IS_BETTER = ("MAE", "RMSE")


def tasks_of(folder: Path) -> list[LightevalTaskConfig]:
    """Give the lighteval tasks of a prompts folder, one per cell."""
    path = folder / CELLS
    if not path.is_file():
        raise InputError(f"{folder} is no prompts folder: {CELLS} is missing; `tagpr-eval run` writes RUN/prompts")
    return [
        LightevalTaskConfig(
            name=cell["name"],
            prompt_function=partial(document, labels=_labels(cell)),
            hf_repo=str(folder),
            hf_subset=cell["name"],
            metrics=metrics_of(Task.model_validate(cell["task"]), cell["has_gold"], cell["protocol"]),
            hf_avail_splits=[cell["split"]],
            evaluation_splits=[cell["split"]],
            few_shots_split=cell["split"],
            few_shots_select="sequential",
            generation_size=cell["max_new_tokens"],
            stop_sequence=list(cell["stop"]),
            version=1,
        )
        for cell in json.loads(path.read_text(encoding="utf-8"))
    ]


def document(row: dict[str, Any], task_name: str | None = None, labels: Sequence[str] = ()) -> Doc:
    """Turn a row of a prompts folder into lighteval's document; the gold of a withheld answer is empty, with `labels`
    to choose from the first. InputError for a gold that is none of them."""
    gold: str = row["gold"] or ""
    if labels and gold and gold not in labels:
        raise InputError(f"example {row['example_id']}: the gold {shorten(gold)} is none of the labels {labels}")
    return Doc(
        query=row["user"],
        instruction=row["system"],
        choices=list(labels) or [gold],
        gold_index=labels.index(gold) if labels and gold else 0,
        specific={"cell": row["cell"], "example_id": row["example_id"], "user_id": row["user_id"]},
    )


def metrics_of(task: Task, has_gold: bool, protocol: Protocol = "generation") -> list[Metric]:
    """Give the metrics of a task; without golds only the share of completions an answer was found in."""
    category = SamplingMethod.GENERATIVE if protocol == "generation" else SamplingMethod.LOGPROBS
    if not has_gold:
        return [_mean("answered", Answered(task), category)]
    found: list[Metric] = []
    for is_strict in (False, True) if protocol == "generation" else (False,):
        suffix = "_strict" if is_strict else ""
        for name in _MEANS[task.kind]:
            found.append(_mean(name + suffix, OneSample(task, name, is_strict), category, name not in _LOWER_IS_BETTER))
        for name in _OF_ALL[task.kind]:
            found.append(
                CorpusLevelMetric(
                    metric_name=name + suffix,
                    higher_is_better=name not in _LOWER_IS_BETTER,
                    category=category,
                    sample_level_fn=Answer(task, is_strict),
                    corpus_level_fn=AllSamples(task, name),
                )
            )
    return found


class OneSample(SampleLevelComputation):
    """One metric of one completion."""

    def __init__(self, task: Task, name: str, is_strict: bool) -> None:
        self.task, self.name, self.is_strict = task, name, is_strict

    def compute(self, doc: Doc, model_response: ModelResponse, **_: Any) -> float:
        """Give `lamp.metrics.evaluate` of this sample alone."""
        answer = _answer(self.task, model_response, self.is_strict)
        return metrics.evaluate(self.task, {"": doc.get_golds()[0]}, {"": answer}).metrics[self.name]


class Answer(SampleLevelComputation):
    """The answer and the gold, for metrics over all samples."""

    def __init__(self, task: Task, is_strict: bool) -> None:
        self.task, self.is_strict = task, is_strict

    def compute(self, doc: Doc, model_response: ModelResponse, **_: Any) -> dict[str, str]:
        """Give what the completion says and what is right."""
        return {"answer": _answer(self.task, model_response, self.is_strict), "gold": doc.get_golds()[0]}


class AllSamples(CorpusLevelComputation):
    """One metric over all samples of a cell."""

    def __init__(self, task: Task, name: str) -> None:
        self.task, self.name = task, name

    def compute_corpus(self, items: Sequence[dict[str, str]]) -> float:
        """Give `lamp.metrics.evaluate` of all."""
        golds = {str(number): item["gold"] for number, item in enumerate(items)}
        given = {str(number): item["answer"] for number, item in enumerate(items)}
        return metrics.evaluate(self.task, golds, given).metrics[self.name]


class Answered(SampleLevelComputation):
    """Whether an answer was found."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def compute(self, doc: Doc, model_response: ModelResponse, **_: Any) -> float:
        """Give 1 or 0."""
        return float(bool(_answer(self.task, model_response, is_strict=False)))


def __getattr__(name: str) -> Any:
    """Give `TASKS_TABLE`, the name lighteval looks for, of the folder in TAGPR_PROMPTS."""
    if name == "TASKS_TABLE" and (folder := os.environ.get("TAGPR_PROMPTS")):
        return tasks_of(Path(folder))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _labels(cell: dict[str, Any]) -> tuple[str, ...]:
    """The labels a cell is to choose from; none where the model writes."""
    return tuple(cell["task"]["labels"]) if cell["protocol"] == "log-likelihood" else ()


def _answer(task: Task, response: ModelResponse, is_strict: bool) -> str:
    """What is scored of a completion; the empty text where no answer is found, which every metric counts as wrong."""
    if response.logprobs:
        assert task.labels, "only tasks with labels are asked for log-likelihoods"
        return task.labels[int(np.argmax(response.logprobs))]  # the first of equal ones
    text = response.text[0]
    return answers.strict(text) if is_strict else answers.parsed(text, task).answer or ""


def _mean(
    name: str, of_sample: SampleLevelComputation, category: SamplingMethod, higher_is_better: bool = True
) -> Metric:
    return SampleLevelMetric(
        metric_name=name,
        higher_is_better=higher_is_better,
        category=category,
        sample_level_fn=of_sample,
        corpus_level_fn=np.mean,
    )
