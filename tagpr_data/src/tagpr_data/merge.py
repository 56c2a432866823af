"""New corpora made of finished ones: `merge` two, or `forget` one user (see `forget.py`), row by row unchanged.

Guarantee: rows keep their ids and bytes of text; equal rows come once; a conflict (one id with two contents, or kept
here and rejected there) is refused with the ids; the result passes the same table checks as any corpus, or nothing is
written. Memory does not grow with the corpora: rows are streamed in the order of their keys, `GROUP_ROWS` of each file
at a time, and DuckDB, which counts, keeps to its limit. Price: keys are read twice; a file that is not sorted by its
key, as all of ours are, is in memory once.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tagpr_data import select
from tagpr_data.card import FACTS
from tagpr_data.corpus import MANIFEST, PAIRS, RECORDS, Corpus, Kind, Table
from tagpr_data.dataset import atomic_folder
from tagpr_data.errors import CheckFailed, InputError
from tagpr_data.records import CorpusManifest, FileEntry, PairsManifest, Task
from tagpr_data.tables import (
    arrow_schema,
    batch_writer,
    content_hash,
    read_table,
    sha256_file,
    sha256_text,
    write_json,
    write_text,
)

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

Sources = Mapping[tuple[Kind, str], Sequence[Path]]
"""The Parquet files whose rows together are one table of a new corpus, by kind and split."""
Keep = Callable[[Kind, "pa.RecordBatch"], "pa.RecordBatch"]
"""What stays of a batch of one kind."""

GROUP_ROWS = 10_000
"""Rows in memory at once, and in a row group of the files written, as `select` writes them."""

_KEYS: dict[Kind, tuple[str, ...]] = {
    "traces": ("id",),
    "rejected": ("id",),
    "pairs": ("id",),
    "profiles": ("profile_id", "position"),
}


def merge(a: Corpus, b: Corpus, output: Path, name: str | None = None, licence: str | None = None) -> CorpusManifest:
    """Write the corpus of all rows of A and B to `output`. Raises InputError where they do not fit together (tag set,
    tasks, licence, a teacher's revision, data set of pairs), CheckFailed where rows contradict each other."""
    one, other = a.manifest, b.manifest
    _check_alike(one, other, licence)
    with a.connect() as rows:
        _add_both(rows, b)
        _check_fates(rows)
        pairs = _merged_pairs(a.pairs, b.pairs, rows)
        disjoint_users = _are_disjoint(rows)
    same_data = one.dataset_hash == other.dataset_hash
    thresholds = [manifest.parameters.get("min_score") for manifest in (one, other)]
    best_of = [manifest.parameters.get("best_of") for manifest in (one, other)]
    parameters: dict[str, Any] = {
        "merged": [
            {"name": part.name, "content_hash": part.content_hash, "parameters": part.parameters}
            for part in (one, other)
        ],
        "disjoint_users": disjoint_users,
    }
    if all(isinstance(part, dict) for part in thresholds):
        kinds = sorted(set(thresholds[0] or {}) & set(thresholds[1] or {}))
        parameters["min_score"] = {kind: min(part[kind] for part in thresholds if part) for kind in kinds}
    if all(isinstance(part, int) for part in best_of):
        parameters["best_of"] = sum(part for part in best_of if part)
    base = one.model_copy(
        update={
            "name": name or (one.name if one.name == other.name else f"{one.name}-{other.name}"),
            "licence": licence or one.licence,
            "dataset": one.dataset if same_data else f"{one.dataset}+{other.dataset}",
            "dataset_hash": one.dataset_hash if same_data else sha256_text(f"{one.dataset_hash}+{other.dataset_hash}"),
            "tasks": tuple({task.name: task for task in (*one.tasks, *other.tasks)}.values()),
            "teachers": dict(sorted({**one.teachers, **other.teachers}.items())),
            "parameters": parameters,
        }
    )
    files = {place: [*of(a).get(place, ()), *of(b).get(place, ())] for place in sorted({*of(a), *of(b)})}
    return write_corpus(output, files, base, pairs, equal_once=True)


def of(corpus: Corpus) -> dict[tuple[Kind, str], list[Path]]:
    """Give the files of a corpus as sources of a new one."""
    return {(table.kind, table.split): [corpus.folder / table.path] for table in corpus.tables}


def write_corpus(
    folder: Path,
    sources: Sources,
    base: CorpusManifest,
    pairs: PairsManifest | None,
    facts: str | None = None,
    *,
    keep: Keep = lambda kind, batch: batch,
    equal_once: bool = False,
    then: Callable[[Path], object] = lambda folder: None,
) -> CorpusManifest:
    """Write tables as a new corpus folder with documents; all that follows from rows is counted anew, the rest is taken
    from `base` (and `pairs`). `keep` gives what stays of each batch; with `equal_once` equal rows come once. `facts` is
    the text of its `card.toml`; `then` looks at the folder before it gets its name, and may raise. Raises InputError
    when the folder is not free or an id occurs twice, CheckFailed when one id has two contents or the result does not
    pass the table checks; nothing is left then."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there already; give a name that is free")
    with atomic_folder(folder) as temporary:
        written = tuple(_write(temporary, sources, keep, equal_once))
        with Corpus(temporary, base, pairs, written).connect() as rows:
            manifest = _describe(rows, written, base)
            write_json(temporary / MANIFEST, manifest)
            if pairs is not None:
                write_json(temporary / PAIRS / MANIFEST, _describe_pairs(rows, written, pairs, manifest))
        if facts is not None:
            write_text(temporary / FACTS, facts)
        _finish(temporary)
        then(temporary)
    return manifest


def _finish(folder: Path) -> None:
    """Check a folder that is about to get its name, and write its documents."""
    from tagpr_data import card
    from tagpr_data.corpus import open_corpus
    from tagpr_data.validate import check_tables

    corpus = open_corpus(folder)
    card.write_documents(corpus)
    failed = [result for result in check_tables(folder, corpus.manifest) if result.status != "passed"]
    if failed:
        lines = [f"{result.name}: {result.question} {'; '.join(result.rows[:3]) or result.error}" for result in failed]
        raise CheckFailed("the result would not be valid, so nothing was written:\n  " + "\n  ".join(lines))


def _write(folder: Path, sources: Sources, keep: Keep, equal_once: bool) -> Iterator[Table]:
    for kind, split in sorted(sources):
        path = {"profiles": f"{PAIRS}/profiles.parquet", "pairs": f"{PAIRS}/pairs/{split}.parquet"}.get(
            kind, f"{kind}/{split}.parquet"
        )
        rows = 0
        with batch_writer(folder / path, RECORDS[kind], GROUP_ROWS) as write:
            kept = (keep(kind, batch) for batch in _sorted(sources[kind, split], kind))
            for batch in _unique(kept, kind, equal_once):
                write(batch)
                rows += batch.num_rows
        yield Table(kind, split, path, FileEntry(rows=rows, sha256=sha256_file(folder / path)))


def _sorted(paths: Sequence[Path], kind: Kind) -> "Iterator[pa.RecordBatch]":
    """Give the rows of files together in the order of their key, some batches of each file in memory."""
    import pyarrow as pa
    import pyarrow.compute as pc

    schema, key = arrow_schema(RECORDS[kind]), _KEYS[kind]
    streams = [_batches(path, kind) for path in paths]
    waiting = [schema.empty_table() for _ in paths]
    open_ = set(range(len(paths)))
    while True:
        for place in sorted(open_):
            while place in open_ and not waiting[place].num_rows:
                if (batch := next(streams[place], None)) is None:
                    open_.discard(place)
                else:
                    waiting[place] = pa.Table.from_batches([batch])
        if len(open_) < 2:  # what waits of the others is empty or comes before
            break
        # all rows up to the least of the last keys are at hand
        bound = min(_last_key(waiting[place], key) for place in open_)
        ready: list[pa.Table] = []
        for place in open_:
            first = pa.array([tuple(row.values()) <= bound for row in waiting[place].select(list(key)).to_pylist()])
            ready.append(waiting[place].filter(first))
            waiting[place] = waiting[place].filter(pc.invert(first))
        joined = pa.concat_tables(ready)
        yield from joined.take(pc.sort_indices(joined, [(name, "ascending") for name in key])).to_batches()
    for place in open_:
        yield from waiting[place].to_batches()
        yield from streams[place]


def _last_key(table: "pa.Table", key: Sequence[str]) -> tuple[Any, ...]:
    return tuple(table[name][-1].as_py() for name in key)


def _batches(path: Path, kind: Kind) -> "Iterator[pa.RecordBatch]":
    """Give the rows of a file in the order of its key: as they lie, where they lie so, else sorted in memory."""
    import pyarrow.parquet as pq

    schema, key = arrow_schema(RECORDS[kind]), list(_KEYS[kind])
    with pq.ParquetFile(path, pre_buffer=False) as file:
        if missing := sorted(set(schema.names) - set(file.schema_arrow.names)):
            raise CheckFailed(
                f"{path} has no column {', '.join(missing)}; `tagpr-data validate` says what else is amiss"
            )
        if _is_sorted(file.iter_batches(GROUP_ROWS, columns=key, use_threads=False), key):
            for batch in file.iter_batches(GROUP_ROWS, use_threads=False):
                yield batch.select(schema.names).cast(schema)
            return
    yield from read_table(path, RECORDS[kind]).sort(key).to_arrow().cast(schema).to_batches(GROUP_ROWS)


def _is_sorted(batches: "Iterator[pa.RecordBatch]", key: Sequence[str]) -> bool:
    before: tuple[Any, ...] | None = None
    for batch in batches:
        for row in zip(*(batch[name].to_pylist() for name in key), strict=True):
            if before is not None and row < before:
                return False
            before = row
    return True


def _unique(batches: "Iterator[pa.RecordBatch]", kind: Kind, equal_once: bool) -> "Iterator[pa.RecordBatch]":
    """Take equal rows of a sorted table once, if at all; CheckFailed where one key has two contents."""
    import pyarrow as pa

    key = _KEYS[kind]
    last: dict[str, Any] = {}
    unlike: list[str] = []
    for batch in batches:
        keys = list(zip(*(batch[name].to_pylist() for name in key), strict=True))
        if not keys:
            continue
        before = [tuple(last.get(name) for name in key), *keys[:-1]]
        twice = [place for place, pair in enumerate(zip(before, keys, strict=True)) if pair[0] == pair[1]]
        if twice and not equal_once:
            first = keys[twice[0]]
            raise InputError(f"{', '.join(key)} = {first} occurs twice in {kind}; each row must be unique")
        for place in twice:
            row, known = _row(batch, place), _row(batch, place - 1) if place else last
            if fields := [name for name in row if row[name] != known[name]]:
                unlike.append(f"{'/'.join(map(str, keys[place]))} ({', '.join(fields)})")
        last = _row(batch, len(keys) - 1)
        dropped = set(twice)
        kept = [place not in dropped for place in range(len(keys))]
        yield batch.filter(pa.array(kept, pa.bool_())) if twice else batch
    if unlike:
        raise CheckFailed(f"{len(unlike)} rows of {kind} have one id and two contents: {'; '.join(sorted(unlike)[:5])}")


def _row(batch: "pa.RecordBatch", place: int) -> dict[str, Any]:
    return batch.slice(place, 1).to_pylist()[0]


def _describe(rows: "duckdb.DuckDBPyConnection", written: Sequence[Table], base: CorpusManifest) -> CorpusManifest:
    def counts(column: str, kind: Kind) -> dict[str, int]:
        return dict(rows.execute(f"SELECT {column}, count(*) FROM {kind} GROUP BY ALL").fetchall())

    reasons = counts("reason", "rejected")
    order = [*select.REASONS, *sorted(reasons.keys() - select.REASONS.keys())]
    kept_by_task, refused_by_task = counts("task", "traces"), counts("task", "rejected")
    attempts = {
        task: kept_by_task.get(task, 0) + refused_by_task.get(task, 0)
        for task in sorted({*kept_by_task, *refused_by_task})
    }
    named = {*counts("teacher", "traces"), *counts("teacher", "rejected")}
    claims = rows.execute("SELECT sum(claims)::BIGINT, sum(grounded_claims)::BIGINT FROM traces").fetchall()[0]
    files = {table.path: table.entry for table in written if table.kind in ("traces", "rejected")}
    return base.model_copy(
        update={
            "teachers": {name: revision for name, revision in base.teachers.items() if name in named},
            "files": files,
            "content_hash": content_hash(base.tasks, files, [base.tagset_hash]),
            "candidates": sum(attempts.values()),
            "kept": sum(kept_by_task.values()),
            "rejected": {reason: reasons[reason] for reason in order if reason in reasons},
            "acceptance": {task: kept_by_task.get(task, 0) / count for task, count in attempts.items()},
            "claims": claims[0] or 0,
            "grounded_claims": claims[1] or 0,
        }
    )


def _describe_pairs(
    rows: "duckdb.DuckDBPyConnection", written: Sequence[Table], base: PairsManifest, corpus: CorpusManifest
) -> PairsManifest:
    found = [table.split for table in written if table.kind == "pairs"]
    splits = [split for split in base.pairs if split in found] + sorted(set(found) - base.pairs.keys())
    kinds: dict[str, dict[str, int]] = {split: {} for split in splits}
    for split, kind, count in rows.execute("SELECT split, kind, count(*) FROM pairs GROUP BY ALL").fetchall():
        kinds[split][kind] = count
    users = dict(rows.execute("SELECT split, count(DISTINCT user_id) FROM pairs GROUP BY split").fetchall())
    files = {
        table.path.removeprefix(f"{PAIRS}/"): table.entry for table in written if table.path.startswith(f"{PAIRS}/")
    }
    return base.model_copy(
        update={
            "files": files,
            "content_hash": content_hash(base.tasks, files),
            "corpus_hash": corpus.content_hash if base.corpus_hash else None,
            "pairs": {split: dict(sorted(kinds[split].items())) for split in splits},
            "users": {split: users.get(split, 0) for split in splits},
        }
    )


def _check_alike(one: CorpusManifest, other: CorpusManifest, licence: str | None) -> None:
    if one.tagset_hash != other.tagset_hash:
        raise InputError(
            f"{one.name} is written in the tag set {one.tagset} ({one.tagset_hash[:12]}…), {other.name} in "
            f"{other.tagset} ({other.tagset_hash[:12]}…); corpora of one tag set can be merged"
        )
    tasks: dict[str, Task] = {task.name: task for task in one.tasks}
    unlike = [task.name for task in other.tasks if task.name in tasks and tasks[task.name] != task]
    if unlike:
        raise InputError(f"{one.name} and {other.name} define the task {unlike[0]!r} differently; rename one of them")
    if one.licence != other.licence and licence is None:
        raise InputError(f"the licences differ: {one.licence!r} and {other.licence!r}; say with --licence what holds")
    for name in one.teachers.keys() & other.teachers.keys():
        if one.teachers[name] != other.teachers[name]:
            raise InputError(
                f"teacher {name!r} is at revision {one.teachers[name]!r} in {one.name} and {other.teachers[name]!r} in "
                f"{other.name}; a corpus names one revision of each teacher"
            )


def _add_both(rows: "duckdb.DuckDBPyConnection", other: Corpus) -> None:
    """Make views `all_KIND` of the rows here and in another corpus."""
    for kind in RECORDS:
        other.add_view(rows, kind, f"other_{kind}")
        rows.execute(f"CREATE VIEW all_{kind} AS SELECT * FROM {kind} UNION ALL BY NAME SELECT * FROM other_{kind}")


def _check_fates(rows: "duckdb.DuckDBPyConnection") -> None:
    both = "SELECT DISTINCT id FROM all_traces WHERE id IN (SELECT id FROM all_rejected)"
    found = rows.execute(f"SELECT id, count(*) OVER () FROM ({both}) ORDER BY id LIMIT 5").fetchall()
    if found:
        ids = ", ".join(id_ for id_, _ in found)
        raise CheckFailed(f"{found[0][1]} attempts are kept in one, rejected in the other: {ids}")


def _merged_pairs(
    one: PairsManifest | None, other: PairsManifest | None, rows: "duckdb.DuckDBPyConnection"
) -> PairsManifest | None:
    """Give what the pairs manifests say together; what follows from rows is counted later."""
    if one is None or other is None:
        return one or other
    if one.dataset_hash != other.dataset_hash:
        raise InputError(
            f"the preference pairs are about different data sets ({one.name} and {other.name}); remove one pairs "
            f"folder, merge, and make pairs of the result anew"
        )
    leaked = rows.execute(
        "SELECT user_id, count(*) OVER () FROM all_pairs GROUP BY user_id "
        "HAVING bool_or(split = 'unseen') AND bool_or(split <> 'unseen') ORDER BY user_id LIMIT 5"
    ).fetchall()
    if leaked:
        raise CheckFailed(
            f"{leaked[0][1]} users of the unseen preference pairs of one corpus are trained on in the other: "
            f"{', '.join(user for user, _ in leaked)}"
        )
    reasons = [*one.skipped, *(reason for reason in other.skipped if reason not in one.skipped)]
    return one.model_copy(
        update={
            "tasks": tuple({task.name: task for task in (*one.tasks, *other.tasks)}.values()),
            "skipped": {reason: one.skipped.get(reason, 0) + other.skipped.get(reason, 0) for reason in reasons},
            "parameters": {"merged": [one.parameters, other.parameters]},
        }
    )


def _are_disjoint(rows: "duckdb.DuckDBPyConnection") -> bool:
    attempts = "SELECT user_id, split FROM all_traces UNION ALL SELECT user_id, split FROM all_rejected"
    shared = f"SELECT user_id FROM ({attempts}) GROUP BY user_id HAVING min(split) <> max(split) LIMIT 1"
    return not rows.execute(shared).fetchall()
