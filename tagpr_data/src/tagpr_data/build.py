"""One file runs it all: prompts → candidates → selection → corpus folder → validation.

Guarantee: the same data set, config and code give the same bytes; each stage is skipped when its inputs are
unchanged; after a kill the same command goes on. The manifest is written last. Working files stay in `.work/` of the
corpus folder (prompts, the journal and the table of candidates, the stages' input hashes) and are no part of the
corpus. `generate_candidates` is the first half alone. Where a limit stops generation, the corpus is made of what is
there and its manifest says so (`parameters.partial`). Prompts and candidates stream through files: see `generate` and
`select` for what memory holds besides the tables of the data set.
"""

import ast
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, Self, TypeVar

from pydantic import BeforeValidator, Field, model_validator

from tagpr_data import generate, select, validate
from tagpr_data.budget import FREE, NO_LIMITS, Forecast, Limits, Price, read_prices
from tagpr_data.chat_server import ChatServer, ServerOptions
from tagpr_data.config import Config
from tagpr_data.dataset import SPLITS, Dataset
from tagpr_data.engine import LOCAL, Engine, check
from tagpr_data.errors import InputError
from tagpr_data.generate import Prompt, Retrieval, Tally, TeacherPlan, derived_seed
from tagpr_data.journal import folder_lock
from tagpr_data.model_files import files_hash
from tagpr_data.prompts import PromptOptions
from tagpr_data.records import (
    Candidate,
    CorpusManifest,
    Example,
    FileEntry,
    ProfileItem,
    Record,
    Rejected,
    Sampling,
    Sha256,
    Split,
    Task,
    Trace,
)
from tagpr_data.select import Selection
from tagpr_data.tables import (
    canonical_json,
    content_hash,
    frame_from_records,
    iter_records,
    read_json,
    sha256_file,
    sha256_text,
    table_batches,
    table_writer,
    write_json,
    write_table,
    write_text,
)
from tagpr_data.tags import TagSet, load_tagset
from tagpr_data.teachers import Patterns, Policy, ScriptedTeacher, ServedTeacher
from tagpr_data.vllm_chat import VllmOptions, VllmServer
from tagpr_data.weighing import LabelWords

if TYPE_CHECKING:
    import polars as pl

T = TypeVar("T")

MANIFEST = "manifest.json"
WORK = ".work"
REPORT = "generation.json"
_PACKAGE = Path(__file__).parent


class TeacherUsage(Record):
    """What one teacher used for one task."""

    teacher: str
    """Its name."""
    task: str
    """The task."""
    answers: int
    """Answers."""
    accepted: int
    """Answers that pass the rules that look at one answer alone."""
    input_tokens: int
    """Tokens read."""
    output_tokens: int
    """Tokens written."""
    cost: float
    """What they cost, by the prices of the call."""
    uncounted: int
    """Answers whose tokens are estimated."""


class GenerationReport(Record):
    """How a generation stands; `generation.json` beside the table of candidates."""

    status: Literal["complete", "partial", "pilot"]
    """`partial`: a limit was reached; `pilot`: only the pilot was asked for."""
    planned: int
    """Answers of a complete table."""
    answers: int
    """Answers in the table."""
    accepted: int
    """Answers that pass the rules that look at one answer alone."""
    rejected: dict[str, int]
    """The others, by rule."""
    used: tuple[TeacherUsage, ...]
    """By teacher and task."""
    table_sha256: Sha256
    """Hash of the table."""


class Attempts(Config):
    """How often a teacher tries, and how warm."""

    attempts: int | None = Field(default=None, ge=1)
    """Attempts per example; None takes as many as `temperatures` names, else those of the corpus."""
    temperatures: tuple[Annotated[float, Field(ge=0)], ...] = ()
    """Temperature ladder: attempt i is sampled at the i-th, those beyond its end at the last; empty takes
    `sampling.temperature` for all."""


class ScriptedTeacherConfig(Attempts):
    """The rule-based teacher."""

    type: Literal["scripted"] = "scripted"
    """Tells the teachers apart."""
    hindsight: bool = True
    """Whether it knows the gold answer."""
    blind_attempts: int = Field(default=0, ge=0)
    """The first so many attempts do not know it, so that only what fails without is rationalised."""
    habit_share: float = Field(default=0.0, ge=0, le=1)
    """Share of attempts that answer with the user's most frequent label whatever is asked: a teacher of mixed quality,
    to be seen through by selection or by reinforcement learning."""
    policy: Policy = "votes"
    """votes: a vote an item and a shared word. weighed: the places of the items, the words they alone share with the
    input and the words that training users' past items of a label have (`weighing.py`); shorter traces."""
    patterns: Patterns = "counts"
    """Under `votes`, what is said of how labels agree. counts: which items have the most frequent one, and how many.
    pairs: the first item and the first that differs, each with its label, which small pupils learn to say truly."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.policy == "weighed" and self.patterns == "pairs":
            raise ValueError('patterns = "pairs" is for policy = "votes"; the traces of "weighed" know no such choice')
        return self


class ServedTeacherConfig(ServerOptions, Attempts):
    """A model behind one or several OpenAI-compatible servers."""

    type: Literal["openai"]
    """Tells the teachers apart."""
    hindsight: bool = False
    """Whether it is told the gold answer."""
    blind_attempts: int = Field(default=0, ge=0)
    """The first so many attempts are not told, so that only what fails without is rationalised."""
    revision: str = "unstated"
    """Version of the model, as far as known; part of every row's lineage."""


class VllmTeacherConfig(VllmOptions, Attempts):
    """A model that vLLM runs in this process."""

    type: Literal["vllm"]
    """Tells the teachers apart."""
    hindsight: bool = False
    """Whether it is told the gold answer."""
    blind_attempts: int = Field(default=0, ge=0)
    """The first so many attempts are not told, so that only what fails without is rationalised."""
    revision: str | None = None
    """Version of the model; part of every row's lineage. None takes the hash of its files, which reads the weights."""


TeacherConfig = Annotated[ScriptedTeacherConfig | ServedTeacherConfig | VllmTeacherConfig, Field(discriminator="type")]


def _listed(teacher: Any) -> Any:
    """Give one teacher as a list of one, so that `[teacher]` reads like `[[teacher]]`."""
    return teacher if isinstance(teacher, (list, tuple)) else (teacher,)


class CorpusConfig(Config):
    """How one corpus is built. Relative paths are taken from the working directory."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Name of the corpus."""
    dataset: Path
    """Data set folder."""
    output: Path
    """Corpus folder."""
    tasks: tuple[str, ...] | None = None
    """Tasks to answer; None takes all of the data set."""
    splits: tuple[Split, ...] = ("train", "validation")
    """Splits to answer; those that the data set lacks are left out. Test stays for evaluation."""
    limits: dict[Split, int] = Field(default={})
    """Most examples per split and task, drawn by seed."""
    task_limits: dict[str, int] = Field(default={})
    """Most examples per split of a task, by its name, drawn by seed; on top of `limits`."""
    per_user: int | None = None
    """Most examples per user, split and task, drawn by seed; None takes all."""
    retriever: str = "bm25"
    """Which retriever chooses the items."""
    k: int = Field(default=4, ge=0)
    """Items per prompt."""
    empty_profile_share: float = Field(default=0.12, ge=0, le=1)
    """Share of examples whose prompt shows no item, so that a model learns the cold start."""
    prompt: PromptOptions = PromptOptions()
    """How prompts are built."""
    tagset: Path | None = None
    """Tag-set file; None is the shipped one."""
    teacher: Annotated[tuple[TeacherConfig, ...], BeforeValidator(_listed), Field(min_length=1)] = (
        ScriptedTeacherConfig(),
    )
    """Who writes the traces: one table `[teacher]`, or several `[[teacher]]`."""
    sampling: Sampling = Sampling()
    """How teachers sample."""
    attempts: int = Field(default=1, ge=1)
    """Attempts per example of each teacher that does not name its own."""
    until_accepted: bool = False
    """Ask attempt after attempt, and teacher after teacher in their order, only until `selection.best_of` answers pass
    the rules that look at one answer alone."""
    prices: Path | None = None
    """TOML file with `[MODEL] input = …, output = …`, prices of a million tokens; the card then shows costs."""
    selection: Selection = Selection()
    """Which attempts are kept."""
    seed: int = 0
    """Everything random derives from it."""


Progress = Callable[[str, int], AbstractContextManager[Callable[[], object]]]
"""Opens a progress bar (title, steps in all); what it gives is called after each step."""


def silent(title: str, total: int) -> AbstractContextManager[Callable[[], object]]:
    """Show no progress."""
    return nullcontext(lambda: None)


class Watch(Protocol):
    """Shows a generation while it runs."""

    def __call__(self) -> AbstractContextManager[Callable[[Tally], object]]:
        """Open the display; what it gives is shown the tally after each answer."""
        ...


def unwatched() -> AbstractContextManager[Callable[[Tally], object]]:
    """Show nothing."""
    return nullcontext(lambda tally: None)


@dataclass(frozen=True)
class Asking:
    """What a call may spend on generation, and what it is told on the way."""

    limits: Limits = NO_LIMITS
    """When generation stops."""
    prices: Mapping[str, Price] = field(default_factory=dict[str, Price])
    """Model name → prices of a million tokens read and written."""
    pilot_share: float = 0.0
    """Share of the prompts answered first, for a forecast; 0 makes none."""
    is_pilot_only: bool = False
    """Whether to stop after the pilot."""
    on_forecast: Callable[[Forecast], object] = lambda forecast: None
    """Told the forecast."""
    watch: Watch = unwatched
    """Shows generation while it runs."""


UNLIMITED = Asking()


def build(
    config: CorpusConfig,
    progress: Progress = silent,
    say: Callable[[str], object] = lambda line: None,
    asking: Asking = UNLIMITED,
    engine: Engine = LOCAL,
) -> CorpusManifest:
    """Build the corpus folder `config.output` and validate it; `say` gets one line per stage, `engine` works on the
    rows of selection and validation (the bytes are the same on each).

    Raises InputError for a config that does not fit the data set or a folder that holds something else, CheckFailed
    when the corpus does not validate.
    """
    job = _Job.open(config, progress, say, asking, engine)
    with folder_lock(config.output):
        table, planned = job.generate_stage()
        manifest = job.select_stage(table, planned)
        job.documents_stage()
        job.validate_stage(manifest)
    return manifest


def generate_candidates(
    config: CorpusConfig,
    progress: Progress = silent,
    say: Callable[[str], object] = lambda line: None,
    asking: Asking = UNLIMITED,
) -> GenerationReport:
    """Do the stages up to the table of candidates, `config.output/.work/candidates.parquet`, and say what it holds.

    `build` with the same config goes on from there. Raises what `build` raises.
    """
    job = _Job.open(config, progress, say, asking)
    with folder_lock(config.output):
        job.generate_stage()
        return read_json(config.output / WORK / REPORT, GenerationReport)


def teacher_plans(
    config: CorpusConfig, dataset: Dataset, tagset: TagSet, prices: Mapping[str, Price], limits: Limits
) -> list[TeacherPlan]:
    """Give the teachers of a config with their attempts; a scripted one that weighs counts the data set's words here.
    Raises InputError for a served model without a price where the cost is limited."""
    plans: list[TeacherPlan] = []
    for teacher in config.teacher:
        attempts = teacher.attempts or len(teacher.temperatures) or config.attempts
        ladder = teacher.temperatures or (config.sampling.temperature,)
        samplings = tuple(
            config.sampling.model_copy(update={"temperature": ladder[min(attempt, len(ladder) - 1)]})
            for attempt in range(attempts)
        )
        if isinstance(teacher, ScriptedTeacherConfig):
            own = teacher.model_dump(include={"hindsight", "blind_attempts", "habit_share", "policy", "patterns"})
            words = _label_words(config, dataset) if teacher.policy == "weighed" else {}
            plans.append(TeacherPlan(ScriptedTeacher(**own, words=words), samplings))
            continue
        if limits.max_cost is not None and teacher.name not in prices:
            known = ", ".join(sorted(prices)) or "none"
            raise InputError(f"--max-cost needs a price of the model {teacher.name!r}; the price file has: {known}")
        if isinstance(teacher, VllmTeacherConfig):
            server, at_once, ahead = VllmServer(teacher), teacher.concurrency, 0
            revision = teacher.revision or files_hash(server.chat.folder)[:16]
        else:
            server, at_once, ahead, revision = ChatServer(teacher), teacher.at_once, teacher.at_once, teacher.revision
        served = ServedTeacher(server, tagset, teacher.hindsight, revision, teacher.blind_attempts)
        plans.append(TeacherPlan(served, samplings, at_once, prices.get(teacher.name, FREE), ahead))
    return plans


def _label_words(config: CorpusConfig, dataset: Dataset) -> dict[str, LabelWords]:
    """Count the words of the labels of each task to be answered that has labels."""
    asked = {dataset.task(name).name for name in config.tasks or [task.name for task in dataset.manifest.tasks]}
    labelled = [task.name for task in dataset.manifest.tasks if task.labels and task.name in asked]
    return {name: LabelWords.count(dataset, name) for name in labelled}


def choose_examples(config: CorpusConfig, dataset: Dataset) -> "dict[Split, pl.DataFrame]":
    """Give the examples to answer by split as frames (id, task, user_id), ordered by id: those of the tasks, within
    `per_user` and the limits.

    Which ones stay is drawn by `seed` and example id, so that a larger limit keeps those of a smaller one.
    """
    import polars as pl

    tasks = {dataset.task(name).name for name in config.tasks} if config.tasks is not None else None
    chosen: dict[Split, pl.DataFrame] = {}
    for split in dataset.splits:
        if split not in config.splits:
            continue
        rows = pl.read_parquet(dataset.folder / f"examples/{split}.parquet", columns=["id", "task", "user_id"])
        if tasks is not None:
            rows = rows.filter(pl.col("task").is_in(sorted(tasks)))
        draws = [derived_seed(config.seed, "choose", example_id) for example_id in rows["id"]]
        rows = rows.with_columns(draw=pl.Series(draws, dtype=pl.Int64)).sort("draw", "id")
        if config.per_user is not None:
            rows = rows.filter(pl.int_range(pl.len()).over("task", "user_id") < config.per_user)
        most = {
            task: min(config.limits.get(split, rows.height), config.task_limits.get(task, rows.height))
            for task in rows["task"].unique()
        }
        if most:  # a data set of few people may have an empty split
            rows = rows.filter(
                pl.int_range(pl.len()).over("task") < pl.col("task").replace_strict(most, return_dtype=pl.Int64)
            )
        chosen[split] = rows.sort("id").drop("draw")
    return chosen


@dataclass(frozen=True)
class Description:
    """What a manifest says besides the numbers that follow from the rows."""

    name: str
    tagset: TagSet
    dataset: str
    dataset_hash: str
    licence: str
    tasks: tuple[Task, ...]
    parameters: Mapping[str, Any]


def write_corpus(
    folder: Path,
    traces: Mapping[Split, Sequence[Trace]],
    rejected: Mapping[Split, Sequence[Rejected]],
    description: Description,
) -> CorpusManifest:
    """Write traces/, rejected/ and, last, the manifest; what stood there under these names before is removed first."""
    _clear(folder)
    files: dict[str, FileEntry] = {}
    for kind, model, rows_by_split in (("traces", Trace, traces), ("rejected", Rejected, rejected)):
        for split, rows in rows_by_split.items():
            name = f"{kind}/{split}.parquet"
            files[name] = write_table(folder / name, frame_from_records(rows, model), model, ["id"])
    kept = [row for rows in traces.values() for row in rows]
    refused = [row for rows in rejected.values() for row in rows]
    manifest = describe(select.count(kept, refused), files, description)
    write_json(folder / MANIFEST, manifest)
    return manifest


def describe(counts: select.Counts, files: dict[str, FileEntry], description: Description) -> CorpusManifest:
    """Give the manifest of a corpus from its counts, files and description."""
    return CorpusManifest(
        name=description.name,
        tagset=description.tagset.name,
        tagset_hash=description.tagset.hash,
        dataset=description.dataset,
        dataset_hash=description.dataset_hash,
        licence=description.licence,
        tasks=description.tasks,
        teachers=dict(sorted(counts.teachers.items())),
        files=files,
        content_hash=content_hash(description.tasks, files, [description.tagset.hash]),
        candidates=counts.candidates,
        kept=counts.kept,
        rejected=counts.rejected,
        acceptance=counts.acceptance,
        claims=counts.claims,
        grounded_claims=counts.grounded_claims,
        parameters=dict(description.parameters),
    )


def _clear(folder: Path) -> None:
    """Remove what an earlier build left, the manifest first: without it the folder counts as unfinished."""
    (folder / MANIFEST).unlink(missing_ok=True)
    for kind in ("traces", "rejected"):
        if (folder / kind).exists():
            shutil.rmtree(folder / kind)


class _Stages:
    """Which stage last ran on which inputs; kept in a JSON file, written after each stage."""

    def __init__(self, path: Path, say: Callable[[str], object]) -> None:
        self._path = path
        self._say = say
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):  # no JSON or no text: all is done anew
            found = None
        self._done: dict[str, str] = found if isinstance(found, dict) else {}
        self._started = perf_counter()

    def is_done(self, stage: str, inputs: str) -> bool:
        """Whether the stage last ran on these inputs."""
        self._started = perf_counter()
        return self._done.get(stage) == inputs

    def finish(self, stage: str, inputs: str, line: str) -> None:
        """Note that the stage ran on these inputs and say what came out."""
        self._done[stage] = inputs
        write_text(self._path, json.dumps(self._done, indent=2, sort_keys=True) + "\n")
        self._say(f"{stage:<9} {line} ({perf_counter() - self._started:.1f} s)")

    def leave(self, stage: str, line: str) -> None:
        """Say that the stage stopped before its end; it is not done."""
        self._done.pop(stage, None)
        write_text(self._path, json.dumps(self._done, indent=2, sort_keys=True) + "\n")
        self._say(f"{stage:<9} {line} ({perf_counter() - self._started:.1f} s)")

    def skip(self, stage: str, line: str) -> None:
        """Say that the stage had nothing to do."""
        self._say(f"{stage:<9} {line} (unchanged)")


@dataclass(frozen=True)
class _Job:
    """One config with all that its stages share; each method is a stage."""

    config: CorpusConfig
    dataset: Dataset
    tagset: TagSet
    plans: list[TeacherPlan]
    asking: Asking
    stages: _Stages
    progress: Progress
    say: Callable[[str], object]
    engine: Engine

    @classmethod
    def open(
        cls, config: CorpusConfig, progress: Progress, say: Callable[[str], object], asking: Asking,
        engine: Engine = LOCAL,
    ) -> "_Job":  # fmt: skip
        """Check the config against folder and data set; nothing is written yet."""
        _check_target(config.output, config.name)
        dataset, tagset = Dataset.load(config.dataset), load_tagset(config.tagset)
        if config.prices is not None and not asking.prices:
            asking = replace(asking, prices=read_prices(config.prices, None))
        plans = teacher_plans(config, dataset, tagset, asking.prices, asking.limits)
        check(engine)
        stages = _Stages(config.output / WORK / "stages.json", say)
        return cls(config, dataset, tagset, plans, asking, stages, progress, say, engine)

    @property
    def work(self) -> Path:
        """Working files."""
        return self.config.output / WORK

    def prompts_stage(self) -> Path:
        """Give the table of prompts."""

        config, path = self.config, self.work / "prompts.parquet"
        settings = config.model_dump(mode="json", include=_PROMPT_SETTINGS)
        code = _code(generate)
        inputs = _hash(settings, self.dataset.manifest.content_hash, self.tagset.hash, code)
        if path.is_file() and self.stages.is_done("prompts", _hash(inputs, sha256_file(path))):
            self.stages.skip("prompts", f"{_rows(path):,} prompts")
            return path
        chosen = choose_examples(config, self.dataset)
        total = sum(rows.height for rows in chosen.values())
        if not total:
            wanted = ", ".join(config.tasks or ("any task",))
            raise InputError(f"data set {config.dataset} has no example of {wanted} in {', '.join(config.splits)}")
        retrieval = Retrieval(config.retriever, config.k, config.empty_profile_share, config.seed)
        skipped, by_split = Counter[str](), Counter[Split]()
        with self.progress("prompts", total) as advance, table_writer(path, Prompt) as write:
            examples = _advancing(_examples(self.dataset, chosen), advance)
            for prompt in generate.make_prompts(self.dataset, examples, retrieval, config.prompt, self.tagset, skipped):
                by_split[prompt.split] += 1
                write(prompt)
        left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items())) or "none"
        counts = ", ".join(f"{split} {by_split[split]:,}" for split in SPLITS if by_split[split])
        inputs = _hash(inputs, sha256_file(path))  # and the table: one that was damaged is written anew
        self.stages.finish("prompts", inputs, f"{by_split.total():,} prompts: {counts}; left out: {left_out} → {path}")
        return path

    def generate_stage(self) -> tuple[Path, int]:
        """Give the table of candidates, and how many answers a complete one would have."""
        config, path, report_path = self.config, self.work / generate.CANDIDATES, self.work / REPORT
        prompts_path = self.prompts_stage()
        inputs = self._generation_inputs(prompts_path)
        if self.stages.is_done("generate", inputs) and path.is_file() and report_path.is_file():
            report = read_json(report_path, GenerationReport)
            if report.table_sha256 == sha256_file(path):
                self.stages.skip("generate", f"{report.answers:,} candidates")
                return path, report.planned
        judge = self._judge()
        asking = self.asking
        with asking.watch() as watch:
            outcome = generate.generate(
                self.work, prompts_path, self.plans, self.dataset, config.prompt, config.seed, judge,
                until_accepted=config.selection.best_of if config.until_accepted else None,
                limits=asking.limits, pilot_share=asking.pilot_share, is_pilot_only=asking.is_pilot_only,
                on_forecast=asking.on_forecast, watch=watch, say=self.say,
            )  # fmt: skip
        report = _report(outcome, sha256_file(path))
        write_json(report_path, report)
        names = ", ".join(sorted({plan.teacher.name for plan in self.plans}))
        line = f"{report.answers:,} candidates by {names} → {path}"
        if outcome.status == "complete":
            self.stages.finish("generate", inputs, line)
        else:
            why = "a limit was reached" if outcome.status == "partial" else "only the pilot was asked for"
            self.stages.leave("generate", f"PARTIAL, {why}: {outcome.tally.missing:,} still missing; {line}")
        return path, report.planned

    def select_stage(self, table: Path, planned: int) -> CorpusManifest:
        """Write traces, rejected and manifest."""
        config, dataset, tagset = self.config, self.dataset, self.tagset
        parameters = _parameters(config, dataset) | _priced(config, self.asking.prices)
        answers = _rows(table)
        if answers < planned:
            parameters["partial"] = {"candidates": answers, "planned": planned}
        inputs = _hash(
            config.name,
            config.selection.model_dump(mode="json"),
            select.files_of(config.selection),
            sha256_file(table),
            dataset.manifest.content_hash,
            tagset.hash,
            _code(select),
            parameters,
        )
        path = config.output / MANIFEST
        if self.stages.is_done("select", inputs) and path.is_file():
            manifest = read_json(path, CorpusManifest)
            if all(_is_unchanged(config.output / name, entry) for name, entry in manifest.files.items()):
                self.stages.skip("select", f"{manifest.kept:,} traces")
                return manifest
        _clear(config.output)
        splits, tasks = _splits_and_tasks(self.work / "prompts.parquet")
        with self.progress("select", answers) as advance:
            files, counts = select.select(
                table_batches(table, Candidate), dataset, config.selection, tagset, config.output, splits,
                work=self.work / "select", expected=answers, on_rows=lambda rows: [advance() for _ in range(rows)],
                engine=self.engine.name, workers=self.engine.workers, address=self.engine.address,
            )  # fmt: skip
        description = Description(
            name=config.name,
            tagset=tagset,
            dataset=dataset.manifest.name,
            dataset_hash=dataset.manifest.content_hash,
            licence=dataset.manifest.licence,
            tasks=tuple(task for task in dataset.manifest.tasks if task.name in tasks),
            parameters=parameters,
        )
        manifest = describe(counts, files, description)
        write_json(path, manifest)
        grounded = f"{manifest.grounded_claims:,} of {manifest.claims:,} claims grounded"
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in manifest.rejected.items()) or "none"
        self.stages.finish(
            "select", inputs, f"{manifest.kept:,} traces, {grounded}; rejected: {reasons} → {config.output}"
        )
        return manifest

    def documents_stage(self) -> None:
        """Write card and Croissant description."""
        from tagpr_data import card, corpus, stats

        output = self.config.output
        paths = [output / name for name in (card.README, card.CROISSANT)]

        def inputs() -> str:
            """What the documents are made of, and the documents: an edited one is written anew."""
            made_of = (output / MANIFEST, output / corpus.PAIRS / MANIFEST, output / card.FACTS, *paths)
            present = [path for path in made_of if path.is_file()]
            queries = sorted(stats.QUERIES.glob("*.sql"))
            return _hash([sha256_file(path) for path in (*present, *queries)], _code(card))

        if self.stages.is_done("documents", inputs()):
            self.stages.skip("documents", f"{card.README}, {card.CROISSANT}")
            return
        opened = corpus.open_corpus(output, verify=False)
        card.write_documents(opened)
        self.stages.finish("documents", inputs(), f"{card.README}, {card.CROISSANT} → {output}")
        for line in card.costs(opened.manifest, stats.statistics(opened)):
            self.say(f"{'cost':<9} {line}")

    def validate_stage(self, manifest: CorpusManifest) -> None:
        """Check the corpus."""
        config, output = self.config, self.config.output
        report = output / "data_docs"
        checks = [sha256_file(path) for path in sorted(validate.CHECKS.glob("*.sql"))]

        def inputs() -> str:
            """What was checked, and the report: a damaged one is written anew. The tables are those of the manifest."""
            checked = [output / MANIFEST, *sorted((output / "pairs").rglob("*.*")), *sorted(report.glob("*"))]
            return _hash([sha256_file(path) for path in checked if path.is_file()], _code(validate), checks)

        if self.stages.is_done("validate", inputs()) and (report / "report.json").is_file():
            self.stages.skip("validate", "passed before")
            return
        outcome = validate.validate(config.output, config.tagset, report, config.dataset, self.engine)
        validate.raise_for(outcome, config.output)
        line = f"{len(outcome.results)} checks passed on {manifest.kept:,} traces → {report / 'index.html'}"
        self.stages.finish("validate", inputs(), line)

    def _generation_inputs(self, prompts_path: Path) -> str:
        """Hash of what the table of candidates depends on; the rules only where they decide what is asked."""
        config = self.config
        asked = [
            [
                plan.teacher.name,
                plan.teacher.revision,
                [sampling.model_dump(mode="json") for sampling in plan.samplings],
            ]
            for plan in self.plans
        ]
        until = None
        if config.until_accepted:
            until = [config.selection.model_dump(mode="json"), select.files_of(config.selection), _code(select)]
        return _hash(
            sha256_file(prompts_path), asked, config.seed, config.prompt.model_dump(mode="json"), until, _code(generate)
        )

    def _judge(self) -> generate.Judge:
        """Give the rules of selection that look at one answer alone; personal data and contamination are left to the
        selection, which looks at whole batches."""
        off = {"contamination": (), "contamination_own": False, "personal_data": "off"}
        alone = self.config.selection.model_copy(update=off)
        judge = select.Judge.prepare(alone, self.dataset, self.tagset, self.work / "judge")

        def reason(candidate: Candidate, prompt: Prompt, items: Sequence[ProfileItem]) -> str | None:
            row = select.Row(
                text=candidate.text,
                finish_reason=candidate.finish_reason,
                gold=candidate.gold,
                task=self.dataset.task(candidate.task),
                user_id=candidate.user_id,
                question=prompt.input,
                items=items,
                date=prompt.date,
            )
            return judge.judge(row).reason

        return reason


_PROMPT_SETTINGS = {
    "tasks", "splits", "limits", "task_limits", "per_user", "retriever", "k", "empty_profile_share", "prompt", "seed",
}  # fmt: skip


def _report(outcome: generate.Generation, table_sha256: str) -> GenerationReport:
    tally = outcome.tally
    return GenerationReport(
        status=outcome.status,
        planned=tally.planned - tally.spared,
        answers=tally.answers,
        accepted=tally.accepted,
        rejected=dict(sorted(tally.rejected.items())),
        used=tuple(
            TeacherUsage(teacher=teacher, task=task, **asdict(usage))
            for (teacher, task), usage in sorted(tally.used.items())
        ),
        table_sha256=table_sha256,
    )


def _examples(dataset: Dataset, chosen: "Mapping[Split, pl.DataFrame]") -> Iterator[tuple[Split, Example]]:
    for split, rows in chosen.items():
        wanted = set(rows["id"])
        for example in iter_records(dataset.folder / f"examples/{split}.parquet", Example):
            if example.id in wanted:
                yield split, example


def _advancing(rows: Iterable[T], advance: Callable[[], object]) -> Iterator[T]:
    for row in rows:
        advance()
        yield row


def _rows(path: Path) -> int:
    import pyarrow.parquet as pq

    return pq.read_metadata(path).num_rows


def _splits_and_tasks(path: Path) -> tuple[list[Split], set[str]]:
    """Give the splits and the tasks that a table of prompts has."""
    import polars as pl

    found = pl.scan_parquet(path).select("split", "task").unique().collect()
    present = set(found["split"])
    return [split for split in SPLITS if split in present], set(found["task"])


def _priced(config: CorpusConfig, prices: Mapping[str, Price]) -> dict[str, Any]:
    """Give the prices of the teachers for the manifest, by teacher name; nothing where none are known."""
    served = [teacher for teacher in config.teacher if not isinstance(teacher, ScriptedTeacherConfig)]
    known = {teacher.name: list(prices[teacher.name]) for teacher in served if teacher.name in prices}
    return {"prices": known} if known else {}


def _parameters(config: CorpusConfig, dataset: Dataset) -> dict[str, Any]:
    """Give the settings for the manifest: no paths, and what `checks/` look for at the top."""
    import polars as pl

    users = [
        pl.read_parquet(dataset.folder / f"examples/{split}.parquet", columns=["user_id"])["user_id"].unique()
        for split in dataset.splits
    ]
    # how the server is reached makes no difference to what is built, and is nobody's business
    reached = set(ServerOptions.model_fields) - {"model", "extra_body", "constrain"}
    settings = config.model_dump(mode="json", exclude={"name", "dataset", "output", "tagset", "teacher", "prices"})
    teachers = [
        teacher.model_dump(mode="json", exclude=reached)
        | ({"model": teacher.name} if isinstance(teacher, VllmTeacherConfig) else {})
        for teacher in config.teacher
    ]
    settings["teacher"] = teachers if len(teachers) > 1 else teachers[0]
    settings["selection"] = select.described(config.selection)
    return {
        **settings,
        "min_score": config.selection.min_score,
        "task_min_score": config.selection.task_min_score,
        "best_of": config.selection.best_of,
        "disjoint_users": not pl.concat(users).is_duplicated().any(),
    }


def _check_target(folder: Path, name: str) -> None:
    """Raise InputError unless the folder is absent, empty, or holds an earlier build of this corpus."""
    if folder.is_file():
        raise InputError(f"{folder} is a file; a corpus is a folder, give a name that is free (output)")
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if (folder / MANIFEST).is_file():
        manifest = read_json(folder / MANIFEST, CorpusManifest)
        if manifest.name != name:
            raise InputError(f"{folder} holds the corpus {manifest.name!r}; give another folder (output) for {name!r}")
    elif found and WORK not in found and found != {".lock"}:
        raise InputError(
            f"{folder} is not empty and holds no corpus (found {min(found)!r}); give another folder (output)"
        )


def _is_unchanged(path: Path, entry: FileEntry) -> bool:
    return path.is_file() and sha256_file(path) == entry.sha256


def _code(*modules: ModuleType) -> list[str]:
    """Give the hashes of this file, of modules' files and of those they import: changed code is a changed input."""
    return [sha256_file(path) for path in (Path(__file__), *code_files(*modules))]


def code_files(*modules: ModuleType) -> list[Path]:
    """Give the files of modules and of all modules of this package that they import, also those inside functions and
    by way of others, in order."""
    found: set[Path] = set()
    waiting = [Path(module.__file__ or "") for module in modules]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += _imported(path)
    return sorted(found)


@cache
def _imported(path: Path) -> tuple[Path, ...]:
    """Give the files of this package that one of its files imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
        elif isinstance(node, ast.Import):
            names |= {name.name for name in node.names}
    inside = [name.split(".")[1:] for name in names if name.startswith("tagpr_data.")]
    candidates = [_PACKAGE.joinpath(*parts) for parts in inside]
    files = [file for base in candidates for file in (base.with_suffix(".py"), base / "__init__.py")]
    return tuple(sorted(file for file in files if file.is_file()))


def _hash(*values: Any) -> str:
    return sha256_text(canonical_json(values))
