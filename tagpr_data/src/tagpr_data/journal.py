"""An append-only file of records that survives `kill -9`, and the lock that keeps a second process out.

Guarantee: a record handed to `append` is in the file when the call returns; after a kill at any point, reopening
drops at most one torn last line. Price: one line of JSON and one write per record.
"""

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Generic, Self, TypeVar

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
        self.rows: list[R] = _recover(path, model)
        self._file: IO[bytes] = path.open("ab", buffering=0)

    def append(self, record: R) -> None:
        """Write one record; on a full disk the torn line is cut off again before the error is raised."""
        line = record.model_dump_json().encode("utf-8", "surrogatepass") + b"\n"
        start = self._file.tell()
        try:
            written = 0
            while written < len(line):
                written += self._file.write(line[written:])
        except OSError:
            self._file.truncate(start)
            raise

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


def _recover(path: Path, model: type[R]) -> list[R]:
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
    rows: list[R] = []
    for number, line in enumerate(content[:whole].splitlines(), start=1):
        try:
            rows.append(model.model_validate_json(line))
        except ValidationError as error:
            raise InputError(f"{path}, line {number} is not a {model.__name__}: {explain(error)}") from None
    return rows
