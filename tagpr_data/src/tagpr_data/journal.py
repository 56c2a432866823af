"""An append-only file of records that survives `kill -9`, and the lock that keeps a second process out.

Guarantee: a record handed to `append` is in the file when the call returns; after a kill at any point, reopening
drops at most one torn last line. Price: one line of JSON and one write per record. `Journal` holds the records it
found in memory, `IndexedJournal` only where each one lies (about 200 bytes a record).
"""

import fcntl
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Generic, Self, TypeVar

from pydantic import ValidationError

from tagpr_data.errors import InputError
from tagpr_data.records import Record
from tagpr_data.tables import explain

R = TypeVar("R", bound=Record)


class Journal(Generic[R]):
    """Records of one kind in a JSON-lines file; `rows` holds what was there when it was opened, in order."""

    def __init__(self, path: Path, model: type[R]) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows: list[R] = [record for _, record in _recovered(path, model)]
        self._file: IO[bytes] = path.open("ab", buffering=0)

    def append(self, record: R) -> None:
        """Write one record; on a full disk the torn line is cut off again before the error is raised."""
        _append(self._file, record)

    def close(self) -> None:
        """Bring the file to the disk and close it."""
        os.fsync(self._file.fileno())
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class IndexedJournal(Generic[R]):
    """Records with a hash as `id` in a JSON-lines file, read back one by one: for more of them than memory holds.

    Of two records with one id the later counts. `on_row` sees every record found at opening.
    """

    def __init__(self, path: Path, model: type[R], on_row: Callable[[R], object] = lambda row: None) -> None:
        self.path = path
        self._model = model
        path.parent.mkdir(parents=True, exist_ok=True)
        self._starts: dict[bytes, int] = {}
        for start, record in _recovered(path, model):
            self._starts[_key(record)] = start
            on_row(record)
        self._file: IO[bytes] = path.open("ab", buffering=0)
        self._reader: IO[bytes] = path.open("rb")

    def __len__(self) -> int:
        return len(self._starts)

    def __contains__(self, identity: str) -> bool:
        return bytes.fromhex(identity) in self._starts

    def append(self, record: R) -> None:
        """Write one record; on a full disk the torn line is cut off again before the error is raised."""
        start = self._file.seek(0, os.SEEK_END)
        _append(self._file, record)
        self._starts[_key(record)] = start

    def read(self, identity: str) -> R:
        """Give the record with this id; KeyError when there is none."""
        return self._model.model_validate_json(self._line(identity))

    def read_fields(self, identity: str) -> dict[str, Any]:
        """Give the fields of the record with this id as they stand in the file, unvalidated: for writing on what
        opening or `append` has checked, at a third of the time of `read`."""
        import orjson

        return orjson.loads(self._line(identity))

    def _line(self, identity: str) -> bytes:
        self._reader.seek(self._starts[bytes.fromhex(identity)])
        return self._reader.readline()

    def close(self) -> None:
        """Bring the file to the disk and close it."""
        self._reader.close()
        os.fsync(self._file.fileno())
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def folder_lock(folder: Path) -> Generator[None, None, None]:
    """Hold `folder` for this process; a second one gets an `InputError` that names the first.

    The lock is the operating system's, so it goes with the process, however that ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise InputError(
                f"{folder} is in use by process {owner}; wait for it, stop it, or choose another folder"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _append(file: IO[bytes], record: Record) -> None:
    line = record.model_dump_json().encode("utf-8", "surrogatepass") + b"\n"
    start = file.tell()
    try:
        written = 0
        while written < len(line):
            written += file.write(line[written:])
    except OSError:
        file.truncate(start)
        raise


def _recovered(path: Path, model: type[R]) -> Iterator[tuple[int, R]]:
    """Give where each record starts, and the record; a torn last line is cut off the file."""
    if not path.exists():
        return
    start = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                yield start, model.model_validate_json(line)
            except ValidationError as error:
                raise InputError(f"{path}, line {number} is not a {model.__name__}: {explain(error)}") from None
            start += len(line)
    if start < path.stat().st_size:
        os.truncate(path, start)


def _key(record: Record) -> bytes:
    return bytes.fromhex(getattr(record, "id"))  # noqa: B009 - only the records of this journal have one
