"""A data set folder: examples by split, profiles stored once, a manifest written last.

Guarantee: what `write_dataset` leaves under the final name is whole, checked and the same bytes for the same
records; what `Dataset.load` returns is unchanged since (every file is hashed). Price: the tables are in memory once.
"""

import os
import shutil
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from tagpr_data.dates import interval
from tagpr_data.errors import CheckFailed, InputError, shorten
from tagpr_data.records import DatasetManifest, Example, FileEntry, ProfileItem, Split, Task
from tagpr_data.tables import (
    arrow_schema,
    content_hash,
    frame_from_records,
    read_json,
    read_records,
    read_table,
    sha256_file,
    write_json,
)
from tagpr_data.tasks import find_task

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

    Examples = Iterable[Example] | pl.DataFrame
    Items = Iterable[ProfileItem] | pl.DataFrame | pa.Table

SPLITS: tuple[Split, ...] = get_args(Split)
MANIFEST = "manifest.json"
PROFILES = "profiles.parquet"


def write_dataset(
    folder: Path,
    *,
    name: str,
    source: str,
    licence: str,
    tasks: Sequence[Task],
    examples: Mapping[Split, "Iterable[Example] | pl.DataFrame"],
    items: "Iterable[ProfileItem] | pl.DataFrame",
    parameters: Mapping[str, Any],
    skipped: Mapping[str, int],
) -> DatasetManifest:
    """Check the records and write them as a data set folder; records may come as frames of the same columns.

    The folder appears under its name only when whole. An earlier version of the same data set is replaced; any
    other non-empty folder is refused. Raises InputError with the id of the first record that breaks a rule: ids
    unique, task defined, output among the task's labels, profile there and long enough, positions from 0 without
    gaps, no item of an example's profile dated after the example.
    """
    return write_chunks(
        folder,
        name=name,
        source=source,
        licence=licence,
        tasks=tasks,
        chunks=[(examples, items)],
        parameters=parameters,
        skipped=skipped,
    )


def write_chunks(
    folder: Path,
    *,
    name: str,
    source: str,
    licence: str,
    tasks: Sequence[Task],
    chunks: "Iterable[tuple[Mapping[Split, Examples], Items]]",
    parameters: Mapping[str, Any],
    skipped: Mapping[str, int],
) -> DatasetManifest:
    """Do what `write_dataset` does with one chunk of examples and items after another in memory.

    A chunk holds whole profiles, and examples of its own or earlier chunks' profiles (dates are compared inside a chunk
    only); example ids and profile ids ascend from chunk to chunk. Items may also come as an Arrow table of their
    schema, sorted by profile and position, which is written as it is.
    `skipped` is read at the end, so it may still be counted while the chunks come.
    """
    import polars as pl
    import pyarrow as pa

    check_target(folder, name)
    users: set[str] = set()
    sizes: dict[str, int] = {}
    with atomic_folder(folder) as temporary:
        writers = {PROFILES: _Writer(temporary / PROFILES, ProfileItem, ["profile_id", "position"])}
        for examples, items in chunks:
            frames: dict[Split, pl.DataFrame] = {
                split: _frame(examples[split], Example) for split in SPLITS if split in examples
            }
            given = items if isinstance(items, pa.Table) else _frame(items, ProfileItem)
            profiles = _checked_columns(given) if isinstance(given, pa.Table) else given
            sizes.update(profiles.group_by("profile_id").len().iter_rows())
            _check(frames, profiles, tasks, sizes)
            writers[PROFILES].write(given)
            for split, frame in frames.items():
                file = f"examples/{split}.parquet"
                if file not in writers:
                    writers[file] = _Writer(temporary / file, Example, ["id"])
                writers[file].write(frame)
                users.update(frame["user_id"])
        files = {file: writer.close() for file, writer in sorted(writers.items())}
        if not sum(entry.rows for file, entry in files.items() if file != PROFILES):
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()) if count)
            raise CheckFailed(f"no example came out, so {folder} was not written; left out: {reasons or 'nothing'}")
        manifest = DatasetManifest(
            name=name,
            source=source,
            licence=licence,
            tasks=tuple(tasks),
            files=files,
            content_hash=content_hash(tasks, files),
            users=len(users),
            parameters=dict(parameters),
            skipped=dict(sorted(skipped.items())),
        )
        write_json(temporary / MANIFEST, manifest)
    return manifest


class Dataset:
    """A data set folder, open for reading. Tables are read at first use."""

    def __init__(self, folder: Path, manifest: DatasetManifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._examples: dict[str, list[Example]] = {}

    @classmethod
    def load(cls, folder: Path, verify: bool = True) -> "Dataset":
        """Open a folder; InputError when it is incomplete or, with `verify`, when a file is not the one written."""
        if not folder.is_dir():
            raise InputError(f"data set folder {folder} does not exist")
        manifest = read_json(folder / MANIFEST, DatasetManifest)
        for name, entry in manifest.files.items():
            path = folder / name
            if not path.is_file():
                raise InputError(f"data set {folder} is not complete: {name} of its manifest is missing")
            if verify and sha256_file(path) != entry.sha256:
                raise InputError(f"{path} is not the file that {MANIFEST} describes (its hash differs); build it again")
        return cls(folder, manifest)

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits it has, in the order train, validation, test."""
        return tuple(split for split in SPLITS if f"examples/{split}.parquet" in self.manifest.files)

    def task(self, name: str) -> Task:
        """Give a task of the manifest by either spelling of its name; InputError lists the known ones."""
        task = find_task(name, self.manifest.tasks)
        if task.name not in {known.name for known in self.manifest.tasks}:
            known = ", ".join(task.name for task in self.manifest.tasks)
            raise InputError(f"data set {self.folder} has no task {name!r}; it has: {known}")
        return next(known for known in self.manifest.tasks if known.name == task.name)

    def examples(self, split: Split) -> list[Example]:
        """Give the examples of a split, ordered by id; InputError when it has no such split."""
        if split not in self.splits:
            raise InputError(f"data set {self.folder} has no split {split!r}; it has: {', '.join(self.splits)}")
        if split not in self._examples:
            self._examples[split] = read_records(self.folder / f"examples/{split}.parquet", Example)
        return self._examples[split]

    def profile(self, example: Example) -> tuple[ProfileItem, ...]:
        """Give the items the example may look at: the first `profile_size` of its profile, in order."""
        start, length = self._spans.get(example.profile_id, (0, 0))
        if example.profile_size > length:
            raise InputError(
                f"example {example.id} needs {example.profile_size} items of profile {example.profile_id!r}; "
                f"data set {self.folder} stores {length}"
            )
        rows = self.profiles.slice(start, example.profile_size).iter_rows(named=True)
        return tuple(ProfileItem.model_validate(row) for row in rows)

    def profile_length(self, profile_id: str) -> int:
        """Give how many items of a profile are stored; 0 where it is unknown."""
        return self._spans.get(profile_id, (0, 0))[1]

    @cached_property
    def profiles(self) -> "pl.DataFrame":
        """All profile items as a frame, sorted by profile and position."""
        return read_table(self.folder / PROFILES, ProfileItem).sort("profile_id", "position")

    @cached_property
    def _spans(self) -> dict[str, tuple[int, int]]:
        """First row and number of rows of each profile."""
        import polars as pl

        spans = self.profiles.with_row_index("row").group_by("profile_id").agg(pl.col("row").min(), pl.len())
        return {profile_id: (start, length) for profile_id, start, length in spans.iter_rows()}


def check_target(folder: Path, name: str) -> None:
    """Raise InputError unless a data set called `name` may be written to `folder`: it is absent, empty, or holds
    exactly an earlier version of it. Call it before long work."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; a data set is a folder, give a name that is free")
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    if not found:
        return
    if MANIFEST not in found:
        raise InputError(f"{folder} is not empty and holds no data set (found {min(found)!r}); give another folder")
    manifest = read_json(folder / MANIFEST, DatasetManifest)
    foreign = found - set(manifest.files) - {MANIFEST}
    if manifest.name != name or foreign:
        what = f"file {min(foreign)!r} besides a data set" if foreign else f"data set {manifest.name!r}"
        raise InputError(f"{folder} holds the {what}; give another folder for {name!r}")


@contextmanager
def atomic_folder(folder: Path) -> Generator[Path, None, None]:
    """Give an empty folder beside `folder` to write into; at the end it takes the name, with whatever stood there
    removed. On any error it is removed and `folder` is as before."""
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        temporary.mkdir()
        yield temporary
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


class _Writer:
    """One Parquet file, written in chunks of ascending key; the same chunks give the same bytes."""

    def __init__(self, path: Path, model: "type[Example] | type[ProfileItem]", key: Sequence[str]) -> None:
        import pyarrow.parquet as pq

        path.parent.mkdir(exist_ok=True)
        self._path, self._key, self._schema = path, key, arrow_schema(model)
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")
        self._rows = 0
        self._last: tuple[Any, ...] = ()

    def write(self, rows: "pl.DataFrame | pa.Table") -> None:
        import polars as pl
        import pyarrow as pa

        if isinstance(rows, pl.DataFrame):
            rows = rows.select(self._schema.names).sort(*self._key).to_arrow().cast(self._schema)
        if not rows.num_rows:
            return
        first, last = (
            tuple(rows.slice(row, 1).select(self._key).to_pylist()[0].values()) for row in (0, len(rows) - 1)
        )
        assert self._last < first, f"chunks must ascend by {self._key}: {first} after {self._last}"
        table = pa.Table.from_batches(rows.combine_chunks().to_batches(), self._schema)
        self._writer.write_table(table, row_group_size=100_000)
        self._rows += len(rows)
        self._last = last

    def close(self) -> FileEntry:
        self._writer.close()
        with self._path.open("rb") as file:
            os.fsync(file.fileno())
        return FileEntry(rows=self._rows, sha256=sha256_file(self._path))


def _frame(records: "Iterable[Any] | pl.DataFrame", model: "type[Example] | type[ProfileItem]") -> "pl.DataFrame":
    import polars as pl

    if isinstance(records, pl.DataFrame):
        return records
    try:
        return frame_from_records(records, model)
    except UnicodeEncodeError as error:
        raise InputError(
            f"a {model.__name__} holds text that UTF-8 cannot: {shorten(error.object[error.start : error.end])}"
        ) from None


def _checked_columns(items: "pa.Table") -> "pl.DataFrame":
    """The columns of the items that `_check` reads, without their texts."""
    import polars as pl

    frame = pl.from_arrow(items.select(["profile_id", "position", "item_id", "date"]))
    assert isinstance(frame, pl.DataFrame)
    key = frame.select("profile_id", "position")
    assert key.equals(key.sort("profile_id", "position")), "an Arrow table of items must be sorted"
    return frame


def _check(
    frames: Mapping[Split, "pl.DataFrame"], profiles: "pl.DataFrame", tasks: Sequence[Task], sizes: Mapping[str, int]
) -> None:
    import polars as pl

    tasks_by_name = {task.name: task for task in tasks}
    if len(tasks_by_name) < len(tasks):
        raise InputError(f"task names must be unique, not {[task.name for task in tasks]}")
    examples = pl.concat(frames.values()) if frames else frame_from_records([], Example)
    _refuse(examples.filter(pl.col("id").is_duplicated()), "id occurs more than once", "id")
    _refuse(examples.filter(~pl.col("task").is_in(list(tasks_by_name))), "task is not defined", "task")
    for task in tasks:
        if task.labels is not None:
            answered = examples.filter((pl.col("task") == task.name) & pl.col("output").is_not_null())
            wrong = answered.filter(~pl.col("output").is_in(list(task.labels)))
            _refuse(wrong, f"output is not among the labels of {task.name}", "output")
    _check_positions(profiles)
    stored = [sizes.get(profile_id, 0) for profile_id in examples["profile_id"]]
    joined = examples.with_columns(stored=pl.Series(stored, dtype=pl.Int64))
    _refuse(joined.filter(pl.col("profile_size") < 0), "profile_size is negative", "profile_size")
    _refuse(
        joined.filter(pl.col("profile_size") > pl.col("stored")), "profile has fewer items than profile_size", "stored"
    )
    _refuse(late_examples(examples, profiles), "an item of its profile is dated after the input", "date")


def _check_positions(profiles: "pl.DataFrame") -> None:
    import polars as pl

    spans = profiles.group_by("profile_id").agg(
        first=pl.col("position").min(),
        last=pl.col("position").max(),
        distinct=pl.col("position").n_unique(),
        items=pl.len(),
        item_ids=pl.col("item_id").n_unique(),
    )
    gap = (pl.col("first") != 0) | (pl.col("last") != pl.col("items") - 1) | (pl.col("distinct") != pl.col("items"))
    for bad, what in (
        (spans.filter(gap), "positions do not run from 0 without gap or repetition"),
        (spans.filter(pl.col("item_ids") != pl.col("items")), "an item_id occurs twice in it"),
    ):
        if bad.height:
            raise InputError(f"profile {bad['profile_id'].min()!r}: {what} ({bad.height} such profiles)")


def late_examples(examples: "pl.DataFrame", profiles: "pl.DataFrame") -> "pl.DataFrame":
    """Give the examples whose profile has an item that surely is later than the input: one of its first
    `profile_size` items starts after the input's end."""
    import polars as pl

    dated = profiles.filter(pl.col("date").is_not_null())
    asked = examples.filter(pl.col("date").is_not_null() & (pl.col("profile_size") > 0))
    if dated.is_empty() or asked.is_empty():
        return examples.clear()
    starts, ends = _moments(dated["date"], 0), _moments(asked["date"], 1)
    latest = (
        dated.select("profile_id", "position", start=pl.col("date").replace_strict(starts, return_dtype=pl.Float64))
        .sort("profile_id", "position")
        .with_columns(pl.col("start").cum_max().over("profile_id"))
    )
    visible = (
        asked.with_columns(
            last=pl.col("profile_size") - 1, end=pl.col("date").replace_strict(ends, return_dtype=pl.Float64)
        )
        .sort("last")
        .join_asof(
            latest.sort("position"), left_on="last", right_on="position", by="profile_id", check_sortedness=False
        )
    )
    return visible.filter(pl.col("start") > pl.col("end"))


def _moments(dates: "pl.Series", end: int) -> dict[str, float]:
    return {date: interval(date)[end] for date in dates.unique()}


def _refuse(bad: "pl.DataFrame", what: str, column: str) -> None:
    if bad.height:
        first = bad.sort("id").row(0, named=True)
        more = f" ({bad.height} such examples)" if bad.height > 1 else ""
        raise InputError(f"example {first['id']!r}: {what}; {column} = {shorten(first[column])}{more}")
