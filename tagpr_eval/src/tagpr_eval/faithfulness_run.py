"""Look into the answers of a finished run: the stage behind `tagpr-eval faithfulness`.

    RUN/faithfulness/samples.jsonl          what models wrote, appended as it arrives (store.py)
    RUN/faithfulness/interventions.parquet  records.Intervention, a row per intervention
    RUN/faithfulness/faithfulness.json      records.Faithfulness: settings, what was skipped and why, all measures

Everything is asked greedily, whatever the run's sampling was, so that a change is the intervention's and not the
draw's; the unchanged prompt and trace are asked again for the same reason. That is ours.
Guarantee: after `kill -9` the same command goes on, asks for no kept sample again, and ends in the same files; equal
prompts are asked once. Price: all prompts are in memory; donors come from all recorded answers of the cell, so these
are all read and parsed.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from tagpr_data.constrain import Constraint
from tagpr_data.errors import CheckFailed, InputError, shorten
from tagpr_data.journal import folder_lock
from tagpr_data.prompts import prompt_hash
from tagpr_data.provenance import git_revision, versions
from tagpr_data.records import Faithfulness, FaithfulnessCell, FaithfulnessMeasure, Intervention, Prediction
from tagpr_data.tables import explain, frame_from_records, read_json, sha256_file, write_json, write_table
from tagpr_data.tags import load_tagset
from tagpr_eval import sample_scores
from tagpr_eval.cells import Run, load_runs
from tagpr_eval.config import EvaluationConfig
from tagpr_eval.faithfulness import FOLDER, MANIFEST, measure
from tagpr_eval.grid import draw_order
from tagpr_eval.interventions import Case, Plan, Wording, find_answer, judge, plan, take
from tagpr_eval.meter import Meter, NoMeter
from tagpr_eval.models import Model, Prompt, Spec, open_model, parse_spec
from tagpr_eval.run import PREDICTIONS, BudgetSpent, Limits, Purse, answer_missing
from tagpr_eval.store import SampleStore, sample_key

if TYPE_CHECKING:
    import polars as pl

ROWS = "interventions.parquet"
_CELL = ("model", "task", "retriever", "k", "style")
_KEY = (*_CELL, "seed", "example_id", "action", "target", "tag", "step")
_BLOCK = 128
"""Samples that a limited run plans together: the interventions on two or three answers."""
_PACKAGES = ("tagpr-data", "tagpr-eval", "torch", "transformers", "peft", "tokenizers")


@dataclass(frozen=True)
class Choice:
    """What of a run is looked into."""

    models: tuple[str, ...] = ()
    """Models by their name in the run; `NAME=hf:DIR` or `NAME=openai:…` where one has moved. Empty: all."""
    cells: tuple[str, ...] = ()
    """Cells by name, such as `xorg-component.bm25.k4.trace.seed0`. Empty: all that ask for a trace."""
    examples: int | None = None
    """Examples per cell, a fixed draw that grows with the number; None takes all."""
    seed: int = 0
    """Seed of donors, labels put in and uncited items."""
    server: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `config.ServerOptions` that differ from the run's: its address, its speed."""


def examine(
    folder: Path,
    choice: Choice = Choice(),
    output: Path | None = None,
    dataset: Path | None = None,
    meter: Meter | None = None,
    limits: Limits | None = None,
    make_model: Callable[[Spec, EvaluationConfig], Model] = open_model,
) -> Faithfulness:
    """Intervene on the answers of the run in `folder` and write `output` (None: inside it); give its manifest.

    A finished one of the same settings, predictions and models is left as it is; asked for more examples it goes on.
    One that reaches a limit ends with status `partial` and the measures of what was answered; with higher limits the
    same call goes on. InputError for a run without traces, a data set that has gone (`dataset` says where to), an
    unknown model or cell; CheckFailed when no answer can be looked into, or a model stays unreachable: everything is
    kept.
    """
    run = load_runs([folder], dataset)[0]
    config = _config(run, folder, choice)
    output = output or folder / FOLDER
    specs = _specs(run, config, choice)
    chosen = _chosen(run, folder, specs, choice)
    subjects = list(_subjects(run, config, chosen, choice))
    _refuse_nothing(subjects)
    models = {spec.name: make_model(spec, config.for_model(spec.name)) for spec in specs}
    with folder_lock(output):
        manifest = _open(output, run, folder, choice, {name: model.identity for name, model in models.items()})
        if manifest.status == "complete":
            return manifest
        store = SampleStore(output)
        asked = [_Asked(name, models[name], config.for_model(name), subjects, store) for name in models]
        purse = Purse(limits or Limits(), {one.name: one.samples() for one in asked})
        status: Literal["complete", "partial"] = "complete"
        try:
            for one in asked:
                try:
                    one.answer(meter or NoMeter(), purse)
                except BudgetSpent:
                    status = "partial"
            if status == "complete":
                store.tidy()
        finally:
            store.close()
        cells: list[FaithfulnessCell] = []
        measures: list[FaithfulnessMeasure] = []
        rows: list[Intervention] = []
        for subject in subjects:
            one = next(one for one in asked if one.name == subject.cell["model"])
            found, cell = _judged(subject, one)
            rows += found
            cells.append(cell)
            measures += measure([case for case, _ in subject.planned], found)
        write_table(output / ROWS, frame_from_records(rows, Intervention), Intervention, _KEY)
        done = manifest.model_copy(update={"status": status, "cells": tuple(cells), "measures": tuple(measures)})
        write_json(output / MANIFEST, done)
        return done


def other_models(manifest: Faithfulness) -> list[str]:
    """Name the models whose identity is not the one the run recorded."""
    return [name for name, identity in manifest.models.items() if manifest.run_models.get(name) != identity]


def summary(manifest: Faithfulness) -> str:
    """Give the pooled measures as text, a block per cell."""
    lines: list[str] = []
    for cell in manifest.cells:
        key = tuple(getattr(cell, name) for name in _CELL)
        lines.append(
            f"{cell.model} {cell.task} {cell.retriever} k={cell.k} {cell.style}: {cell.examined} of {cell.drawn} "
            f"answers looked into{_reasons(cell.skipped)}"
        )
        for row in manifest.measures:
            is_of_cell = tuple(getattr(row, name) for name in _CELL) == key
            is_none_unreadable = row.measure == "unreadable" and not row.value
            if is_of_cell and row.tag is None and row.step is None and not is_none_unreadable:
                what = " ".join(filter(None, (row.action, row.target, row.measure)))
                lines.append(
                    f"  {what:<30} {row.value:+.3f} [{row.low:+.3f}, {row.high:+.3f}]  n={row.n}, {row.users} users"
                    if row.target == "difference" or row.measure == "gain"
                    else f"  {what:<30} {row.value:6.3f} [{row.low:.3f}, {row.high:.3f}]  n={row.n}, {row.users} users"
                )
        if cell.not_made:
            lines.append(f"  not made{_reasons(cell.not_made)}")
    if manifest.status == "partial":
        lines.append("PARTIAL: stopped by a limit; the same command with higher limits goes on")
    return "\n".join(lines)


@dataclass(frozen=True)
class _Subject:
    """One cell with what is done to its answers."""

    cell: dict[str, Any]
    drawn: int
    skipped: dict[str, int]
    not_made: Counter[str]
    planned: list[tuple[Case, list[Plan]]]


class _Asked:
    """One model and its answers to all interventions."""

    def __init__(
        self, name: str, model: Model, config: EvaluationConfig, subjects: Sequence[_Subject], store: SampleStore
    ) -> None:
        self.name = name
        self._model = model
        self._store = store
        self._sampling = config.sampling
        self._identity = model.identity
        own = [one for subject in subjects if subject.cell["model"] == name for one in subject.planned]
        own.sort(key=lambda one: draw_order(one[0].prediction.example_id))
        mode = config.sampling.constrain
        prompts = {
            self._key(done): Prompt(done.messages, 0, constraint=_constraint(mode, case, done))
            for case, planned in own
            for done in planned
        }
        self._keys = list(prompts)  # example by example
        self._prompts = list(prompts.values())

    def answer(self, meter: Meter, purse: Purse) -> None:
        """Have every missing sample generated; raises BudgetSpent at a limit."""
        ends = range(0, len(self._keys), _BLOCK)
        blocks = [range(start, min(start + _BLOCK, len(self._keys))) for start in ends] if purse.is_limited else None
        answer_missing(
            self.name, self._model, self._keys, self._prompts, self._store, meter, purse, blocks=blocks
        )  # where there is a limit, example by example, so that what is there when it is reached can be judged

    def samples(self) -> list[Any]:
        """Give the samples that are there."""
        return [self._store[key] for key in self._keys if key in self._store]

    def text(self, done: Plan) -> str | None:
        """Give the completion of an intervention; None where it is missing."""
        key = self._key(done)
        return self._store[key].text if key in self._store else None

    def _key(self, done: Plan) -> str:
        return sample_key(self._identity, prompt_hash(done.messages), self._sampling, 0)


def _constraint(mode: str, case: Case, done: Plan) -> Constraint | None:
    """What a completion is kept to: a whole one to what the run kept it to; a forced answer to nothing, since the trace
    before it may not be in the grammar any more."""
    if mode == "no" or done.base == "repeat":
        return None
    shown = len(case.items) - (len(done.items) if done.action == "remove" else 0)
    return Constraint(case.wording.tagset, shown, (case.task.labels or ()) if mode == "labels" else ())


def _config(run: Run, folder: Path, choice: Choice) -> EvaluationConfig:
    """The run's settings, greedy, with the server's as chosen."""
    if run.dataset is None:
        raise InputError(
            f"data set {run.setting('dataset')} of run {folder} is not there (its path is relative to where the run "
            "was started); say with --dataset where it is"
        )
    try:
        config = EvaluationConfig.model_validate(run.manifest.config)
        server = config.server.model_validate(config.server.model_dump() | dict(choice.server))
    except ValidationError as error:
        raise InputError(f"{folder / 'run.json'}: its settings cannot be used again: {explain(error)}") from None
    greedy = config.sampling.model_copy(update={"temperature": 0.0, "top_p": 1.0})
    return config.model_copy(update={"sampling": greedy, "server": server})


def _specs(run: Run, config: EvaluationConfig, choice: Choice) -> list[Spec]:
    """The chosen language models, at their place of today."""
    recorded = {spec.name: spec for spec in map(parse_spec, config.models)}
    writers = {name: spec for name, spec in recorded.items() if spec.kind != "baseline"}
    if not writers:
        raise InputError(f"run {run.name} holds baselines only ({', '.join(recorded)}); they write no trace")
    chosen: dict[str, Spec] = {}
    for text in choice.models or tuple(writers):
        if text in recorded:
            spec = recorded[text]
        else:
            spec = parse_spec(text)
            if spec.name == text and len(writers) == 1 and spec.kind != "baseline":  # a new place of the only model
                spec = Spec(next(iter(writers)), spec.kind, spec.place)
        if spec.kind == "baseline" or recorded.get(spec.name, spec).kind == "baseline":
            raise InputError(f"--model {text}: a baseline writes no trace; models of the run: {', '.join(writers)}")
        if spec.name not in writers:
            raise InputError(
                f"--model {text} did not run; models of the run: {', '.join(writers)}. Where one has moved: NAME=hf:DIR"
            )
        if spec.name in chosen:
            raise InputError(f"--model names {spec.name} twice")
        chosen[spec.name] = spec
    return list(chosen.values())


def _chosen(run: Run, folder: Path, specs: Sequence[Spec], choice: Choice) -> "pl.DataFrame":
    """The recorded answers of the chosen models and cells."""
    import polars as pl

    frame = run.predictions.filter(pl.col("model").is_in([spec.name for spec in specs])).with_columns(
        pl.format("{}.{}.k{}.{}.seed{}", "task", "retriever", "k", "style", "seed").alias("cell")
    )
    with_trace = frame.filter(pl.col("style").str.starts_with("trace"))
    if not with_trace.height:
        styles = ", ".join(sorted(set(frame["style"]))) or "none"
        raise InputError(
            f"run {folder} holds no trace of {', '.join(spec.name for spec in specs)} (prompt styles: {styles}); "
            "answer with --style trace first"
        )
    known = with_trace["cell"].unique(maintain_order=True).to_list()
    for name in choice.cells:
        if name not in known:
            is_direct = name in set(frame["cell"])
            why = "asks for no trace" if is_direct else "is not in the run"
            raise InputError(f"--cell {shorten(name)} {why}; cells with traces: {', '.join(known)}")
    return with_trace.filter(pl.col("cell").is_in(list(choice.cells) or known)).drop("cell")


def _subjects(run: Run, config: EvaluationConfig, frame: "pl.DataFrame", choice: Choice) -> Iterator[_Subject]:
    assert run.dataset is not None
    tasks = run.tasks()
    tagset = load_tagset(Path(config.tagset) if config.tagset else None)
    evidence = sample_scores.gather_evidence(run.dataset, frame)
    for _, part in frame.group_by(_CELL, maintain_order=True):
        rows = [Prediction.model_validate(row) for row in part.iter_rows(named=True)]
        ids = sorted({row.example_id for row in rows}, key=draw_order)
        drawn = set(ids if choice.examples is None else ids[: choice.examples])
        wording = Wording(config.prompt_options(rows[0].style), tagset, config.chat.system_prompt)  # pyright: ignore[reportArgumentType] - a style of the run
        cases: list[Case] = []
        skipped: Counter[str] = Counter()
        for row in rows:
            example = evidence.examples.get(row.example_id)
            items = evidence.prompt_items(row.profile_id, row.item_ids)
            taken = "items-unknown" if example is None else take(row, tasks[row.task], example, items, wording)
            if isinstance(taken, Case):
                cases.append(taken)
            elif row.example_id in drawn:
                skipped[taken] += 1
        not_made: Counter[str] = Counter()
        planned: list[tuple[Case, list[Plan]]] = []
        for case in cases:
            if case.prediction.example_id in drawn:
                plans, missing = plan(case, cases, choice.seed)
                planned.append((case, plans))
                not_made += missing
        count = sum(row.example_id in drawn for row in rows)
        cell = {name: getattr(rows[0], name) for name in _CELL}
        yield _Subject(cell, count, dict(sorted(skipped.items())), not_made, planned)


def _refuse_nothing(subjects: Sequence[_Subject]) -> None:
    if not any(subject.planned for subject in subjects):
        reasons = sum((Counter(subject.skipped) for subject in subjects), Counter[str]())
        raise CheckFailed(
            f"none of the {sum(subject.drawn for subject in subjects)} recorded answers can be looked into"
            f"{_reasons(reasons)}"
        )


def _judged(subject: _Subject, asked: _Asked) -> tuple[list[Intervention], FaithfulnessCell]:
    """The rows of what was answered, each against its case's answer without the change."""
    rows: list[Intervention] = []
    not_made = Counter(subject.not_made)
    for case, planned in subject.planned:
        bases: dict[str, str] = {}
        for done in planned:
            if (text := asked.text(done)) is None:
                not_made["not-answered"] += 1
                continue
            if done.action in ("regenerate", "repeat"):
                rows.append(judge(case, done, text, case.answer))
                if (answer := find_answer(case, done, text)) is not None:
                    bases[done.action] = answer
            elif done.base in bases:
                rows.append(judge(case, done, text, bases[done.base]))
            else:
                not_made["no-base-answer"] += 1
    cell = FaithfulnessCell(
        **subject.cell, drawn=subject.drawn, examined=len(subject.planned), skipped=subject.skipped,
        not_made=dict(sorted(not_made.items())),
    )  # fmt: skip
    return rows, cell


def _open(output: Path, run: Run, folder: Path, choice: Choice, identities: dict[str, str]) -> Faithfulness:
    """Give the manifest found in `output`, or a new one, written now."""
    path = output / MANIFEST
    recorded = run.manifest.results.get("models", {})
    new = Faithfulness(
        status="running",
        settings={
            "models": sorted(identities), "cells": sorted(choice.cells), "examples": choice.examples,
            "seed": choice.seed,
        },
        predictions_sha256=sha256_file(folder / PREDICTIONS), data=run.manifest.data, models=identities,
        run_models={name: recorded[name] for name in identities if name in recorded},
        versions=versions(_PACKAGES), git_revision=git_revision(),
    )  # fmt: skip
    if not path.exists():
        strangers = [entry.name for entry in output.iterdir() if entry.name != ".lock"]
        if strangers:
            raise InputError(f"{output} is not empty (it holds {shorten(strangers[0])}); choose another folder")
        write_json(path, new)
        return new
    found = read_json(path, Faithfulness)
    is_same = (found.models, found.predictions_sha256) == (new.models, new.predictions_sha256)
    if is_same and _grows(found.settings, new.settings):
        new = found.model_copy(update={"status": "running", "settings": new.settings, "cells": (), "measures": ()})
        write_json(path, new)
        return new
    for what in ("settings", "predictions_sha256", "models"):
        old, wanted = getattr(found, what), getattr(new, what)
        if old != wanted:
            raise InputError(
                f"{output} holds interventions of other {what}: {shorten(old)} there, {shorten(wanted)} here; choose "
                "another folder with --output, or remove it"
            )
    return found


def _grows(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether the new settings ask for more examples and else for the same: the draw grows, so all samples count."""
    before, after = old["examples"], new["examples"]
    return old | {"examples": after} == new and before is not None and (after is None or after > before)


def _reasons(counts: Mapping[str, int]) -> str:
    return f" ({', '.join(f'{reason} {count}' for reason, count in counts.items())})" if counts else ""
