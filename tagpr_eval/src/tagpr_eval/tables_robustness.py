"""Does the answer depend on how many items are shown, and on who picked them? Scores by k and retriever, and how far
they spread.

Spread: best minus worst score over retrievers at one k (mean over the ks), and over ks of one retriever (mean over the
retrievers), in the settings that all models ran, controls and whole profiles aside. A model that is always wrong
spreads nothing, so the mean over the settings stands beside it: robust is who spreads less at no lower mean. Definition
and claim are ours; the paper shows curves. Interval and bias of a spread: `contrasts`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tagpr_eval import contrasts, plots, stats
from tagpr_eval.cells import Group, control_place
from tagpr_eval.grid import WHOLE_PROFILE
from tagpr_eval.typeset import Column, Row, Table, Value, without_empty_columns

INTRO = (
    "Scores by the number of profile items in the prompt (k) and by who picks them; parsed answers, 95 % intervals "
    "over users; k = 0 shows no item. Spread: best minus worst over retrievers at one k, mean over ks; and over ks of "
    "one retriever, mean over retrievers; controls aside, in the settings that all models ran. Less spread: that of "
    "the reference minus the model's, paired, positive means the model is more robust. A model that is always wrong "
    "has no spread, so read the mean beside it. The interval of a spread takes its upward bias off (basic bootstrap). "
    "Bold: p < 0.05 by the same resamples, corrected by Holm over the differences of the table."
)
_COMPARED = ("mean_difference", "less_over_retrievers", "less_over_k")


@dataclass(frozen=True)
class _Way:
    """One model asked in one way: a row."""

    model: str
    style: str
    protocol: str
    places: dict[tuple[str, int], int]
    """(retriever, k) → place in `group.cells`, controls aside."""


def has_curves(group: Group) -> bool:
    """Whether a model ran more than one setting."""
    return any(len(way.places) > 1 for way in _ways(group))


def retriever_table(group: Group) -> Table:
    """Give the headline metric by model, retriever and k, and each retriever against the first at the largest k that
    both ran."""
    metric = group.metrics[0]
    grid = group.grid(metric, "parsed")
    scores = grid.estimates()
    shown = sorted({cell.k for cell in group.cells if not cell.is_baseline})
    columns = (
        *_COLUMNS[:3],
        Column("retriever", "Retriever"),
        *_COLUMNS[3:],
        *(Column(f"k_{k}", f"k = {k}" if k else "no profile", "estimate") for k in shown),
        Column("difference", "Δ first retriever", "difference", hint="at the largest k that both ran"),
        Column("at", "at k", "count"),
        Column("n", "n", "count"),
        Column("users", "Users", "count"),
    )
    rows: list[Row] = []
    for way in _ways(group):
        retrievers = list(dict.fromkeys(retriever for retriever, _ in way.places))
        start = _first(retrievers)
        for retriever in sorted(retrievers, key=lambda one: one != start):
            own = {k: place for (name, k), place in way.places.items() if name == retriever}
            rows.append(_retriever_row(group, way, retriever, own, start, shown, scores))
        wrong = {
            k: place
            for (_, k), right in way.places.items()
            if (place := control_place(group.cells, right, "wrong-user")) is not None
        }
        if wrong:
            rows.append(_retriever_row(group, way, "wrong-user", wrong, start, shown, scores))
    note = f"{group.source}; {metric}."
    return without_empty_columns(
        Table(f"retrievers-{group.task.name}-{group.data_hash}", group.task.name, columns, tuple(rows), note)
    )


def robustness_table(group: Group, reference: str) -> Table | None:
    """Give mean and spread of each model over the settings that all ran; None where these are fewer than two."""
    metric = stats.METRICS[group.metrics[0]]
    ways, settings = _common(group)
    over_retrievers, over_k = _sets(settings)
    if not over_retrievers and not over_k:
        return None
    rows_of = group.grid(metric.name, "parsed").cells
    cells = [[rows_of[way.places[one]] for one in settings] for way in ways]
    found: dict[tuple[int, str], stats.Estimate] = {}
    differences: dict[tuple[int, str], stats.Difference] = {}
    for place, way in enumerate(ways):
        found[place, "mean"] = contrasts.mean(metric, cells[place], group.draws)
        for name, sets in (("over_retrievers", over_retrievers), ("over_k", over_k)):
            if sets:
                found[place, name] = contrasts.spread(metric, cells[place], sets, group.draws)
        other = _reference(ways, way, reference)
        if other is None:
            continue
        weights = [1 / len(settings)] * len(settings)
        pair = [*cells[place], *cells[other]]
        minus = [-one for one in weights]
        differences[place, "mean_difference"] = contrasts.contrast(metric, pair, [*weights, *minus], group.draws)
        for name, sets in (("less_over_retrievers", over_retrievers), ("less_over_k", over_k)):
            if sets:
                differences[place, name] = contrasts.spread_difference(
                    metric, cells[place], cells[other], sets, group.draws
                )
    corrected = dict(zip(differences, stats.holm([one.p for one in differences.values()]), strict=True))
    columns = (
        *_COLUMNS,
        Column("mean", f"Mean {metric.name}", "estimate"),
        Column("mean_difference", f"Δ {reference}", "difference"),
        Column("over_retrievers", "Spread over retrievers", "estimate"),
        Column("less_over_retrievers", f"Less than {reference}", "difference"),
        Column("over_k", "Spread over k", "estimate"),
        Column("less_over_k", f"Less than {reference}", "difference"),
        Column("n", "n", "count"),
        Column("users", "Users", "count"),
        *(Column(f"p_holm_{name}", "", "p", is_printed=False) for name in _COMPARED),
    )
    rows: list[Row] = []
    for place, way in enumerate(ways):
        mean = found[place, "mean"]
        values: dict[str, Value] = {
            **_named(group, way), **{name: one for (at, name), one in found.items() if at == place},
            **{name: one for (at, name), one in differences.items() if at == place},
            **{f"p_holm_{name}": p for (at, name), p in corrected.items() if at == place},
            "n": mean.n, "users": mean.users,
        }  # fmt: skip
        bold = {name for name in _COMPARED if corrected.get((place, name), 1.0) < 0.05}
        strong = frozenset(at for at, column in enumerate(columns) if column.name in bold)
        rows.append(Row(tuple(values.get(column.name) for column in columns), "", strong))
    note = f"{group.source}; {len(settings)} settings: {_told(settings)}; {len(differences)} differences."
    name, title = f"robustness-{group.task.name}-{group.data_hash}", f"{group.task.name}: spread"
    return without_empty_columns(Table(name, title, columns, tuple(rows), note))


def robustness_plots(table: Table) -> list[plots.Plot]:
    """Give the spreads of each model, and how much less they are than the reference's, from the table of them."""
    names = [column.name for column in table.columns]
    rows = [dict(zip(names, row.values, strict=True)) for row in table.rows]
    titles = {"over_retrievers": "over retrievers", "over_k": "over k"}
    spreads = [
        (_label(row), {title: one for name, title in titles.items() if isinstance(one := row[name], stats.Estimate)})
        for row in rows
    ]
    less = [
        (f"{_label(row)}, {title}", one)
        for row in rows
        for name, title in titles.items()
        if isinstance(one := row[f"less_{name}"], stats.Difference)
    ]
    made = [
        plots.Plot(
            table.name,
            table.title,
            f"Best minus worst score, 95 % intervals; left is more robust. {table.note}",
            lambda: plots.dots(spreads, "spread of the score", 0.0),
        )
    ]
    if less:
        made.append(
            plots.Plot(
                f"{table.name}-difference",
                f"{table.title}, against the reference",
                "The reference's spread minus the model's, paired, 95 % intervals; right of 0 the model is more "
                f"robust. {table.note}",
                lambda: plots.forest(less, "less spread than the reference"),
            )
        )
    return made


_COLUMNS = (
    Column("model", "Model"),
    Column("style", "Style"),
    Column("protocol", "Protocol", is_printed=False),
    Column("split", "Split", is_printed=False),
    Column("data", "Data", is_printed=False),
)


def _ways(group: Group) -> list[_Way]:
    found: dict[tuple[str, str, str], dict[tuple[str, int], int]] = {}
    for place, cell in enumerate(group.cells):
        if not cell.is_baseline and cell.control is None and cell.retriever != WHOLE_PROFILE:
            found.setdefault((cell.model, cell.style, cell.protocol), {})[cell.retriever, cell.k] = place
    return [_Way(*key, places) for key, places in found.items()]


def _common(group: Group) -> tuple[list[_Way], list[tuple[str, int]]]:
    """The models that ran several settings, and the settings that all of these ran."""
    ways = [way for way in _ways(group) if len(way.places) > 1]
    settings = [one for one in (ways[0].places if ways else ()) if all(one in way.places for way in ways)]
    return ways, settings


def _sets(settings: Sequence[tuple[str, int]]) -> tuple[list[list[int]], list[list[int]]]:
    """Places of the settings of one k each, and of one retriever each, where there are two or more."""
    found: list[list[list[int]]] = []
    for part in (1, 0):
        by_value: dict[object, list[int]] = {}
        for place, setting in enumerate(settings):
            by_value.setdefault(setting[part], []).append(place)
        found.append([places for places in by_value.values() if len(places) > 1])
    return found[0], found[1]


def _told(settings: Sequence[tuple[str, int]]) -> str:
    """`bm25, dense with k = 4; bm25 with k = 8`: retrievers that ran the same ks together."""
    by_retriever: dict[str, list[int]] = {}
    for retriever, k in settings:
        by_retriever.setdefault(retriever, []).append(k)
    by_ks: dict[str, list[str]] = {}
    for retriever, ks in by_retriever.items():
        by_ks.setdefault(", ".join(map(str, sorted(ks))), []).append(retriever)
    return " and ".join(f"{', '.join(retrievers)} with k = {ks}" for ks, retrievers in by_ks.items())


def _reference(ways: Sequence[_Way], way: _Way, reference: str) -> int | None:
    """Place of what a model is compared to: of its style if there is one, of its protocol."""
    if way.model == reference:
        return None
    places = [place for place, one in enumerate(ways) if one.model == reference and one.protocol == way.protocol]
    return next((place for place in places if ways[place].style == way.style), next(iter(places), None))


def _retriever_row(
    group: Group,
    way: _Way,
    retriever: str,
    own: dict[int, int],
    start: str,
    shown: Sequence[int],
    scores: Sequence[stats.Estimate],
) -> Row:
    none = control_place(group.cells, next(iter(own.values())), "none")
    places = own | ({} if none is None or 0 in own else {0: none})
    common = [k for k in own if (start, k) in way.places and retriever != start]
    at = max(common, default=None)
    difference = None
    if at is not None:
        pair = [(own[at], way.places[start, at])]
        (difference,) = group.grid(group.metrics[0], "parsed").differences(pair, has_p=False)
    estimates = [scores[places[k]] if k in places else None for k in shown]
    n = max(scores[place].n for place in places.values())
    users = max(scores[place].users for place in places.values())
    named = _named(group, way)
    head = (named["model"], named["style"], named["protocol"], retriever, named["split"], named["data"])
    return Row((*head, *estimates, difference, at, n, users), "control" if retriever == "wrong-user" else "")


def _first(retrievers: Sequence[str]) -> str:
    return "bm25" if "bm25" in retrievers else retrievers[0]


def _named(group: Group, way: _Way) -> dict[str, Value]:
    return {
        "model": way.model, "style": way.style, "protocol": way.protocol, "split": group.split, "data": group.data_hash,
    }  # fmt: skip


def _label(row: dict[str, Value]) -> str:
    return f"{row['model']} ({row['style']})"
