"""Is a corpus folder what its manifest says? Table-level checks in SQL, row-level checks by great-expectations.

Each file in `checks/` is one question: its first line asks it, its query gives the offending rows (`row`,
`problem`). DuckDB runs them over the Parquet files. Rows are re-parsed and judged in chunks, so that memory does not
grow with the corpus. A check that cannot run is reported as crashed, never as failed or passed.
"""

import json
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tagpr_data.dataset import Dataset
from tagpr_data.errors import CheckFailed, InputError, TagprError
from tagpr_data.generate import Profiles
from tagpr_data.prompts import prompt_hash
from tagpr_data.records import CorpusManifest, Message, ProfileItem, Rejected, Step, Trace
from tagpr_data.select import REASONS
from tagpr_data.tables import arrow_schema, content_hash, read_json, sha256_file, write_text
from tagpr_data.tags import TagSet, ground, load_tagset, parse

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

CHECKS = Path(__file__).parent / "checks"
KINDS: dict[str, type[Trace] | type[Rejected]] = {"traces": Trace, "rejected": Rejected}
"""Folders of a corpus and the records in them."""

ROW_CHECKS = {
    "id_form": "Is every id a SHA-256 in hex?",
    "finished": "Did every kept completion end by itself?",
    "grammar": "Is every trace valid in the tag grammar, its citations within the prompt's items?",
    "steps_match": "Are the stored steps those of the text?",
    "answer_match": "Is the stored answer that of the text?",
    "prompt_hash": "Is every prompt hash that of the messages?",
    "roles": "Does every prompt end with the user's turn, with no turn of the assistant before?",
    "score_range": "Is every score between 0 and 1?",
    "grounding": "Are claims and grounded claims those one finds by looking the items up? (needs the data set)",
}
"""What great-expectations asks of every row of traces/, by name of the check."""

LookUp = Callable[[str, Sequence[str]], tuple[tuple[ProfileItem, ...], str | None] | None]
"""Example id, item ids → the items and the query's date; None where the data set lacks one of them."""

_SHOWN = 20
_CHUNK_ROWS = 100_000
"""Rows that great-expectations sees at once: only their facts, some hundred bytes each."""
_READ_ROWS = 5_000
"""Rows read at once: whole texts and prompts, some ten kilobytes each as Python objects."""


@dataclass(frozen=True)
class CheckResult:
    """What one check found."""

    name: str
    question: str
    status: Literal["passed", "failed", "crashed", "not-run"]
    offending: int = 0
    rows: tuple[str, ...] = ()
    """The first offending rows as `row: problem`; at most 20."""
    error: str = ""
    """Why it crashed or was not run."""


@dataclass(frozen=True)
class ValidationReport:
    """What all checks found."""

    corpus: str
    content_hash: str
    results: tuple[CheckResult, ...]

    @property
    def failed(self) -> tuple[CheckResult, ...]:
        """Checks that found something."""
        return tuple(result for result in self.results if result.status == "failed")

    @property
    def crashed(self) -> tuple[CheckResult, ...]:
        """Checks that could not run, by a fault of the check and not of the corpus."""
        return tuple(result for result in self.results if result.status == "crashed")

    def as_json(self) -> str:
        """Give the report as JSON, checks in order."""
        results = [asdict(result) for result in self.results]
        value = {"corpus": self.corpus, "content_hash": self.content_hash, "checks": results}
        return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def validate(
    folder: Path,
    tagset_path: Path | None = None,
    report: Path | None = None,
    html: bool = True,
    dataset_folder: Path | None = None,
) -> ValidationReport:
    """Run all checks on a corpus folder and write `report.json` and, with `html`, data docs into `report`.

    With the data set that the corpus was made from, claims about items are looked up again; without it `grounding`
    is not run. Raises InputError when the folder holds no readable corpus, its tag set is not at hand, or the data
    set is another one.
    """
    manifest = read_json(folder / "manifest.json", CorpusManifest)
    tagset = load_tagset(tagset_path)
    if tagset.hash != manifest.tagset_hash:
        raise InputError(
            f"{folder} is written in the tag set {manifest.tagset} ({manifest.tagset_hash[:12]}…), not in "
            f"{tagset.name} ({tagset.hash[:12]}…); give its file with --tagset"
        )
    dataset = Dataset.load(dataset_folder) if dataset_folder is not None else None
    if dataset is not None and dataset.manifest.content_hash != manifest.dataset_hash:
        raise InputError(
            f"{folder} was made from the data set {manifest.dataset} ({manifest.dataset_hash[:12]}…), not from "
            f"{dataset_folder} ({dataset.manifest.content_hash[:12]}…)"
        )
    results = check_tables(folder, manifest)
    readable = results[0].status == "passed"
    results += check_rows(folder, tagset, dataset) if readable else _not_run(ROW_CHECKS, "columns failed")
    results.append(check_documents(folder) if readable else CheckResult(*_DOCUMENTS, "not-run", error="columns failed"))
    outcome = ValidationReport(corpus=manifest.name, content_hash=manifest.content_hash, results=tuple(results))
    if report is not None:
        write_text(report / "report.json", outcome.as_json())
        if html:
            _write_data_docs(outcome, report)
    return outcome


def raise_for(report: ValidationReport, folder: Path) -> None:
    """Raise CheckFailed that names the failed checks and their first rows, or InputError when only a check crashed."""
    lines = [
        f"{result.name} ({result.offending} rows): {result.question}\n    " + "\n    ".join(result.rows[:5])
        for result in report.failed
    ]
    crashed = [f"{result.name} could not run: {result.error}" for result in report.crashed]
    if lines:
        raise CheckFailed("\n  ".join([f"{folder} is not valid; {len(lines)} checks failed", *lines, *crashed]))
    if crashed:
        raise InputError("\n  ".join([f"{folder} was not fully checked", *crashed]))


def check_tables(folder: Path, manifest: CorpusManifest) -> list[CheckResult]:
    """Run `columns`, then every query in `checks/` (not run when columns are wrong: they need them)."""
    questions = {path.stem: path.read_text(encoding="utf-8") for path in sorted(CHECKS.glob("*.sql"))}
    columns = _check_columns(folder)
    asked = {name: text.partition("\n")[0].removeprefix("-- ") for name, text in questions.items()}
    if columns.status != "passed":
        return [columns, *_not_run(asked, "columns failed")]
    connection = _connect(folder, manifest)
    try:
        return [columns, *(_run_query(connection, name, asked[name], text) for name, text in questions.items())]
    finally:
        connection.close()


def check_rows(folder: Path, tagset: TagSet, dataset: Dataset | None = None) -> list[CheckResult]:
    """Run `ROW_CHECKS` by great-expectations over all traces, a chunk at a time; counts are summed over chunks."""
    run = _row_validation()
    look_up = _item_lookup(dataset) if dataset is not None else None
    found = {name: _Tally() for name in ROW_CHECKS}
    for path in _parquet_files(folder, "traces"):
        for frame in _chunks(path, tagset, look_up):
            run(frame, found)
    results = [tally.result(name, ROW_CHECKS[name]) for name, tally in found.items()]
    if look_up is not None:
        return results
    without = _not_run({"grounding": ROW_CHECKS["grounding"]}, "no data set given")
    return [*(result for result in results if result.name != "grounding"), *without]


def row_facts(row: dict[str, Any], tagset: TagSet, look_up: LookUp | None = None) -> dict[str, Any]:
    """Give what the row checks look at for one row of traces/, re-computed from its text, messages and items."""
    parsed = parse(row["text"], tagset, k=len(row["item_ids"]))
    messages = [Message(role=turn["role"], content=turn["content"]) for turn in row["messages"]]
    steps = tuple(Step(tag=step["tag"], text=step["text"], cites=tuple(step["cites"])) for step in row["steps"])
    return {
        "id": row["id"],
        "finish_reason": row["finish_reason"],
        "score": row["score"],
        "grammar": "valid" if parsed.is_valid else ", ".join(sorted({v.code for v in parsed.violations})),
        "steps": "match" if parsed.steps == steps else "differ",
        "answer": "match" if parsed.answer == row["answer"] else "differs",
        "prompt_hash": "match" if prompt_hash(messages) == row["prompt_hash"] else "differs",
        "roles": " ".join(message.role for message in messages),
        "grounding": "match" if look_up is None or _is_grounded_as_stated(row, parsed.steps, look_up) else "differs",
    }


def _is_grounded_as_stated(row: dict[str, Any], steps: Sequence[Step], look_up: LookUp) -> bool:
    found = look_up(row["example_id"], row["item_ids"])
    if found is None:
        return False
    claims = ground(steps, *found)
    return (len(claims), sum(claim.holds for claim in claims)) == (row["claims"], row["grounded_claims"])


def _item_lookup(dataset: Dataset) -> LookUp:
    examples = {example.id: example for split in dataset.splits for example in dataset.examples(split)}
    profiles = Profiles(dataset, list(examples.values()))

    def look_up(example_id: str, item_ids: Sequence[str]) -> tuple[tuple[ProfileItem, ...], str | None] | None:
        example = examples.get(example_id)
        if example is None or not set(item_ids) <= {item.item_id for item in profiles.items(example)}:
            return None
        return profiles.chosen(example, item_ids), example.date

    return look_up


_DOCUMENTS = ("documents", "Do the card and croissant.json, where they are, fit the data?")


def check_documents(folder: Path) -> CheckResult:
    """Compare README.md and croissant.json with what the data gives; a document that is not there is no fault."""
    from tagpr_data import card
    from tagpr_data.corpus import open_corpus

    if not any((folder / name).is_file() for name in (card.README, card.CROISSANT)):
        return CheckResult(*_DOCUMENTS, "passed")
    try:
        problems = card.stale(open_corpus(folder, verify=False))
    except TagprError as error:
        problems = [str(error)]
    return CheckResult(*_DOCUMENTS, "failed" if problems else "passed", len(problems), tuple(problems))


def _check_columns(folder: Path) -> CheckResult:
    import pyarrow as pa
    import pyarrow.parquet as pq

    problems: list[str] = []
    for kind, model in KINDS.items():
        for path in _parquet_files(folder, kind):
            name = path.relative_to(folder).as_posix()
            try:
                found = pq.read_schema(path)
            except (pa.ArrowInvalid, OSError) as error:
                problems.append(f"{name}: is not a whole Parquet file: {str(error).splitlines()[0]}")
                continue
            wanted = arrow_schema(model)
            missing = sorted(set(wanted.names) - set(found.names))
            unknown = sorted(set(found.names) - set(wanted.names))
            if missing or unknown:
                problems.append(f"{name}: missing columns {missing}, unknown columns {unknown}")
                continue
            for field in wanted:
                if not _same_type(found.field(field.name).type, field.type):
                    problems.append(f"{name}: {field.name} is {found.field(field.name).type}, not {field.type}")
    status = "failed" if problems else "passed"
    question = "Do all files have the columns and types of their record?"
    return CheckResult("columns", question, status, len(problems), tuple(problems[:_SHOWN]))


def _same_type(found: "pa.DataType", wanted: "pa.DataType") -> bool:
    """Whether types are equal but for nullability, names of list elements and large strings or lists."""

    def plain(type_: Any) -> str:
        text = str(type_).replace("large_", "").replace(" not null", "")
        return re.sub(r"list<\w+: ", "list<", text)

    return plain(found) == plain(wanted)


def _connect(folder: Path, manifest: CorpusManifest) -> "duckdb.DuckDBPyConnection":
    """Open DuckDB with the views and tables that the queries in `checks/` may name."""
    import duckdb
    import pyarrow as pa
    import pyarrow.parquet as pq

    connection = duckdb.connect()
    temporary = _quoted(str(Path(tempfile.gettempdir()) / f"tagpr-duckdb-{os.getpid()}"))  # only made when needed
    connection.execute(
        f"SET memory_limit = '800MB'; SET preserve_insertion_order = false; SET temp_directory = {temporary}"
    )
    for kind, model in KINDS.items():
        parts = [
            f"SELECT {_quoted(path.stem)} AS split, * FROM read_parquet({_quoted(str(path))})"
            for path in _parquet_files(folder, kind)
        ]
        if not parts:
            connection.register(f"empty_{kind}", arrow_schema(model).empty_table())
            parts = [f"SELECT 'none' AS split, * FROM empty_{kind}"]
        connection.execute(f"CREATE VIEW {kind} AS {' UNION ALL BY NAME '.join(parts)}")
    shared = "id, split, example_id, task, user_id, prompt_hash, teacher, teacher_revision, attempt, item_ids, k, gold"
    connection.execute(
        f"CREATE VIEW attempts AS SELECT {shared}, true AS is_kept FROM traces "
        f"UNION ALL SELECT {shared}, false AS is_kept FROM rejected"
    )

    def table(name: str, columns: Mapping[str, tuple[Any, Iterable[Any]]]) -> None:
        arrays = {column: pa.array(list(values), type=type_) for column, (type_, values) in columns.items()}
        connection.register(name, pa.table(arrays))

    text, integer, real = pa.string(), pa.int64(), pa.float64()
    parameters = manifest.parameters
    best_of = parameters.get("best_of")
    thresholds = parameters.get("min_score")
    thresholds = thresholds if isinstance(thresholds, dict) else {}
    table(
        "manifest",
        {
            "content_hash": (text, [manifest.content_hash]),
            "found_content_hash": (text, [content_hash(manifest.tasks, manifest.files, [manifest.tagset_hash])]),
            "candidates": (integer, [manifest.candidates]),
            "kept": (integer, [manifest.kept]),
            "claims": (integer, [manifest.claims]),
            "grounded_claims": (integer, [manifest.grounded_claims]),
            "disjoint_users": (pa.bool_(), [parameters.get("disjoint_users") is True]),
            "best_of": (integer, [best_of if isinstance(best_of, int) else None]),
        },
    )
    files = manifest.files
    table(
        "manifest_files",
        {
            "path": (text, list(files)),
            "rows": (integer, [entry.rows for entry in files.values()]),
            "sha256": (text, [entry.sha256 for entry in files.values()]),
        },
    )
    has_pairs = (folder / "pairs/manifest.json").is_file()  # then they are a folder of their own
    found = [path for kind in (*KINDS, *(() if has_pairs else ("pairs",))) for path in _parquet_files(folder, kind)]
    table(
        "found_files",
        {
            "path": (text, [path.relative_to(folder).as_posix() for path in found]),
            "rows": (integer, [pq.read_metadata(path).num_rows for path in found]),
            "sha256": (text, [sha256_file(path) for path in found]),
        },
    )
    rejected, accepted, tasks = manifest.rejected, manifest.acceptance, manifest.tasks
    table("manifest_rejected", {"reason": (text, rejected.keys()), "rows": (integer, rejected.values())})
    table("known_reasons", {"reason": (text, REASONS.keys())})
    table("manifest_acceptance", {"task": (text, accepted.keys()), "share": (real, accepted.values())})
    table("manifest_thresholds", {"kind": (text, thresholds.keys()), "least": (real, thresholds.values())})
    teachers = manifest.teachers
    table("manifest_teachers", {"name": (text, teachers.keys()), "revision": (text, teachers.values())})
    table(
        "manifest_tasks",
        {
            "name": (text, [task.name for task in tasks]),
            "kind": (text, [task.kind for task in tasks]),
            "labels": (pa.list_(text), [task.labels for task in tasks]),
        },
    )
    return connection


def _run_query(connection: "duckdb.DuckDBPyConnection", name: str, question: str, query: str) -> CheckResult:
    import duckdb

    try:
        rows = connection.execute(
            f"SELECT row, problem, count(*) OVER () FROM ({query}) ORDER BY row, problem LIMIT {_SHOWN}"
        ).fetchall()
    except duckdb.Error as error:
        return CheckResult(name, question, "crashed", error=f"{type(error).__name__}: {error}")
    if not rows:
        return CheckResult(name, question, "passed")
    return CheckResult(name, question, "failed", rows[0][2], tuple(f"{row}: {problem}" for row, problem, _ in rows))


def _not_run(questions: dict[str, str], why: str) -> list[CheckResult]:
    return [CheckResult(name, question, "not-run", error=why) for name, question in questions.items()]


def _parquet_files(folder: Path, kind: str) -> list[Path]:
    return sorted((folder / kind).glob("*.parquet"))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _chunks(path: Path, tagset: TagSet, look_up: LookUp | None) -> Iterator[Any]:
    """Give the facts of a file's rows as pandas frames of at most 100,000 rows."""
    import pandas as pd
    import pyarrow.parquet as pq

    columns = [
        "id", "example_id", "finish_reason", "score", "text", "item_ids", "messages", "steps", "answer", "prompt_hash",
        "claims", "grounded_claims",
    ]  # fmt: skip
    facts: list[dict[str, Any]] = []
    for batch in pq.ParquetFile(path).iter_batches(_READ_ROWS, columns=columns):
        facts += [row_facts(row, tagset, look_up) for row in batch.to_pylist()]
        if len(facts) >= _CHUNK_ROWS:
            yield pd.DataFrame(facts)
            facts = []
    if facts:
        yield pd.DataFrame(facts)


@dataclass
class _Tally:
    """Sum of one row check over chunks."""

    offending: int = 0
    rows: tuple[str, ...] = ()
    error: str = ""

    def result(self, name: str, question: str) -> CheckResult:
        status = "crashed" if self.error else "failed" if self.offending else "passed"
        return CheckResult(name, question, status, self.offending, self.rows, self.error)


def _great_expectations() -> Any:
    """Import great-expectations with its telemetry off; takes about four seconds."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its own imports of deprecated modules
        import great_expectations as gx

    return gx


def _context() -> Any:
    context = _great_expectations().get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    return context


@cache
def _row_validation() -> Any:
    """Give a function (frame, tallies) that validates one chunk and adds what it finds to the tallies. Made once: a
    context of great-expectations takes half a second."""
    gx = _great_expectations()
    expect = gx.expectations
    suite = gx.ExpectationSuite(
        name="rows",
        expectations=[
            expect.ExpectColumnValuesToMatchRegex(column="id", regex="^[0-9a-f]{64}$", **_named("id_form")),
            _in_set(expect, "finish_reason", ("stop",), "finished"),
            _in_set(expect, "grammar", ("valid",), "grammar"),
            _in_set(expect, "steps", ("match",), "steps_match"),
            _in_set(expect, "answer", ("match",), "answer_match"),
            _in_set(expect, "prompt_hash", ("match",), "prompt_hash"),
            _in_set(expect, "grounding", ("match",), "grounding"),
            _in_set(expect, "roles", ("user", "system user"), "roles"),
            expect.ExpectColumnValuesToBeBetween(column="score", min_value=0, max_value=1, **_named("score_range")),
        ],
    )
    context = _context()
    batches = context.data_sources.add_pandas("corpus").add_dataframe_asset("traces")
    definition = context.validation_definitions.add(
        gx.ValidationDefinition(
            name="rows", data=batches.add_batch_definition_whole_dataframe("chunk"), suite=context.suites.add(suite)
        )
    )
    return partial(_validate_chunk, definition)


def _named(name: str) -> dict[str, Any]:
    return {"description": ROW_CHECKS[name], "meta": {"check": name}}


def _in_set(expect: Any, column: str, values: tuple[str, ...], name: str) -> Any:
    return expect.ExpectColumnValuesToBeInSet(column=column, value_set=list(values), **_named(name))


def _validate_chunk(definition: Any, frame: Any, found: dict[str, _Tally]) -> None:
    outcome = definition.run(
        batch_parameters={"dataframe": frame},
        result_format={"result_format": "COMPLETE", "unexpected_index_column_names": ["id"]},
    )
    for result in outcome.results:
        tally = found[result.expectation_config.meta["check"]]
        error = _exception(result.exception_info)
        if error:
            tally.error = tally.error or error
        elif not result.success:
            column = result.expectation_config.kwargs["column"]
            rows = result.result.get("unexpected_index_list") or []
            tally.offending += result.result["unexpected_count"]
            shown = tuple(f"{row.get('id')}: {column} is {row.get(column)!r}" for row in rows[:_SHOWN])
            tally.rows = (*tally.rows, *shown)[:_SHOWN]


def _exception(info: Any) -> str:
    """Give the message of an exception inside an expectation, or "": it comes flat or one level down."""
    entries = [info] if "raised_exception" in info else list(info.values())
    return next((str(entry["exception_message"]) for entry in entries if entry.get("raised_exception")), "")


def _write_data_docs(report: ValidationReport, folder: Path) -> None:
    """Write the outcome of all checks as HTML: one expectation per check on its number of offending rows."""
    import pandas as pd

    gx = _great_expectations()
    context = _context()
    site = {
        "class_name": "SiteBuilder",
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        "store_backend": {
            "class_name": "TupleFilesystemStoreBackend",
            "base_directory": str(folder.resolve()),
        },
    }
    context.add_data_docs_site(site_name="corpus", site_config=site)
    ran = [result for result in report.results if result.status in ("passed", "failed")]
    suite = gx.ExpectationSuite(
        name=report.corpus,
        expectations=[
            gx.expectations.ExpectColumnValuesToBeBetween(
                column=result.name, min_value=0, max_value=0, description=_described(result)
            )
            for result in ran
        ],
    )
    batch = context.data_sources.add_pandas("corpus").add_dataframe_asset("checks")
    definition = context.validation_definitions.add(
        gx.ValidationDefinition(
            name=report.corpus,
            data=batch.add_batch_definition_whole_dataframe("offending rows"),
            suite=context.suites.add(suite),
        )
    )
    checkpoint = context.checkpoints.add(
        gx.Checkpoint(
            name=report.corpus,
            validation_definitions=[definition],
            actions=[gx.checkpoint.UpdateDataDocsAction(name="docs", site_names=["corpus"])],
            result_format="SUMMARY",
        )
    )
    checkpoint.run(batch_parameters={"dataframe": pd.DataFrame([{result.name: result.offending for result in ran}])})


def _described(result: CheckResult) -> str:
    """Give the question and what was found as HTML: the renderer puts descriptions into the page as they are."""
    if result.status == "passed":
        return escape(result.question)
    return escape(f"{result.question} No, {result.offending} rows: {'; '.join(result.rows[:5])}")
