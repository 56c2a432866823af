"""A validation report as one HTML page: the verdict, what was found with the rows it was found in, and every check.

Guarantee: the page needs nothing but itself (`html_page.py`), escapes all data, and holds no time of day: the same
report gives the same bytes. Price: some forty lines and the text of each query.
"""

from collections.abc import Iterable, Mapping
from html import escape
from typing import TYPE_CHECKING

from tagpr_data.html_page import document
from tagpr_data.row_checks import ROW_CHECKS, CheckResult

if TYPE_CHECKING:
    from tagpr_data.validate import ValidationReport

_MARKS = {"passed": "good", "failed": "bad", "crashed": "bad", "not-run": "stray"}
"""Status → class of its word."""


def page(report: "ValidationReport", queries: Mapping[str, str]) -> str:
    """Give the text of the page. queries: name of a check → its SQL, shown on demand."""
    title = escape(report.corpus)
    trouble = [result for result in report.results if result.status in ("failed", "crashed")]
    by_rows = [result for result in report.results if result.name in ROW_CHECKS]
    by_tables = [result for result in report.results if result.name not in ROW_CHECKS]
    return document(
        kicker="TagPR corpus validation",
        title=title,
        findings=_findings(report),
        links={**({"trouble": "What was found"} if trouble else {}), "tables": "Tables", "rows": "Rows"},
        main=(_trouble(trouble) if trouble else "")
        + _section(
            "tables", "Checks of whole tables",
            "One SQL query each gives the offending rows. Columns are compared with their records before, documents "
            "with the data after.",
            _checks(by_tables, queries),
        )
        + _section(
            "rows", "Checks of every row of traces/",
            "Each text is parsed again, each prompt hashed, each cited item looked up; great-expectations judges what "
            "comes out.",
            _checks(by_rows, {}),
        ),
        footer=f"{title}, content {escape(report.content_hash)}",
    )  # fmt: skip


def _findings(report: "ValidationReport") -> dict[str, tuple[str, str]]:
    statuses = [result.status for result in report.results]
    counts = {status: statuses.count(status) for status in ("passed", "failed", "crashed", "not-run")}
    parts = ", ".join(f"{count} {status.replace('-', ' ')}" for status, count in counts.items() if count)
    if counts["failed"]:
        verdict, why = "not valid", "The data is not what the manifest and the records say."
    elif counts["crashed"]:
        verdict, why = "not fully checked", "A check could not run; no other check failed."
    else:
        verdict, why = "valid", "Every check that ran passed."
    mark = "good" if verdict == "valid" else "bad"
    rows = sum(report.rows.values())
    tables = ", ".join(f"{count:,} {escape(kind)}" for kind, count in report.rows.items())
    return {
        "The corpus is": (f'<span class="worth {mark}">{verdict}</span>', why),
        "Checks": (str(len(report.results)), parts),
        "Rows looked at": (f"{rows:,}" if report.rows else "–", tables or "the columns are wrong"),
        "Content": (escape(report.content_hash[:12]), "hash over tasks, tag set and files"),
    }


def _trouble(results: Iterable[CheckResult]) -> str:
    parts: list[str] = []
    for result in results:
        if result.status == "crashed":
            found = f'<p class="problems pre">The check could not run: {escape(result.error)}</p>'
        else:
            shown = len(result.rows)
            rest = f"; the first {shown} of them" if shown < result.offending else ""
            found = f'<p class="note">{_count(result.offending, "row")}{rest}:</p>' + _table(
                ("row", "what is wrong"), (tuple(map(escape, _parts(row))) for row in result.rows)
            )
        name, question = escape(result.name), escape(result.question)
        parts.append(f'<h3 id="check-{name}">{name}: {_status(result)}</h3><p class="intro">{question}</p>{found}')
    return _section("trouble", "What was found", "", "\n".join(parts))


def _checks(results: Iterable[CheckResult], queries: Mapping[str, str]) -> str:
    rows: list[tuple[str, ...]] = []
    for result in results:
        name, asked = escape(result.name), escape(result.question)
        if result.status in ("failed", "crashed"):
            name = f'<a href="#check-{name}">{name}</a>'
        if result.name in queries:
            query = escape(queries[result.name].partition("\n")[2].strip())
            asked = f'<details><summary>{asked}</summary><pre class="pre">{query}</pre></details>'
        why = f" ({escape(result.error)})" if result.status == "not-run" else ""
        offending = f"{result.offending:,}" if result.status in ("passed", "failed") else "–"
        rows.append((name, asked, _status(result) + why, offending))
    return _table(("check", "question", "outcome", "rows found"), rows, numbers=1)


def _status(result: CheckResult) -> str:
    return f'<span class="worth {_MARKS[result.status]}">{result.status.replace("-", " ")}</span>'


def _parts(row: str) -> tuple[str, str]:
    """Take `row: problem` apart."""
    name, _, problem = row.partition(": ")
    return (name, problem) if problem else ("", name)


def _section(name: str, title: str, intro: str, content: str) -> str:
    lead = f'<p class="intro">{intro}</p>' if intro else ""
    return f'<section id="{name}">\n<h2>{title}</h2>\n{lead}\n{content}\n</section>\n'


def _table(names: tuple[str, ...], rows: Iterable[tuple[str, ...]], numbers: int = 0) -> str:
    """Give a table of HTML cells, the last `numbers` columns aligned right; the second column may be long."""
    kinds = ["text", "text long", *["text"] * (len(names) - 2 - numbers), *["number"] * numbers]
    head = "".join(f'<th class="{kind}">{name}</th>' for kind, name in zip(kinds, names, strict=True))
    body = "\n".join(
        "<tr>" + "".join(f'<td class="{kind}">{cell}</td>' for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" style="max-height: none"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
