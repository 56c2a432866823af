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
from tagpr_eval import browser, stats
from tagpr_eval.cells import Group, Run, best_place, make_groups, tagset_of
from tagpr_eval.plots import png_file, svg, svg_file
from tagpr_eval.report_sections import Material, Section, sections
from tagpr_eval.report_stages import headline
from tagpr_eval.report_training import verdicts
from tagpr_eval.training import TrainingRun
from tagpr_eval.typeset import Column, Table, csv_text, escape, latex, markdown, show


@dataclass(frozen=True)
class Finding:
    """What the numbers say about one task, or about a training run."""

    task: str
    """Task, or what it is about."""
    score: str
    """The number to remember, such as the best score of a model with its interval."""
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
    """What the numbers say: one a task, the average over tasks, one for each training by rewards."""
    sections: tuple[Section, ...]
    """The parts, in order."""
    samples: dict[str, Any]
    """Data of the sample browser (`browser.sample_data`)."""

    def tables(self) -> list[Table]:
        """Give all tables in the order they are printed."""
        return [table for section in self.sections for table in section.tables]


def build(
    runs: Sequence[Run],
    reference: str | None = None,
    max_samples: int = 10_000,
    audits: Sequence[Audit] = (),
    training: Sequence[TrainingRun] = (),
) -> Report:
    """Compute the report. `reference` is the model others are compared to; None takes the first that is no baseline.
    `audits` are what `tagpr-data audit` found in the data, `training` how the models were trained.

    Raises InputError when there is nothing to report or `reference` did not run."""
    groups = make_groups(runs)
    material = Material(runs, groups, _reference(groups, reference), audits, training)
    return Report(
        title="Evaluation of " + ", ".join(dict.fromkeys(group.task.name for group in groups)),
        findings=(*_findings(material), *_stage_findings(material)),
        sections=sections(material),
        samples=browser.sample_data(
            [
                browser.Shown(group.task, cell.model, cell.setting, cell.frame, cell.evidence)
                for group in groups
                for cell in group.cells
            ],
            tagset_of(run.manifest for run in runs).names,
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


def _reference(groups: Sequence[Group], wanted: str | None) -> str:
    models = list(dict.fromkeys(cell.model for group in groups for cell in group.cells))
    if wanted is not None and wanted not in models:
        raise InputError(f"reference model {wanted!r} is in no run; there are: {', '.join(models)}")
    return wanted or next((cell.model for group in groups for cell in group.cells if not cell.is_baseline), models[0])


def _findings(material: Material) -> Iterator[Finding]:
    for group in material.groups:
        metric = group.metrics[0]
        found = group.grid(metric, "parsed").estimates()
        place = best_place(group, found, metric)
        if place is None:
            continue
        cell, best = group.cells[place], found[place]
        ranked = sum(not one.is_baseline and one.control is None for one in group.cells)
        facts = [
            f"Best of {ranked} settings: {cell.label}; parsed, n = {best.n}, {best.users} users.",
            *_lift_facts(group, place, material.lift),
            *(
                table.note.split(". ")[0].removesuffix(".") + "."
                for table in material.dialects
                if table.title == group.task.name
            ),
        ]
        yield Finding(group.task.name, f"{metric} {show(best, Column('', '', 'estimate'))}", tuple(facts))


def _stage_findings(material: Material) -> Iterator[Finding]:
    if material.stages and (found := headline(material.stages, material.stage_tables[-1])):
        yield Finding(*found)
    yield from (Finding(*found) for found in verdicts(material.training))


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
