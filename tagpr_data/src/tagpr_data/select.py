"""Candidates → kept traces and a ledger of the rejected, each with one reason.

    1. `Judge`: the rules that look at one candidate alone, batch by batch, on all cores (`engine.map_batches`)
    2. `decide`: the rules that compare candidates, over some hundred bytes of each that is left
    3. one pass that writes both tables, sorted by id

Guarantee: every candidate comes out exactly once, so kept + rejected = candidates; the same candidates give the same
bytes whatever their order, the batches they come in, and the number of workers. Price: between 1 and 3 the rows lie on
disk, compressed; in memory stand one bucket of rows, one row group a file, and 350 bytes for each candidate that passed
its own rules. The rules are ours.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from tagpr_data.dataset import Dataset
from tagpr_data.engine import EngineName, map_batches
from tagpr_data.errors import InputError, shorten
from tagpr_data.judge import ITEM_FIELDS, LEAKS, REASONS, Judge, Judged, Row, Selection, described, files_of, judge
from tagpr_data.near_duplicates import NearDuplicates
from tagpr_data.records import Candidate, Example, FileEntry, Rejected, Split, Trace
from tagpr_data.tables import arrow_schema, atomic_path, explain, read_table, sha256_file
from tagpr_data.tags import TagSet

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import polars as pl
    import pyarrow as pa

__all__ = [
    "LEAKS", "REASONS", "Counts", "Decisions", "Judge", "Judged", "Row", "Selection", "candidate_batches", "count",
    "decide", "described", "files_of", "journal_batches", "judge", "select", "with_context",
]  # fmt: skip

_GROUP_REASONS = ("", "duplicate", "not-best", "near-duplicate")
_ROW_GROUP = 10_000
_BUCKET_ROWS = 20_000


@dataclass
class Counts:
    """What came out of a selection, for the manifest."""

    kept_by_task: Counter[str] = field(default_factory=Counter)
    candidates_by_task: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    teachers: dict[str, str] = field(default_factory=dict)
    claims: int = 0
    grounded_claims: int = 0

    @property
    def kept(self) -> int:
        """Traces."""
        return self.kept_by_task.total()

    @property
    def candidates(self) -> int:
        """Traces and rejected."""
        return self.candidates_by_task.total()

    @property
    def rejected(self) -> dict[str, int]:
        """Rejected by reason: only reasons that occur, in the order of `REASONS`."""
        order = [*REASONS, *sorted(self.reasons.keys() - REASONS.keys())]
        return {reason: self.reasons[reason] for reason in order if self.reasons[reason]}

    @property
    def acceptance(self) -> dict[str, float]:
        """Share of candidates kept, by task."""
        return {
            task: self.kept_by_task[task] / self.candidates_by_task[task] for task in sorted(self.candidates_by_task)
        }


def count(traces: Iterable[Trace], rejected: Iterable[Rejected]) -> Counts:
    """Give the counts of rows that are at hand as records."""
    counts, teachers = Counts(), dict[str, str]()
    for row in (*traces, *rejected):
        teachers[row.teacher] = row.teacher_revision
        counts.candidates_by_task[row.task] += 1
        if isinstance(row, Trace):
            counts.kept_by_task[row.task] += 1
            counts.claims += row.claims
            counts.grounded_claims += row.grounded_claims
        else:
            counts.reasons[row.reason] += 1
    counts.teachers = dict(sorted(teachers.items()))
    return counts


def select(
    batches: "Iterable[pa.RecordBatch]",
    dataset: Dataset,
    rules: Selection,
    tagset: TagSet,
    output: Path,
    splits: Sequence[Split],
    *,
    work: Path,
    expected: int = 0,
    engine: EngineName = "local",
    workers: int | None = None,
    address: str | None = None,
    on_rows: Callable[[int], object] = lambda rows: None,
) -> tuple[dict[str, FileEntry], Counts]:
    """Write `traces/SPLIT.parquet` and `rejected/SPLIT.parquet` into `output` and give their entries and counts.

    batches: candidates (columns of `Candidate`) of examples in `splits` of the data set, in any order.
    work: folder for what lies on disk in between; removed at the end.
    expected: about how many candidates come; it decides into how many files they are spread, and nothing else.
    on_rows: told the rows of each batch that was judged.

    Raises InputError for a setting whose file is missing, an example or item that the data set lacks, and an id that
    occurs twice.
    """
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        judge_batch = Judge.prepare(rules, dataset, tagset, work)
        spill = _Spill(work, buckets=min(max(expected // _BUCKET_ROWS, 1), 256))
        facts: list[pa.RecordBatch] = []
        first = 0
        contexts = with_context(batches, dataset)
        for batch in map_batches(contexts, judge_batch, engine=engine, workers=workers, address=address):
            numbered = _numbered(batch, first)
            facts.append(_facts(numbered))
            spill.add(numbered)
            first += batch.num_rows
            on_rows(batch.num_rows)
        decisions = decide(facts, first, rules)
        facts.clear()
        return _write(spill, decisions, output, splits)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def candidate_batches(candidates: Iterable[Candidate], rows: int = 2000) -> "Iterator[pa.RecordBatch]":
    """Give candidates as Arrow batches of at most so many rows."""
    from itertools import islice

    import pyarrow as pa

    schema, remaining = arrow_schema(Candidate), iter(candidates)
    while part := [row.model_dump() for row in islice(remaining, rows)]:
        yield pa.RecordBatch.from_pylist(part, schema=schema)


def journal_batches(path: Path, rows: int = 2000) -> "Iterator[pa.RecordBatch]":
    """Give the candidates in a journal (JSON lines) as Arrow batches of at most so many rows, without holding the file;
    InputError for a line that is no candidate."""
    import pyarrow as pa
    import pyarrow.json as pj

    schema = arrow_schema(Candidate)
    options = pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
    try:
        reader = pj.open_json(path, read_options=pj.ReadOptions(block_size=8 << 20), parse_options=options)
        for block in reader:
            for start in range(0, block.num_rows, rows):
                yield block.slice(start, rows)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} cannot be read as candidates: {_first_problem(path) or error}") from None


def _first_problem(path: Path) -> str | None:
    """Give the first line of a journal that is no candidate, and why."""
    if not path.is_file():
        return None
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                Candidate.model_validate_json(line)
            except ValidationError as error:
                return f"line {number}: {explain(error)}; untagged chains are made candidates by `tagpr-data annotate`"
    return None


def with_context(batches: "Iterable[pa.RecordBatch]", dataset: Dataset) -> "Iterator[pa.RecordBatch]":
    """Add to each batch of candidates what the rules need of the data set: `split`, `date` and `question` of the
    example, and `items`, those of the prompt with date, title, text and label."""
    import numpy as np
    import polars as pl
    import pyarrow as pa

    examples = pl.concat(
        read_table(dataset.folder / f"examples/{split}.parquet", Example)
        .select("id", "profile_id", "user_id", "task", "date", question="input")
        .with_columns(split=pl.lit(split))
        for split in dataset.splits
    )
    profiles = dataset.profiles
    keys = profiles.select("profile_id", "item_id")
    spans = profiles.with_row_index("start").group_by("profile_id").agg(pl.col("start").min(), items=pl.len())
    for batch in batches:
        asked = pl.DataFrame({"id": pl.Series(batch["example_id"]), "item_id": pl.Series(batch["item_ids"])})
        asked = asked.with_row_index("row").join(examples, on="id", how="left", maintain_order="left")
        if (missing := asked.filter(pl.col("split").is_null())).height:
            raise InputError(f"example {missing['id'][0]!r} of a candidate is not in the data set {dataset.folder}")
        _check_candidates(batch, asked, dataset.folder)
        wanted = asked.select("profile_id").unique().join(spans, on="profile_id")
        near = np.concatenate(
            [np.arange(start, start + items) for _, start, items in wanted.iter_rows()] or [np.zeros(0, np.int64)]
        )
        places = keys[near].with_columns(place=pl.Series(near, dtype=pl.Int64))
        shown = asked.select("row", "profile_id", "id", "item_id").explode("item_id", empty_as_null=True)
        shown = shown.filter(pl.col("item_id").is_not_null())
        shown = shown.join(places, on=["profile_id", "item_id"], how="left", maintain_order="left")
        if (missing := shown.filter(pl.col("place").is_null())).height:
            first = missing.row(0, named=True)
            raise InputError(
                f"item {first['item_id']!r} in the prompt of {first['id']!r} is not in its profile in {dataset.folder}"
            )
        items = profiles[shown["place"].to_numpy()].select("date", "title", "text", "label")
        counts = np.bincount(shown["row"].to_numpy(), minlength=asked.height)
        offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
        flat = items.to_arrow()
        struct = pa.StructArray.from_arrays(
            [flat[name].cast(pa.string()).combine_chunks() for name in ITEM_FIELDS], names=list(ITEM_FIELDS)
        )
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        for name in ("split", "date", "question"):
            columns[name] = asked[name].to_arrow().cast(pa.string())
        columns["items"] = pa.ListArray.from_arrays(offsets, struct)
        yield pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def _check_candidates(batch: "pa.RecordBatch", asked: "pl.DataFrame", folder: Path) -> None:
    """Raise InputError where an id is no hash, or a candidate says another user or task than its example."""
    import polars as pl

    for name in ("id", "prompt_hash"):
        said = pl.Series(batch[name])
        if (wrong := said.filter(~said.str.contains("^[0-9a-f]{64}$"))).len():
            raise InputError(f"a candidate has the {name} {shorten(wrong[0])}; right would be a SHA-256, 64 hex digits")
    for name in ("user_id", "task"):
        unlike = asked.with_columns(said=pl.Series(batch[name])).filter(pl.col("said") != pl.col(name))
        if unlike.height:
            first = unlike.row(0, named=True)
            raise InputError(
                f"a candidate of example {first['id']!r} says {name} {first['said']!r}; in the data set {folder} it is "
                f"{first[name]!r}"
            )


@dataclass(frozen=True)
class Decisions:
    """What comparing candidates came to, by row number: index into `_GROUP_REASONS`, and the row it lost to or -1."""

    reasons: "npt.NDArray[np.int8]"
    winners: "npt.NDArray[np.int64]"
    ids: "dict[int, str]"
    """Ids of the winners."""


def decide(facts: "Sequence[pa.RecordBatch]", rows: int, rules: Selection) -> Decisions:
    """Compare the candidates that passed their own rules: the best first, each is kept unless its text is there
    already, its prompt has its `best_of`, or a kept trace is nearly the same.

    Best is the higher score, then the larger share of grounded claims, the shorter text, the earlier attempt, the
    smaller id: a total order, so neither the order of the rows nor how they are split over batches matters.
    """
    import numpy as np
    import polars as pl

    reasons, winners, ids = np.zeros(rows, dtype=np.int8), np.full(rows, -1, dtype=np.int64), dict[int, str]()
    narrow = [batch.drop_columns([name for name in _WIDE if name in batch.schema.names]) for batch in facts]
    frame = pl.from_arrow(narrow) if narrow else None
    if not isinstance(frame, pl.DataFrame) or frame.is_empty():
        return Decisions(reasons, winners, ids)
    frame = frame.with_row_index("place").sort(
        ["score", "grounded", "length", "attempt", "id"], descending=[True, True, False, False, False]
    )
    prompts = frame["prompt_hash"].rank("dense").to_numpy().astype(np.int64)
    texts = frame["text_key"].rank("dense").to_numpy().astype(np.int64)
    near: NearDuplicates | None = None
    if "signature" in facts[0].schema.names:
        places = np.empty(frame.height, dtype=np.int64)
        places[frame["place"].to_numpy()] = np.arange(frame.height)
        signature = _matrix(facts, "signature", places).view(np.uint8)
        # only traces of one task are compared: the task changes the bands
        task = frame["task"].rank("dense").to_numpy().astype(np.uint64) * np.uint64(0xBF58476D1CE4E5B9)
        bands = _matrix(facts, "bands", places).view(np.uint64)
        bands ^= task[:, None]
        users = frame["user_id"].rank("dense").to_numpy().astype(np.int64)
        near = NearDuplicates(signature, bands, users, rules.near_duplicates_within, rules.near_duplicates_across)
    taken = np.zeros(int(prompts.max()) + 1, dtype=np.int64)
    first_with_text = np.full(int(texts.max()) + 1, -1, dtype=np.int64)
    numbers = frame["row"].to_numpy()
    ids_by_place: Any = frame["id"]
    for place, (row, prompt, text) in enumerate(zip(numbers.tolist(), prompts.tolist(), texts.tolist(), strict=True)):
        if rules.duplicates and first_with_text[text] >= 0:
            reasons[row], winner = 1, int(first_with_text[text])
        elif taken[prompt] >= rules.best_of:
            reasons[row], winner = 2, -1
        elif near is not None and (leader := near.leader_of(place)) is not None:
            reasons[row], winner = 3, leader
        else:
            taken[prompt] += 1
            first_with_text[text] = place
            if near is not None:
                near.keep(place)
            continue
        if winner >= 0:
            winners[row] = numbers[winner]
            ids[int(numbers[winner])] = ids_by_place[winner].hex()
    return Decisions(reasons, winners, ids)


class _Spill:
    """Judged rows on disk, spread over files by the first digits of their ids, so that the files in order, each sorted,
    are all rows sorted."""

    def __init__(self, folder: Path, buckets: int) -> None:
        self._folder, self._buckets = folder, buckets
        self._writers: dict[int, Any] = {}

    def add(self, batch: "pa.RecordBatch") -> None:
        import numpy as np
        import pyarrow as pa

        batch = batch.drop_columns([name for name in _ONLY_FACTS if name in batch.schema.names])
        ids: Any = batch["id"]
        places = np.array([int(id_[:8], 16) for id_ in ids.to_pylist()], dtype=np.int64)
        bucket_of = places * self._buckets >> 32
        for bucket in np.unique(bucket_of).tolist():
            if bucket not in self._writers:
                options = pa.ipc.IpcWriteOptions(compression="lz4")
                self._writers[bucket] = pa.ipc.new_file(str(self._path(bucket)), batch.schema, options=options)
            part = batch if self._buckets == 1 else batch.filter(pa.array(bucket_of == bucket))
            self._writers[bucket].write_batch(part)

    def sorted(self) -> "Iterator[pa.Table]":
        """Give all rows sorted by id, a bucket at a time; each bucket is removed from the disk after it."""
        import pyarrow as pa
        import pyarrow.compute as pc

        for bucket in sorted(self._writers):
            self._writers[bucket].close()
            with pa.OSFile(str(self._path(bucket)), "rb") as file:
                table = pa.ipc.open_file(file).read_all()
            order = pc.sort_indices(table["id"])
            yield table.take(order)
            self._path(bucket).unlink()

    def _path(self, bucket: int) -> Path:
        return self._folder / f"bucket-{bucket:03}.arrow"


class _Writer:
    """One Parquet file of the corpus, in row groups of `_ROW_GROUP` rows however they come."""

    def __init__(self, path: Path, model: type[Trace] | type[Rejected]) -> None:
        import pyarrow.parquet as pq

        self._schema = arrow_schema(model)
        self._writer: pq.ParquetWriter = pq.ParquetWriter(path, self._schema, compression="zstd")
        self._pending: list[pa.Table] = []
        self.rows = 0

    def add(self, table: "pa.Table") -> None:
        import pyarrow as pa

        self._pending.append(table.select(self._schema.names).cast(self._schema))
        self.rows += table.num_rows
        while sum(part.num_rows for part in self._pending) >= _ROW_GROUP:
            joined = pa.concat_tables(self._pending)
            self._flush(joined.slice(0, _ROW_GROUP))
            self._pending = [joined.slice(_ROW_GROUP)]

    def close(self) -> None:
        import pyarrow as pa

        if self._pending:
            self._flush(pa.concat_tables(self._pending))
        self._writer.close()

    def _flush(self, table: "pa.Table") -> None:
        if table.num_rows:
            self._writer.write_table(table.combine_chunks(), row_group_size=_ROW_GROUP)


def _write(
    spill: _Spill, decisions: Decisions, output: Path, splits: Sequence[Split]
) -> tuple[dict[str, FileEntry], Counts]:
    """Write both tables, sorted by id."""
    import pyarrow.compute as pc

    models: dict[str, type[Trace] | type[Rejected]] = {"traces": Trace, "rejected": Rejected}
    names = [f"{kind}/{split}.parquet" for kind in models for split in splits]
    counts, last = Counts(), ""
    with ExitStack() as stack:
        writers = {
            name: _Writer(stack.enter_context(atomic_path(output / name)), models[name.partition("/")[0]])
            for name in names
        }
        for rows in spill.sorted():
            last = _check_unique(rows, last)
            table = _with_group_reasons(rows, decisions)
            kept, rejected = (pc.field("reason").is_null(), pc.field("reason").is_valid())
            for split in splits:
                in_split = pc.field("split") == split
                writers[f"traces/{split}.parquet"].add(table.filter(in_split & kept))
                writers[f"rejected/{split}.parquet"].add(table.filter(in_split & rejected))
            _count_table(table, counts)
        for writer in writers.values():
            writer.close()
    assert counts.candidates == sum(writer.rows for writer in writers.values()), "a candidate is in no split"
    counts.teachers = dict(sorted(counts.teachers.items()))
    return {name: FileEntry(rows=writers[name].rows, sha256=sha256_file(output / name)) for name in names}, counts


def _with_group_reasons(table: "pa.Table", decisions: Decisions) -> "pa.Table":
    import pyarrow as pa

    rows, own, details, scores = (table[name].to_pylist() for name in ("row", "reason", "detail", "score"))
    for place, row in enumerate(rows):
        group = _GROUP_REASONS[decisions.reasons[row]]
        if own[place] is not None or not group:
            continue
        own[place] = group
        if group == "not-best":
            details[place] = f"better ones of this prompt kept; score {scores[place]:.3f}"
        else:
            alike = "the same text" if group == "duplicate" else "nearly the same words"
            details[place] = f"{decisions.ids[int(decisions.winners[row])]} was kept with {alike}"
    for name, values in (("reason", own), ("detail", details)):
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, pa.string()))
    return table


def _count_table(table: "pa.Table", counts: Counts) -> None:
    import pyarrow.compute as pc

    kept = table.filter(pc.field("reason").is_null())
    counts.candidates_by_task.update(_value_counts(table["task"]))
    counts.kept_by_task.update(_value_counts(kept["task"]))
    counts.reasons.update({reason: n for reason, n in _value_counts(table["reason"]).items() if reason is not None})
    counts.claims += pc.sum(kept["claims"]).as_py() or 0
    counts.grounded_claims += pc.sum(kept["grounded_claims"]).as_py() or 0
    pairs = table.select(["teacher", "teacher_revision"]).group_by(["teacher", "teacher_revision"]).aggregate([])
    counts.teachers.update((row["teacher"], row["teacher_revision"]) for row in pairs.to_pylist())


def _value_counts(column: Any) -> dict[Any, int]:
    return {row["values"]: row["counts"] for row in column.value_counts().to_pylist()}


def _check_unique(table: "pa.Table", last: str) -> str:
    """Raise InputError where an id occurs twice in sorted rows; give the last one."""
    ids: Any = table["id"]
    for id_ in ids.to_pylist():
        if id_ == last:
            raise InputError(f"candidate {id_} occurs twice; ids are the identity of an attempt and must be unique")
        last = id_
    return last


_FACTS = ("row", "id", "task", "user_id", "prompt_hash", "attempt", "score")
_WIDE = ("signature", "bands")
_ONLY_FACTS = ("grounded", "text_key", *_WIDE)


def _numbered(batch: "pa.RecordBatch", first: int) -> "pa.RecordBatch":
    import pyarrow as pa

    return batch.append_column("row", pa.array(range(first, first + batch.num_rows), pa.int64()))


def _facts(batch: "pa.RecordBatch") -> "pa.RecordBatch":
    """Give what `decide` compares, of the candidates that passed their own rules; ids and hashes as bytes."""
    import pyarrow as pa
    import pyarrow.compute as pc

    names = [*_FACTS, *(name for name in _ONLY_FACTS if name in batch.schema.names)]
    text: Any = batch["text"]
    facts = batch.append_column("length", pc.utf8_length(text)).select([*names, "length"])
    facts = facts.filter(pc.is_null(batch["reason"]))
    for name in ("id", "prompt_hash"):
        column: Any = facts[name]
        packed = pa.array([bytes.fromhex(value) for value in column.to_pylist()], pa.binary(32))
        facts = facts.set_column(facts.schema.get_field_index(name), name, packed)
    return facts


def _matrix(facts: "Sequence[pa.RecordBatch]", name: str, places: "npt.NDArray[np.int64]") -> "npt.NDArray[np.uint8]":
    """Give a column of equally long byte strings as a matrix of bytes, row n of the facts in row `places[n]`."""
    import numpy as np

    width: Any = facts[0].schema.field(name).type
    matrix = np.empty((len(places), width.byte_width), dtype=np.uint8)
    first = 0
    for batch in facts:
        column: Any = batch[name]
        if not len(column):
            continue
        rows = np.frombuffer(column.buffers()[1], dtype=np.uint8)
        start = column.offset * width.byte_width
        rows = rows[start : start + len(column) * width.byte_width].reshape(len(column), width.byte_width)
        matrix[places[first : first + len(column)]] = rows
        first += len(column)
    return matrix
