"""Tables for a README: from finished runs to Markdown that can be pasted as it is, with plots and where it all is from.

A chapter is one question: the models side by side, profile length and retriever, ablation, reward model, exploratory
stage, faithfulness, cold start. Each is a Markdown file of its own, which shows its plots as SVG, with PNG beside it
(both on white); each table also is a CSV with unrounded numbers. The numbers are those of the report's page: both are
made from the same `typeset.Table`s. Below each table stand the runs, commits, hardware, seeds and settings that the
runs record, the commands that repeat them, and, where runs were not made alike, in what they differ (`origins`).

Guarantee: the same runs give the same bytes; nothing of the day or the machine that writes them is in them.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tagpr_data.errors import InputError
from tagpr_data.markdown import fenced
from tagpr_data.tables import write_text
from tagpr_eval import (
    report_faithfulness,
    report_plots,
    report_stages,
    report_training,
    tables_ablation,
    tables_cold_start,
    tables_reasoning,
    tables_robustness,
)
from tagpr_eval.cells import Group, Run, make_groups
from tagpr_eval.origins import Origin, origin
from tagpr_eval.plots import Plot, png_file, svg_file
from tagpr_eval.report_stages import Stages
from tagpr_eval.training import TrainingRun
from tagpr_eval.typeset import Table, csv_text, escape, markdown_rows


@dataclass(frozen=True)
class Entry:
    """One table and what it was made from; or a plot, which is made from what the table after it is made from."""

    shown: Table | Plot
    """The table or plot."""
    runs: tuple[Run, ...] = ()
    """Evaluations with numbers in it."""
    training: tuple[TrainingRun, ...] = ()
    """Training runs with numbers in it, or that made the models."""
    remark: str = ""
    """What else a reader must know of a table; follows its note."""


@dataclass(frozen=True)
class Chapter:
    """One question, its tables and plots."""

    name: str
    """Name of its file, without ending."""
    title: str
    """Heading."""
    intro: str
    """How to read it."""
    entries: tuple[Entry, ...]
    """In order."""


@dataclass(frozen=True)
class Choice:
    """What is asked for."""

    reference: str
    """The model that others are compared to."""
    retriever: str | None = None
    """Retriever of the tables of one setting; None takes the one that most models ran."""
    k: int | None = None
    """Their k; None takes the largest that most models ran."""


@dataclass(frozen=True)
class _Material:
    runs: Sequence[Run]
    groups: Sequence[Group]
    """Without the models of ablations, unless one of them is the reference."""
    ablations: Sequence[tables_ablation.Ablation]
    training: Sequence[TrainingRun]
    choice: Choice

    @cached_property
    def stages(self) -> list[Stages]:
        choice = self.choice
        return report_stages.make_stages(self.groups, choice.reference, choice.retriever, choice.k)


def build(
    runs: Sequence[Run],
    training: Sequence[TrainingRun] = (),
    reference: str | None = None,
    retriever: str | None = None,
    k: int | None = None,
) -> list[Chapter]:
    """Compute the chapters that these runs have something for. `reference` is the model that others are compared to, or
    the variant of an ablation; None takes `base` where there is one, else the first that is no rule, and `whole`. A
    model that is one seed of an ablation stands in that chapter only, unless `reference` names a model of its task. The
    same weights under one name are one model, whatever runs it stands in (`make_groups`).

    Raises InputError when there is nothing to show, or nothing ran in what is asked for."""
    groups = make_groups(runs, is_joined=True) if runs else []
    _check(groups, retriever, k)
    is_variant = any(reference in tables_ablation.variants_of(group) for group in groups)
    whole = reference if reference is not None and is_variant else tables_ablation.WHOLE
    ablations = tables_ablation.make_ablations(groups, whole, retriever, k)
    if is_variant or reference not in {cell.model for one in ablations for cell in one.group.cells}:
        apart = {id(one.group): tables_ablation.without_variants(one) for one in ablations}
        groups = [apart.get(id(group), group) for group in groups]
    variants = sorted({variant for one in ablations for variant in tables_ablation.variants_of(one.group)})
    choice = Choice(_reference(groups, None if is_variant else reference, variants), retriever, k)
    material = _Material(runs, groups, ablations, training, choice)
    made = (chapter(material) for chapter in _CHAPTERS)
    chapters = [chapter for chapter in made if chapter.entries]
    if not chapters:
        raise InputError(
            "these runs have nothing to put side by side: that takes two models (or a model and a rule) in one "
            "setting, several k or retrievers, or a finished training run of kind prmu or rl"
        )
    return chapters


def write(chapters: Sequence[Chapter], output: Path) -> list[Path]:
    """Write NAME.md for each chapter into the folder `output`, its plots and CSV files beside it; give the paths, those
    of the chapters first. Files of other names are left alone."""
    pages: list[Path] = []
    beside: list[Path] = []
    for chapter in chapters:
        pages.append(output / f"{chapter.name}.md")
        write_text(pages[-1], markdown(chapter))
        for entry in chapter.entries:
            if isinstance(entry.shown, Table):
                beside.append(output / f"{entry.shown.name}.csv")
                write_text(beside[-1], csv_text(entry.shown))
                continue
            for ending, content in (("png", png_file(entry.shown)), ("svg", svg_file(entry.shown))):
                beside.append(output / f"{entry.shown.name}.{ending}")
                beside[-1].write_bytes(content)
    return [*pages, *beside]


def markdown(chapter: Chapter) -> str:
    """Give a chapter as Markdown; its plots are looked for beside it."""
    parts = [f"## {escape(chapter.title)}", escape(chapter.intro)]
    for entry in chapter.entries:
        shown = entry.shown
        if isinstance(shown, Table):
            note = _note(origin(entry.runs, entry.training))
            parts += [
                f"### {escape(shown.title)}",
                markdown_rows(shown),
                escape(f"{shown.note} {entry.remark}".strip()),
                *note,
            ]
        else:
            parts += [f"![{escape(shown.title)}]({shown.name}.svg)", escape(shown.caption)]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _note(found: Origin) -> list[str]:
    """What stands below a table: differences between runs, where it is from, and how to repeat it."""
    warnings = [f"**{escape(warning)}**" for warning in found.warnings]
    files = [f"`{name}`:\n\n{fenced(text.strip(), 'toml')}" for name, text in found.files]
    commands = fenced("\n".join(found.commands), "sh")
    details = ["<details><summary>Commands and settings</summary>", commands, *files, "</details>"]
    return [*warnings, escape(found.facts), *details]


def _check(groups: Sequence[Group], retriever: str | None, k: int | None) -> None:
    if retriever is None and k is None:
        return
    cells = [cell for group in groups for cell in group.cells]
    ran = {(cell.retriever, cell.k) for cell in cells if not cell.is_baseline and cell.control is None}
    if not any(retriever in (None, one) and k in (None, items) for one, items in ran):
        asked = ", ".join(
            f"{name} {value}" for name, value in (("retriever", retriever), ("k", k)) if value is not None
        )
        known = ", ".join(f"{one} k = {items}" for one, items in sorted(ran))
        raise InputError(f"no model ran with {asked}, controls aside; there are: {known or 'none'}")


def _reference(groups: Sequence[Group], wanted: str | None, variants: Sequence[str]) -> str:
    models = list(dict.fromkeys(cell.model for group in groups for cell in group.cells))
    if wanted is not None and wanted not in models:
        beside = f"; variants of ablations: {', '.join(variants)}" if variants else ""
        raise InputError(f"reference model {wanted!r} is in no run; there are: {', '.join(models) or 'none'}{beside}")
    first = next((cell.model for group in groups for cell in group.cells if not cell.is_baseline), "")
    return wanted or ("base" if "base" in models else first)


def _main(material: _Material) -> Chapter:
    choice, found = material.choice, material.stages
    tables = report_stages.stage_tables(found)
    entries: list[Entry] = []
    plots = {plot.name: plot for plot in report_stages.stage_plots(found)}
    for stages, table in zip(found, tables, strict=False):  # the last table is that of averages
        entries += [Entry(plots[table.name])] if table.name in plots else []
        origins = _made_by(material, {stages.cell(place).run.name for place in stages.rows})
        entries.append(Entry(table, *origins, tables_cold_start.users_of_one_kind(stages)))
    if tables:
        every = {stages.cell(place).run.name for stages in found for place in stages.rows}
        entries.append(Entry(tables[-1], *_made_by(material, every)))
    return Chapter(
        "main", "The models side by side", report_stages.intro(f"the model {choice.reference}"), tuple(entries)
    )


def _ablation(material: _Material) -> Chapter:
    entries = [
        Entry(tables_ablation.ablation_table(one), *_made_by(material, one.runs())) for one in material.ablations
    ]
    return Chapter("ablation", "Ablations", tables_ablation.INTRO, tuple(entries))


def _prmu(material: _Material) -> Chapter:
    runs = tuple(run for run in material.training if run.evaluation is not None)
    entries = [
        *(Entry(plot) for plot in report_training.pair_plot(runs)),
        *(Entry(table, (), runs) for table in [report_training.pair_table(runs, has_tasks=False)] if table.rows),
    ]
    return Chapter("prmu", "The reward model", report_training.PAIRS_INTRO, tuple(entries))


def _robustness(material: _Material) -> Chapter:
    entries: list[Entry] = []
    for group in filter(tables_robustness.has_curves, material.groups):
        origins = _made_by(material, {cell.run.name for cell in group.cells})
        entries += [Entry(plot) for plot in report_plots.score_plots(group, has_bands=True)]
        entries.append(Entry(tables_robustness.retriever_table(group), *origins))
        spread = tables_robustness.robustness_table(group, material.choice.reference)
        if spread is not None:
            entries += [Entry(plot) for plot in tables_robustness.robustness_plots(spread)]
            entries.append(Entry(spread, *origins))
    return Chapter("robustness", "Profile length and retriever", tables_robustness.INTRO, tuple(entries))


def _reasoning(material: _Material) -> Chapter:
    stages_runs = tuple(run for run in material.training if run.manifest.kind == "rl")
    entries = [
        Entry(table, *_made_by(material, {stages.cell(place).run.name for place in stages.places}))
        for stages in material.stages
        if (table := tables_reasoning.reasoning_table(stages)) is not None
    ]
    entries += [Entry(plot) for plot in report_training.chain_plots(stages_runs)]
    tables = (report_training.held_out_table(stages_runs), report_training.reward_table(stages_runs))
    entries += [Entry(table, (), stages_runs) for table in tables if table.rows]
    return Chapter("reasoning", "Tags, grounding and lift by stage", tables_reasoning.INTRO, tuple(entries))


def _faithfulness(material: _Material) -> Chapter:
    looked = report_faithfulness.load(material.runs)
    origins = _made_by(material, {one.run.name for one in looked})
    entries = [Entry(plot) for plot in report_faithfulness.early_answer_plots(looked)]
    entries += [Entry(table, *origins) for table in report_faithfulness.faithfulness_tables(looked)]
    title = "Does the answer follow the reasoning?"
    return Chapter("faithfulness", title, report_faithfulness.INTRO, tuple(entries))


def _cold_start(material: _Material) -> Chapter:
    entries = [
        Entry(table, *_made_by(material, {stages.cell(place).run.name for place in stages.rows}))
        for stages in material.stages
        for table in tables_cold_start.cold_start_tables(stages)
    ]
    return Chapter("cold-start", "Short histories and unseen users", tables_cold_start.INTRO, tuple(entries))


_CHAPTERS: tuple[Callable[[_Material], Chapter], ...] = (
    _main,
    _robustness,
    _ablation,
    _prmu,
    _reasoning,
    _faithfulness,
    _cold_start,
)


def _made_by(material: _Material, names: Iterable[str]) -> tuple[tuple[Run, ...], tuple[TrainingRun, ...]]:
    """The evaluations of those names, and the training runs that made their models, with what these started from and
    were rewarded by."""
    kept = set(names)
    runs = tuple(run for run in material.runs if run.name in kept)
    places = [text.partition(":")[2] for run in runs for text in run.given().values()]
    trained = [run for run in material.training if any(run.made(place) for place in places if place)]
    for run in trained:  # grows while it is walked
        trained += [other for other in material.training if run.reads(other) and other not in trained]
    return runs, tuple(run for run in material.training if run in trained)
