"""The cells of evaluation runs, scored and grouped by what may be compared.

Guarantee: only cells of one task on the same split of the same data share a group; within it, all statistics use the
same resamples of users. Price: scoring, about 0.2 ms a prediction; a metric is resampled when it is first asked for.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tagpr_data.data_source import find_dataset
from tagpr_data.dataset import Dataset
from tagpr_data.errors import InputError
from tagpr_data.records import Prediction, RunManifest, Task
from tagpr_data.tables import read_json, read_table
from tagpr_data.tags import TagSet, load_tagset
from tagpr_data.tasks import LAMP_TASKS
from tagpr_eval import sample_scores, stats
from tagpr_eval.config import model_name
from tagpr_eval.grid import WHOLE_PROFILE, WRONG_USER

if TYPE_CHECKING:
    import polars as pl

BASELINES = ("majority", "own-majority", "knn", "copy-last", "oracle")
"""Models that are rules; printed beside the models, never ranked with them."""
RESAMPLES = 1000
SEED = 0
HASH_CHARACTERS = 12


@dataclass(frozen=True)
class Run:
    """One run folder, read."""

    name: str
    """Folder name; unique in a report."""
    manifest: RunManifest
    """Its run.json."""
    predictions: "pl.DataFrame"
    """Its predictions, as written."""
    dataset: Dataset | None
    """The data set it was made on; None where that is not at hand."""
    folder: Path | None = None
    """Where it lies; None for one that lies nowhere."""

    def tasks(self) -> dict[str, Task]:
        """Give the tasks its predictions may name."""
        known = {task.name: task for task in LAMP_TASKS}
        return known | {task.name: task for task in (self.dataset.manifest.tasks if self.dataset else ())}

    def setting(self, key: str) -> str:
        """Give a setting of the run as text; a dash where it has none."""
        value = self.manifest.config.get(key)
        return "–" if value is None else str(value)

    def revision(self, model: str) -> str:
        """Give the identity of a model, shortened; `rule` for baselines, a dash where the run does not say."""
        identities = self.manifest.results.get("models", {})
        return str(identities.get(model, "rule" if self.rule(model) else "–"))[:HASH_CHARACTERS]

    def given(self) -> dict[str, str]:
        """Give the models as the settings name them, in that order: name → what is asked."""
        texts: list[str] = self.manifest.config.get("models", [])
        return {model_name(text): text.partition("=")[2] or text for text in texts}

    def rule(self, model: str) -> str | None:
        """Give the baseline that a model name of this run stands for (`NAME=knn` names one); None for a model."""
        target = self.given().get(model, model)
        return target if target in BASELINES else None

    @property
    def training_seed(self) -> int | None:
        """The N of a folder name that ends in `seedN`."""
        found = re.search(r"seed-?(\d+)$", self.name)
        return int(found[1]) if found else None

    @property
    def data_hash(self) -> str:
        """Content hash of the data it read, shortened."""
        hashes = [value[:HASH_CHARACTERS] for value in self.manifest.data.values()]
        return "+".join(hashes) or "–"


@dataclass(frozen=True)
class Cell:
    """All answers of one model under one retriever, k, prompt style and protocol; seeds are pooled."""

    run: Run
    model: str
    retriever: str
    k: int
    style: str
    protocol: str
    """`records.Protocol`; without meaning for rules."""
    frame: "pl.DataFrame"
    """Scored predictions (`sample_scores.score`)."""
    evidence: sample_scores.Evidence
    """What its data set knows of its prompts."""

    @property
    def name(self) -> str:
        """The model as its run calls it."""
        return self.model.removesuffix(f" ({self.run.name})")

    @property
    def rule(self) -> str | None:
        """The baseline that answered, whatever it is called here; None for a model."""
        return self.run.rule(self.name)

    @property
    def is_baseline(self) -> bool:
        """Whether a rule answered."""
        return self.rule is not None

    @property
    def reads_whole_profile(self) -> bool:
        """Whether it is a rule that reads no prompt; the bound of a choice among answers (best_of.py) is none."""
        return self.is_baseline and self.k == 0 and self.retriever in (WHOLE_PROFILE, WRONG_USER)

    @property
    def control(self) -> str | None:
        """`none` or `wrong-user` for controls, else None."""
        return self.retriever if self.retriever in ("none", "wrong-user") else None

    @property
    def label(self) -> str:
        """Model and setting in one line."""
        return f"{self.model} · {self.setting}"

    @property
    def setting(self) -> str:
        """Retriever, k, style and protocol in one line."""
        if self.reads_whole_profile:
            return "wrong user" if self.control else "whole profile"
        where = "no profile" if self.control == "none" else f"{self.retriever}, k = {self.k}"
        how = self.style if self.protocol == "generation" else f"{self.style}, {self.protocol}"
        return f"{where} ({how})"


class Group:
    """All cells of one task on one data set: what may be compared."""

    def __init__(self, task: Task, split: str, data_hash: str, cells: Sequence[Cell]) -> None:
        self.task = task
        self.split = split
        self.data_hash = data_hash
        self.cells = list(cells)
        keys = {key for cell in cells for key in cell.frame.select("example_id", "seed").iter_rows()}
        people = {user for cell in cells for user in cell.frame["user_id"]}
        self.rows = {key: place for place, key in enumerate(sorted(keys))}
        self.users = {user: place for place, user in enumerate(sorted(people))}

    @property
    def metrics(self) -> tuple[str, str]:
        """The task's two metrics, the headline one first."""
        return sample_scores.METRIC_NAMES[self.task.kind]

    @property
    def source(self) -> str:
        """Where the numbers come from, for notes."""
        return f"{self.task.name}: split {self.split}, data {self.data_hash}, metric mode exact"

    @cached_property
    def draws(self) -> stats.Draws:
        """The random part, the same for all cells."""
        return stats.draw(max(1, len(self.users)), RESAMPLES, seed=SEED)

    @cached_property
    def _grids(self) -> dict[tuple[str, str], stats.Grid]:
        return {}

    def grid(self, metric: str, mode: sample_scores.Mode) -> stats.Grid:
        """Give all cells under one metric, resampled once."""
        if (metric, mode) not in self._grids:
            found = [
                sample_scores.observations(cell.frame, self.task, metric, mode, self.rows, self.users)
                for cell in self.cells
            ]
            self._grids[metric, mode] = stats.Grid(stats.METRICS[metric], found, self.draws)
        return self._grids[metric, mode]

    def share(self, cells: Sequence[Cell], parts: str, wholes: str | None = None) -> list[stats.Estimate]:
        """Give, for each cell, the sum of one column over the sum of another (None: over rows), with interval."""
        return stats.Grid(stats.METRICS["accuracy"], self.share_rows(cells, parts, wholes), self.draws).estimates()

    def share_rows(self, cells: Sequence[Cell], parts: str, wholes: str | None = None) -> list[stats.Observations]:
        """Give, for each cell, the rows of such a share as features of a mean; rows without a value are left out."""
        import polars as pl

        found: list[stats.Observations] = []
        for cell in cells:
            frame = cell.frame.filter(pl.col(parts).is_not_null())
            whole = np.ones(frame.height) if wholes is None else frame[wholes].to_numpy().astype(float)
            features = np.column_stack([frame[parts].to_numpy().astype(float), whole])
            users = np.array([self.users[user] for user in frame["user_id"]], dtype=np.int64)
            rows = [self.rows[key] for key in frame.select("example_id", "seed").iter_rows()]
            found.append(stats.Observations(np.array(rows, dtype=np.int64), users, features))
        return found


def load_runs(folders: Sequence[Path], dataset: Path | None = None) -> list[Run]:
    """Read run folders; `dataset` stands in for the data set folder named in their settings, where that has moved.

    Raises InputError for a folder that is no finished evaluation, two of one name, or a data set of another hash.
    """
    runs: list[Run] = []
    for folder in folders:
        manifest = read_json(folder / "run.json", RunManifest)
        if manifest.kind != "evaluation":
            raise InputError(
                f"{folder} is a run of kind {manifest.kind!r}; one of kind 'evaluation' is wanted here, and `report` "
                "and `tables` take training runs with --training"
            )
        is_written = manifest.status == "complete" or (folder / "predictions.parquet").exists()
        if manifest.status == "running" or not is_written:
            raise InputError(f"{folder} is an unfinished run; its own command goes on with it (shards: `merge` them)")
        predictions = read_table(folder / "predictions.parquet", Prediction)
        name = folder.resolve().name
        if name in {run.name for run in runs}:
            raise InputError(f"two runs are called {name!r}; rename one folder, so that a reader can tell them apart")
        runs.append(Run(name, manifest, predictions, _dataset(folder, manifest, dataset), folder))
    return runs


def make_groups(runs: Sequence[Run], is_joined: bool = False) -> list[Group]:
    """Score all runs and sort their cells by task and data. A model of several runs is one for each, as `base (RUN)`;
    `is_joined` makes it one where the runs record the same weights and no cell of theirs has other answers.

    Raises InputError when there is no prediction."""
    found: dict[tuple[str, str, str], tuple[Task, list[Cell]]] = {}
    homes = Counter(
        (model, task, run.setting("split"), run.data_hash)
        for run in runs
        for model, task in run.predictions.select("model", "task").unique().iter_rows()
    )
    for run in runs:
        evidence = (
            sample_scores.gather_evidence(run.dataset, run.predictions) if run.dataset else sample_scores.Evidence()
        )
        tasks = run.tasks()
        frame = sample_scores.score(
            run.predictions, tasks, tagset_of([run.manifest]), evidence, own_tagsets(run.manifest)
        )
        keys = ("task", "model", "retriever", "k", "style", "protocol")
        for (task, model, retriever, k, style, protocol), part in frame.group_by(keys, maintain_order=True):
            is_shared = homes[str(model), str(task), run.setting("split"), run.data_hash] > 1
            shown = f"{model} ({run.name})" if is_shared else str(model)
            cell = Cell(run, shown, str(retriever), int(str(k)), str(style), str(protocol), part, evidence)
            key = (str(task), run.setting("split"), run.data_hash)
            found.setdefault(key, (tasks[str(task)], []))[1].append(cell)
    if not found:
        raise InputError("the runs hold no prediction; there is nothing to report")
    if is_joined:
        found = {key: (task, _joined(cells)) for key, (task, cells) in found.items()}
    return [Group(task, split, data, _in_order(cells)) for (_, split, data), (task, cells) in found.items()]


def _joined(cells: Sequence[Cell]) -> list[Cell]:
    """Make one of a model that is the same in several runs; of cells with equal answers one stays. Runs whose names end
    in a training seed are left apart."""
    by_name: dict[str, list[Cell]] = {}
    for cell in cells:
        by_name.setdefault(cell.name, []).append(cell)
    kept: list[Cell] = []
    for name, own in by_name.items():
        weights = {cell.run.revision(name) for cell in own}
        by_setting: dict[str, list[Cell]] = {}
        for cell in own:
            by_setting.setdefault(f"{cell.retriever} {cell.k} {cell.style} {cell.protocol}", []).append(cell)
        answers = [[cell.frame.select(*_ANSWER).sort(_ANSWER) for cell in alike] for alike in by_setting.values()]
        is_one = len(weights) == 1 and weights != {"–"} and all(cell.run.training_seed is None for cell in own)
        is_one &= all(other.equals(first) for first, *others in answers for other in others)
        kept += [replace(alike[0], model=name) for alike in by_setting.values()] if is_one else own
    return kept


_ANSWER = ("example_id", "seed", "prompt_hash", "text")
"""What two runs must have alike in a cell for it to be one."""


def control_place(cells: Sequence[Cell], place: int, kind: str) -> int | None:
    """Place of the control of a cell: the same model, style and protocol; for wrong-user also the same k."""
    cell = cells[place]
    wanted = (cell.model, cell.style, cell.protocol)
    for index, other in enumerate(cells):
        is_same = (other.model, other.style, other.protocol) == wanted
        if is_same and other.control == kind and (kind == "none" or other.k == cell.k):
            return index
    return None


def is_same_setting(cell: Cell, other: Cell, cells: Sequence[Cell]) -> bool:
    """Whether two cells put the same items into the prompt: style may differ only where a model has not run the
    other's style, and protocols only where one of the two is a rule."""
    if cell.protocol != other.protocol and not (cell.is_baseline or other.is_baseline):
        return False
    if (cell.control, cell.retriever, cell.k) != (other.control, other.retriever, other.k):
        return cell.control == other.control == "none"
    return cell.style == other.style or not any(
        one.model == cell.model and one.style == other.style and (one.retriever, one.k) == (cell.retriever, cell.k)
        for one in cells
    )


def largest_k(group: Group) -> list[Cell]:
    """Cells of the largest k of each model, retriever, style and protocol, and those without profile; rules aside."""
    cells = [cell for cell in group.cells if not cell.is_baseline and cell.control != "wrong-user"]
    largest: dict[tuple[str, str, str, str], int] = {}
    for cell in cells:
        key = (cell.model, cell.retriever, cell.style, cell.protocol)
        largest[key] = max(largest.get(key, 0), cell.k)
    return [
        cell
        for cell in cells
        if cell.k == largest[cell.model, cell.retriever, cell.style, cell.protocol] or cell.control == "none"
    ]


def best_place(group: Group, found: Sequence[stats.Estimate], metric: str) -> int | None:
    """Place of the best cell that is neither rule nor control; None where all are equal."""
    sign = 1 if stats.METRICS[metric].is_higher_better else -1
    places = [
        place
        for place, cell in enumerate(group.cells)
        if not cell.is_baseline and cell.control is None and not math.isnan(found[place].value)
    ]
    if len({round(found[place].value, 9) for place in places}) < min(2, len(places)):
        return None
    return max(places, key=lambda place: sign * found[place].value, default=None)


def _in_order(cells: Sequence[Cell]) -> list[Cell]:
    """Models in the order the runs and their settings name them, rules last; in each, controls first, then retriever
    and k."""
    runs = list(dict.fromkeys(cell.run.name for cell in cells))
    given = {cell.run.name: list(cell.run.given()) for cell in cells}

    def place(cell: Cell) -> tuple[int, int]:
        names = given[cell.run.name]
        return runs.index(cell.run.name), names.index(cell.name) if cell.name in names else len(names)

    first: dict[str, tuple[int, int]] = {}
    for cell in cells:  # a model of several runs stands where the first of them has it
        first[cell.model] = min(place(cell), first.get(cell.model, place(cell)))
    rank = {"none": 0, "wrong-user": 2}
    return sorted(
        cells,
        key=lambda cell: (
            cell.is_baseline,
            *first[cell.model],
            cell.model,
            cell.style,
            cell.protocol,
            rank.get(cell.control or "", 1),
            cell.retriever,
            cell.k,
        ),
    )


def _dataset(folder: Path, manifest: RunManifest, instead: Path | None) -> Dataset | None:
    try:
        path = instead or find_dataset(str(manifest.config.get("dataset")), offline=True)
    except InputError:
        return None
    dataset = Dataset.load(path)
    hashes = set(manifest.data.values())
    if hashes and dataset.manifest.content_hash not in hashes:
        raise InputError(
            f"{folder} was made on data {', '.join(sorted(hashes))}, but data set {path} has "
            f"{dataset.manifest.content_hash}; give the one it was made on with --dataset"
        )
    return dataset


def tagset_of(manifests: Iterable[RunManifest]) -> TagSet:
    """Give the tag set the runs name; the shipped one where they name none or its file has gone."""
    found = (_tagset(manifest.config.get("tagset")) for manifest in manifests)
    return next((tagset for tagset in found if tagset is not None), None) or load_tagset()


def own_tagsets(manifest: RunManifest) -> dict[str, TagSet]:
    """Give the tag sets of models that were asked by another one than the run's."""
    own: dict[str, dict[str, object]] = manifest.config.get("per_model", {})
    found = {name: _tagset(options.get("tagset")) for name, options in own.items()}
    return {name: tagset for name, tagset in found.items() if tagset is not None}


def _tagset(named: object) -> TagSet | None:
    """The tag set of a file or a shipped name; None where there is none, or it has gone."""
    if not isinstance(named, str):
        return None
    try:
        return load_tagset(Path(named))
    except InputError:
        return None
