"""The plots of a report: cells in, `plots.Plot` out."""

from tagpr_eval import plots, stats
from tagpr_eval.cells import Group, largest_k
from tagpr_eval.report_tables import lift_pairs, slices


def score_plots(group: Group, has_bands: bool = False) -> list[plots.Plot]:
    """Score by k, one line a retriever, one panel a model, style and protocol, rules as levels; `has_bands` draws the
    intervals of a line as one band."""
    metric = group.metrics[0]
    found = group.grid(metric, "parsed").estimates()
    panels: dict[str, list[plots.Line]] = {}
    levels: list[plots.Line] = []
    by_panel: dict[str, dict[str, list[tuple[str, stats.Estimate]]]] = {}
    for place, cell in enumerate(group.cells):
        if not cell.is_baseline:
            how = cell.style if cell.protocol == "generation" else f"{cell.style}, {cell.protocol}"
            lines = by_panel.setdefault(f"{cell.model} ({how})", {})
            lines.setdefault(cell.retriever, []).append((str(cell.k), found[place]))
        elif cell.control is None and cell.rule != "oracle":
            levels.append(plots.Line(cell.model, (("0", found[place]),), "level"))
    for panel, lines in by_panel.items():
        start = lines.pop("none", []) if len(lines) > 1 else []
        panels[panel] = [
            plots.Line(name, (*start, *points), "control" if name == "wrong-user" else "curve")
            for name, points in lines.items()
        ] + levels
    if not panels:
        return []
    ticks = [str(k) for k in sorted({cell.k for cell in group.cells if not cell.is_baseline})]
    better = "higher" if stats.METRICS[metric].is_higher_better else "lower"
    return [
        plots.Plot(
            f"score-by-k-{group.task.name}-{group.data_hash}",
            f"{group.task.name}: {metric} by k",
            f"Parsed answers, 95 % intervals, {better} is better. Dotted: a wrong user's items. Grey: rules that "
            f"need no model and read the whole profile; their intervals stand in the table. "
            f"{group.source}, n = {max(value.n for value in found)}.",
            lambda: plots.curves(
                panels, ticks, "profile items in the prompt (k)", f"{metric} ({better} is better)", has_bands
            ),
        )
    ]


def lift_plots(group: Group) -> list[plots.Plot]:
    """Lift of every cell over its controls; of a large grid only the largest k."""
    pairs = lift_pairs(group)
    kept = {id(cell) for cell in largest_k(group)} | {id(cell) for cell in group.cells if cell.is_baseline}
    if len(pairs) > 24:
        pairs = [pair for pair in pairs if id(group.cells[pair[0]]) in kept]
    if not pairs:
        return []
    metric = group.metrics[0]
    found = group.grid(metric, "parsed").differences(pairs, has_p=False)
    rows = [
        (
            f"{group.cells[first].label} − {'no profile' if group.cells[second].control == 'none' else 'wrong user'}",
            difference,
        )
        for (first, second), difference in zip(pairs, found, strict=True)
    ]
    return [
        plots.Plot(
            f"lift-{group.task.name}-{group.data_hash}",
            f"{group.task.name}: lift",
            f"Right profile minus control, {metric}, parsed, 95 % intervals; right of 0 it helps. {group.source}, "
            f"n = {max(value.n for value in found)}.",
            lambda: plots.forest(rows, f"lift in {metric} (positive: the right profile helps)"),
        )
    ]


def cold_start_plots(group: Group) -> list[plots.Plot]:
    """Score by profile size, one panel a model."""
    bands = slices(group).get("profile items", [])
    if len(bands) < 2:
        return []
    panels: dict[str, list[plots.Line]] = {}
    for place, cell in enumerate(bands[0][2]):
        points = [(band, grid.estimates()[place]) for band, grid, _ in bands]
        points = [(band, found) for band, found in points if found.n]
        panels.setdefault(cell.model, []).append(
            plots.Line(cell.setting, tuple(points), "control" if cell.control else "curve")
        )
    metric = group.metrics[0]
    total = sum(max(len(cell.rows) for cell in grid.cells) for _, grid, _ in bands)
    return [
        plots.Plot(
            f"cold-start-{group.task.name}-{group.data_hash}",
            f"{group.task.name}: cold start",
            f"{metric}, parsed, by length of the whole profile, 95 % intervals. Dotted: no items. {group.source}, "
            f"n = {total}.",
            lambda: plots.curves(panels, [band for band, _, _ in bands], "items in the user's profile", metric),
        )
    ]
