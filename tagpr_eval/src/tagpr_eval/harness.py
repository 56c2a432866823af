"""lighteval as the harness: a prompts folder in, our model through its Pipeline, its results and details out.

What of lighteval 0.13 is worked around here, and why, is said at each place; `_check_version` refuses another
release, as the work-arounds reach into it. Importing this module does not import lighteval; `score` does (10 s).
"""

import importlib
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tagpr_data.errors import InputError
from tagpr_data.records import Sample, Sampling, Split, Task
from tagpr_data.tables import atomic_path, write_text
from tagpr_eval.grid import Cell, Question

Answers = Callable[[Sequence[tuple[str, str]]], list[Sample]]
"""Gives the samples for (cell name, example id) pairs, in their order."""


def write_prompts(
    folder: Path, questions: dict[Cell, list[Question]], tasks: dict[str, Task], split: Split, sampling: Sampling
) -> None:
    """Write a prompts folder (see `lighteval_tasks`); cells without questions are left out."""
    import polars as pl

    filled = {cell: rows for cell, rows in questions.items() if rows}
    for cell, rows in filled.items():
        frame = pl.DataFrame(
            [
                {
                    "cell": cell.name,
                    "example_id": row.example.id,
                    "user_id": row.example.user_id,
                    "system": "\n".join(turn.content for turn in row.messages if turn.role == "system"),
                    "user": "\n".join(turn.content for turn in row.messages if turn.role == "user"),
                    "gold": row.example.output,
                }
                for row in rows
            ],
            schema=dict.fromkeys(("cell", "example_id", "user_id", "system", "user", "gold"), pl.String),
        )
        with atomic_path(folder / f"{cell.name}.parquet") as temporary:
            frame.write_parquet(temporary)
    described = [
        {
            "name": cell.name,
            "task": tasks[cell.task].model_dump(mode="json"),
            "split": split,
            "protocol": cell.protocol,
            "has_gold": all(row.example.output is not None for row in rows),
            "max_new_tokens": sampling.max_new_tokens,
            "stop": list(sampling.stop),
        }
        for cell, rows in filled.items()
    ]
    write_text(folder / "cells.json", json.dumps(described, indent=1, ensure_ascii=False) + "\n")
    configs = [
        {"config_name": cell.name, "data_files": [{"split": split, "path": f"{cell.name}.parquet"}]} for cell in filled
    ]
    front = f"---\nconfigs: {json.dumps(configs)}\n---\n"  # JSON is YAML
    write_text(folder / "README.md", front + "Prompts of an evaluation, one configuration per cell.\n")


def score(prompts: Path, model_name: str, answer: Answers, output: Path) -> dict[str, dict[str, float]]:
    """Run lighteval's Pipeline over all cells of a prompts folder with a model that answers through `answer`; its
    files go under `output` (results/, details/). Gives lighteval's table: cell name → metric → value."""
    _check_version()
    with _quiet():
        lighteval_tasks = _import_lighteval()
        from lighteval.logging.evaluation_tracker import EvaluationTracker
        from lighteval.models.abstract_model import ModelConfig
        from lighteval.pipeline import ParallelismManager, Pipeline, PipelineParameters

        table = lighteval_tasks.tasks_of(prompts)
        with _only_these_tasks(table), _own_datasets_cache():
            pipeline = Pipeline(
                tasks=",".join(f"{task.name}|0" for task in table),
                pipeline_parameters=PipelineParameters(
                    launcher_type=ParallelismManager.CUSTOM,
                    custom_tasks_directory="tagpr_eval.lighteval_tasks",
                    bootstrap_iters=0,  # our intervals are clustered by user; its bootstrap forks a process pool
                    remove_reasoning_tags=False,  # it leaves unclosed think blocks in; our extractor handles both
                ),
                evaluation_tracker=EvaluationTracker(output_dir=str(output), save_details=True),
                model=_model(ModelConfig(model_name=file_name(model_name)), answer),
            )
            pipeline.evaluate()
            pipeline.save_and_push_results()
        results = pipeline.evaluation_tracker.metrics_logger.metric_aggregated
    names = [f"{task.name}|0" for task in table]
    return {name.removesuffix("|0"): {key: float(value) for key, value in results[name].items()} for name in names}


def _model(config: Any, answer: Answers) -> Any:
    """Our models as a `LightevalModel`: it gets the documents of all cells at once, so that equal prompts are
    answered once and batches are as even as can be."""
    from lighteval.models.abstract_model import LightevalModel
    from lighteval.models.model_output import ModelResponse

    class NoCache:  # lighteval's cache is keyed by row number and path: stale answers after a retrained model
        def _init_registry(self, registry: Any) -> None:
            pass

    class StoredAnswers(LightevalModel):
        is_async = False
        tokenizer = property(lambda self: None)
        add_special_tokens = property(lambda self: False)
        max_length = property(lambda self: None)

        def __init__(self) -> None:
            self.config = config
            self._cache = NoCache()

        def greedy_until(self, docs: list[Any]) -> list[Any]:
            return [ModelResponse(input=read, text=[sample.text]) for read, sample in self._answered(docs)]

        def loglikelihood(self, docs: list[Any]) -> list[Any]:
            found: list[Any] = []
            for read, sample in self._answered(docs):
                scores = list(sample.label_logprobs or ())
                # lighteval's second list is whether a choice is what the model would write; it is not asked here.
                found.append(ModelResponse(input=read, logprobs=scores, argmax_logits_eq_gold=[False] * len(scores)))
            return found

        def loglikelihood_rolling(self, docs: list[Any]) -> list[Any]:
            raise NotImplementedError("no task of ours asks for the perplexity of a text")

        def _answered(self, docs: list[Any]) -> list[tuple[str, Sample]]:
            samples = answer([(doc.specific["cell"], doc.specific["example_id"]) for doc in docs])
            inputs = [f"{doc.instruction}\n\n{doc.query}" for doc in docs]
            return list(zip(inputs, samples, strict=True))

    return StoredAnswers()


def _check_version() -> None:
    found = version("lighteval")
    if not found.startswith("0.13."):
        raise InputError(f"lighteval {found} is installed; harness.py works around faults of 0.13, install 0.13.0")


def _import_lighteval() -> Any:
    """Import lighteval and our tasks. lighteval turns torch's gradients off for the whole process and, through
    litellm, fetches a price list from the network; both are prevented."""
    import torch

    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    with_gradients = torch.is_grad_enabled()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module("lighteval.pipeline")
            return importlib.import_module("tagpr_eval.lighteval_tasks")
    finally:
        torch.set_grad_enabled(with_gradients)


@contextmanager
def _only_these_tasks(table: Sequence[Any]) -> Generator[None, None, None]:
    """lighteval's registry imports all its own tasks, of which one downloads and one fails with today's Hub client."""
    from lighteval.tasks.registry import Registry

    original = Registry.__dict__["load_all_task_configs"]
    configs = {task.name: task for task in table}
    Registry.load_all_task_configs = staticmethod(lambda custom_tasks=None, load_multilingual=False: dict(configs))
    try:
        yield
    finally:
        Registry.load_all_task_configs = original


@contextmanager
def _own_datasets_cache() -> Generator[None, None, None]:
    """`datasets` copies every Parquet file it reads into its cache; let it use one that goes away."""
    from datasets import config
    from datasets.utils import logging as chatter

    before = config.HF_DATASETS_CACHE
    was_enabled = chatter.is_progress_bar_enabled()
    with tempfile.TemporaryDirectory(prefix="tagpr-") as folder:
        config.HF_DATASETS_CACHE = folder
        chatter.disable_progress_bar()
        try:
            yield
        finally:
            config.HF_DATASETS_CACHE = before
            if was_enabled:
                chatter.enable_progress_bar()


@contextmanager
def _quiet() -> Generator[None, None, None]:
    """Keep lighteval's and its libraries' chatter off the screen; warnings about our own doing are still raised."""
    names = ("lighteval", "datasets", "huggingface_hub", "LiteLLM")
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def file_name(model_name: str) -> str:
    """Give a name that cannot lead out of a folder: lighteval puts the model's into paths, and so do we."""
    return (
        "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in model_name).strip(".") or "model"
    )
