"""One file runs it all: prompts → candidates → selection → corpus folder → validation.

Guarantee: the same data set, config and code give the same bytes; each stage is skipped when its inputs are
unchanged; after a kill the same command goes on. The manifest is written last. Working files stay in `.work/` of the
corpus folder (prompts, the journal of candidates, the stages' input hashes) and are no part of the corpus.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any, Literal

from pydantic import Field

from tagpr_data import generate, prompts, select, tables, tags, validate
from tagpr_data.chat_server import ChatServer, ServerOptions
from tagpr_data.config import Config
from tagpr_data.dataset import SPLITS, Dataset
from tagpr_data.errors import InputError
from tagpr_data.generate import Profiles, Prompt, Retrieval, derived_seed
from tagpr_data.journal import folder_lock
from tagpr_data.prompts import PromptOptions
from tagpr_data.records import Candidate, CorpusManifest, Example, FileEntry, Rejected, Sampling, Split, Task, Trace
from tagpr_data.select import Judged, Selection
from tagpr_data.tables import (
    canonical_json,
    content_hash,
    frame_from_records,
    read_json,
    read_records,
    sha256_file,
    sha256_text,
    write_json,
    write_table,
    write_text,
)
from tagpr_data.tags import TagSet, load_tagset
from tagpr_data.teachers import ScriptedTeacher, ServedTeacher, Teacher

MANIFEST = "manifest.json"
WORK = ".work"


class ScriptedTeacherConfig(Config):
    """The rule-based teacher."""

    type: Literal["scripted"] = "scripted"
    """Tells the teachers apart."""
    hindsight: bool = True
    """Whether it knows the gold answer."""
    blind_attempts: int = Field(default=0, ge=0)
    """The first so many attempts do not know it, so that only what fails without is rationalised."""


class ServedTeacherConfig(ServerOptions):
    """A model behind an OpenAI-compatible server."""

    type: Literal["openai"]
    """Tells the teachers apart."""
    hindsight: bool = False
    """Whether it is told the gold answer."""
    blind_attempts: int = Field(default=0, ge=0)
    """The first so many attempts are not told, so that only what fails without is rationalised."""
    revision: str = "unstated"
    """Version of the model, as far as known; part of every row's lineage."""


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
    teacher: ScriptedTeacherConfig | ServedTeacherConfig = Field(default=ScriptedTeacherConfig(), discriminator="type")
    """Who writes the traces."""
    sampling: Sampling = Sampling()
    """How the teacher samples."""
    attempts: int = Field(default=1, ge=1)
    """Attempts per example."""
    selection: Selection = Selection()
    """Which attempts are kept."""
    seed: int = 0
    """Everything random derives from it."""
    html_report: bool = True
    """Whether validation writes HTML data docs beside its JSON; costs a few seconds."""


Progress = Callable[[str, int], AbstractContextManager[Callable[[], object]]]
"""Opens a progress bar (title, steps in all); what it gives is called after each step."""


def silent(title: str, total: int) -> AbstractContextManager[Callable[[], object]]:
    """Show no progress."""
    return nullcontext(lambda: None)


def build(
    config: CorpusConfig, progress: Progress = silent, say: Callable[[str], object] = lambda line: None
) -> CorpusManifest:
    """Build the corpus folder `config.output` and validate it; `say` gets one line per stage.

    Raises InputError for a config that does not fit the data set or a folder that holds something else, CheckFailed
    when the corpus does not validate.
    """
    output, work = config.output, config.output / WORK
    _check_target(output, config.name)
    dataset = Dataset.load(config.dataset)
    tagset = load_tagset(config.tagset)
    teacher = make_teacher(config, tagset)
    stages = _Stages(work / "stages.json", say)
    with folder_lock(output):
        rows = _prompts_stage(config, dataset, tagset, stages, progress)
        candidates = _generate_stage(config, dataset, rows, teacher, stages, progress)
        manifest = _select_stage(config, dataset, tagset, rows, candidates, stages, progress)
        _documents_stage(config, stages)
        _validate_stage(config, manifest, stages)
    return manifest


def make_teacher(config: CorpusConfig, tagset: TagSet) -> Teacher:
    """Give the teacher of a config."""
    teacher = config.teacher
    if isinstance(teacher, ScriptedTeacherConfig):
        return ScriptedTeacher(hindsight=teacher.hindsight, blind_attempts=teacher.blind_attempts)
    return ServedTeacher(ChatServer(teacher), tagset, teacher.hindsight, teacher.revision, teacher.blind_attempts)


def choose_examples(config: CorpusConfig, dataset: Dataset) -> dict[Split, list[Example]]:
    """Give the examples to answer by split, ordered by id: those of the tasks, within `per_user` and the limits.

    Which ones stay is drawn by `seed` and example id, so that a larger limit keeps those of a smaller one.
    """
    tasks = {dataset.task(name).name for name in config.tasks} if config.tasks is not None else None
    chosen: dict[Split, list[Example]] = {}
    for split in dataset.splits:
        if split not in config.splits:
            continue
        rows = [example for example in dataset.examples(split) if tasks is None or example.task in tasks]
        rows.sort(key=lambda example: (derived_seed(config.seed, "choose", example.id), example.id))
        by_user: Counter[tuple[str, str]] = Counter()
        by_task: Counter[str] = Counter()
        kept: list[Example] = []
        for example in rows:
            user = (example.task, example.user_id)
            is_over = config.per_user is not None and by_user[user] >= config.per_user
            most = min(config.limits.get(split, len(rows)), config.task_limits.get(example.task, len(rows)))
            if is_over or by_task[example.task] >= most:
                continue
            by_user[user] += 1
            by_task[example.task] += 1
            kept.append(example)
        chosen[split] = sorted(kept, key=lambda example: example.id)
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
    (folder / MANIFEST).unlink(missing_ok=True)
    files: dict[str, FileEntry] = {}
    for kind, model, rows_by_split in (("traces", Trace, traces), ("rejected", Rejected, rejected)):
        if (folder / kind).exists():
            shutil.rmtree(folder / kind)
        for split, rows in rows_by_split.items():
            name = f"{kind}/{split}.parquet"
            files[name] = write_table(folder / name, frame_from_records(rows, model), model, ["id"])
    manifest = describe(traces, rejected, files, description)
    write_json(folder / MANIFEST, manifest)
    return manifest


def describe(
    traces: Mapping[Split, Sequence[Trace]],
    rejected: Mapping[Split, Sequence[Rejected]],
    files: dict[str, FileEntry],
    description: Description,
) -> CorpusManifest:
    """Give the manifest of a corpus from its rows, files and description."""
    kept = [row for rows in traces.values() for row in rows]
    refused = [row for rows in rejected.values() for row in rows]
    return CorpusManifest(
        name=description.name,
        tagset=description.tagset.name,
        tagset_hash=description.tagset.hash,
        dataset=description.dataset,
        dataset_hash=description.dataset_hash,
        licence=description.licence,
        tasks=description.tasks,
        teachers=dict(sorted({row.teacher: row.teacher_revision for row in (*kept, *refused)}.items())),
        files=files,
        content_hash=content_hash(description.tasks, files, [description.tagset.hash]),
        candidates=len(kept) + len(refused),
        kept=len(kept),
        rejected=select.count_reasons(refused),
        acceptance=select.acceptance(kept, refused),
        claims=sum(row.claims for row in kept),
        grounded_claims=sum(row.grounded_claims for row in kept),
        parameters=dict(description.parameters),
    )


class _Stages:
    """Which stage last ran on which inputs; kept in a JSON file, written after each stage."""

    def __init__(self, path: Path, say: Callable[[str], object]) -> None:
        self._path = path
        self._say = say
        try:
            self._done: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            self._done = {}
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

    def skip(self, stage: str, line: str) -> None:
        """Say that the stage had nothing to do."""
        self._say(f"{stage:<9} {line} (unchanged)")


def _prompts_stage(
    config: CorpusConfig, dataset: Dataset, tagset: TagSet, stages: _Stages, progress: Progress
) -> list[Prompt]:
    path = config.output / WORK / "prompts.parquet"
    settings = config.model_dump(
        mode="json",
        include={"tasks", "splits", "limits", "per_user", "retriever", "k", "empty_profile_share", "prompt", "seed"},
    )
    from tagpr_data import retrieve

    inputs = _hash(settings, dataset.manifest.content_hash, tagset.hash, _code(generate, prompts, retrieve))
    if stages.is_done("prompts", inputs) and path.is_file():
        rows = read_records(path, Prompt)
        stages.skip("prompts", f"{len(rows):,} prompts")
        return rows
    examples = choose_examples(config, dataset)
    total = sum(map(len, examples.values()))
    if not total:
        wanted = ", ".join(config.tasks or ("any task",))
        raise InputError(f"data set {config.dataset} has no example of {wanted} in {', '.join(config.splits)}")
    retrieval = Retrieval(config.retriever, config.k, config.empty_profile_share, config.seed)
    with progress("prompts", total) as advance:
        rows, skipped = generate.make_prompts(dataset, examples, retrieval, config.prompt, tagset, advance)
    write_table(path, frame_from_records(rows, Prompt), Prompt, ["prompt_hash"])
    rows.sort(key=lambda row: row.prompt_hash)
    left_out = ", ".join(f"{count} {reason}" for reason, count in skipped.items() if count) or "none"
    by_split = Counter(row.split for row in rows)
    counts = ", ".join(f"{split} {by_split[split]:,}" for split in SPLITS if by_split[split])
    stages.finish("prompts", inputs, f"{len(rows):,} prompts: {counts}; left out: {left_out} → {path}")
    return rows


def _generate_stage(
    config: CorpusConfig,
    dataset: Dataset,
    rows: Sequence[Prompt],
    teacher: Teacher,
    stages: _Stages,
    progress: Progress,
) -> list[Candidate]:
    """The journal knows what is there already, so this stage is skipped row by row."""
    folder = config.output / WORK
    stages.is_done("generate", "")
    with progress("generate", len(rows) * config.attempts) as advance:
        candidates = generate.generate(
            folder, rows, teacher, dataset, config.prompt, config.sampling, config.seed, config.attempts,
            concurrency=config.teacher.concurrency if isinstance(config.teacher, ServedTeacherConfig) else 1,
            on_candidate=advance,
        )  # fmt: skip
    line = f"{len(candidates):,} candidates by {teacher.name} → {folder / 'candidates.jsonl'}"
    stages.finish("generate", _hash([candidate.id for candidate in candidates]), line)
    return candidates


def _select_stage(
    config: CorpusConfig,
    dataset: Dataset,
    tagset: TagSet,
    rows: Sequence[Prompt],
    candidates: Sequence[Candidate],
    stages: _Stages,
    progress: Progress,
) -> CorpusManifest:
    from tagpr_data.lamp import metrics

    inputs = _hash(
        config.name,
        config.selection.model_dump(mode="json"),
        [sha256_text(candidate.model_dump_json()) for candidate in candidates],
        dataset.manifest.content_hash,
        tagset.hash,
        _code(select, tags, metrics, tables),
        _parameters(config, dataset),
    )
    path = config.output / MANIFEST
    if stages.is_done("select", inputs) and path.is_file():
        manifest = read_json(path, CorpusManifest)
        if all(_is_unchanged(config.output / name, entry) for name, entry in manifest.files.items()):
            stages.skip("select", f"{manifest.kept:,} traces")
            return manifest
    examples = generate.examples_of(dataset, rows)
    profiles = Profiles(dataset, list(examples.values()))
    split_of = {row.prompt_hash: row.split for row in rows}
    with progress("select", len(candidates)) as advance:

        def judged(candidate: Candidate) -> Judged:
            example = examples[candidate.example_id]
            items = profiles.chosen(example, candidate.item_ids)
            advance()
            task = dataset.task(candidate.task)
            return select.judge(candidate, task, items, example.date, config.selection, tagset)

        kept, refused = select.select(candidates, judged, config.selection)
    splits: list[Split] = [split for split in SPLITS if split in split_of.values()]
    names = {row.task for row in rows}
    manifest = write_corpus(
        config.output,
        {split: [row for row in kept if split_of[row.prompt_hash] == split] for split in splits},
        {split: [row for row in refused if split_of[row.prompt_hash] == split] for split in splits},
        Description(
            name=config.name,
            tagset=tagset,
            dataset=dataset.manifest.name,
            dataset_hash=dataset.manifest.content_hash,
            licence=dataset.manifest.licence,
            tasks=tuple(task for task in dataset.manifest.tasks if task.name in names),
            parameters=_parameters(config, dataset),
        ),
    )
    grounded = f"{manifest.grounded_claims:,} of {manifest.claims:,} claims grounded"
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in manifest.rejected.items()) or "none"
    stages.finish("select", inputs, f"{manifest.kept:,} traces, {grounded}; rejected: {reasons} → {config.output}")
    return manifest


def _documents_stage(config: CorpusConfig, stages: _Stages) -> None:
    from tagpr_data import card, corpus, croissant, stats

    facts = config.output / card.FACTS
    paths = [config.output / name for name in (card.README, card.CROISSANT)]

    def inputs() -> str:
        """What the documents are made of, and the documents: an edited one is written anew."""
        present = [path for path in (config.output / MANIFEST, facts, *paths) if path.is_file()]
        queries = sorted(stats.QUERIES.glob("*.sql"))
        return _hash([sha256_file(path) for path in (*present, *queries)], _code(card, corpus, croissant, stats))

    if stages.is_done("documents", inputs()):
        stages.skip("documents", f"{card.README}, {card.CROISSANT}")
        return
    card.write_documents(corpus.open_corpus(config.output, verify=False))
    stages.finish("documents", inputs(), f"{card.README}, {card.CROISSANT} → {config.output}")


def _validate_stage(config: CorpusConfig, manifest: CorpusManifest, stages: _Stages) -> None:
    report = config.output / "data_docs"
    checks = [sha256_file(path) for path in sorted(validate.CHECKS.glob("*.sql"))]
    inputs = _hash(sha256_file(config.output / MANIFEST), _code(validate, tags), checks, config.html_report)
    if stages.is_done("validate", inputs) and (report / "report.json").is_file():
        stages.skip("validate", "passed before")
        return
    outcome = validate.validate(config.output, config.tagset, report, config.html_report, config.dataset)
    validate.raise_for(outcome, config.output)
    page = report / ("index.html" if config.html_report else "report.json")
    line = f"{len(outcome.results)} checks passed on {manifest.kept:,} traces → {page}"
    stages.finish("validate", inputs, line)


def _parameters(config: CorpusConfig, dataset: Dataset) -> dict[str, Any]:
    """Give the settings for the manifest: no paths, and what `checks/` look for at the top."""
    split_of: dict[str, set[str]] = {}
    for split in dataset.splits:
        for example in dataset.examples(split):
            split_of.setdefault(example.user_id, set()).add(split)
    # how the server is reached makes no difference to what is built, and is nobody's business
    reached = set(ServerOptions.model_fields) - {"model"}
    where = {"name": True, "dataset": True, "output": True, "tagset": True, "html_report": True, "teacher": reached}
    settings = config.model_dump(mode="json", exclude=where)
    return {
        **settings,
        "min_score": config.selection.min_score,
        "best_of": config.selection.best_of,
        "disjoint_users": all(len(splits) == 1 for splits in split_of.values()),
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
    """Give the hashes of modules' files: changed code is a changed input."""
    return [sha256_file(Path(module.__file__ or "")) for module in modules]


def _hash(*values: Any) -> str:
    return sha256_text(canonical_json(values))
