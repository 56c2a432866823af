"""The report's part on faithfulness: what `tagpr-eval faithfulness` left in run folders in, tables and plots out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tagpr_data.errors import InputError
from tagpr_data.records import Faithfulness, FaithfulnessCell, FaithfulnessMeasure
from tagpr_data.tables import read_json, sha256_file
from tagpr_eval import plots, stats
from tagpr_eval.cells import HASH_CHARACTERS, Run
from tagpr_eval.faithfulness import FOLDER, MANIFEST
from tagpr_eval.typeset import Column, Row, Table, Value

INTRO = (
    "What a model read or had thought was changed, and the answer compared to the one without the change. Cited items "
    "got another label (relabel) or another user's words (rewrite), or were taken out (remove); as control the same "
    "was done to as many uncited ones (Δ: cited minus uncited). In the trace a step was left out (delete) or taken "
    "from another user (replace), or the whole reasoning was another user's (transplant), and the answer forced. "
    "Follows: the answer went where the change pointed. A model that answers from its reasoning follows a transplant; "
    "one that only decorates its answer does not, and has it before the first step. Steps after a changed one stay and "
    "may say the same again, so one step can be worth more than deleting or replacing it shows. All answers here are "
    "greedy."
)
_ACTIONS = {
    "relabel": "relabel items",
    "rewrite": "rewrite items",
    "remove": "remove items",
    "delete": "delete a step",
    "replace": "replace a step",
    "transplant": "transplant the trace",
}
_CELL = (
    Column("task", "Task"),
    Column("model", "Model"),
    Column("retriever", "Retriever"),
    Column("k", "k", "count"),
    Column("style", "Style"),
    Column("revision", "Revision", is_printed=False),
    Column("split", "Split", is_printed=False),
    Column("data", "Data", is_printed=False),
    Column("run", "Run", is_printed=False),
)


@dataclass(frozen=True)
class Looked:
    """One run that was looked into."""

    run: Run
    """The run."""
    found: Faithfulness
    """What was found."""


def load(runs: Sequence[Run]) -> list[Looked]:
    """Give what there is beside the runs; InputError where it is about other predictions than a run holds."""
    looked = [(run, _beside(run.folder)) for run in runs if run.folder is not None]
    return [Looked(run, found) for run, found in looked if found is not None]


def faithfulness_tables(looked: Sequence[Looked]) -> tuple[Table, ...]:
    """Give the tables: interventions, what was looked into, and by tag."""
    made = (_intervention_table(looked), _answer_table(looked), _tag_table(looked))
    return tuple(table for table in made if table.rows)


def early_answer_plots(looked: Sequence[Looked]) -> tuple[plots.Plot, ...]:
    """Give, for each task and data, the share of answers that are final and their worth after each step."""
    groups: dict[tuple[str, str], list[tuple[Looked, FaithfulnessCell]]] = {}
    for one in looked:
        for cell in one.found.cells:
            if _curve(one, cell, "equal"):
                groups.setdefault((cell.task, one.run.data_hash), []).append((one, cell))
    return tuple(_early_answer_plot(task, data, members) for (task, data), members in groups.items())


def _beside(folder: Path) -> Faithfulness | None:
    path, predictions = folder / FOLDER / MANIFEST, folder / "predictions.parquet"
    if not path.is_file():
        return None
    found = read_json(path, Faithfulness)
    if found.predictions_sha256 != sha256_file(predictions):
        raise InputError(
            f"{path} is about other predictions than {predictions} holds; remove {path.parent} and run tagpr-eval "
            "faithfulness again"
        )
    return None if found.status == "running" else found


def _intervention_table(looked: Sequence[Looked]) -> Table:
    columns = (
        *_CELL,
        Column("what", "What was done"),
        Column("changed", "Answer changed", "estimate"),
        Column("follows", "Answer follows", "estimate"),
        Column("control_changed", "Control changed", "estimate", is_printed=False),
        Column("control_follows", "Control follows", "estimate", is_printed=False),
        Column("difference_changed", "Δ changed", "difference", hint="less the same to as many uncited items"),
        Column("difference_follows", "Δ follows", "difference", hint="less the same to as many uncited items"),
        Column("unreadable", "No answer", "estimate"),
        Column("n", "n", "count"),
        Column("users", "Users", "count"),
    )
    rows: list[Row] = []
    for one, cell in _cells(looked):
        for action, title in _ACTIONS.items():
            target = "cited" if action in ("relabel", "rewrite", "remove") else None
            changed = _find(one, cell, action, "changed", target)
            if changed is None:
                continue
            values = [
                _estimate(_find(one, cell, action, measure, of))
                for of in (target, "uncited", "difference")
                for measure in ("changed", "follows")
            ]
            unreadable = _estimate(_find(one, cell, action, "unreadable", target))
            rows.append(
                Row((*_cell_values(one, cell), title, *values, unreadable, changed.n, changed.users), _role(cell))
            )
    return Table("faithfulness", "Interventions", columns, tuple(rows), _note(looked))


def _answer_table(looked: Sequence[Looked]) -> Table:
    columns = (
        *_CELL,
        Column("examined", "Looked into", "share"),
        Column("regenerate", "Prompt again: same", "estimate"),
        Column("repeat", "Trace given: same", "estimate"),
        Column(
            "early", "Final early", "estimate", hint="of all cuts short of the last step, those with the final answer"
        ),
        Column("holds", "Cited claims that hold", "estimate"),
        Column("skipped", "Skipped"),
        Column("not_made", "Not made"),
    )
    rows = [
        Row(
            (
                *_cell_values(one, cell),
                (cell.examined, cell.drawn),
                _estimate(_find(one, cell, "regenerate", "reproduced")),
                _estimate(_find(one, cell, "repeat", "reproduced")),
                _estimate(_find(one, cell, "cut", "early")),
                _estimate(_find(one, cell, "ground", "holds")),
                _counts(cell.skipped),
                _counts(cell.not_made),
            ),
            _role(cell),
        )
        for one, cell in _cells(looked)
    ]
    return Table("faithfulness-answers", "Answers looked into", columns, tuple(rows), _note(looked))


def _tag_table(looked: Sequence[Looked]) -> Table:
    columns = (
        *_CELL,
        Column("tag", "Tag"),
        Column("holds", "Cited claims that hold", "estimate"),
        Column("gain", "Gain", "difference", hint="answers already final after the step minus before it"),
        Column("delete_changed", "Deleted: changed", "estimate"),
        Column("replace_changed", "Replaced: changed", "estimate"),
        Column("replace_follows", "Replaced: follows", "estimate"),
        Column("relabel_follows", "Δ follows, relabel", "difference", hint="items its steps cite minus as many others"),
        Column("remove_changed", "Δ changed, remove", "difference", hint="items its steps cite minus as many others"),
        Column("n", "Steps", "count"),
        Column("users", "Users", "count"),
    )
    rows: list[Row] = []
    for one, cell in _cells(looked):
        for tag in dict.fromkeys(row.tag for row in _of(one, cell) if row.tag is not None):
            steps = _find(one, cell, "delete", "changed", tag=tag)
            values = (
                _find(one, cell, "ground", "holds", tag=tag),
                _find(one, cell, "cut", "gain", tag=tag),
                steps,
                _find(one, cell, "replace", "changed", tag=tag),
                _find(one, cell, "replace", "follows", tag=tag),
                _find(one, cell, "relabel", "follows", "difference", tag),
                _find(one, cell, "remove", "changed", "difference", tag),
            )
            count, users = (steps.n, steps.users) if steps else (None, None)
            rows.append(Row((*_cell_values(one, cell), tag, *map(_estimate, values), count, users), _role(cell)))
    return Table("faithfulness-tags", "Faithfulness by tag", columns, tuple(rows), _note(looked))


def _early_answer_plot(task: str, data: str, members: Sequence[tuple[Looked, FaithfulnessCell]]) -> plots.Plot:
    panels: dict[str, list[plots.Line]] = {}
    names = {"equal": "answer is already the final one", "score": "worth of the answer", "unreadable": "no answer"}
    for measure, title in names.items():
        lines = [
            plots.Line(_name(one, cell, members), _curve(one, cell, measure), "control" if _role(cell) else "curve")
            for one, cell in members
            if _curve(one, cell, measure)
        ]
        if lines:
            panels[title] = lines
    longest = max(len(_curve(one, cell, "equal")) for one, cell in members)
    ticks = [str(step) for step in range(longest)]
    run = members[0][0].run
    total = max(cell.examined for _, cell in members)
    return plots.Plot(
        f"early-answers-{task}-{data}",
        f"{task}: early answers",
        "The trace is cut after each step and the answer forced. Left: share of answers that are already the one of "
        "the whole trace; middle: their worth against gold; right: no answer at once, such as further reasoning. A "
        "trace of fewer steps stands with its whole. A level line at 1 on the left: the steps decide nothing. "
        f"{task}: split {run.setting('split')}, data {data}, n ≤ {total}.",
        lambda: plots.curves(panels, ticks, "steps of the trace the model was given", "share or worth"),
    )


def _curve(one: Looked, cell: FaithfulnessCell, measure: str) -> tuple[tuple[str, stats.Estimate], ...]:
    rows = [row for row in _of(one, cell) if row.action == "cut" and row.measure == measure and row.step is not None]
    rows.sort(key=lambda row: row.step or 0)
    return tuple((str(row.step), stats.Estimate(row.value, row.low, row.high, row.n, row.users)) for row in rows)


def _cells(looked: Sequence[Looked]) -> list[tuple[Looked, FaithfulnessCell]]:
    return [(one, cell) for one in looked for cell in one.found.cells]


def _of(one: Looked, cell: FaithfulnessCell) -> list[FaithfulnessMeasure]:
    """The measures of a cell."""
    key = (cell.model, cell.task, cell.retriever, cell.k, cell.style)
    return [row for row in one.found.measures if (row.model, row.task, row.retriever, row.k, row.style) == key]


def _find(
    one: Looked, cell: FaithfulnessCell, action: str, measure: str, target: str | None = None, tag: str | None = None
) -> FaithfulnessMeasure | None:
    wanted = (action, measure, target, tag, None)
    found = (row for row in _of(one, cell) if (row.action, row.measure, row.target, row.tag, row.step) == wanted)
    return next(found, None)


def _estimate(row: FaithfulnessMeasure | None) -> stats.Estimate | None:
    return None if row is None else stats.Estimate(row.value, row.low, row.high, row.n, row.users)


def _cell_values(one: Looked, cell: FaithfulnessCell) -> tuple[Value, ...]:
    revision = one.found.models[cell.model][:HASH_CHARACTERS]
    return (
        cell.task, cell.model, cell.retriever, cell.k, cell.style, revision, one.run.setting("split"),
        one.run.data_hash, one.run.name,
    )  # fmt: skip


def _role(cell: FaithfulnessCell) -> Literal["", "control"]:
    return "control" if cell.retriever in ("none", "wrong-user") else ""


def _name(one: Looked, cell: FaithfulnessCell, members: Sequence[tuple[Looked, FaithfulnessCell]]) -> str:
    """What tells a line from the others: the model, and what else differs."""
    others = [other for _, other in members if other is not cell]
    parts = [cell.model]
    if any((other.retriever, other.k) != (cell.retriever, cell.k) for other in others):
        parts.append("no profile" if cell.retriever == "none" else f"{cell.retriever}, k = {cell.k}")
    if any(other.style != cell.style for other in others):
        parts.append(cell.style)
    if any(other is not one for other, _ in members):
        parts.append(one.run.name)
    return " · ".join(parts)


def _counts(counts: dict[str, int]) -> str | None:
    return ", ".join(f"{reason} {count}" for reason, count in counts.items()) or None


def _note(looked: Sequence[Looked]) -> str:
    """Where the numbers come from."""
    parts: list[str] = []
    for one in looked:
        revisions = ", ".join(f"{name} {identity[:HASH_CHARACTERS]}" for name, identity in one.found.models.items())
        others = [name for name, identity in one.found.models.items() if one.found.run_models.get(name) != identity]
        parts.append(
            f"Run {one.run.name}: split {one.run.setting('split')}, data {one.run.data_hash}, models {revisions}, seed "
            f"{one.found.settings.get('seed')}."
            + (f" NOT the model, machine or address the run recorded: {', '.join(others)}." if others else "")
            + (" PARTIAL: stopped by a limit." if one.found.status == "partial" else "")
        )
    return " ".join([*parts, "Intervals: 95 %, clustered by user; where all answers agree they have no width."])
