"""Does the answer follow the reasoning? What is measured on interventions (`interventions.py`). Pure.

Always against the answer to `regenerate` or `repeat`, the same request without the change, never against the recorded
one; so what a model's own noise moves is not counted:

    reproduced  regenerate, repeat: the recorded answer came back
    changed     another answer, or none
    follows     the answer went where the change pointed; only where it points somewhere
    unreadable  no answer was given when asked for; such a one is changed as well
    equal       cut: already the answer of the whole trace after j steps; a trace of fewer steps stands with all
    score       cut: worth of the answer after j steps (`lamp.metrics.reward`), against gold
    early       cut: share of all cuts short of the last step whose answer is already the final one
    gain        cut: equal after a step minus equal before it, by its tag
    holds       share of the checkable claims about cited items that are true (`tags.ground`)

These definitions are ours. Guarantee: deterministic; intervals by bootstrap over users, cited minus uncited paired by
answer. Price: one matrix product over all measures of a cell.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import numpy as np

from tagpr_data import tags
from tagpr_data.records import FaithfulnessMeasure, Intervention, InterventionAction, Prediction
from tagpr_eval import stats
from tagpr_eval.cells import RESAMPLES
from tagpr_eval.interventions import Case, Target

FOLDER = "faithfulness"
"""Where a run folder keeps what was found about it."""
MANIFEST = "faithfulness.json"
Measured = Literal["reproduced", "changed", "follows", "unreadable", "equal", "score", "early", "gain", "holds"]
_Name = tuple[InterventionAction | Literal["ground"], Target | None, Measured, str | None, int | None]
"""Action, target, measure, tag, step."""


def measure(cases: Sequence[Case], rows: Sequence[Intervention], seed: int = 0) -> list[FaithfulnessMeasure]:
    """Give all measures of one cell (one model, task, retriever, k and style), those with rows only.

    `rows` may be of some of the cases only; claims are counted of all `cases`. Raises nothing on well-formed rows."""
    if not cases:
        return []
    series = _Series(cases)
    for row in rows:
        _add_shares(series, row)
    _add_curve(series, rows)
    _add_claims(series, cases)
    return series.measures(seed)


class _Series:
    """The rows of every measure of a cell: case, part and whole."""

    def __init__(self, cases: Sequence[Case]) -> None:
        first = cases[0].prediction
        self.cell = {name: getattr(first, name) for name in ("model", "task", "retriever", "k", "style")}
        self.users = {user: place for place, user in enumerate(sorted({case.prediction.user_id for case in cases}))}
        self.found: defaultdict[_Name, list[tuple[int, int, float, float]]] = defaultdict(list)
        self._answers: dict[tuple[str, int], int] = {}

    def add(
        self, name: _Name, row: Intervention | Prediction, part: float, whole: float = 1.0, with_tag: bool = True
    ) -> None:
        """Count a row, under its tag and (for the sake of all tags) under none; `part` of `whole`."""
        answer = self._answers.setdefault((row.example_id, row.seed), len(self._answers))
        values = (answer, self.users[row.user_id], part, whole)
        self.found[name].append(values)
        if with_tag and name[3] is not None:
            self.found[(*name[:3], None, *name[4:])].append(values)

    def measures(self, seed: int) -> list[FaithfulnessMeasure]:
        """Give the shares with their intervals, and cited minus uncited."""
        names = sorted(self.found, key=lambda name: tuple((part is not None, str(part).zfill(4)) for part in name))
        grid = stats.Grid(
            stats.METRICS["accuracy"],
            [_observations(self.found[name]) for name in names],
            stats.draw(len(self.users), RESAMPLES, permutations=0, seed=seed),
        )
        result = [self._measure(name, name[1], found) for name, found in zip(names, grid.estimates(), strict=True)]
        pairs = [
            (names.index(name), names.index(other))
            for name in names
            if name[1] == "cited" and name[2] in ("changed", "follows")
            and (other := (name[0], "uncited", *name[2:])) in self.found
        ]  # fmt: skip
        differences = grid.differences(pairs, has_p=False)
        for (place, _), found in zip(pairs, differences, strict=True):
            if found.n:
                result.append(self._measure(names[place], "difference", found))
        return result

    def _measure(
        self, name: _Name, target: Target | Literal["difference"] | None, found: stats.Estimate
    ) -> FaithfulnessMeasure:
        action, _, measured, tag, step = name
        return FaithfulnessMeasure(
            **self.cell, action=action, target=target, measure=measured, tag=tag, step=step, value=found.value,
            low=found.low, high=found.high, n=found.n, users=found.users,
        )  # fmt: skip


def _observations(found: Sequence[tuple[int, int, float, float]]) -> stats.Observations:
    """Rows are named by their answer where each has one (so that they pair), else by their place."""
    answers_of, users, parts, wholes = (np.array(column) for column in zip(*found, strict=True))
    rows = answers_of if len(set(answers_of.tolist())) == len(found) else np.arange(len(found))
    return stats.Observations(rows.astype(np.int64), users.astype(np.int64), np.column_stack([parts, wholes]))


def _add_shares(series: _Series, row: Intervention) -> None:
    is_of_step = row.action in ("delete", "replace")
    if row.action in ("regenerate", "repeat"):
        series.add((row.action, None, "reproduced", None, None), row, float(not row.is_changed))
    elif row.action != "cut":
        series.add((row.action, row.target, "changed", row.tag, None), row, float(row.is_changed), with_tag=is_of_step)
        series.add(
            (row.action, row.target, "unreadable", row.tag, None), row, float(row.answer is None), with_tag=is_of_step
        )
        if row.is_following is not None:
            series.add(
                (row.action, row.target, "follows", row.tag, None), row, float(row.is_following), with_tag=is_of_step
            )


def _add_curve(series: _Series, rows: Sequence[Intervention]) -> None:
    """Answers after j steps; a trace of fewer stands with its whole, `repeat`."""
    cuts: defaultdict[tuple[str, int], dict[int, Intervention]] = defaultdict(dict)
    whole: dict[tuple[str, int], Intervention] = {}
    tag_of: dict[tuple[str, int, int], str] = {}
    for row in rows:
        key = (row.example_id, row.seed)
        if row.action == "cut" and row.step is not None:
            cuts[key][row.step] = row
        elif row.action == "repeat":
            whole[key] = row
        elif row.action == "delete" and row.step is not None and row.tag is not None:
            tag_of[(*key, row.step)] = row.tag
    complete = {key: found for key, found in cuts.items() if key in whole and len(found) == whole[key].steps}
    longest = max((whole[key].steps for key in complete), default=0)
    for key, found in complete.items():
        end = whole[key]
        for step in range(longest + 1):
            row = found.get(step, end)
            is_equal = row is end or not row.is_changed
            series.add(("cut", None, "equal", None, step), row, float(is_equal))
            series.add(("cut", None, "unreadable", None, step), row, float(row.answer is None))
            if row.score is not None:
                series.add(("cut", None, "score", None, step), row, row.score)
            if row is not end:
                series.add(("cut", None, "early", None, None), row, float(is_equal))
                after = found.get(step + 1, end)
                gain = float(after is end or not after.is_changed) - float(is_equal)
                series.add(("cut", None, "gain", tag_of.get((*key, step + 1)), None), row, gain)


def _add_claims(series: _Series, cases: Sequence[Case]) -> None:
    for case in cases:
        claims = tags.ground(case.trace.steps, case.items, case.example.date)
        for place, step in enumerate(case.trace.steps):
            holds = [claim.holds for claim in claims if claim.step == place]
            if holds:
                series.add(("ground", None, "holds", step.tag, None), case.prediction, sum(holds), len(holds))
