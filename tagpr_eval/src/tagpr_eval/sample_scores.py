"""Predictions, scored one by one: the frame that statistics, report and comparison are made from.

Every prediction becomes one row, right or wrong; nothing is dropped. A row is scored twice: `strict` takes the raw
completion as it is, `parsed` the answer that `answers.parsed` finds in it. Metrics are those of `lamp.metrics` in mode
`exact`; an answer that is missing or unreadable counts as the worst one and is counted.

Price: one metric call per distinct (completion, gold), one parse per trace; the frame is in memory once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tagpr_data import answers, tags
from tagpr_data.dataset import Dataset
from tagpr_data.dates import interval
from tagpr_data.errors import CheckFailed, InputError
from tagpr_data.lamp import metrics
from tagpr_data.records import Example, ProfileItem, Task
from tagpr_eval import stats

if TYPE_CHECKING:
    import polars as pl

Mode = Literal["strict", "parsed"]
MODES: tuple[Mode, ...] = ("strict", "parsed")
METRIC_NAMES: dict[str, tuple[str, str]] = {
    "classification": ("accuracy", "f1"),
    "rating": ("MAE", "RMSE"),
    "generation": ("rouge-1", "rouge-L"),
}
"""The two metrics of each kind of task, the headline one first."""
KEY = ("model", "task", "retriever", "k", "style", "seed", "protocol", "example_id")
"""What makes a prediction unique in a run."""
FLAGS: dict[str, str] = {
    "is_error": "the model gave no answer (finish_reason error)",
    "is_empty": "the completion is empty",
    "is_truncated": "the completion was cut at its length limit",
    "is_unclosed": "a think block is never closed",
    "is_unparseable": "the extractor found no answer",
    "is_out_of_range": "the answer is a number outside the scale",
    "is_strict_unreadable": "the raw completion is no label or number of the task (generation: has no ROUGE token)",
}
"""Columns that count failures; a row may carry several."""

_DAY = 86_400


@dataclass(frozen=True)
class Evidence:
    """What a data set knows about the prompts of a run."""

    examples: Mapping[str, Example] = field(default_factory=dict)
    """Example by id."""
    items: Mapping[tuple[str, str], ProfileItem] = field(default_factory=dict)
    """Item by profile id and item id, for the items some prompt holds."""
    newest: Mapping[str, str | None] = field(default_factory=dict)
    """Example id → date of the last item of its profile."""

    def prompt_items(self, profile_id: str, item_ids: Sequence[str]) -> tuple[ProfileItem, ...] | None:
        """Give the items of a prompt, [P1] first; None where the data set does not have them."""
        found = [self.items.get((profile_id, item_id)) for item_id in item_ids]
        known = tuple(item for item in found if item is not None)
        return known if len(known) == len(found) else None

    def recency_days(self, example_id: str) -> float | None:
        """Give the days from the newest profile item to the query; None where either date is unknown."""
        example, newest = self.examples.get(example_id), self.newest.get(example_id)
        if example is None or example.date is None or newest is None:
            return None
        return max(0.0, (interval(example.date)[0] - interval(newest)[0]) / _DAY)


def gather_evidence(dataset: Dataset, predictions: "pl.DataFrame") -> Evidence:
    """Look up the examples and items that predictions name, in one pass over the data set's tables."""
    import polars as pl

    wanted = set(predictions["example_id"])
    examples = {row.id: row for split in dataset.splits for row in dataset.examples(split) if row.id in wanted}
    shown = predictions.select("profile_id", item_id="item_ids").explode("item_id").drop_nulls().unique()
    items = {
        (row["profile_id"], row["item_id"]): ProfileItem.model_validate(row)
        for row in dataset.profiles.join(shown, on=["profile_id", "item_id"], how="semi").iter_rows(named=True)
    }
    last = pl.DataFrame(
        [(row.id, row.profile_id, row.profile_size - 1) for row in examples.values()],
        schema={"id": pl.String, "profile_id": pl.String, "position": pl.Int64},
        orient="row",
    ).join(dataset.profiles, on=["profile_id", "position"], how="inner")
    return Evidence(examples, items, dict(last.select("id", "date").iter_rows()))


def score(
    predictions: "pl.DataFrame",
    tasks: Mapping[str, Task],
    tagset: tags.TagSet,
    evidence: Evidence | None = None,
    own_tagsets: Mapping[str, tags.TagSet] | None = None,
) -> "pl.DataFrame":
    """Score every prediction; the columns of `records.Prediction` come back with these added:

    answer                 str    what the extractor found; null where it found nothing
    problem                str    why not: empty, unclosed-think, unparseable, out-of-range; else null
    is_scored              bool   whether there is a gold answer
    strict_value, parsed_value    f64  accuracy 0/1, absolute error, or ROUGE-1 F; null without gold
    strict_second, parsed_second  f64  squared error or ROUGE-L F; null for classification and without gold
    strict_label, parsed_label, gold_label  i64  index in the task's labels, −1 unknown; null for other kinds
    strict_reward, parsed_reward  f64  the same worth in [0, 1] that training uses; null without gold
    is_…                   bool   the failures of `FLAGS`
    is_valid_trace         bool   whether the completion is in the tag grammar; null where the style asks for none
    violations, step_tags  list[str]  codes of broken rules; tags of the steps, in order
    claims, grounded_claims  i64  checkable claims about cited items, and how many hold; null where the style asks for
                                  no trace or `evidence` does not know the prompt's items
    recency_days           f64    newest profile item to query; null where dates are unknown

    Traces are judged by `tagset`, those of models in `own_tagsets` by theirs. Raises InputError for a task that is not
    in `tasks` or a key that occurs twice, CheckFailed for a gold rating that is no number.
    """
    import polars as pl

    _check(predictions, tasks)
    judge = _Judge(tasks, tagset, evidence or Evidence(), own_tagsets or {})
    added = [judge.row(row) for row in predictions.iter_rows(named=True)]
    return pl.concat([predictions, pl.DataFrame(added, schema=_schema(), orient="row")], how="horizontal")


def observations(
    frame: "pl.DataFrame", task: Task, metric: str, mode: Mode, rows: Mapping[Any, int], users: Mapping[str, int]
) -> stats.Observations:
    """Give the scored rows of one cell as features of one metric. `rows` numbers (example_id, seed), `users` user
    ids."""
    import polars as pl

    frame = frame.filter(pl.col("is_scored"))
    keys = np.array([rows[key] for key in frame.select("example_id", "seed").iter_rows()], dtype=np.int64)
    whose = np.array([users[user] for user in frame["user_id"]], dtype=np.int64)
    if metric == "f1":
        found, gold = (frame[name].to_numpy() for name in (f"{mode}_label", "gold_label"))
        features = stats.f1_features(found, gold, len(task.labels or ()))
    else:
        second = metric == METRIC_NAMES[task.kind][1]
        features = stats.mean_features(frame[f"{mode}_second" if second else f"{mode}_value"].to_numpy())
    return stats.Observations(keys, whose, features)


def _schema() -> dict[str, Any]:
    import polars as pl

    numbers = {f"{mode}_{what}": pl.Float64 for what in ("value", "second", "reward") for mode in MODES}
    labels = dict.fromkeys((*(f"{mode}_label" for mode in MODES), "gold_label"), pl.Int64)
    return {
        "answer": pl.String,
        "problem": pl.String,
        "is_scored": pl.Boolean,
        **numbers,
        **labels,
        **dict.fromkeys(FLAGS, pl.Boolean),
        "is_valid_trace": pl.Boolean,
        "violations": pl.List(pl.String),
        "step_tags": pl.List(pl.String),
        "claims": pl.Int64,
        "grounded_claims": pl.Int64,
        "recency_days": pl.Float64,
    }


def _check(predictions: "pl.DataFrame", tasks: Mapping[str, Task]) -> None:
    unknown = sorted(set(predictions["task"]) - set(tasks))
    if unknown:
        raise InputError(
            f"predictions name the task {unknown[0]!r}, which is not defined; known: {', '.join(tasks)}. Where the "
            "data set that run.json names has moved (its path is relative to where the run was started), give --dataset"
        )
    keys = predictions.select(KEY)
    if keys.is_duplicated().any():
        first = keys.filter(keys.is_duplicated()).row(0, named=True)
        raise InputError(f"the prediction {first} occurs twice; each example is answered once in a cell")


class _Judge:
    """Scores rows; remembers what it scored, since cells often share answers."""

    def __init__(
        self,
        tasks: Mapping[str, Task],
        tagset: tags.TagSet,
        evidence: Evidence,
        own_tagsets: Mapping[str, tags.TagSet],
    ) -> None:
        self.tasks = tasks
        self.tagset = tagset
        self.own_tagsets = own_tagsets
        self.evidence = evidence
        self.known: dict[tuple[str, str, str], dict[str, Any]] = {}

    def row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        task, text, gold = self.tasks[row["task"]], row["text"], row["gold"]
        found = answers.parsed(text, task)
        result: dict[str, Any] = {
            "answer": found.answer,
            "problem": found.problem,
            "is_scored": gold is not None,
            "is_error": row["finish_reason"] == "error",
            "is_empty": not text.strip(),
            "is_truncated": row["finish_reason"] == "length",
            "is_unclosed": found.problem == "unclosed-think",
            "is_unparseable": found.problem == "unparseable",
            "is_out_of_range": found.problem == "out-of-range",
            "recency_days": self.evidence.recency_days(row["example_id"]),
            **self._trace(row),
        }
        if gold is None:
            return result | {"is_strict_unreadable": False}
        strict = self._sample(task, answers.strict(text), gold, row["example_id"])
        parsed = self._sample(task, found.answer or "", gold, row["example_id"])
        for mode, sample in zip(MODES, (strict, parsed), strict=True):
            result |= {f"{mode}_{what}": sample[what] for what in ("value", "second", "reward", "label")}
        return result | {"gold_label": _label(task, gold), "is_strict_unreadable": strict["is_unreadable"]}

    def _sample(self, task: Task, prediction: str, gold: str, example_id: str) -> dict[str, Any]:
        key = (task.name, prediction, gold)
        if key not in self.known:
            try:
                scores = metrics.evaluate(task, {example_id: gold}, {example_id: prediction})
            except CheckFailed as error:
                raise CheckFailed(f"task {task.name}: {error}") from None
            first, second = (scores.metrics[name] for name in METRIC_NAMES[task.kind])
            self.known[key] = {
                "value": first,
                "second": {"classification": None, "rating": first**2, "generation": second}[task.kind],
                "reward": metrics.reward(task, prediction, gold),
                "label": _label(task, prediction),
                "is_unreadable": any(count for name, count in scores.counts.items() if name != "unknown_gold"),
            }
        return self.known[key]

    def _trace(self, row: Mapping[str, Any]) -> dict[str, Any]:
        if not row["style"].startswith("trace"):
            return {"is_valid_trace": None, "violations": None, "step_tags": None, "claims": None}
        tagset = self.own_tagsets.get(row["model"], self.tagset)
        parsed = tags.parse(row["text"], tagset, k=len(row["item_ids"]))
        result: dict[str, Any] = {
            "is_valid_trace": parsed.is_valid,
            "violations": list(dict.fromkeys(violation.code for violation in parsed.violations)),
            "step_tags": [step.tag for step in parsed.steps],
        }
        items = self.evidence.prompt_items(row["profile_id"], row["item_ids"])
        example = self.evidence.examples.get(row["example_id"])
        if items is None or example is None:
            return result
        claims = tags.ground(parsed.steps, items, example.date)
        return result | {"claims": len(claims), "grounded_claims": sum(claim.holds for claim in claims)}


def _label(task: Task, text: str) -> int | None:
    if task.kind != "classification":
        return None
    labels = task.labels or ()
    return labels.index(text.strip()) if text.strip() in labels else -1
