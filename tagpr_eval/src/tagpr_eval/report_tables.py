"""The tables of a report, one function each: cells in, `typeset.Table` out."""

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from tagpr_data.errors import InputError
from tagpr_data.records import Audit
from tagpr_eval import sample_scores, stats
from tagpr_eval.cells import (
    HASH_CHARACTERS,
    SEED,
    Cell,
    Group,
    Run,
    best_place,
    control_place,
    is_same_setting,
    largest_k,
    make_groups,
)
from tagpr_eval.dialects import DIALECTS, compare_dialects
from tagpr_eval.typeset import Column, Row, Table, Value

CELL_COLUMNS = (
    Column("task", "Task"),
    Column("model", "Model"),
    Column("retriever", "Retriever"),
    Column("k", "k", "count"),
    Column("style", "Style"),
    Column("protocol", "Protocol"),
    Column("revision", "Revision", is_printed=False),
    Column("split", "Split", is_printed=False),
    Column("data", "Data", is_printed=False),
    Column("mode", "Metric mode", is_printed=False),
    Column("run", "Run", is_printed=False),
)
"""What says which cell a row is about."""


def headline_table(group: Group) -> Table:
    """Give the scores of every cell of one task, both metrics, strict and parsed."""
    columns = list(CELL_COLUMNS[1:])
    columns[5] = Column("revision", "Revision")
    estimates: list[list[stats.Estimate]] = []
    for metric in group.metrics:
        arrow = "↑" if stats.METRICS[metric].is_higher_better else "↓"
        for mode in sample_scores.MODES:
            columns.append(Column(f"{metric}_{mode}", f"{metric} {arrow} {mode}", "estimate"))
            estimates.append(group.grid(metric, mode).estimates())
    first = len(columns) - len(estimates)
    columns += [Column("n", "n", "count"), Column("users", "Users", "count")]
    strong: dict[int, set[int]] = {}
    for column, found in enumerate(estimates):
        best = best_place(group, found, group.metrics[column // 2])
        if best is not None:
            strong.setdefault(best, set()).add(first + column)
    rows = [
        cell_row(
            (
                *cell_values(group, cell)[1:],
                *(found[place] for found in estimates),
                estimates[0][place].n,
                estimates[0][place].users,
            ),
            cell,
            strong.get(place, ()),
        )
        for place, cell in enumerate(group.cells)
    ]
    unscored = sum(int((~cell.frame["is_scored"]).sum()) for cell in group.cells)
    note = f"{group.source}; seeds pooled." + (
        f" {unscored} predictions have no gold answer and are not scored." if unscored else ""
    )
    if partial := sorted({cell.run.name for cell in group.cells if cell.run.manifest.status != "complete"}):
        note += f" PARTIAL: {', '.join(partial)} stopped at a limit, after the first examples of its draw."
    return Table(f"scores-{group.task.name}-{group.data_hash}", group.task.name, tuple(columns), tuple(rows), note)


def audit_tables(audits: Sequence[Audit]) -> list[Table]:
    """Give what audits of the data found, one table a split: a row per question and task."""
    columns = (
        Column("dataset", "Data set"),
        Column("check", "Question"),
        Column("task", "Task"),
        Column("share", "Concerned", "share"),
        Column("detail", "What was found"),
        Column("ids", "First ids", is_printed=False),
    )
    tables: list[Table] = []
    for audit in audits:
        for split in audit.examples:
            rows = [
                Row((audit.dataset, row.check, row.task, (row.found, row.rows), row.detail or None, ", ".join(row.ids)))
                for row in audit.rows
                if row.split == split and row.rows
            ]
            note = f"{audit.dataset}, data {audit.dataset_hash[:HASH_CHARACTERS]}: {audit.examples[split]} examples."
            title = f"{audit.dataset}: {split}"
            if rows:
                tables.append(
                    Table(f"audit-{audit.dataset}-{split}-{audit.dataset_hash[:8]}", title, columns, tuple(rows), note)
                )
    return tables


def lift_table(groups: Sequence[Group]) -> Table:
    """Give right profile minus control for every cell that has its controls; p corrected over the whole table."""
    return _difference_table(
        "lift",
        "Personalization lift",
        groups,
        [
            (group, first, second, group.cells[second].control or "")
            for group in groups
            for first, second in lift_pairs(group)
        ],
        Column("control", "Minus"),
    )


def comparison_table(groups: Sequence[Group], reference: str) -> Table:
    """Give every other model minus `reference` in the same setting; p corrected over the whole table."""
    pairs: list[tuple[Group, int, int, str]] = []
    for group in groups:
        for second, other in enumerate(group.cells):
            if other.model == reference and other.control != "wrong-user":
                for first, cell in enumerate(group.cells):
                    if cell.model != reference and is_same_setting(cell, other, group.cells):
                        pairs.append((group, first, second, _against(cell, other)))
    return _difference_table("models", "Models compared", groups, pairs, Column("reference", "Minus"))


def rules_table(groups: Sequence[Group]) -> Table:
    """Give every model at its largest k minus every rule; p corrected over the whole table."""
    pairs: list[tuple[Group, int, int, str]] = []
    for group in groups:
        kept = {id(cell) for cell in largest_k(group)}
        for first, cell in enumerate(group.cells):
            if id(cell) in kept and cell.control is None:
                for second, other in enumerate(group.cells):
                    if other.is_baseline and other.control is None and other.rule != "oracle":
                        pairs.append((group, first, second, other.model))
    return _difference_table("rules", "Models against rules", groups, pairs, Column("reference", "Minus"))


def compare_runs(first: Run, second: Run) -> Table:
    """Give first minus second for every pair of cells the two runs share; p corrected over the table.

    Raises InputError when they share none, or were made on different data."""
    groups = make_groups([first, second])
    pairs = pairs_between(groups, first.name, second.name)
    if not pairs:
        hint = "" if first.data_hash == second.data_hash else f" (data {first.data_hash} and {second.data_hash} differ)"
        by_run = [{cell.protocol for group in groups for cell in group.cells if cell.run.name == run.name and not
                   cell.is_baseline} for run in (first, second)]  # fmt: skip
        if all(by_run) and not by_run[0] & by_run[1]:
            hint += (
                f" (one answers by {', '.join(by_run[0])}, the other by {', '.join(by_run[1])}: numbers of different "
                "protocols are not compared)"
            )
        raise InputError(f"{first.name} and {second.name} share no task, retriever and k on the same data{hint}")
    title = f"{first.name} minus {second.name}"
    return _difference_table("compare", title, groups, pairs, Column("reference", "Minus"))


def failure_table(groups: Sequence[Group]) -> Table:
    """Give the failure counts of every cell."""
    titles = {
        "is_error": "Error", "is_empty": "Empty", "is_truncated": "Truncated", "is_unclosed": "Unclosed think",
        "is_unparseable": "Unparseable", "is_out_of_range": "Out of range", "is_strict_unreadable": "Strict unreadable",
    }  # fmt: skip
    columns = (
        *CELL_COLUMNS,
        Column("n", "Answers", "count"),
        Column("no_gold", "No gold", "count", hint="answered, not scored"),
        *(
            Column(flag.removeprefix("is_"), titles[flag], "share", hint=hint)
            for flag, hint in sample_scores.FLAGS.items()
        ),
    )
    rows: list[Row] = []
    for group in groups:
        for cell in group.cells:
            n = cell.frame.height
            counts = [(int(cell.frame[flag].sum()), n) for flag in sample_scores.FLAGS]
            no_gold = int((~cell.frame["is_scored"]).sum())
            rows.append(cell_row((*cell_values(group, cell), n, no_gold, *counts), cell))
    return Table("failures", "Failures by cell", columns, tuple(rows), sources(groups))


def trace_table(groups: Sequence[Group]) -> Table:
    """Give validity and groundedness of the traces, for the cells whose prompt asks for one."""
    columns = (
        *CELL_COLUMNS,
        Column("n", "Traces", "count"),
        Column("valid", "Valid", "estimate"),
        Column("grounded", "Claims that hold", "estimate"),
        Column("claims", "Claims", "count"),
        Column("steps", "Steps a trace", "number", 1),
        Column("violations", "Commonest violations"),
    )
    rows: list[Row] = []
    for group in groups:
        cells = [cell for cell in group.cells if not cell.is_baseline and cell.style.startswith("trace")]
        valid = group.share(cells, "is_valid_trace")
        grounded = group.share(cells, "grounded_claims", "claims")
        for cell, valid_share, grounded_share in zip(cells, valid, grounded, strict=True):
            claims = int(cell.frame["claims"].sum())
            steps = cell.frame["step_tags"].list.len().mean()
            commonest = cell.frame["violations"].explode().drop_nulls().value_counts(sort=True).head(3)
            text = ", ".join(f"{code} {count}" for code, count in commonest.iter_rows()) or None
            mean_steps = float(steps) if isinstance(steps, (int, float)) else None
            rows.append(
                cell_row(
                    (
                        *cell_values(group, cell),
                        cell.frame.height,
                        valid_share,
                        grounded_share if claims else None,
                        claims,
                        mean_steps,
                        text,
                    ),
                    cell,
                )
            )
    return Table("traces", "Traces by cell", columns, tuple(rows), sources(groups))


def dialect_table(group: Group) -> Table | None:
    """Give every system of a generation task in every ROUGE dialect; None where they share no example."""
    import polars as pl

    systems: dict[str, dict[str, str]] = {}
    golds: dict[str, str] = {}
    for cell in group.cells:
        frame = cell.frame.filter(pl.col("is_scored"))
        keys = [f"{example} {seed}" for example, seed in frame.select("example_id", "seed").iter_rows()]
        systems[cell.label] = dict(zip(keys, frame["answer"].fill_null(""), strict=True))
        golds.update(zip(keys, frame["gold"], strict=True))
    try:
        found = compare_dialects(systems, golds, SEED)
    except InputError:
        return None
    columns: list[Column] = list(CELL_COLUMNS[1:])
    first = len(columns)
    values: list[tuple[float, ...]] = []
    strong: set[tuple[int, int]] = set()
    ranked = [place for place, cell in enumerate(group.cells) if not cell.is_baseline and cell.control is None]
    ranked = ranked or [place for place, cell in enumerate(group.cells) if cell.rule != "oracle"]
    agreed: dict[str, set[int]] = {metric: set(ranked) for metric in group.metrics}
    for metric in group.metrics:
        for dialect in DIALECTS:
            column = found.scores[dialect, metric]
            winners = {place for place in ranked if math.isclose(column[place], max(column[p] for p in ranked))}
            agreed[metric] &= winners
            if len(winners) < max(2, len(ranked)):
                strong |= {(place, first + len(values)) for place in winners}
            columns.append(Column(f"{metric} {dialect}", f"{metric} {dialect}", "number"))
            values.append(column)
    columns.append(Column("n", "n", "count"))
    rows = [
        cell_row(
            (*cell_values(group, cell)[1:], *(column[place] for column in values), found.n),
            cell,
            {c for p, c in strong if p == place},
        )
        for place, cell in enumerate(group.cells)
    ]
    flips = [metric for metric in group.metrics if ranked and not agreed[metric]]
    verdict = (
        f"THE WINNER CHANGES with the dialect for {' and '.join(flips)}."
        if flips
        else "All dialects agree on the winner."
    )
    note = f"{verdict} {group.source}; parsed answers; examples that all systems answered; official with seed {SEED}."
    return Table(f"dialects-{group.task.name}-{group.data_hash}", group.task.name, tuple(columns), tuple(rows), note)


def slice_table(group: Group) -> Table:
    """Give the headline metric by profile size and recency, with the lift over no profile inside each band."""
    metric = group.metrics[0]
    columns = (
        *CELL_COLUMNS[1:],
        Column("slice", "Slice"),
        Column("band", "Band"),
        Column("score", f"{metric} parsed", "estimate"),
        Column("lift", "Lift over no profile", "difference"),
        Column("n", "n", "count"),
        Column("users", "Users", "count"),
    )
    rows: list[Row] = []
    for kind, bands in slices(group).items():
        for band, grid, cells in bands:
            for place, (cell, found) in enumerate(zip(cells, grid.estimates(), strict=True)):
                control = control_place(cells, place, "none") if cell.control is None else None
                lift = None if control is None else grid.differences([(place, control)], has_p=False)[0]
                if found.n:
                    rows.append(
                        cell_row((*cell_values(group, cell)[1:], kind, band, found, lift, found.n, found.users), cell)
                    )
    return Table(
        f"slices-{group.task.name}-{group.data_hash}", group.task.name, columns, tuple(rows), f"{group.source}."
    )


def context_table(runs: Sequence[Run]) -> Table:
    """Give what each run was, one row a fact."""
    rows: list[Row] = []
    for run in runs:
        manifest = run.manifest
        facts: list[tuple[str, Any]] = [
            ("status", manifest.status),
            ("commit", manifest.git_revision),
            ("data", ", ".join(f"{name} {value}" for name, value in manifest.data.items())),
            ("seed", manifest.seed),
            *((f"config.{key}", value) for key, value in manifest.config.items()),
            *((f"results.{key}", value) for key, value in manifest.results.items() if key != "cells"),
            ("versions", ", ".join(f"{name} {value}" for name, value in manifest.versions.items())),
        ]
        rows += [Row((run.name, name, _fact(value))) for name, value in facts if value not in (None, "", [], {})]
    return Table(
        "runs", "Context", (Column("run", "Run"), Column("fact", "What"), Column("value", "Value")), tuple(rows)
    )


def pairs_between(groups: Sequence[Group], first_run: str, second_run: str) -> list[tuple[Group, int, int, str]]:
    """Give the cells of two runs that have task, retriever and k in common: the same model where both ran it, else
    every pair of models."""
    pairs: list[tuple[Group, int, int, str]] = []
    for group in groups:
        for first, cell in enumerate(group.cells):
            for second, other in enumerate(group.cells):
                if cell.run.name != first_run or other.run.name != second_run:
                    continue
                names = [one.model.removesuffix(f" ({one.run.name})") for one in (cell, other)]
                shares = {one.model for one in group.cells if one.model.startswith(f"{names[0]} (")}
                if (names[0] == names[1] or len(shares) < 2) and is_same_setting(cell, other, group.cells):
                    pairs.append((group, first, second, _against(cell, other)))
    return pairs


def lift_pairs(group: Group) -> list[tuple[int, int]]:
    """Give (cell, its control) for every cell and control."""
    pairs = [
        (place, control_place(group.cells, place, kind))
        for place, cell in enumerate(group.cells)
        if cell.control is None and cell.rule not in ("majority", "oracle")
        for kind in ("none", "wrong-user")
    ]
    return [(first, second) for first, second in pairs if second is not None]


def slices(group: Group) -> dict[str, list[tuple[str, stats.Grid, list[Cell]]]]:
    """Kind of slice → (band, grid of its rows, cells) for each band that has rows."""
    import polars as pl

    cells = largest_k(group)
    result: dict[str, list[tuple[str, stats.Grid, list[Cell]]]] = {}
    for kind, column, edges in (
        ("profile items", "profile_size", stats.SIZE_EDGES),
        ("days since newest item", "recency_days", stats.RECENCY_EDGES),
    ):
        _, names = stats.bands([], edges)
        index = [stats.bands(cell.frame.filter(pl.col("is_scored"))[column].to_list(), edges)[0] for cell in cells]
        for name, grid in banded(group, cells, index, names):
            result.setdefault(kind, []).append((name, grid, cells))
    return result


def banded(
    group: Group, cells: Sequence[Cell], index: Sequence[stats.Ints], names: Sequence[str]
) -> list[tuple[str, stats.Grid]]:
    """Give (band, grid of the cells' rows in it) under the headline metric for each band that has rows; `index` holds,
    for each cell, the band of each scored row."""
    metric = group.metrics[0]
    whole = [
        sample_scores.observations(cell.frame, group.task, metric, "parsed", group.rows, group.users) for cell in cells
    ]
    found: list[tuple[str, stats.Grid]] = []
    for band, name in enumerate(names):
        parts = [rows.take(places == band) for rows, places in zip(whole, index, strict=True)]
        if any(len(part.rows) for part in parts):
            found.append((name, stats.Grid(stats.METRICS[metric], parts, group.draws)))
    return found


def _difference_table(
    name: str, title: str, groups: Sequence[Group], pairs: Sequence[tuple[Group, int, int, str]], against: Column
) -> Table:
    found: list[dict[str, stats.Difference]] = []
    for group, first, second, _ in pairs:
        headline, other = group.metrics
        found.append(
            {
                "parsed": group.grid(headline, "parsed").differences([(first, second)])[0],
                "strict": group.grid(headline, "strict").differences([(first, second)])[0],
                "second": group.grid(other, "parsed").differences([(first, second)], has_p=False)[0],
            }
        )
    corrected = {mode: stats.holm([row[mode].p for row in found]) for mode in ("parsed", "strict")}
    columns = (
        *CELL_COLUMNS,
        against,
        Column("metrics", "Metrics"),
        Column("difference", "Δ first, parsed", "difference"),
        Column("p", "p", "p", hint="two-sided, by swapping the answers of whole users"),
        Column("p_holm", "p Holm", "p", hint="corrected for all rows of this table"),
        Column("difference_strict", "Δ first, strict", "difference"),
        Column("p_strict_holm", "p Holm strict", "p", is_printed=False),
        Column("second_difference", "Δ second, parsed", "difference"),
        Column("n", "n", "count"),
        Column("users", "Users", "count"),
    )
    place = next(index for index, column in enumerate(columns) if column.name == "p_holm")
    rows = [
        cell_row(
            (
                *cell_values(group, group.cells[first]), label, ", ".join(group.metrics), row["parsed"],
                row["parsed"].p, corrected["parsed"][index], row["strict"], corrected["strict"][index], row["second"],
                row["parsed"].n, row["parsed"].users,
            ),
            group.cells[first],
            {place} if corrected["parsed"][index] < 0.05 else (),
        )
        for index, ((group, first, _, label), row) in enumerate(zip(pairs, found, strict=True))
    ]  # fmt: skip
    note = (
        f"{sources(groups)} Paired on common examples, clustered by user; p corrected by Holm over the "
        f"{len(rows)} rows of this table, bold below 0.05."
    )
    return Table(name, title, columns, tuple(rows), note)


def cell_values(group: Group, cell: Cell) -> tuple[Value, ...]:
    """Give the values of `CELL_COLUMNS`."""
    model = cell.model.removesuffix(f" ({cell.run.name})")
    protocol = "rule" if cell.is_baseline else cell.protocol
    return (
        group.task.name, cell.model, cell.retriever, cell.k, cell.style, protocol, cell.run.revision(model),
        group.split, group.data_hash, "exact", cell.run.name,
    )  # fmt: skip


def cell_row(values: Iterable[Value], cell: Cell, strong: Iterable[int] = ()) -> Row:
    """Give the row of a cell, set off when it is a rule or a control; `strong` are places of bold values."""
    role = "baseline" if cell.is_baseline else "control" if cell.control else ""
    return Row(tuple(values), role, frozenset(strong))


def sources(groups: Sequence[Group]) -> str:
    """Give where the numbers of a table come from; tasks on the same data together."""
    tasks: dict[str, list[str]] = {}
    for group in groups:
        tasks.setdefault(group.source.removeprefix(f"{group.task.name}: "), []).append(group.task.name)
    return "; ".join(f"{', '.join(names)}: {source}" for source, names in tasks.items()) + "."


def _against(cell: Cell, other: Cell) -> str:
    """The other's model; its setting too where that differs."""
    return other.model if cell.setting == other.setting else other.label


def _fact(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if len(text) <= 400 else f"{text[:399]}…"
