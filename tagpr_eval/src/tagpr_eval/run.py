"""One evaluation, from settings to predictions: the stage behind `tagpr-eval run` and `tagpr-eval ablate`.

    RUN/run.json             records.RunManifest: settings, data hash, versions; status `complete` at the end
    RUN/samples.jsonl        what models wrote, appended as it arrives (store.py)
    RUN/prompts/             the cells' prompts, which any lighteval model can be run on (lighteval_tasks.py)
    RUN/samples.parquet      records.SampledAnswer, where each question is answered several times (best_of.py)
    RUN/predictions.parquet  records.Prediction, one row per model, cell and example; written last but run.json
    RUN/lighteval/           results and details in lighteval's own format

Guarantee: after `kill -9` the same command goes on, asks for no kept sample again, and ends in the same
predictions.parquet, run.json and samples.jsonl as an uninterrupted run; so do shards of a run (`Limits.shard`) and
their `merge`. Price: all prompts are in memory.
"""

import itertools
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tagpr_data import answers
from tagpr_data.cache import cache_folder
from tagpr_data.constrain import Constraint
from tagpr_data.data_source import find_dataset
from tagpr_data.dataset import Dataset
from tagpr_data.errors import CheckFailed, InputError, shorten
from tagpr_data.journal import folder_lock
from tagpr_data.lamp import metrics
from tagpr_data.provenance import git_revision, versions
from tagpr_data.records import Example, Prediction, RunManifest, Sample, SampledAnswer, Task
from tagpr_data.retrieve import Encode
from tagpr_data.tables import canonical_json, frame_from_records, read_json, sha256_text, write_json, write_table
from tagpr_data.tags import TagSet, load_tagset
from tagpr_eval import harness
from tagpr_eval.baselines import BASELINES, READS_PROFILE, Situation
from tagpr_eval.config import EvaluationConfig
from tagpr_eval.grid import Cell, Prompter, Question, baseline_cells, cells, draw, draw_order
from tagpr_eval.meter import Meter, NoMeter
from tagpr_eval.models import Completion, Model, Prompt, Spec, effective_seed, open_model, parse_spec, sample_seed
from tagpr_eval.store import SampleStore, sample_key

logger = logging.getLogger(__name__)

PREDICTIONS = "predictions.parquet"
SAMPLES = "samples.parquet"
PREDICTION_KEY = ("model", "task", "retriever", "k", "style", "seed", "protocol", "example_id")
PACKAGES = ("tagpr-data", "tagpr-eval", "lighteval", "torch", "transformers", "peft", "tokenizers")
_SMALLEST_BLOCK = 16
"""Samples that a limited run plans together at least."""
_SPEED_SETTINGS = ("concurrency", "timeout_seconds", "retries", "backoff_seconds")
"""Settings of `server` that change no answer, so a run may go on with other ones."""


@dataclass(frozen=True)
class Limits:
    """Which part of a run is done, and when it stops. Budgets count all that the run folder holds."""

    shard: tuple[int, int] = (1, 1)
    """(I, N): only every N-th batch of each model, from the I-th; the results come from `merge`."""
    max_samples: int | None = None
    """Stop after so many samples."""
    max_tokens: int | None = None
    """Stop after so many tokens, read and written."""
    max_cost: float | None = None
    """Stop when so much is spent, by `prices`."""
    prices: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Model name → price of a million tokens read, and written; a model without a price is free."""


class BudgetSpent(Exception):
    """A limit is reached: stop in good order."""


def evaluate(
    config: EvaluationConfig,
    output: Path,
    meter: Meter | None = None,
    limits: Limits = Limits(),
    make_model: Callable[[Spec, EvaluationConfig], Model] = open_model,
    score: Callable[[Path, str, harness.Answers, Path], Any] = harness.score,
) -> RunManifest:
    """Answer all cells with all models and write the run folder; give its manifest.

    A finished run of the same settings, data and models is left as it is. A run that reaches a limit ends with status
    `partial`: its predictions are those of the first examples of the draw that are answered in all cells, its cells say
    how many are missing, and lighteval is not asked; with higher limits the same command goes on. InputError for
    settings that cannot be, or a folder that holds something else; CheckFailed when a model stays unreachable:
    everything is kept.
    """
    specs = _specs(config)
    plan = _plan(config)
    configs = {spec.name: config.for_model(spec.name) for spec in specs if spec.kind != "baseline"}
    models = {spec.name: make_model(spec, configs[spec.name]) for spec in specs if spec.name in configs}
    if limits.max_cost is not None and models and not set(models) & set(limits.prices):
        raise InputError(
            f"none of the models {', '.join(models)} has a price, so a limit of the cost would never stop the run; "
            f"there are prices for {', '.join(limits.prices) or 'nothing'}"
        )
    identities = {name: model.identity for name, model in models.items()}
    with folder_lock(output):
        manifest = _open(output, config, plan.dataset, identities)
        if manifest.status == "complete":
            return manifest
        store = SampleStore(output)
        asked = {name: _Asked(name, models[name], identities[name], plan, configs[name], store) for name in models}
        meter = meter or NoMeter()
        purse = Purse(limits, {name: one.samples() for name, one in asked.items()})
        status = "complete"
        try:
            for folder in ("prompts", "lighteval"):
                shutil.rmtree(output / folder, ignore_errors=True)
            for name, one in asked.items():
                try:
                    if limits.shard != (1, 1):
                        one.answer_all(meter, purse, limits.shard)
                        continue
                    prompts = output / "prompts" / (harness.file_name(name) if name in config.per_model else "")
                    harness.write_prompts(prompts, one.questions, plan.tasks, config.split, configs[name].sampling)
                    score(prompts, name, one.answer_with(meter, purse), output / "lighteval")
                except BudgetSpent:  # the next model has its own part
                    status = "partial"
            if limits.shard != (1, 1):
                return _finish(output, manifest, "partial", {"models": identities, "shard": list(limits.shard)})
            if status == "complete":
                store.tidy()
        finally:
            store.close()
        predictions = [
            row
            for spec in specs
            for row in (
                _baseline_predictions(spec, plan, config)
                if spec.kind == "baseline"
                else asked[spec.name].predictions(status == "partial")
            )
        ]
        several = asked.values() if config.samples > 1 else ()
        _write(output, predictions, [row for one in several for row in one.all_samples(status == "partial")])
        styles = {name: configs[name].styles for name in models}
        return _finish(output, manifest, status, _results(predictions, plan, identities, styles, len(store)))


def _write(output: Path, predictions: Sequence[Prediction], drawn: Sequence[SampledAnswer]) -> None:
    """Write the tables of a run folder; `drawn` is empty where each question was asked once."""
    if drawn:
        frame = frame_from_records(drawn, SampledAnswer)
        write_table(output / SAMPLES, frame, SampledAnswer, (*PREDICTION_KEY, "sample"))
    frame = frame_from_records(predictions, Prediction)
    write_table(output / PREDICTIONS, frame, Prediction, PREDICTION_KEY)


def begin(output: Path, settings: dict[str, Any], data: dict[str, str], seed: int) -> RunManifest:
    """Write the manifest of an evaluation that begins in the folder `output`, which must be empty, and give it."""
    strangers = [entry.name for entry in output.iterdir() if entry.name != ".lock"]
    if strangers:
        raise InputError(f"{output} is no run folder and not empty (it holds {shorten(strangers[0])}); choose another")
    manifest = RunManifest(
        kind="evaluation",
        status="running",
        config=settings,
        data=data,
        seed=seed,
        versions=versions(PACKAGES),
        git_revision=git_revision(),
    )
    write_json(output / "run.json", manifest)
    return manifest


def merge(shards: Sequence[Path], output: Path, score: Callable[..., Any] = harness.score) -> RunManifest:
    """Join the run folders of all shards of one evaluation; the files are those of a run in one piece.

    No model is needed. InputError when the shards differ in settings, data or models; CheckFailed when samples are
    missing.
    """
    manifests = [read_json(folder / "run.json", RunManifest) for folder in shards]
    if not manifests:
        raise InputError("nothing to merge: name the run folders of the shards")
    for folder, manifest in zip(shards, manifests, strict=True):
        _same(
            folder,
            "settings than the first shard",
            _comparable(manifest.config),
            _comparable(manifests[0].config),
        )
        _same(folder, "data than the first shard", manifest.data, manifests[0].data)
        if "models" not in manifest.results:
            raise CheckFailed(f"{folder} is not finished: run the same command in it again")
        _same(folder, "models than the first shard", manifest.results["models"], manifests[0].results["models"])
    config = EvaluationConfig.model_validate(manifests[0].config)
    identities: dict[str, str] = manifests[0].results["models"]
    output.mkdir(parents=True, exist_ok=True)
    with folder_lock(output):
        opened = _open(output, config, Dataset.load(find_dataset(config.dataset)), identities)
        if opened.status != "complete":  # versions and revision are those that generated
            write_json(output / "run.json", manifests[0].model_copy(update={"status": "running", "results": {}}))
        store = SampleStore(output)
        for folder in shards:
            other = SampleStore(folder)
            store.merge(other)
            other.close()
        store.close()
    return evaluate(config, output, score=score, make_model=lambda spec, _: _Absent(spec.name, identities[spec.name]))


@dataclass(frozen=True)
class _Absent:
    """Stands for a model whose answers must all be there already."""

    name: str
    identity: str

    def batches(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """One batch a prompt."""
        return [[index] for index in range(len(prompts))]

    def generate(self, prompts: Sequence[Prompt], batches: Sequence[Sequence[int]], finished: Any) -> None:
        """Refuse."""
        raise CheckFailed(
            f"{len(batches)} of {len(prompts)} samples of model {self.name} are missing; give the folders of all shards"
        )


def summary(manifest: RunManifest) -> str:
    """Give the headline numbers of a finished run as a table of text."""
    lines = [f"data {', '.join(f'{name} {value[:12]}' for name, value in manifest.data.items())}, "
             f"split {manifest.config['split']}, answers as extracted"]  # fmt: skip
    for row in manifest.results.get("cells", []):
        scores = "  ".join(f"{name} {value:.4f}" for name, value in row["metrics"].items())
        missing = f"  ({row['missing']} missing)" if row["missing"] else ""
        cut = f"  ({row['cut_at_length']} cut at the length limit)" if row["cut_at_length"] else ""
        lines.append(f"{row['model']:<16} {row['cell']:<48} n={row['n']:<6} {scores}{missing}{cut}")
    if manifest.status == "partial":
        lines.append("PARTIAL: stopped by a limit or a shard of a run; the same command with higher limits goes on")
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
    dataset = Dataset.load(find_dataset(config.dataset))
    named = [dataset.task(name) for name in config.tasks] or list(dataset.manifest.tasks)
    tasks = {task.name: task for task in named}
    grid = _answerable(cells(config, list(tasks)), tasks, config)
    pool = [row for row in dataset.examples(config.split) if row.task in tasks]
    examples = [row for name in tasks for row in draw([row for row in pool if row.task == name], config.examples)]
    for name in tasks:
        if not any(row.task == name for row in examples):
            raise InputError(f"data set {config.dataset} has no example of task {name} in split {config.split}")
    prompter = Prompter(dataset, examples, pool, _tagset(config), _encoder(config), config.chat.system_prompt)
    needs_prompts = any(spec.kind != "baseline" for spec in map(parse_spec, config.models))  # rules read none
    asked = grid if needs_prompts else []
    questions = {cell: prompter.questions(cell, config.prompt_options(cell.style)) for cell in asked}
    return _Plan(dataset, tasks, examples, grid, questions, prompter)


def _tagset(config: EvaluationConfig) -> TagSet:
    return load_tagset(Path(config.tagset) if config.tagset else None)


def _answerable(grid: list[Cell], tasks: Mapping[str, Task], config: EvaluationConfig) -> list[Cell]:
    """Leave out log-likelihood for tasks without labels, and say so; InputError where that was asked for by name, or
    where nothing is left."""
    if "log-likelihood" not in config.protocols:
        return grid
    if not any(cell.protocol == "log-likelihood" for cell in grid):
        raise InputError(
            f"protocol log-likelihood scores what follows the prompt at once, so it needs style direct; the styles are "
            f"{', '.join(config.styles)}"
        )
    without = [name for name, task in tasks.items() if not task.labels]
    if without and (config.tasks or len(without) == len(tasks)):
        raise InputError(
            f"protocol log-likelihood needs a task with labels; {', '.join(without)} has none: leave it out, or use "
            "protocol generation"
        )
    if without:
        logger.warning("warning: no log-likelihood for %s: no labels to score", ", ".join(without))
    return [cell for cell in grid if cell.protocol == "generation" or cell.task not in without]


def _encoder(config: EvaluationConfig) -> Encode | None:
    if not {"dense", "hybrid"} & set(config.retrievers):
        return None
    from tagpr_eval.encoders import cached_encoder

    return cached_encoder(config.encoder, cache_folder() / "embeddings")


def _constraint(config: EvaluationConfig, plan: _Plan, question: Question, tagset: TagSet) -> Constraint | None:
    """Give what the completion of a question is kept to."""
    mode = config.sampling.constrain
    labels = plan.tasks[question.cell.task].labels or () if mode == "labels" else ()
    if question.cell.style == "direct":
        return Constraint(None, None, labels) if labels else None
    return (
        None if mode == "no" or question.cell.style == "chain" else Constraint(tagset, len(question.item_ids), labels)
    )


class _Asked:
    """One model and its answers to all its questions."""

    def __init__(
        self, name: str, model: Model, identity: str, plan: _Plan, config: EvaluationConfig, store: SampleStore
    ) -> None:
        self._name = name
        self._model = model
        self._store = store
        tagset = _tagset(config)
        if config.sampling.constrain != "no":
            identity = sha256_text(canonical_json([identity, tagset.hash]))
        self.questions = {cell: rows for cell, rows in plan.questions.items() if cell.style in config.styles}
        self._keys: dict[tuple[str, str], tuple[str, ...]] = {}  # one for each sample
        prompts: dict[str, Prompt] = {}
        for cell, rows in self.questions.items():
            labels = (plan.tasks[cell.task].labels or ()) if cell.protocol == "log-likelihood" else ()
            first = 0 if labels else effective_seed(config.sampling, cell.seed)
            seeds = [sample_seed(first, sample) for sample in range(config.samples)]
            for row in rows:
                keys = [sample_key(identity, row.prompt_hash, config.sampling, seed, labels) for seed in seeds]
                self._keys[cell.name, row.example.id] = tuple(keys)
                constraint = None if labels else _constraint(config, plan, row, tagset)
                for key, seed in zip(keys, seeds, strict=True):
                    prompts.setdefault(key, Prompt(row.messages, seed, labels, constraint))
        self._open_cells = _OpenCells(self._keys, store)
        self._sample_keys = sorted(prompts)  # so that the plan of batches does not depend on the order of cells
        self._prompts = [prompts[key] for key in self._sample_keys]

    def answer_with(self, meter: Meter, purse: "Purse") -> harness.Answers:
        """Give the function that lighteval's model answers through."""

        def answers_of(pairs: Sequence[tuple[str, str]]) -> list[Sample]:
            self.answer_all(meter, purse)
            return [self._store[self._keys[pair][0]] for pair in pairs]

        return answers_of

    def predictions(self, of_whole_examples: bool) -> list[Prediction]:
        """Give one prediction per question that is answered; `of_whole_examples`, of the examples that stand before
        the first one of the draw that lacks an answer in some cell. Which these are does not depend on how long their
        prompts are, and all cells have the same ones."""
        return [
            _prediction(self._name, row, self._store[self._keys[cell.name, row.example.id][0]])
            for cell, row in self._answered(of_whole_examples)
        ]

    def all_samples(self, of_whole_examples: bool) -> list[SampledAnswer]:
        """Give every sample of the questions of `predictions`."""
        return [
            SampledAnswer.model_validate(dict(_prediction(self._name, row, self._store[key])) | {"sample": sample})
            for cell, row in self._answered(of_whole_examples)
            for sample, key in enumerate(self._keys[cell.name, row.example.id])
        ]

    def _answered(self, of_whole_examples: bool) -> list[tuple[Cell, Question]]:
        by_example = self._keys_by_example()
        kept = set(by_example)
        if of_whole_examples:
            is_whole = lambda example_id: all(key in self._store for key in by_example[example_id])  # noqa: E731
            kept = set(itertools.takewhile(is_whole, by_example))
        return [(cell, row) for cell, rows in self.questions.items() for row in rows if row.example.id in kept]

    def samples(self) -> list[Sample]:
        """Give the model's samples that are there."""
        return [self._store[key] for key in self._sample_keys if key in self._store]

    def answer_all(self, meter: Meter, purse: "Purse", shard: tuple[int, int] = (1, 1)) -> None:
        """Have every missing sample of the shard generated; where there is a limit, example by example of the draw,
        so that what is there when it is reached is a fair part of all."""
        blocks = self._blocks(purse.samples_for(self._name)) if purse.is_limited and shard == (1, 1) else None
        answer_missing(
            self._name, self._model, self._sample_keys, self._prompts, self._store, meter, purse, shard, blocks,
            self._open_cells,
        )  # fmt: skip
        if blocks is not None and sum(map(len, blocks)) < len(self._prompts):
            raise BudgetSpent

    def _keys_by_example(self) -> dict[str, list[str]]:
        """The sample keys of each example, in the order of the draw."""
        by_example: dict[str, list[str]] = {}
        for (_, example_id), keys in self._keys.items():
            by_example.setdefault(example_id, []).extend(keys)
        return {example_id: by_example[example_id] for example_id in sorted(by_example, key=draw_order)}

    def _blocks(self, most: int | None) -> list[list[int]]:
        """Positions of the prompts of whole examples, `most` at most, cut into blocks that are batched apart: a later
        one is a quarter of what stands before it, so that little is unfinished whenever the limit comes."""
        place = {key: index for index, key in enumerate(self._sample_keys)}
        blocks: list[list[int]] = [[]]
        taken: set[str] = set()
        for keys in self._keys_by_example().values():
            new = [key for key in dict.fromkeys(keys) if key not in taken]
            if most is not None and len(taken) + len(new) > most:
                break
            if len(blocks[-1]) >= max(_SMALLEST_BLOCK, (len(taken) - len(blocks[-1])) // 4):
                blocks.append([])
            blocks[-1] += [place[key] for key in new]
            taken.update(new)
        return blocks


class _OpenCells:
    """Counts the cells that have all their answers, as these come in."""

    def __init__(self, keys: Mapping[tuple[str, str], Sequence[str]], store: SampleStore) -> None:
        """`keys`: (cell, example) → its samples."""
        open_keys: dict[str, set[str]] = {}
        self._cells_of: dict[str, set[str]] = {}
        for (cell, _), samples in keys.items():
            open_keys.setdefault(cell, set())
            for key in samples:
                if key not in store:
                    open_keys[cell].add(key)
                    self._cells_of.setdefault(key, set()).add(cell)
        self._missing = {cell: len(found) for cell, found in open_keys.items()}
        self._done = sum(not count for count in self._missing.values())

    def take(self, key: str) -> None:
        """Count an answer that has come in; a second time, nothing."""
        for cell in self._cells_of.pop(key, ()):
            self._missing[cell] -= 1
            self._done += not self._missing[cell]

    def __str__(self) -> str:
        return f"{self._done}/{len(self._missing)} cells"


def answer_missing(
    name: str, model: Model, keys: Sequence[str], prompts: Sequence[Prompt], store: SampleStore, meter: Meter,
    purse: "Purse", shard: tuple[int, int] = (1, 1), blocks: Sequence[Sequence[int]] | None = None,
    open_cells: _OpenCells | None = None,
) -> None:  # fmt: skip
    """Have every batch of the shard generated that has a sample missing, whole, so that its bits are those of a first
    run; `keys` are the prompts' keys in the store. `blocks` of positions in `prompts` are batched each for itself, one
    after the other; None makes one of all; `open_cells` is for the meter. Raises BudgetSpent at a limit of the
    purse."""
    is_missing = [key not in store for key in keys]
    if not any(is_missing):
        return
    planned = [
        [block[place] for place in batch]
        for block in blocks or [range(len(prompts))]
        for batch in model.batches([prompts[place] for place in block])
    ]
    batches = planned[shard[0] - 1 :: shard[1]]
    todo = [batch for batch in batches if any(is_missing[index] for index in batch)]
    total = sum(map(len, batches))
    meter.start(name, total, total - sum(is_missing[index] for batch in todo for index in batch))
    purse.check(name)

    def finished(index: int, completion: Completion) -> None:
        if keys[index] not in store:
            store.add(keys[index], completion)
            if open_cells is not None:
                open_cells.take(keys[index])
            try:
                purse.spend(name, completion)
            finally:  # the sample that reaches the limit is shown too
                parts = (None if open_cells is None else str(open_cells), purse.shown_cost())
                note = ", ".join(part for part in parts if part)
                meter.advance((completion.input_tokens or 0) + (completion.output_tokens or 0), note)

    model.generate(prompts, todo, finished)


class Purse:
    """What a run folder has used up, against its limits. Each model may use an even part of what the ones before it
    left, so that a partial result has something of all."""

    def __init__(self, limits: Limits, samples: Mapping[str, Sequence[Sample]]) -> None:
        """`samples`: those already there, by model, in the order the models are asked."""
        self._limits = limits
        self._used = {name: _Use() for name in samples}
        for name, found in samples.items():
            for sample in found:
                self._count(name, sample)

    @property
    def is_limited(self) -> bool:
        """Whether there is any limit."""
        return any(limit is not None for limit in self._bounds())

    def shown_cost(self) -> str | None:
        """Give the cost of all that the folder holds, for the meter; None where no model has a price."""
        if not any(name in self._limits.prices for name in self._used):
            return None
        if any(self._used[name].uncounted for name in self._limits.prices if name in self._used):
            return "cost unknown"
        return f"cost {sum(use.cost for use in self._used.values()):.4g} so far"

    def samples_for(self, model: str) -> int | None:
        """Give how many samples a model may have in all; None without a limit."""
        share = self._share(model, 0)
        return None if share is None else int(share)

    def spend(self, model: str, completion: Completion) -> None:
        """Count a completion and stop when a limit is reached."""
        self._count(model, completion)
        self.check(model)

    def check(self, model: str) -> None:
        """Stop when the model has used up its part."""
        used = self._used[model].amounts()
        shares = [self._share(model, place) for place in range(len(used))]
        if any(share is not None and amount >= share for amount, share in zip(used, shares, strict=True)):
            raise BudgetSpent

    def _bounds(self) -> tuple[float | None, ...]:
        return self._limits.max_samples, self._limits.max_tokens, self._limits.max_cost

    def _share(self, model: str, place: int) -> float | None:
        limit = self._bounds()[place]
        if limit is None:
            return None
        names = list(self._used)
        before = names[: names.index(model)]
        left = limit - sum(self._used[name].amounts()[place] for name in before)
        return left / (len(names) - len(before))

    def _count(self, model: str, answer: Completion | Sample) -> None:
        price = self._limits.prices.get(model)
        needs_tokens = self._limits.max_tokens is not None or (self._limits.max_cost is not None and price is not None)
        if needs_tokens and (answer.input_tokens is None or answer.output_tokens is None):
            raise CheckFailed(f"model {model} does not say how many tokens it used, so no such limit can be kept")
        read, written = answer.input_tokens or 0, answer.output_tokens or 0
        use = self._used[model]
        use.samples += 1
        use.uncounted += answer.input_tokens is None or answer.output_tokens is None
        use.tokens += read + written
        use.cost += (read * price[0] + written * price[1]) / 1e6 if price else 0.0


@dataclass
class _Use:
    """What a model has used up."""

    samples: int = 0
    tokens: int = 0
    cost: float = 0.0
    uncounted: int = 0
    """Samples whose tokens the server did not tell."""

    def amounts(self) -> tuple[float, float, float]:
        """Give them in the order of `Purse._bounds`."""
        return self.samples, self.tokens, self.cost


def _baseline_predictions(spec: Spec, plan: _Plan, config: EvaluationConfig) -> list[Prediction]:
    baseline = BASELINES[spec.place]
    train = plan.dataset.examples("train") if "train" in plan.dataset.splits else []
    golds = {name: [row.output for row in train if row.task == name and row.output is not None] for name in plan.tasks}
    if spec.place == "majority" and (without := [name for name in plan.tasks if not golds[name]]):
        raise InputError(
            f"the baseline majority needs gold answers of a train split; data set {config.dataset} has none for "
            f"{', '.join(without)}: leave it out, or import the train split too"
        )
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
        protocol=row.cell.protocol,
        example_id=row.example.id,
        user_id=row.example.user_id,
        profile_size=row.example.profile_size,
        profile_id=row.profile_id,
        item_ids=row.item_ids,
        prompt_hash=row.prompt_hash,
        text=answer.text,
        finish_reason=answer.finish_reason,
        input_tokens=answer.input_tokens,
        output_tokens=answer.output_tokens,
        label_logprobs=answer.label_logprobs,
        gold=row.example.output,
    )


def _open(output: Path, config: EvaluationConfig, dataset: Dataset, identities: dict[str, str]) -> RunManifest:
    """Give the manifest of the run in `output`: the one found there, or a new one, written now."""
    path = output / "run.json"
    settings = config.model_dump(mode="json")
    data = {dataset.manifest.name: dataset.manifest.content_hash}
    if path.exists():
        found = read_json(path, RunManifest)
        _same(output, "settings", _comparable(found.config), _comparable(settings))
        _same(output, "data", found.data, data)
        if found.status == "complete":
            _same(output, "models", found.results.get("models", {}), identities)
        return found
    return begin(output, settings, data, config.seeds[0])


def _finish(
    output: Path, manifest: RunManifest, status: Literal["complete", "partial"], results: dict[str, Any]
) -> RunManifest:
    done = manifest.model_copy(update={"status": status, "results": results})
    write_json(output / "run.json", done)
    return done


def _same(output: Path, what: str, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for key in sorted({*found, *wanted}):
        if found.get(key) != wanted.get(key):
            raise InputError(
                f"{output} holds a run of other {what}: {key} is {shorten(found.get(key))} there and "
                f"{shorten(wanted.get(key))} here; choose another folder"
            )


def _comparable(settings: dict[str, Any]) -> dict[str, Any]:
    """Give settings without those that change no answer, and with the defaults of those that older runs do not have."""
    server = {key: value for key, value in settings.get("server", {}).items() if key not in _SPEED_SETTINGS}
    per_model = {name: {"tagset": None, **own} for name, own in settings.get("per_model", {}).items()}
    return {"samples": 1, **settings, "server": server, "per_model": per_model}


def _results(
    predictions: Sequence[Prediction],
    plan: _Plan,
    identities: dict[str, str],
    styles: Mapping[str, Sequence[str]],
    samples: int,
) -> dict[str, Any]:
    """Headline numbers: metrics of the extracted answers by model and cell, and what was counted on the way."""
    by_cell: dict[tuple[str, Cell], list[Prediction]] = {
        (name, cell): [] for name in identities for cell in plan.grid if cell.style in styles[name]
    }
    for row in predictions:
        by_cell.setdefault((row.model, cell_of(row)), []).append(row)
    return {
        "models": identities,
        "predictions": len(predictions),
        "samples": samples,
        "cells": [
            cell_result(model, cell, rows, plan.tasks[cell.task], sum(row.task == cell.task for row in plan.examples))
            for (model, cell), rows in by_cell.items()
        ],
    }


def cell_of(row: Prediction) -> Cell:
    """Give the cell of a prediction."""
    return Cell(row.task, row.retriever, row.k, row.style, row.seed, row.protocol)  # pyright: ignore[reportArgumentType] - was one


def cell_result(model: str, cell: Cell, rows: Sequence[Prediction], task: Task, examples: int) -> dict[str, Any]:
    """Give the headline numbers of one cell, whose task has so many `examples`."""
    return {
        "model": model,
        "cell": cell.name,
        "n": len(rows),
        "missing": examples - len(rows),
        "metrics": _metrics(task, rows),
        "cut_at_length": sum(row.finish_reason == "length" for row in rows),
        "shorter_profiles": sum(row.profile_size < cell.k for row in rows),
    }


def _metrics(task: Task, rows: Iterable[Prediction]) -> dict[str, float]:
    """The task's metrics of the extracted answers; empty where no gold is known."""
    golds = {row.example_id: row.gold for row in rows if row.gold is not None}
    given = {row.example_id: answers.parsed(row.text, task).answer or "" for row in rows if row.gold is not None}
    return metrics.evaluate(task, golds, given).metrics if golds else {}
