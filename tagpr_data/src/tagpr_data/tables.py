"""Records on disk: Parquet with one column per record field, JSON manifests, atomic and deterministic.

Guarantee: the same records give the same bytes (rows sorted by key, zstd, no time of day); a file appears under
its name only when it is whole. Price: a write holds the table in memory once.
"""

import hashlib
import json
import os
import types
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import ValidationError

from tagpr_data.errors import InputError, shorten
from tagpr_data.records import FileEntry, Record

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

R = TypeVar("R", bound=Record)

_CANONICAL = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def canonical_json(value: Any) -> str:
    """Give the one JSON text of a value: sorted keys, no blanks, no NaN. What hashes are taken over."""
    return _CANONICAL.encode(value)


def sha256_text(text: str) -> str:
    """Give the hash of a text in hex; lone surrogates, which UTF-8 cannot hold, are kept distinct."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def sha256_file(path: Path) -> str:
    """Give the hash of a file's bytes in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def arrow_schema(model: type[Record]) -> "pa.Schema":
    """Give the Arrow schema of a record: columns = fields, in the order they are declared."""
    import pyarrow as pa

    return pa.schema([_arrow_field(name, info.annotation) for name, info in model.model_fields.items()])


@contextmanager
def atomic_path(path: Path) -> Generator[Path, None, None]:
    """Give a temporary path beside `path` to write to; rename it at the end, remove it on any error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically as UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, record: Record) -> None:
    """Write one record as indented JSON, keys sorted, atomically."""
    value = record.model_dump(mode="json")
    write_text(path, json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, model: type[R]) -> R:
    """Read one record; an `InputError` names the file and each field that is wrong."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; a folder without its {path.name} is not complete")
    try:
        return model.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise InputError(f"{path} is not a valid {model.__name__}: {explain(error)}") from None


def explain(error: ValidationError, limit: int = 3) -> str:
    """Give the first `limit` problems of a pydantic error as `field: what is wrong (got value)`."""
    problems = [
        f"{'.'.join(str(part) for part in item['loc']) or '(whole)'}: {item['msg']} (got {shorten(item['input'])})"
        for item in error.errors()[:limit]
    ]
    more = error.error_count() - limit
    return "; ".join(problems) + (f"; and {more} more" if more > 0 else "")


def frame_from_records(records: Iterable[Record], model: type[Record]) -> "pl.DataFrame":
    """Give records as a Polars frame with the columns and types of `arrow_schema(model)`."""
    import polars as pl
    import pyarrow as pa

    rows = [record.model_dump(mode="python") for record in records]
    return _as_frame(pl.from_arrow(pa.Table.from_pylist(rows, schema=arrow_schema(model))))


def write_table(path: Path, frame: "pl.DataFrame", model: type[Record], sort_by: Sequence[str]) -> FileEntry:
    """Write a frame of `model`'s columns as Parquet, sorted by `sort_by` (a unique key), and give its entry.

    Raises InputError when columns are missing, unknown, or the key is not unique.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = arrow_schema(model)
    if set(frame.columns) != set(schema.names):
        difference = sorted(set(frame.columns) ^ set(schema.names))
        raise InputError(f"{path}: columns {difference} are missing or unknown for {model.__name__}")
    frame = frame.select(schema.names).sort(*sort_by)
    if frame.height and frame.select(sort_by).is_duplicated().any():
        first = frame.select(sort_by).filter(frame.select(sort_by).is_duplicated()).row(0)
        raise InputError(f"{path}: {', '.join(sort_by)} = {first} occurs twice; each {model.__name__} must be unique")
    table = pa.Table.from_batches(frame.to_arrow().cast(schema).combine_chunks().to_batches(), schema=schema)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", row_group_size=100_000)
    return FileEntry(rows=frame.height, sha256=sha256_file(path))


def read_table(path: Path, model: type[Record]) -> "pl.DataFrame":
    """Read a Parquet file of records as a frame; its columns and types must be those of `model`."""
    import polars as pl
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise InputError(f"{path} does not exist")
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise InputError(f"{path} is not a whole Parquet file: {str(error).splitlines()[0]}") from None
    schema = arrow_schema(model)
    try:
        table = table.select(schema.names).cast(schema) if set(table.column_names) == set(schema.names) else None
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise InputError(f"{path}: a column has the wrong type for {model.__name__}: {error}") from None
    if table is None:
        found = sorted(pq.read_schema(path).names)
        raise InputError(f"{path} has the columns {found}; {model.__name__} needs {sorted(schema.names)}")
    return _as_frame(pl.from_arrow(table))


def read_records(path: Path, model: type[R]) -> list[R]:
    """Read a Parquet file as validated records; for tables that fit in memory row by row."""
    records: list[R] = []
    for index, row in enumerate(read_table(path, model).iter_rows(named=True)):
        try:
            records.append(model.model_validate(row))
        except ValidationError as error:
            raise InputError(f"{path}, row {index}: {explain(error)}") from None
    return records


def iter_records(path: Path, model: type[R], batch_rows: int = 1_000) -> Iterator[R]:
    """Read a Parquet file as validated records, `batch_rows` of them in memory at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise InputError(f"{path} does not exist")
    index = 0
    try:
        with pq.ParquetFile(path) as file:
            if set(file.schema_arrow.names) != set(model.model_fields):
                found = sorted(file.schema_arrow.names)
                raise InputError(f"{path} has the columns {found}; {model.__name__} needs {sorted(model.model_fields)}")
            for batch in file.iter_batches(batch_rows, use_threads=False):
                for row in batch.to_pylist():
                    yield model.model_validate(row)
                    index += 1
    except pa.ArrowInvalid as error:
        raise InputError(f"{path} is not a whole Parquet file: {str(error).splitlines()[0]}") from None
    except ValidationError as error:
        raise InputError(f"{path}, row {index}: {explain(error)}") from None


def table_batches(path: Path, model: type[Record], batch_rows: int = 2_000) -> "Iterator[pa.RecordBatch]":
    """Read a Parquet file of records as Arrow batches, unvalidated; its columns and types must be those of `model`."""
    import pyarrow.parquet as pq

    schema = arrow_schema(model)
    with pq.ParquetFile(path) as file:
        if not file.schema_arrow.equals(schema):
            raise InputError(f"{path} is no table of {model.__name__}: {shorten(file.schema_arrow.names)}")
        yield from file.iter_batches(batch_rows, use_threads=False)


@contextmanager
def table_writer(
    path: Path, model: type[Record], group_rows: int = 5_000
) -> Generator[Callable[[Record | dict[str, Any]], None], None, None]:
    """Give a function that appends a record to a Parquet file, which appears under its name when the block ends.

    A dict stands for a record whose fields were checked already. The rows stay in the order they come in;
    `group_rows` of them are held in memory, and bytes depend on rows alone.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = arrow_schema(model)
    waiting: list[dict[str, Any]] = []
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(waiting, schema=schema))
            waiting.clear()

        def write(record: Record | dict[str, Any]) -> None:
            waiting.append(record if isinstance(record, dict) else record.model_dump(mode="python"))
            if len(waiting) >= group_rows:
                flush()

        yield write
        flush()
        writer.close()


@contextmanager
def batch_writer(
    path: Path, model: type[Record], group_rows: int
) -> "Generator[Callable[[pa.RecordBatch], None], None, None]":
    """Give a function that appends Arrow batches of `model`'s schema to a Parquet file, which appears under its name
    when the block ends. Row groups have `group_rows` rows however these come; the bytes of one group are those of
    `write_table`. Two groups are in memory at most, and the batch."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = arrow_schema(model)
    waiting: list[pa.RecordBatch] = []
    groups = 0
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:

        def write(batch: "pa.RecordBatch") -> None:
            nonlocal groups
            waiting.append(batch)
            while sum(part.num_rows for part in waiting) >= group_rows:
                joined = pa.Table.from_batches(waiting, schema=schema)
                writer.write_table(joined.slice(0, group_rows).combine_chunks(), row_group_size=group_rows)
                waiting[:] = joined.slice(group_rows).to_batches()
                groups += 1

        yield write
        rest = pa.Table.from_batches(waiting, schema=schema)
        if rest.num_rows or not groups:
            writer.write_table(rest.combine_chunks(), row_group_size=group_rows)
        writer.close()


def content_hash(tasks: Sequence[Record], files: dict[str, FileEntry], extra: Sequence[str] = ()) -> str:
    """Give the hash that identifies a folder's content, independent of its name, place and time."""
    value = {
        "tasks": [task.model_dump(mode="json") for task in tasks],
        "files": {name: entry.sha256 for name, entry in files.items()},
        "extra": list(extra),
    }
    return sha256_text(canonical_json(value))


def plain_type(annotation: Any) -> Any:
    """Give the type of a field's value without None, Annotated and Literal: a scalar, a record or a tuple."""
    inner, _ = _without_none(annotation)
    if get_origin(inner) is Annotated:
        return plain_type(get_args(inner)[0])
    return type(get_args(inner)[0]) if get_origin(inner) is Literal else inner


def _as_frame(value: Any) -> "pl.DataFrame":
    import polars as pl

    assert isinstance(value, pl.DataFrame)
    return value


def _arrow_field(name: str, annotation: Any) -> "pa.Field[Any]":
    import pyarrow as pa

    inner, nullable = _without_none(annotation)
    return pa.field(name, _arrow_type(inner), nullable=nullable)


def _without_none(annotation: Any) -> tuple[Any, bool]:
    if get_origin(annotation) in (Union, types.UnionType):
        rest = [part for part in get_args(annotation) if part is not type(None)]
        assert len(rest) == 1, f"a column holds one type, not {annotation}"
        return rest[0], True
    return annotation, False


def _arrow_type(annotation: Any) -> "pa.DataType":
    import pyarrow as pa

    origin = get_origin(annotation)
    if origin is Annotated:
        return _arrow_type(get_args(annotation)[0])
    if origin is Literal:
        return _arrow_type(type(get_args(annotation)[0]))
    if origin is tuple:
        return pa.list_(_arrow_type(get_args(annotation)[0]))
    if isinstance(annotation, type) and issubclass(annotation, Record):
        return pa.struct([_arrow_field(name, info.annotation) for name, info in annotation.model_fields.items()])
    return {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}[annotation]
