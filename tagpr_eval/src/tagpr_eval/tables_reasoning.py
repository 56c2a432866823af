"""What becomes of the reasoning from stage to stage: valid traces, claims that hold, and lift, each against the stage
before.

The exploratory stage switches the rewards for tags and person off; whether they stay is read here. The stages are the
models that were asked for traces, in the order given, in the setting of the main table. All differences are paired on
the same examples; that of lifts is (right − wrong user) of a stage minus the same of the stage before.
"""

from collections.abc import Sequence

from tagpr_eval import contrasts, stats
from tagpr_eval.cells import Cell, control_place
from tagpr_eval.report_stages import Stages
from tagpr_eval.typeset import Column, Row, Table, Value, without_empty_columns

INTRO = (
    "Valid: traces in the tag grammar. Claims that hold: checkable claims about cited items that are true. Lift: the "
    "headline metric with the right profile minus with a wrong user's. Each with its change since the stage before, "
    "paired on the same examples; 95 % intervals over users; bold: p < 0.05 by the same resamples, corrected by Holm "
    "over the differences of the table."
)
_KINDS = ("valid", "grounded", "lift")


def reasoning_table(stages: Stages) -> Table | None:
    """Give a row for each stage that wrote traces; None where fewer than two did."""
    group = stages.group
    places = [place for place in stages.places if stages.cell(place).style.startswith("trace")]
    if len({stages.cell(place).model for place in places}) < 2:
        return None
    cells = [stages.cell(place) for place in places]
    share, metric = stats.METRICS["accuracy"], stats.METRICS[group.metrics[0]]
    rows_of = group.grid(metric.name, "parsed").cells
    sides: dict[str, list[list[stats.Observations] | None]] = {
        "valid": [[one] for one in group.share_rows(cells, "is_valid_trace")],
        "grounded": [
            [one] if one.features[:, 1].any() else None for one in group.share_rows(cells, "grounded_claims", "claims")
        ],
        "lift": [
            None
            if (wrong := control_place(group.cells, place, "wrong-user")) is None
            else [rows_of[place], rows_of[wrong]]
            for place in places
        ],
    }
    before = [_before(cells, at) for at in range(len(cells))]
    values: dict[tuple[int, str], stats.Estimate] = {}
    changes: dict[tuple[int, str], stats.Difference] = {}
    for kind in _KINDS:
        judged = metric if kind == "lift" else share
        for at, side in enumerate(sides[kind]):
            earlier = sides[kind][previous] if (previous := before[at]) is not None else None
            if side is not None:
                values[at, kind] = contrasts.contrast(judged, side, (1, -1)[: len(side)], group.draws)
            if side is not None and earlier is not None:
                weights = (1, -1, -1, 1) if len(side) == 2 else (1, -1)
                changes[at, kind] = contrasts.contrast(judged, [*side, *earlier], weights, group.draws)
    corrected = dict(zip(changes, stats.holm([one.p for one in changes.values()]), strict=True))
    columns = _columns(metric.name)
    bold = {column.name: place for place, column in enumerate(columns)}
    scores = group.grid(metric.name, "parsed").estimates()
    rows: list[Row] = []
    for at, (place, cell) in enumerate(zip(places, cells, strict=True)):
        figures: list[Value] = []
        for kind in _KINDS:
            figures += [values.get((at, kind)), changes.get((at, kind))]
        row = (
            cell.model, cell.style, cell.retriever, cell.k, cell.protocol, group.split, group.data_hash, scores[place],
            *figures, _mean(cell, "claims"), _steps(cell), cell.frame.height,
            *(corrected.get((at, kind)) for kind in _KINDS),
        )  # fmt: skip
        strong = {bold[f"{kind}_change"] for kind in _KINDS if corrected.get((at, kind), 1.0) < 0.05}
        rows.append(Row(row, "", frozenset(strong)))
    note = f"{group.source}; {cells[0].retriever}, k = {cells[0].k}; {len(changes)} differences."
    return without_empty_columns(
        Table(f"reasoning-{group.task.name}-{group.data_hash}", group.task.name, columns, tuple(rows), note)
    )


def _columns(metric: str) -> tuple[Column, ...]:
    return (
        Column("model", "Model"),
        Column("style", "Style", is_printed=False),
        Column("retriever", "Retriever", is_printed=False),
        Column("k", "k", "count", is_printed=False),
        Column("protocol", "Protocol", is_printed=False),
        Column("split", "Split", is_printed=False),
        Column("data", "Data", is_printed=False),
        Column("score", metric, "estimate"),
        Column("valid", "Valid", "estimate"),
        Column("valid_change", "Δ previous", "difference"),
        Column("grounded", "Claims that hold", "estimate"),
        Column("grounded_change", "Δ previous", "difference"),
        Column("lift", "Lift over wrong user", "difference"),
        Column("lift_change", "Δ previous", "difference"),
        Column("claims", "Claims a trace", "number", 1),
        Column("steps", "Steps a trace", "number", 1),
        Column("n", "n", "count"),
        *(Column(f"p_holm_{kind}", "", "p", is_printed=False) for kind in _KINDS),
    )


def _before(cells: Sequence[Cell], at: int) -> int | None:
    """Place of the stage before: the last other model's cell of this style and protocol, else its last one."""
    earlier = [place for place in range(at) if cells[place].model != cells[at].model]
    alike = [
        place
        for place in earlier
        if (cells[place].style, cells[place].protocol) == (cells[at].style, cells[at].protocol)
    ]
    return (alike or earlier or [None])[-1]


def _mean(cell: Cell, column: str) -> float | None:
    found = cell.frame[column].mean()
    return float(found) if isinstance(found, (int, float)) else None


def _steps(cell: Cell) -> float | None:
    found = cell.frame["step_tags"].list.len().mean()
    return float(found) if isinstance(found, (int, float)) else None
