"""The report's first part: the models side by side in the order given, such as base, SFT, guided and exploratory.

All stand in one setting, the largest k that most of them ran, so that what differs is the model (and its style, where
a base model is asked directly and a tuned one for a trace). The *relative improvement* over the first model is the
kind of number that the paper's headline is (+32.65 % on average). How the paper computes it is not public: the formula
is ours, the same for every task: (score − base) / base, for errors (base − score) / base, on the answers that both
have; a task is the mean of its two metrics, the average the mean over tasks. Intervals resample users, for all tasks
together. Rules that need no model stand below the models.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tagpr_eval import plots, sample_scores, stats
from tagpr_eval.cells import RESAMPLES, SEED, Cell, Group, control_place
from tagpr_eval.report_tables import CELL_COLUMNS, cell_row, cell_values, sources
from tagpr_eval.typeset import Column, Row, Table, show, without_empty_columns

_COMPARED = ("previous", "base", "no_profile", "wrong_user")
"""What a cell is set against."""


@dataclass(frozen=True)
class Stages:
    """The cells of one task that stand side by side."""

    group: Group
    """Their task."""
    places: tuple[int, ...]
    """Where they stand in `group.cells`, in the order given."""
    left_out: tuple[str, ...]
    """Models that did not run the setting."""
    rules: tuple[int, ...] = ()
    """Where the rules stand in `group.cells`; they read the whole profile, whatever the setting."""
    reference: str = ""
    """The model that others are improvements over; empty takes the first."""

    def cell(self, place: int) -> Cell:
        """Give a cell."""
        return self.group.cells[place]

    @property
    def models(self) -> list[str]:
        """The models, in order."""
        return list(dict.fromkeys(self.cell(place).model for place in self.places))

    @property
    def rows(self) -> tuple[int, ...]:
        """Models and rules."""
        return (*self.places, *self.rules)

    @property
    def first(self) -> str:
        """The model that others are improvements over."""
        return self.reference or self.models[0]

    def of(self, model: str, like: Cell) -> int | None:
        """Give the cell of a model that another one is compared to: of its style if there is one, of its protocol
        unless one of the two is a rule."""
        places = [
            place
            for place in self.rows
            if (found := self.cell(place)).model == model
            and (found.protocol == like.protocol or found.is_baseline or like.is_baseline)
        ]
        return next((place for place in places if self.cell(place).style == like.style), next(iter(places), None))

    def base(self, place: int) -> int | None:
        """Give what a cell is an improvement over; None for that model itself, and where it did not run."""
        return None if self.cell(place).model == self.first else self.of(self.first, self.cell(place))

    def previous(self, place: int) -> int | None:
        """Give the cell of the model before; None for the first model and for rules."""
        if place in self.rules:
            return None
        at = self.models.index(self.cell(place).model)
        return self.of(self.models[at - 1], self.cell(place)) if at else None


@dataclass(frozen=True)
class Improvement:
    """How much better than base, relative to base: 1.0 is twice as good (errors: none left)."""

    value: float
    """On all common answers; nan where base scores 0."""
    resampled: stats.Floats
    """(R,) the same on each resample of users."""

    def as_per_cent(self, n: int, users: int) -> stats.Estimate | None:
        """Give it in per cent with its interval; None where there is no number."""
        if math.isnan(self.value):
            return None
        low, high = _ends(self.resampled)
        return stats.Estimate(100 * self.value, 100 * low, 100 * high, n, users)


def make_stages(
    groups: Sequence[Group], reference: str = "", retriever: str | None = None, k: int | None = None
) -> list[Stages]:
    """Give the models of each task side by side, for the tasks that two models ran in one setting, or a model and a
    rule. `reference` is the model that others are improvements over; `retriever` and `k` ask for a setting."""
    found = (_stages(group, reference, retriever, k) for group in groups)
    return [stages for stages in found if stages is not None]


def intro(base: str = "the first model") -> str:
    """Give how to read the tables; `base` is what the others are compared to."""
    return (
        "The models in the order given, in one setting; parsed answers, 95 % intervals over users, not over training "
        "anew: a model is one training run. Strict: the raw "
        "completion, as it is. Δ: paired differences on the same examples, positive means better, also for errors; "
        "bold: p < 0.05, corrected by Holm over all differences of the table. Relative: (score − base) / base in per "
        f"cent, for errors (base − score) / base, mean of the task's two metrics; base is {base}. This formula is "
        "ours; how the paper computes its average is not public."
    )


def stage_tables(found: Sequence[Stages]) -> tuple[Table, ...]:
    """Give one table a task, and the averages last."""
    if not found:
        return ()
    improved = improvements(found)
    made = [_stage_table(stages, of) for stages, of in zip(found, improved, strict=True)]
    return (*made, _average_table(found, improved))


def stage_plots(found: Sequence[Stages]) -> tuple[plots.Plot, ...]:
    """Give, for each task with two models, the score by model with the right profile, without one, and with another
    user's."""
    return tuple(_stage_plot(stages) for stages in found if len(stages.models) > 1)


def headline(found: Sequence[Stages], averages: Table) -> tuple[str, str, tuple[str, ...]] | None:
    """Give heading, score and facts of an average: the last model's of those with most tasks; None where none has."""
    names = [column.name for column in averages.columns]
    column = averages.columns[names.index("relative")]
    models = [dict(zip(names, row.values, strict=True)) for row in averages.rows if not row.role]
    models = [model for model in models if model["relative"] is not None]
    if not models:
        return None
    facts = max(reversed(models), key=lambda model: int(str(model["tasks"])))
    score = show(facts["relative"], column).replace(" [", " % [")
    about = f"{facts['model']}, mean over {facts['names']}, n = {facts['n']}. The formula is ours."
    tasks = str(facts["names"]).split(", ")
    base = _bases([stages for stages in found if stages.group.task.name in tasks])
    return f"Average relative improvement over {base}", score, (about,)


def improvements(found: Sequence[Stages]) -> list[dict[int, Improvement]]:
    """Give the relative improvement over base of every cell that has one, by its place, task by task.

    All tasks use the same resamples of users; a user of several tasks is drawn in all of them."""
    people = sorted({(stages.group.data_hash, user) for stages in found for user in stages.group.users})
    draws = stats.draw(max(1, len(people)), RESAMPLES, permutations=1, seed=SEED)
    index = {person: place for place, person in enumerate(people)}
    result: list[dict[int, Improvement]] = []
    for stages in found:
        group = stages.group
        users = {user: index[group.data_hash, user] for user in group.users}
        pairs = {place: base for place in stages.rows if (base := stages.base(place)) is not None}
        by_metric: list[dict[int, Improvement]] = []
        for metric in group.metrics:
            rows = [
                sample_scores.observations(cell.frame, group.task, metric, "parsed", group.rows, users)
                for cell in group.cells
            ]
            by_metric.append(
                {
                    place: _improvement(stats.METRICS[metric], rows[place], rows[base], draws)
                    for place, base in pairs.items()
                }
            )
        result.append({place: mean_improvement([one[place] for one in by_metric]) for place in pairs})
    return result


def mean_improvement(parts: Sequence[Improvement]) -> Improvement:
    """Give the mean, on each resample too."""
    return Improvement(
        math.fsum(part.value for part in parts) / len(parts), np.mean([part.resampled for part in parts], axis=0)
    )


def _stages(group: Group, reference: str, retriever: str | None, k: int | None) -> Stages | None:
    """The cells of the setting that most models ran; of several, that of the largest k."""
    cells = [cell for cell in group.cells if not cell.is_baseline and cell.control is None]
    settings = [
        (cell.retriever, cell.k) for cell in cells if retriever in (None, cell.retriever) and k in (None, cell.k)
    ]
    settings = list(dict.fromkeys(settings))
    ran = {one: {cell.model for cell in cells if (cell.retriever, cell.k) == one} for one in settings}
    best = max(settings, key=lambda one: (len(ran[one]), one[1], -settings.index(one)), default=None)
    rules = [
        place
        for place, cell in enumerate(group.cells)
        if cell.is_baseline and cell.control is None and (cell.reads_whole_profile or (cell.retriever, cell.k) == best)
    ]
    if best is None or len(ran[best]) + len(rules) < 2:
        return None
    places = [
        place for place, cell in enumerate(group.cells) if not cell.is_baseline and (cell.retriever, cell.k) == best
    ]
    left_out = dict.fromkeys(cell.model for cell in cells if cell.model not in ran[best])
    return Stages(group, tuple(places), tuple(left_out), tuple(rules), reference)


def _stage_table(stages: Stages, improved: dict[int, Improvement]) -> Table:
    group, cells = stages.group, [stages.cell(place) for place in stages.rows]
    metric, second = group.metrics
    grid = group.grid(metric, "parsed")
    columns = (
        *_cell_columns([stages.cell(place) for place in stages.places]),
        Column(metric, f"{metric} {arrow(metric)} parsed", "estimate"),
        Column("strict", f"{metric} {arrow(metric)} strict", "estimate", hint="of the raw completion"),
        Column(second, f"{second} {arrow(second)} parsed", "estimate"),
        Column("previous", "Δ previous", "difference", hint=f"{metric}: minus the model before"),
        Column("base", f"Δ {stages.first}", "difference", hint=f"{metric}: minus {stages.first}"),
        Column("no_profile", "Δ no profile", "difference", hint=f"{metric}: right profile minus none"),
        Column("wrong_user", "Δ wrong user", "difference", hint=f"{metric}: right minus wrong user's profile"),
        Column("relative", "Relative, %", "difference", 1, hint="mean of both metrics, relative to the first model"),
        Column("valid", "Valid", "estimate", hint="traces in the tag grammar"),
        Column("grounded", "Claims that hold", "estimate"),
        Column("n", "n", "count"),
        Column("users", "Users", "count"),
        *(Column(f"p_holm_{name}", "", "p", is_printed=False) for name in _COMPARED),
    )
    scores, others = grid.estimates(), group.grid(second, "parsed").estimates()
    strict = group.grid(metric, "strict").estimates()
    valid, grounded = group.share(cells, "is_valid_trace"), group.share(cells, "grounded_claims", "claims")
    against = {
        (place, name): other
        for place in stages.rows
        for name, other in (
            ("previous", stages.previous(place)),
            ("base", stages.base(place)),
            ("no_profile", control_place(group.cells, place, "none")),
            ("wrong_user", control_place(group.cells, place, "wrong-user")),
        )
        if other is not None
    }
    differences = dict(zip(against, grid.differences([(key[0], other) for key, other in against.items()]), strict=True))
    corrected = dict(zip(differences, stats.holm([found.p for found in differences.values()]), strict=True))
    at = {column.name: index for index, column in enumerate(columns)}
    rows = [
        cell_row(
            (
                *cell_values(group, cell)[1:], scores[place], strict[place], others[place],
                *(differences.get((place, name)) for name in _COMPARED),
                improved[place].as_per_cent(scores[place].n, scores[place].users) if place in improved else None,
                valid_share if valid_share.n else None, grounded_share if grounded_share.n else None,
                scores[place].n, scores[place].users, *(corrected.get((place, name)) for name in _COMPARED),
            ),
            cell,
            {at[name] for name in _COMPARED if corrected.get((place, name), 1.0) < 0.05},
        )
        for place, cell, valid_share, grounded_share in zip(stages.rows, cells, valid, grounded, strict=True)
    ]  # fmt: skip
    missing = f" Not in this setting: {', '.join(stages.left_out)}." if stages.left_out else ""
    if stages.first not in {cell.model for cell in group.cells}:
        missing += f" Did not run this task: {stages.first}."
    setting = _setting([stages.cell(place) for place in stages.places])
    of_rules = [stages.cell(place) for place in stages.rules]
    whole = ", ".join(cell.model for cell in of_rules if cell.rule != "oracle")
    bounds = ", ".join(cell.model for cell in of_rules if cell.rule == "oracle")
    rules = f" Rules read the whole profile: {whole}." if whole else ""
    rules += f" Upper bounds, which know the gold: {bounds}." if bounds else ""
    note = f"{group.source}; {setting}; paired on common examples, {len(differences)} differences.{rules}{missing}"
    return without_empty_columns(
        Table(f"stages-{group.task.name}-{group.data_hash}", group.task.name, columns, tuple(rows), note)
    )


def arrow(metric: str) -> str:
    """Give which way a metric is better, as column titles show it."""
    return "↑" if stats.METRICS[metric].is_higher_better else "↓"


def _cell_columns(cells: Sequence[Cell]) -> list[Column]:
    """What says which cell a row is about; what is the same in all rows stands in the note."""
    columns = {column.name: column for column in CELL_COLUMNS[1:]}
    for name in ("retriever", "k", "protocol"):
        if len({getattr(cell, name) for cell in cells}) == 1:
            columns[name] = replace(columns[name], is_printed=False)
    return list(columns.values())


def _setting(cells: Sequence[Cell]) -> str:
    settings = dict.fromkeys(f"{cell.retriever}, k = {cell.k}, {cell.protocol}" for cell in cells)
    return f"{' or '.join(settings)}; parsed answers"


def _average_table(found: Sequence[Stages], improved: Sequence[dict[int, Improvement]]) -> Table:
    """Give each model's average over the tasks it and base ran."""
    cells = [stages.cell(place) for stages in found for place in stages.places]
    columns = (
        *_cell_columns(cells),
        Column("relative", "Average relative improvement, %", "difference", 1),
        Column("tasks", "Tasks", "count"),
        Column("names", "Which"),
        Column("n", "n", "count"),
    )
    members: dict[tuple[str, str, str], list[tuple[Stages, int, Improvement]]] = {}
    for stages, of in zip(found, improved, strict=True):
        for place, improvement in of.items():
            cell = stages.cell(place)
            members.setdefault((cell.model, cell.style, cell.protocol), []).append((stages, place, improvement))
    order = [stages.cell(place).model for stages in found for place in stages.places]
    order += [stages.cell(place).model for stages in found for place in stages.rules]
    rows: list[Row] = []
    without: dict[str, None] = {}
    for _, parts in sorted(members.items(), key=lambda item: order.index(item[0][0])):
        values = [cell_values(stages.group, stages.cell(place))[1:] for stages, place, _ in parts]
        joined = [", ".join(dict.fromkeys(str(value) for value in column)) for column in zip(*values, strict=True)]
        known = [part for part in parts if not math.isnan(part[2].value)]
        without |= dict.fromkeys(stages.group.task.name for stages, _, one in parts if math.isnan(one.value))
        n = sum(_common(stages, place) for stages, place, _ in known)
        average = mean_improvement([improvement for *_, improvement in known]).as_per_cent(n, 0) if known else None
        names = ", ".join(stages.group.task.name for stages, *_ in known) or None
        role = "baseline" if parts[0][0].cell(parts[0][1]).is_baseline else ""
        rows.append(Row((*joined, average, len(known), names, n), role))
    base = _bases(found)
    left_out = f" Left out, as {base} scores 0 and there is no ratio: {', '.join(without)}." if without else ""
    note = (
        f"{sources([stages.group for stages in found])} {_setting(cells)}. Mean over tasks of the relative improvement "
        f"over {base}; ∞: {base} scores 0 in resamples at that end.{left_out}"
    )
    return Table("stages-average", "Average over tasks", columns, tuple(rows), note)


def _common(stages: Stages, place: int) -> int:
    """How many answers a cell shares with what it is an improvement over."""
    base = stages.base(place)
    rows = stages.group.grid(stages.group.metrics[0], "parsed").cells
    return 0 if base is None else len(np.intersect1d(rows[place].rows, rows[base].rows))


def _bases(found: Sequence[Stages]) -> str:
    """What the others are improvements over; where the tasks' first models differ, all of them."""
    return " or ".join(dict.fromkeys(stages.first for stages in found))


def _stage_plot(stages: Stages) -> plots.Plot:
    group, metric = stages.group, stages.group.metrics[0]
    found = group.grid(metric, "parsed").estimates()
    ticks = {place: _tick(stages, place) for place in stages.places}
    lines = [
        plots.Line(
            name,
            tuple(
                (tick, found[at])
                for place, tick in ticks.items()
                if (at := place if control is None else control_place(group.cells, place, control)) is not None
            ),
            "curve" if control is None else "control",
        )
        for name, control in (("right profile", None), ("no profile", "none"), ("wrong user", "wrong-user"))
    ]
    lines = [line for line in lines if line.points]
    first = stages.cell(stages.places[0])
    better = "higher" if stats.METRICS[metric].is_higher_better else "lower"
    return plots.Plot(
        f"stages-{group.task.name}-{group.data_hash}",
        f"{group.task.name}: {metric} by model",
        f"Parsed answers, {first.retriever}, k = {first.k}, 95 % intervals, {better} is better. Dotted: the controls. "
        f"{group.source}, n = {max(value.n for value in found)}.",
        lambda: plots.curves({group.task.name: lines}, list(ticks.values()), "", f"{metric} ({better} is better)"),
    )


def _tick(stages: Stages, place: int) -> str:
    """What tells a cell from the others: the model, its style and protocol where it has several."""
    cell = stages.cell(place)
    own = [stages.cell(other) for other in stages.places if stages.cell(other).model == cell.model]
    parts = [cell.model]
    if len({one.style for one in own}) > 1:
        parts.append(cell.style)
    if len({one.protocol for one in own}) > 1:
        parts.append(cell.protocol)
    return ", ".join(parts)


def _improvement(
    metric: stats.Metric, first: stats.Observations, second: stats.Observations, draws: stats.Draws
) -> Improvement:
    first, second = stats.common(first, second)
    grid = stats.Grid(metric, [first, second], draws)
    sign = 1.0 if metric.is_higher_better else -1.0
    score, base = (float(metric.value(rows.sums())) for rows in (first, second))
    again, before = grid.resampled
    with np.errstate(divide="ignore", invalid="ignore"):
        resampled = sign * (again - before) / before
    resampled = np.where(again == before, 0.0, resampled)
    return Improvement(sign * (score - base) / base if base else math.nan, resampled)


def _ends(resampled: stats.Floats) -> tuple[float, float]:
    """Ends of the percentile interval; whole resamples, as between numbers and infinity there is nothing."""
    known = resampled[~np.isnan(resampled)]
    if not len(known):
        return math.nan, math.nan
    tail = (1 - stats.CONFIDENCE) / 2
    return float(np.quantile(known, tail, method="lower")), float(np.quantile(known, 1 - tail, method="higher"))
