"""From run folders to one page a reader can trust: tables, plots, controls and the samples themselves.

`build` computes everything into one `Report`; HTML, Markdown, CSV and LaTeX are written from that structure, so a
number cannot differ between them. Tables name split, data hash, retriever, k, prompt style, protocol, model
revision and n.

Scores are `lamp.metrics` in mode `exact`, strict and parsed (`scores`); intervals, differences and p-values are
clustered by user (`stats`). One family of comparisons, corrected together by Holm, is all rows of one table.
Price: scoring dominates (about 0.2 ms a prediction); the page embeds at most `max_samples` samples.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from tagpr_data.errors import InputError
from tagpr_data.records import Audit
from tagpr_data.tables import write_text
from tagpr_eval import browser, report_faithfulness, report_plots, stats
from tagpr_eval import report_tables as tables
from tagpr_eval.cells import RESAMPLES, Group, Run, best_place, make_groups, tagset_of
from tagpr_eval.dialects import MEANINGS
from tagpr_eval.plots import Plot, png_file, svg, svg_file
from tagpr_eval.typeset import Column, Table, csv_text, escape, latex, markdown, show


@dataclass(frozen=True)
class Section:
    """One part of the page."""

    name: str
    """Anchor."""
    title: str
    """Heading."""
    intro: str
    """What is shown and how to read it."""
    tables: tuple[Table, ...] = ()
    """Its tables."""
    plots: tuple[Plot, ...] = ()
    """Its plots, shown before the tables."""


@dataclass(frozen=True)
class Finding:
    """What the numbers say about one task."""

    task: str
    """Task."""
    score: str
    """Best score of a model, with its interval."""
    facts: tuple[str, ...]
    """Where it comes from and what the controls say, a sentence each."""

    def as_text(self) -> str:
        """Give it as one line."""
        return f"{self.task}: {self.score}. {' '.join(self.facts)}"


@dataclass(frozen=True)
class Report:
    """Everything a reader sees, before it is typeset."""

    title: str
    """Heading of the page."""
    findings: tuple[Finding, ...]
    """What the numbers say, one a task."""
    sections: tuple[Section, ...]
    """The parts, in order."""
    samples: dict[str, Any]
    """Data of the sample browser (`browser.sample_data`)."""

    def tables(self) -> list[Table]:
        """Give all tables in the order they are printed."""
        return [table for section in self.sections for table in section.tables]


def build(
    runs: Sequence[Run], reference: str | None = None, max_samples: int = 10_000, audits: Sequence[Audit] = ()
) -> Report:
    """Compute the report. `reference` is the model others are compared to; None takes the first that is no baseline.
    `audits` are what `tagpr-data audit` found in the data.

    Raises InputError when there is nothing to report or `reference` did not run."""
    groups = make_groups(runs)
    models = list(dict.fromkeys(cell.model for group in groups for cell in group.cells))
    if reference is not None and reference not in models:
        raise InputError(f"reference model {reference!r} is in no run; there are: {', '.join(models)}")
    reference = reference or next(
        (cell.model for group in groups for cell in group.cells if not cell.is_baseline), models[0]
    )
    lift = tables.lift_table(groups)
    comparison = tables.comparison_table(groups, reference)
    dialects = [tables.dialect_table(group) for group in groups if group.task.kind == "generation"]
    dialects = [table for table in dialects if table is not None]
    looked = report_faithfulness.load(runs)
    sections = [
        Section(
            "scores",
            "Scores",
            "Strict: the raw completion, as it is. Parsed: the answer our documented extractor finds in it. In "
            f"brackets the 95 % interval, from {RESAMPLES:,} resamples of users. Bold: the best model, rules and "
            "controls aside.",
            tuple(tables.headline_table(group) for group in groups),
            tuple(plot for group in groups for plot in report_plots.score_plots(group)),
        ),
        Section(
            "lift",
            "Does the profile help?",
            "Personalization lift: right profile minus control, on the same examples. Controls: no profile, and as "
            "many items of another user. Positive means the right profile helps; an interval that contains 0 means "
            "that no effect can be shown.",
            _filled(lift),
            tuple(plot for group in groups for plot in report_plots.lift_plots(group)),
        ),
        Section(
            "models",
            "Models compared",
            f"Each model minus {reference}, on the same examples and in the same setting. Positive means better, also "
            "for errors.",
            (*_filled(comparison), *_filled(tables.rules_table(groups))),
        ),
        Section(
            "traces",
            "Reasoning",
            "Share of completions that are in the tag grammar, and share of the checkable claims about cited items "
            "that hold.",
            _filled(tables.trace_table(groups)),
        ),
        Section(
            "faithfulness",
            "Does the answer follow the reasoning?",
            report_faithfulness.INTRO,
            report_faithfulness.faithfulness_tables(looked),
            report_faithfulness.early_answer_plots(looked),
        ),
        Section(
            "failures",
            "Failures",
            "What came back that is no clean answer. All of it is scored, as wrong or worst; a row may count twice.",
            (tables.failure_table(groups),),
        ),
        Section(
            "dialects",
            "ROUGE dialects",
            "The same answers, scored as different papers score them: "
            + "; ".join(f"{name}: {meaning}" for name, meaning in MEANINGS.items())
            + ". Bold: the winner in that dialect.",
            tuple(dialects),
        ),
        Section(
            "slices",
            "Who is served",
            "The headline metric by length of the user's whole profile and by days since their newest item, for the "
            "largest k of each model and retriever, and for no profile.",
            tuple(table for group in groups if (table := tables.slice_table(group)).rows),
            tuple(plot for group in groups for plot in report_plots.cold_start_plots(group)),
        ),
        Section(
            "audit",
            "Is the data clean?",
            "What an audit of the data set found in each split, before any model was asked: what share of the examples "
            "a question concerns.",
            tuple(tables.audit_tables(audits)),
        ),
        Section("runs", "Runs", "What was run, on what, and how to repeat it.", (tables.context_table(runs),)),
    ]
    return Report(
        title="Evaluation of " + ", ".join(dict.fromkeys(group.task.name for group in groups)),
        findings=tuple(_findings(groups, lift, dialects)),
        sections=tuple(section for section in sections if section.tables or section.plots),
        samples=browser.sample_data(
            [
                browser.Shown(group.task, cell.model, cell.setting, cell.frame, cell.evidence)
                for group in groups
                for cell in group.cells
            ],
            tagset_of(runs).names,
            max_samples,
        ),
    )


def write_report(report: Report, output: Path) -> list[Path]:
    """Write `output` (HTML), the same as .md beside it, and tables and plots as files in a folder `NAME-files`.

    Gives the paths, the page first. Raises InputError when `output` does not end in .html."""
    if output.suffix != ".html":
        raise InputError(f"--output {output} must end in .html; report.md and the tables are written beside it")
    folder = output.with_name(f"{output.stem}-files")
    written = [output, output.with_suffix(".md")]
    write_text(written[0], html(report))
    write_text(written[1], markdown_text(report, folder.name))
    for table in report.tables():
        for ending, text in (("csv", csv_text(table)), ("tex", latex(table))):
            written.append(folder / f"{table.name}.{ending}")
            write_text(written[-1], text)
    for section in report.sections:
        for plot in section.plots:
            for ending, content in (("svg", svg_file(plot)), ("png", png_file(plot))):
                written.append(folder / f"{plot.name}.{ending}")
                written[-1].write_bytes(content)
    return written


def html(report: Report) -> str:
    """Give the page: one file, no network, every text of the data escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("tagpr_eval"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    assets = Path(__file__).parent / "assets"
    return environment.get_template("report.html.j2").render(
        report=report,
        svg=lambda plot: Markup(svg(plot)),  # matplotlib escapes its texts
        css=Markup(stylesheet()),
        js=Markup((assets / "report.js").read_text("utf-8")),
        samples=Markup(script_json(report.samples)),
    )


def stylesheet() -> str:
    """Give the look that all pages of the project share; `tagpr-data browse` has it too."""
    return (files("tagpr_data") / "assets" / "page.css").read_text("utf-8")


def markdown_text(report: Report, files: str) -> str:
    """Give the report as Markdown; `files` is the folder of its plots."""
    parts = [f"# {escape(report.title)}\n", *(f"- {escape(finding.as_text())}" for finding in report.findings), ""]
    for section in report.sections:
        parts += [f"## {section.title}\n", escape(section.intro) + "\n"]
        for plot in section.plots:
            parts.append(f"![{escape(plot.title)}]({files}/{plot.name}.png)\n\n{escape(plot.caption)}\n")
        parts += [markdown(table) for table in section.tables]
    return "\n".join(parts)


def script_json(value: Any) -> str:
    """Give JSON that is safe inside a `<script>` element: no `<`, `>` or `&`, and no line separators."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for mark in "<>&\u2028\u2029":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text.encode("utf-8", "replace").decode("utf-8")


def _findings(groups: Sequence[Group], lift: Table, dialects: Sequence[Table]) -> Iterator[Finding]:
    for group in groups:
        metric = group.metrics[0]
        found = group.grid(metric, "parsed").estimates()
        place = best_place(group, found, metric)
        if place is None:
            continue
        cell, best = group.cells[place], found[place]
        ranked = sum(not one.is_baseline and one.control is None for one in group.cells)
        facts = [
            f"Best of {ranked} settings: {cell.label}; parsed, n = {best.n}, {best.users} users.",
            *_lift_facts(group, place, lift),
            *(
                table.note.split(". ")[0].removesuffix(".") + "."
                for table in dialects
                if table.title == group.task.name
            ),
        ]
        yield Finding(group.task.name, f"{metric} {show(best, Column('', '', 'estimate'))}", tuple(facts))


def _lift_facts(group: Group, place: int, lift: Table) -> Iterator[str]:
    """What the controls say about one cell."""
    names = [column.name for column in lift.columns]
    cell = group.cells[place]
    here = (group.task.name, group.data_hash, cell.model, cell.retriever, cell.k, cell.style, cell.protocol)
    for row in lift.rows:
        facts = dict(zip(names, row.values, strict=True))
        difference, p = facts["difference"], facts["p_holm"]
        if here != tuple(facts[name] for name in ("task", "data", "model", "retriever", "k", "style", "protocol")):
            continue
        assert isinstance(difference, stats.Difference)
        assert isinstance(p, float)
        control = "no profile" if facts["control"] == "none" else "a wrong user's profile"
        verdict = "no effect one can be sure of"
        if p < 0.05:
            verdict = "the right profile helps" if difference.value > 0 else "the right profile hurts"
        shown_p = show(p, Column("", "", "p"))
        shown_p = f"p {shown_p}" if shown_p.startswith("<") else f"p = {shown_p}"
        yield f"Against {control} {show(difference, Column('', '', 'difference'))}: {verdict} ({shown_p}, Holm)."


def _filled(table: Table) -> tuple[Table, ...]:
    return (table,) if table.rows else ()
