"""Who is served: the score by the length of the user's history, and for users seen or not seen in training.

In the setting of the main table. Seen: the data set's own train split has an example of the user, of whatever task; a
model may have been trained on fewer of them, or on other data, which a data set cannot tell. Where it has no train
split, or is not at hand, there is no such table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tagpr_eval import stats
from tagpr_eval.cells import Cell, control_place
from tagpr_eval.report_stages import Stages, arrow
from tagpr_eval.report_tables import banded
from tagpr_eval.typeset import Column, Row, Table, Value, without_empty_columns

EDGES = (3, 8)
"""Lower ends of the bands of history lengths after the first: 0-2 items is a cold start (ours), 3-7, 8 and more."""
INTRO = (
    "The headline metric by the number of items in the user's whole history when the question was asked, and for users "
    "with and without examples in the data set's train split. Parsed answers, 95 % intervals over users, paired "
    "differences within the band, positive means better; bold: p < 0.05, corrected by Holm over the differences of the "
    "table."
)
_COMPARED = ("base", "no_profile", "wrong_user")


@dataclass(frozen=True)
class _Slicing:
    """One way to part the answers."""

    name: str
    title: str
    index: Sequence[stats.Ints]
    """For each cell of `_cells`, the band of each scored row."""
    names: Sequence[str]
    """The bands."""

    def found(self) -> list[str]:
        """The bands that have rows."""
        return [name for band, name in enumerate(self.names) if any((one == band).any() for one in self.index)]


def cold_start_tables(stages: Stages) -> list[Table]:
    """Give the table by length of history, and that by users seen in training where the data tells; none where all
    users are of one kind, as it would be the main table again."""
    return [_table(stages, slicing) for slicing in _slicings(stages) if len(slicing.found()) > 1]


def users_of_one_kind(stages: Stages) -> str:
    """Give a sentence about what all users have in common; empty where there is no such thing."""
    alike = [f"{slicing.title}: {slicing.found()[0]}" for slicing in _slicings(stages) if len(slicing.found()) == 1]
    return f"All users alike in {', '.join(alike)}." if alike else ""


def _slicings(stages: Stages) -> list[_Slicing]:
    cells, seen = _cells(stages), _seen_users(stages)
    found = [_Slicing("history", "items in the history", *_by_history(cells))]
    if seen is not None:
        found.append(_Slicing("seen", "users in training", *_by_seen(cells, seen)))
    return found


def _table(stages: Stages, slicing: _Slicing) -> Table:
    group, cells = stages.group, _cells(stages)
    place_of = {id(cell): place for place, cell in enumerate(cells)}
    bands = banded(group, cells, slicing.index, slicing.names)
    differences: dict[tuple[int, str, str], stats.Difference] = {}
    for band, grid in bands:
        pairs = {
            (place, against): place_of[id(group.cells[other])]
            for place in stages.rows
            for against, other in _others(stages, place).items()
            if len(grid.cells[place_of[id(group.cells[place])]].rows)
        }
        own = [(place_of[id(group.cells[place])], other) for (place, _), other in pairs.items()]
        for (place, against), found in zip(pairs, grid.differences(own), strict=True):
            if found.n:
                differences[place, band, against] = found
    corrected = dict(zip(differences, stats.holm([one.p for one in differences.values()]), strict=True))
    columns = _columns(group.metrics[0], slicing.title, stages.first)
    bold = {column.name: at for at, column in enumerate(columns)}
    rows: list[Row] = []
    for place in stages.rows:
        cell = group.cells[place]
        for band, grid in bands:
            score = grid.estimates()[place_of[id(cell)]]
            if not score.n:
                continue
            values: tuple[Value, ...] = (
                cell.model, cell.style, cell.retriever, cell.k, cell.protocol, group.split, group.data_hash, band,
                score, *(differences.get((place, band, one)) for one in _COMPARED), score.n, score.users,
                *(corrected.get((place, band, one)) for one in _COMPARED),
            )  # fmt: skip
            strong = {bold[one] for one in _COMPARED if corrected.get((place, band, one), 1.0) < 0.05}
            rows.append(Row(values, "baseline" if cell.is_baseline else "", frozenset(strong)))
    first = group.cells[stages.places[0]]
    note = f"{group.source}; {first.retriever}, k = {first.k}; {len(differences)} differences."
    label = f"{slicing.name}-{group.task.name}-{group.data_hash}"
    return without_empty_columns(Table(label, f"{group.task.name}, by {slicing.title}", columns, tuple(rows), note))


def _columns(metric: str, title: str, base: str) -> tuple[Column, ...]:
    return (
        Column("model", "Model"),
        Column("style", "Style"),
        Column("retriever", "Retriever", is_printed=False),
        Column("k", "k", "count", is_printed=False),
        Column("protocol", "Protocol", is_printed=False),
        Column("split", "Split", is_printed=False),
        Column("data", "Data", is_printed=False),
        Column("band", title.capitalize()),
        Column("score", f"{metric} {arrow(metric)}", "estimate"),
        Column("base", f"Δ {base}", "difference"),
        Column("no_profile", "Δ no profile", "difference"),
        Column("wrong_user", "Δ wrong user", "difference"),
        Column("n", "n", "count"),
        Column("users", "Users", "count"),
        *(Column(f"p_holm_{one}", "", "p", is_printed=False) for one in _COMPARED),
    )


def _others(stages: Stages, place: int) -> Mapping[str, int]:
    """What a row is set against, by place in the group."""
    cells = stages.group.cells
    found = {
        "base": stages.base(place),
        "no_profile": control_place(cells, place, "none"),
        "wrong_user": control_place(cells, place, "wrong-user"),
    }
    return {name: other for name, other in found.items() if other is not None}


def _cells(stages: Stages) -> list[Cell]:
    """Models, rules and their controls, each once."""
    places = list(stages.rows)
    places += [other for place in stages.rows for other in _others(stages, place).values()]
    return [stages.group.cells[place] for place in dict.fromkeys(places)]


def _by_history(cells: Sequence[Cell]) -> tuple[list[stats.Ints], list[str]]:
    _, names = stats.bands([], EDGES)
    sizes = [[float(str(size)) for size in _scored(cell, "profile_size")] for cell in cells]
    return [stats.bands(of_cell, EDGES)[0] for of_cell in sizes], names


def _by_seen(cells: Sequence[Cell], seen: set[str]) -> tuple[list[stats.Ints], list[str]]:
    index = [np.array([int(user not in seen) for user in _scored(cell, "user_id")], dtype=np.int64) for cell in cells]
    return index, ["seen", "unseen"]


def _scored(cell: Cell, column: str) -> list[object]:
    import polars as pl

    return cell.frame.filter(pl.col("is_scored"))[column].to_list()


def _seen_users(stages: Stages) -> set[str] | None:
    """Users of the data set's train split; None where it has none, or is not at hand."""
    dataset = next((cell.run.dataset for cell in _cells(stages) if cell.run.dataset is not None), None)
    if dataset is None or "train" not in dataset.splits:
        return None
    return {row.user_id for row in dataset.examples("train")}
