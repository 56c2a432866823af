"""Is a corpus folder what its manifest says? Table-level checks in SQL, row-level checks by great-expectations.

Each file in `checks/` is one question: its first line asks it, its query gives the offending rows (`row`,
`problem`). DuckDB runs them over the Parquet files. Rows are re-parsed and judged in chunks, so that memory does not
grow with the corpus. A check that cannot run is reported as crashed, never as failed or passed. The same corpus gives
the same report, byte for byte, as JSON and as a page (`validation_page.py`); how long it took is not in it.
"""

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

from tagpr_data.dataset import Dataset
from tagpr_data.engine import Engine
from tagpr_data.errors import CheckFailed, InputError, TagprError
from tagpr_data.records import CorpusManifest, PairsManifest, PreferencePair, ProfileItem, Record, Rejected, Trace
from tagpr_data.row_checks import ROW_CHECKS, SHOWN_ROWS, CheckResult, check_rows
from tagpr_data.select import REASONS
from tagpr_data.tables import arrow_schema, content_hash, read_json, sha256_file, write_text
from tagpr_data.tags import load_tagset
from tagpr_data.validation_page import page

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

CHECKS = Path(__file__).parent / "checks"
TABLES: dict[str, tuple[type[Record], str]] = {
    "traces": (Trace, "traces/*.parquet"),
    "rejected": (Rejected, "rejected/*.parquet"),
    "pairs": (PreferencePair, "pairs/pairs/*.parquet"),
    "profiles": (ProfileItem, "pairs/profiles.parquet"),
}
"""Tables of a corpus: the record each row is, and where their files lie. The last two only where it has pairs."""
MANIFEST = "manifest.json"
PAIRS_MANIFEST = "pairs/manifest.json"
COLUMNS = ("columns", "Do all files have the columns and types of their record, and a value wherever it demands one?")
"""Name and question of the check without which no other runs."""
DOCUMENTS = ("documents", "Do the card and croissant.json, where they are, fit the data?")
"""Name and question of the check of what is written for people and crawlers."""


@dataclass(frozen=True)
class ValidationReport:
    """What all checks found."""

    corpus: str
    content_hash: str
    rows: Mapping[str, int]
    """Rows of each table that were looked at; none where the columns are wrong."""
    results: tuple[CheckResult, ...]
    seconds: Mapping[str, float] = field(default_factory=dict[str, float], compare=False)
    """How long tables, rows and documents took; in no file, as the same corpus gives the same report."""

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
        value = {
            "corpus": self.corpus, "content_hash": self.content_hash, "rows": dict(self.rows), "checks": results,
        }  # fmt: skip
        return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def validate(
    folder: Path,
    tagset_path: Path | None = None,
    report: Path | None = None,
    dataset_folder: Path | None = None,
    engine: Engine | None = None,
) -> ValidationReport:
    """Run all checks on a corpus folder and write `index.html` and `report.json` into the folder `report`.

    With the data set that the corpus was made from, claims about items are looked up again; without it `grounding`
    is not run. Raises InputError when the folder holds no readable corpus, its tag set is not at hand, or the data
    set is another one.
    """
    manifest = read_json(folder / MANIFEST, CorpusManifest)
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
    begin = perf_counter()
    results = check_tables(folder, manifest)
    readable, tables_done = results[0].status == "passed", perf_counter()
    traces = _parquet_files(folder, "traces")
    results += check_rows(traces, tagset, dataset, engine) if readable else _not_run(ROW_CHECKS, "columns failed")
    rows_done = perf_counter()
    results.append(check_documents(folder) if readable else CheckResult(*DOCUMENTS, "not-run", error="columns failed"))
    seconds = {
        "tables": tables_done - begin, "rows": rows_done - tables_done, "documents": perf_counter() - rows_done,
    }  # fmt: skip
    counts = _row_counts(folder) if readable else {}
    outcome = ValidationReport(manifest.name, manifest.content_hash, counts, tuple(results), seconds)
    if report is not None:
        write_text(report / "index.html", page(outcome, _queries()))
        write_text(report / "report.json", outcome.as_json())
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
    questions = _queries()
    columns = _check_columns(folder)
    asked = {name: text.partition("\n")[0].removeprefix("-- ") for name, text in questions.items()}
    if columns.status != "passed":
        return [columns, *_not_run(asked, "columns failed")]
    connection = _connect(folder, manifest)
    try:
        return [columns, *(_run_query(connection, name, asked[name], text) for name, text in questions.items())]
    finally:
        connection.close()


def check_documents(folder: Path) -> CheckResult:
    """Compare README.md and croissant.json with what the data gives; a document that is not there is no fault."""
    from tagpr_data import card
    from tagpr_data.corpus import open_corpus

    if not any((folder / name).is_file() for name in (card.README, card.CROISSANT)):
        return CheckResult(*DOCUMENTS, "passed")
    try:
        problems = card.stale(open_corpus(folder, verify=False))
    except TagprError as error:
        problems = [str(error).replace(str(folder), "the corpus")]  # the report names no folder of this machine
    return CheckResult(*DOCUMENTS, "failed" if problems else "passed", len(problems), tuple(problems))


def _check_columns(folder: Path) -> CheckResult:
    problems: list[str] = []
    for kind, (model, _) in TABLES.items():
        for path in _parquet_files(folder, kind):
            name = path.relative_to(folder).as_posix()
            problems += [f"{name}: {problem}" for problem in _column_problems(path, arrow_schema(model))]
    status = "failed" if problems else "passed"
    return CheckResult(*COLUMNS, status, len(problems), tuple(problems[:SHOWN_ROWS]))


def _column_problems(path: Path, wanted: "pa.Schema") -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        return [f"is not a whole Parquet file: {str(error).splitlines()[0]}"]
    found = file.schema_arrow
    missing = sorted(set(wanted.names) - set(found.names))
    unknown = sorted(set(found.names) - set(wanted.names))
    if missing or unknown:
        return [f"missing columns {missing}, unknown columns {unknown}"]
    problems = [
        f"{field.name} is {found.field(field.name).type}, not {field.type}"
        for field in wanted
        if not _same_type(found.field(field.name).type, field.type)
    ]
    if problems:
        return problems
    try:
        for field in wanted:
            if not field.nullable and (row := _first_null(file, field.name)) is not None:
                problems.append(f"{field.name} is missing in row {row}; it must have a value")
    except (pa.ArrowInvalid, OSError) as error:
        problems.append(f"cannot be read: {str(error).splitlines()[0]}")
    return problems


def _first_null(file: Any, column: str) -> int | None:
    """Give the first row without a value in a column; the file's own statistics spare most of the reading."""
    import pyarrow.compute as pc

    metadata = file.metadata
    leaves = [metadata.schema.column(place).path.partition(".")[0] for place in range(metadata.num_columns)]
    leaf = leaves.index(column)  # of a list or struct its first: where that has no null, the whole has none
    first = 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        known = metadata.row_group(group).column(leaf).statistics
        if known is None or not known.has_null_count or known.null_count:
            for batch in file.iter_batches(row_groups=[group], columns=[column]):
                if batch.column(0).null_count:
                    return first + pc.index(batch.column(0).is_null(), True).as_py()
                first += batch.num_rows
        else:
            first += rows
    return None


def _same_type(found: "pa.DataType", wanted: "pa.DataType") -> bool:
    """Whether types are equal but for nullability, large strings or lists, and the order of a struct's fields."""
    import pyarrow as pa

    def plain(type_: Any) -> Any:
        if pa.types.is_struct(type_):
            return {field.name: plain(field.type) for field in type_}
        if pa.types.is_list(type_) or pa.types.is_large_list(type_):
            return [plain(type_.value_type)]
        return "string" if pa.types.is_large_string(type_) else str(type_)

    return plain(found) == plain(wanted)


def _queries() -> dict[str, str]:
    """Give the text of every query in `checks/` by its name."""
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(CHECKS.glob("*.sql"))}


def _row_counts(folder: Path) -> dict[str, int]:
    import pyarrow.parquet as pq

    counts = {kind: sum(pq.read_metadata(path).num_rows for path in _parquet_files(folder, kind)) for kind in TABLES}
    return {kind: rows for kind, rows in counts.items() if _parquet_files(folder, kind)}


def _connect(folder: Path, manifest: CorpusManifest) -> "duckdb.DuckDBPyConnection":
    """Open DuckDB with the views and tables that the queries in `checks/` may name: the rows as `traces`, `rejected`,
    `attempts`, `pairs`, `profiles`; what the manifests say as `manifest…`; `found_files` and `known_reasons`."""
    import duckdb
    import pyarrow as pa

    connection = duckdb.connect()
    temporary = _quoted(str(Path(tempfile.gettempdir()) / f"tagpr-duckdb-{os.getpid()}"))  # only made when needed
    connection.execute(
        f"SET memory_limit = '800MB'; SET preserve_insertion_order = false; SET temp_directory = {temporary}"
    )
    _make_views(connection, folder)
    pairs = read_json(folder / PAIRS_MANIFEST, PairsManifest) if (folder / PAIRS_MANIFEST).is_file() else None
    for name, table in _statements(manifest, pairs).items():
        connection.register(name, table)
    connection.register("found_files", _found_files(folder))
    connection.register("known_reasons", _table(reason=(pa.string(), REASONS)))
    return connection


def _make_views(connection: "duckdb.DuckDBPyConnection", folder: Path) -> None:
    """Make one view of each kind of row, over all its files with their split, and `attempts`, kept and rejected."""
    for kind, (model, _) in TABLES.items():
        split = "split AS stated_split, * EXCLUDE (split)" if kind == "pairs" else "*"
        parts = [
            f"SELECT {_quoted(path.stem)} AS split, {split} FROM read_parquet({_quoted(str(path))})"
            for path in _parquet_files(folder, kind)
        ]
        if not parts:
            connection.register(f"empty_{kind}", arrow_schema(model).empty_table())
            parts = [f"SELECT 'none' AS split, {split} FROM empty_{kind}"]
        connection.execute(f"CREATE VIEW {kind} AS {' UNION ALL BY NAME '.join(parts)}")
    shared = (
        "id, split, example_id, task, user_id, prompt_hash, teacher, teacher_revision, attempt, item_ids, k, gold, "
        "sampling, finish_reason, input_tokens, output_tokens"
    )
    connection.execute(
        f"CREATE VIEW attempts AS SELECT {shared}, true AS is_kept FROM traces "
        f"UNION ALL SELECT {shared}, false AS is_kept FROM rejected"
    )


def _statements(manifest: CorpusManifest, pairs: PairsManifest | None) -> "dict[str, pa.Table]":
    """Give what the manifests say as tables."""
    import pyarrow as pa

    text, integer, real = pa.string(), pa.int64(), pa.float64()
    parameters = manifest.parameters
    best_of = parameters.get("best_of")
    thresholds, task_thresholds = _mapping(parameters.get("min_score")), _mapping(parameters.get("task_min_score"))
    rejected, accepted, teachers, tasks = manifest.rejected, manifest.acceptance, manifest.teachers, manifest.tasks
    stated = {MANIFEST: manifest.content_hash}
    found = {MANIFEST: content_hash(manifest.tasks, manifest.files, [manifest.tagset_hash])}
    files = dict(manifest.files)
    pair_counts: list[tuple[str, str, int]] = []
    if pairs is not None:
        stated[PAIRS_MANIFEST], found[PAIRS_MANIFEST] = pairs.content_hash, content_hash(pairs.tasks, pairs.files)
        files |= {f"pairs/{path}": entry for path, entry in pairs.files.items()}
        pair_counts = [(split, kind, rows) for split, kinds in pairs.pairs.items() for kind, rows in kinds.items()]
    return {
        "manifest": _table(
            candidates=(integer, [manifest.candidates]),
            kept=(integer, [manifest.kept]),
            claims=(integer, [manifest.claims]),
            grounded_claims=(integer, [manifest.grounded_claims]),
            disjoint_users=(pa.bool_(), [parameters.get("disjoint_users") is True]),
            best_of=(integer, [best_of if isinstance(best_of, int) else None]),
        ),
        "manifest_hashes": _table(path=(text, stated), stated=(text, stated.values()), found=(text, found.values())),
        "manifest_files": _table(
            path=(text, files),
            rows=(integer, [entry.rows for entry in files.values()]),
            sha256=(text, [entry.sha256 for entry in files.values()]),
        ),
        "manifest_pairs": _table(
            split=(text, [split for split, _, _ in pair_counts]),
            kind=(text, [kind for _, kind, _ in pair_counts]),
            rows=(integer, [rows for _, _, rows in pair_counts]),
        ),
        "manifest_rejected": _table(reason=(text, rejected), rows=(integer, rejected.values())),
        "manifest_acceptance": _table(task=(text, accepted), share=(real, accepted.values())),
        "manifest_thresholds": _table(kind=(text, thresholds), least=(real, thresholds.values())),
        "manifest_task_thresholds": _table(
            task=(text, task_thresholds), task_least=(real, task_thresholds.values())
        ),
        "manifest_teachers": _table(name=(text, teachers), revision=(text, teachers.values())),
        "manifest_tasks": _table(
            name=(text, [task.name for task in tasks]),
            kind=(text, [task.kind for task in tasks]),
            labels=(pa.list_(text), [task.labels for task in tasks]),
        ),
    }  # fmt: skip


def _found_files(folder: Path) -> "pa.Table":
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = sorted(path for kind in ("traces", "rejected", "pairs") for path in (folder / kind).rglob("*.parquet"))
    return _table(
        path=(pa.string(), [path.relative_to(folder).as_posix() for path in found]),
        rows=(pa.int64(), [pq.read_metadata(path).num_rows for path in found]),
        sha256=(pa.string(), [sha256_file(path) for path in found]),
    )


def _table(**columns: tuple[Any, Iterable[Any]]) -> "pa.Table":
    import pyarrow as pa

    return pa.table({name: pa.array(list(values), type=type_) for name, (type_, values) in columns.items()})


def _mapping(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _run_query(connection: "duckdb.DuckDBPyConnection", name: str, question: str, query: str) -> CheckResult:
    import duckdb

    try:
        rows = connection.execute(
            f"SELECT row, problem, count(*) OVER () FROM ({query}) ORDER BY row, problem LIMIT {SHOWN_ROWS}"
        ).fetchall()
    except duckdb.Error as error:
        return CheckResult(name, question, "crashed", error=f"{type(error).__name__}: {error}")
    if not rows:
        return CheckResult(name, question, "passed")
    return CheckResult(name, question, "failed", rows[0][2], tuple(f"{row}: {problem}" for row, problem, _ in rows))


def _not_run(questions: dict[str, str], why: str) -> list[CheckResult]:
    return [CheckResult(name, question, "not-run", error=why) for name, question in questions.items()]


def _parquet_files(folder: Path, kind: str) -> list[Path]:
    return sorted(folder.glob(TABLES[kind][1]))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
