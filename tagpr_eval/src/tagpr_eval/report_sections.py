"""The parts of a report, one function each, in the order they are shown: what was run in, tables and plots out."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from tagpr_data.records import Audit
from tagpr_eval import report_faithfulness, report_plots, report_stages, report_training
from tagpr_eval import report_tables as tables
from tagpr_eval.cells import RESAMPLES, Group, Run
from tagpr_eval.dialects import MEANINGS
from tagpr_eval.plots import Plot
from tagpr_eval.report_stages import Stages, make_stages
from tagpr_eval.training import TrainingRun
from tagpr_eval.typeset import Table


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
class Material:
    """What a report is made from."""

    runs: Sequence[Run]
    """Evaluations."""
    groups: Sequence[Group]
    """Their cells, scored."""
    reference: str
    """The model that others are compared to."""
    audits: Sequence[Audit] = ()
    """What was found in the data."""
    training: Sequence[TrainingRun] = ()
    """How the models were trained."""

    @cached_property
    def stages(self) -> list[Stages]:
        """The models side by side, for each task."""
        return make_stages(self.groups)

    @cached_property
    def stage_tables(self) -> tuple[Table, ...]:
        """Their tables, that of averages last; none where no two models share a setting."""
        return report_stages.stage_tables(self.stages)

    @cached_property
    def lift(self) -> Table:
        """The right profile against its controls."""
        return tables.lift_table(self.groups)

    @cached_property
    def dialects(self) -> list[Table]:
        """ROUGE dialects, a table for each generation task."""
        found = [tables.dialect_table(group) for group in self.groups if group.task.kind == "generation"]
        return [table for table in found if table is not None]


def sections(material: Material) -> tuple[Section, ...]:
    """Give the parts that have something to show."""
    made = (part(material) for part in _PARTS)
    return tuple(section for section in made if section.tables or section.plots)


def _stages(material: Material) -> Section:
    return Section(
        "stages",
        "Side by side",
        report_stages.intro(),
        material.stage_tables,
        report_stages.stage_plots(material.stages),
    )


def _scores(material: Material) -> Section:
    return Section(
        "scores",
        "Scores",
        "Strict: the raw completion, as it is. Parsed: the answer our documented extractor finds in it. In "
        f"brackets the 95 % interval, from {RESAMPLES:,} resamples of users. Bold: the best model, rules and "
        "controls aside.",
        tuple(tables.headline_table(group) for group in material.groups),
        tuple(plot for group in material.groups for plot in report_plots.score_plots(group)),
    )


def _lift(material: Material) -> Section:
    return Section(
        "lift",
        "Does the profile help?",
        "Personalization lift: right profile minus control, on the same examples. Controls: no profile, and as "
        "many items of another user. Positive means the right profile helps; an interval that contains 0 means "
        "that no effect can be shown.",
        _filled(material.lift),
        tuple(plot for group in material.groups for plot in report_plots.lift_plots(group)),
    )


def _models(material: Material) -> Section:
    return Section(
        "models",
        "Models compared",
        f"Each model minus {material.reference}, on the same examples and in the same setting. Positive means better, "
        "also for errors.",
        _filled(tables.comparison_table(material.groups, material.reference), tables.rules_table(material.groups)),
    )


def _training(material: Material) -> Section:
    runs = material.training
    return Section(
        "training",
        "Training",
        report_training.INTRO,
        report_training.training_tables(runs),
        report_training.training_plots(runs),
    )


def _traces(material: Material) -> Section:
    return Section(
        "traces",
        "Reasoning",
        "Share of completions that are in the tag grammar, and share of the checkable claims about cited items "
        "that hold.",
        _filled(tables.trace_table(material.groups)),
    )


def _faithfulness(material: Material) -> Section:
    looked = report_faithfulness.load(material.runs)
    return Section(
        "faithfulness",
        "Does the answer follow the reasoning?",
        report_faithfulness.INTRO,
        report_faithfulness.faithfulness_tables(looked),
        report_faithfulness.early_answer_plots(looked),
    )


def _failures(material: Material) -> Section:
    return Section(
        "failures",
        "Failures",
        "What came back that is no clean answer. All of it is scored, as wrong or worst; a row may count twice.",
        (tables.failure_table(material.groups),),
    )


def _dialects(material: Material) -> Section:
    return Section(
        "dialects",
        "ROUGE dialects",
        "The same answers, scored as different papers score them: "
        + "; ".join(f"{name}: {meaning}" for name, meaning in MEANINGS.items())
        + ". Bold: the winner in that dialect.",
        tuple(material.dialects),
    )


def _slices(material: Material) -> Section:
    return Section(
        "slices",
        "Who is served",
        "The headline metric by length of the user's whole profile and by days since their newest item, for the "
        "largest k of each model and retriever, and for no profile.",
        _filled(*(tables.slice_table(group) for group in material.groups)),
        tuple(plot for group in material.groups for plot in report_plots.cold_start_plots(group)),
    )


def _audit(material: Material) -> Section:
    return Section(
        "audit",
        "Is the data clean?",
        "What an audit of the data set found in each split, before any model was asked: what share of the examples "
        "a question concerns.",
        tuple(tables.audit_tables(material.audits)),
    )


def _runs(material: Material) -> Section:
    return Section(
        "runs", "Runs", "What was run, on what, and how to repeat it.", (tables.context_table(material.runs),)
    )


_PARTS = (
    _stages,
    _scores,
    _lift,
    _models,
    _training,
    _traces,
    _faithfulness,
    _failures,
    _dialects,
    _slices,
    _audit,
    _runs,
)


def _filled(*found: Table) -> tuple[Table, ...]:
    return tuple(table for table in found if table.rows)
