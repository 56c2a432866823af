"""Tables of numbers, and the one way each number is written.

HTML, Markdown and LaTeX show the same strings, made here once; CSV holds the unrounded numbers. So the files of a
report cannot disagree.
"""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tagpr_eval.stats import Estimate

Kind = Literal["text", "count", "number", "estimate", "difference", "share", "p"]
Value = str | int | float | Estimate | tuple[int, int] | None
"""What a cell holds: text; count: int; number and p: float; estimate and difference: `Estimate`; share: (part, whole).
None where there is nothing to say."""

NOTHING = "–"
_MINUS = "−"


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    name: str
    """Header of the CSV column, unique in the table."""
    title: str
    """Header as printed."""
    kind: Kind = "text"
    """How its values are written."""
    digits: int = 3
    """Decimals of numbers and estimates."""
    hint: str = ""
    """Explanation shown on hover."""
    is_printed: bool = True
    """False: stands in the CSV only, where the note does not go along."""


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    values: tuple[Value, ...]
    """One value a column."""
    role: Literal["", "baseline", "control"] = ""
    """Set off in print: needs no model; or is a control."""
    strong: frozenset[int] = frozenset()
    """Places of the values printed bold."""


@dataclass(frozen=True)
class Table:
    """A table, ready for every format."""

    name: str
    """File name of its CSV and LaTeX form."""
    title: str
    """Heading."""
    columns: tuple[Column, ...]
    """Columns, left to right."""
    rows: tuple[Row, ...]
    """Rows, top to bottom."""
    note: str = ""
    """What the reader must know: where the numbers come from and how to read them."""

    def printed(self) -> "PrintedTable":
        """Give the columns and cells as they are printed."""
        places = [place for place, column in enumerate(self.columns) if column.is_printed]
        return PrintedTable(
            tuple(self.columns[place] for place in places),
            tuple(
                tuple(Cell(show(row.values[place], self.columns[place]), place in row.strong) for place in places)
                for row in self.rows
            ),
        )


@dataclass(frozen=True)
class Cell:
    """One printed cell."""

    text: str
    """What stands there."""
    is_strong: bool
    """Whether it is bold."""


@dataclass(frozen=True)
class PrintedTable:
    """What a reader sees of a table."""

    columns: tuple[Column, ...]
    """Printed columns."""
    rows: tuple[tuple[Cell, ...], ...]
    """Printed cells, row by row."""


def without_empty_columns(table: Table) -> Table:
    """Give the table with the columns that say nothing in any row left to the CSV alone."""
    values = list(zip(*(row.values for row in table.rows), strict=True)) or [()] * len(table.columns)
    columns = [
        column if any(value is not None for value in own) else replace(column, is_printed=False)
        for column, own in zip(table.columns, values, strict=True)
    ]
    return replace(table, columns=tuple(columns))


def show(value: Value, column: Column) -> str:
    """Give a value as printed: `0.412 [0.380, 0.441]`, `+0.031`, `12 (4.8 %)`, `0`, `<0.001`; a dash for nothing."""
    if value is None:
        return NOTHING
    if isinstance(value, Estimate):
        sign = column.kind == "difference"
        head = _number(value.value, column.digits, sign)
        if math.isnan(value.low):
            return head
        return f"{head} [{_number(value.low, column.digits, sign)}, {_number(value.high, column.digits, sign)}]"
    if isinstance(value, tuple):
        part, whole = value
        return NOTHING if not whole else "0" if not part else f"{part} ({100 * part / whole:.1f} %)"
    if isinstance(value, float):
        if column.kind == "p":
            return "<0.001" if value < 0.0005 else f"{value:.3f}"
        return _number(value, column.digits, column.kind == "difference")
    return f"{value:,}" if isinstance(value, int) else value


def markdown(table: Table) -> str:
    """Give the table as a Markdown pipe table under its title and note."""
    note = f"{escape(table.note)}\n\n" if table.note else ""
    return f"### {escape(table.title)}\n\n{note}{markdown_rows(table)}"


def markdown_rows(table: Table) -> str:
    """Give the table as a Markdown pipe table alone."""
    printed = table.printed()
    head = "| " + " | ".join(escape(column.title) for column in printed.columns) + " |"
    rule = "|" + "|".join(":--" if column.kind == "text" else "--:" for column in printed.columns) + "|"
    body = [
        "| "
        + " | ".join(_markdown_value(cell, column) for cell, column in zip(row, printed.columns, strict=True))
        + " |"
        for row in printed.rows
    ]
    return "\n".join([head, rule, *body]) + "\n"


def csv_text(table: Table) -> str:
    """Give the table as CSV with unrounded numbers; an estimate fills `name`, `name_low` and `name_high`, a share
    `name` and `name_of`."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([name for column in table.columns for name in _csv_names(column)])
    for row in table.rows:
        writer.writerow(
            [item for value, column in zip(row.values, table.columns, strict=True) for item in _csv(value, column)]
        )
    return out.getvalue()


def latex(table: Table) -> str:
    """Give the table as a LaTeX `tabular` (package booktabs) with title and note as comments."""
    printed = table.printed()
    layout = "".join("l" if column.kind == "text" else "r" for column in printed.columns)
    head = " & ".join(_latex_cell(column.title) for column in printed.columns)
    body = [
        " & ".join(
            rf"\textbf{{{_latex_cell(cell.text)}}}" if cell.is_strong else _latex_cell(cell.text) for cell in row
        )
        + r" \\"
        for row in printed.rows
    ]
    comment = "".join(f"% {line}\n" for line in (*table.title.splitlines(), *table.note.splitlines()))
    lines = [rf"\begin{{tabular}}{{{layout}}}", r"\toprule", head + r" \\", r"\midrule", *body, r"\bottomrule"]
    return comment + "\n".join([*lines, r"\end{tabular}"]) + "\n"


def _number(value: float, digits: int, sign: bool) -> str:
    if math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return ("+" if sign else "") + "∞" if value > 0 else f"{_MINUS}∞"
    value = round(value, digits) + 0.0  # no minus before a zero
    text = f"{value:+.{digits}f}" if sign and value else f"{value:.{digits}f}"
    return text.replace("-", _MINUS)


def _csv_names(column: Column) -> Sequence[str]:
    if column.kind in ("estimate", "difference"):
        return (column.name, f"{column.name}_low", f"{column.name}_high")
    return (column.name, f"{column.name}_of") if column.kind == "share" else (column.name,)


def _csv(value: Value, column: Column) -> Sequence[str | int | float]:
    if isinstance(value, Estimate):
        return tuple("" if math.isnan(part) else part for part in (value.value, value.low, value.high))
    if isinstance(value, tuple):
        return value
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return (f"'{value}",)  # a spreadsheet would run it as a formula
    return ("" if value is None else value,) + ("",) * (len(_csv_names(column)) - 1)


_MARKDOWN = {ord(mark): f"\\{mark}" for mark in "\\`*_{}[]<>#|~"} | {ord("\n"): " ", ord("\r"): " "}
_LATEX = {
    ord("\\"): r"\textbackslash{}", ord("~"): r"\textasciitilde{}", ord("^"): r"\textasciicircum{}",
    **{ord(mark): f"\\{mark}" for mark in "&%$#_{}"},
    ord("<"): r"\textless{}", ord(">"): r"\textgreater{}", ord("\n"): " ", ord("\r"): " ",
    ord("∞"): r"$\infty$",
    ord(_MINUS): "$-$", ord(NOTHING): "--", ord("Δ"): r"$\Delta$", ord("↑"): r"$\uparrow$", ord("↓"): r"$\downarrow$",
}  # fmt: skip


def escape(text: str) -> str:
    """Give text as Markdown that shows it as it is, on one line."""
    return text.translate(_MARKDOWN)


def _markdown_value(cell: Cell, column: Column) -> str:
    """Only text comes from data; the brackets of an interval need no escape."""
    text = escape(cell.text) if column.kind == "text" else cell.text
    return f"**{text}**" if cell.is_strong else text


def _latex_cell(text: str) -> str:
    return text.translate(_LATEX)
