"""Several processes as one run (`torchrun`, `accelerate launch`): who writes, and how all of them decide alike.

A rank is one process of the run; the first one (rank 0) holds the folder's lock, writes every file and reports. With
one process every function here is what it says without any communication. All of them are collective: each rank calls
them in the same order. Guarantee: when a rank goes away, the others end with a message instead of waiting.
"""

import functools
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from tagpr_data.errors import CheckFailed, TagprError

T = TypeVar("T")

_LOST = ("connection closed by peer", "connection reset by peer", "connection refused", "broken pipe", "timed out")


def count() -> int:
    """Give the number of processes of this run."""
    group = _group()
    return group.get_world_size() if group else 1


def index() -> int:
    """Give the rank of this process, from 0."""
    group = _group()
    return group.get_rank() if group else 0


def is_first() -> bool:
    """Whether this process is the one that writes and reports."""
    return index() == 0


def is_first_launched() -> bool:
    """As `is_first`, from the launcher's environment: before torch is there, for a command's messages."""
    return os.environ.get("RANK", "0") == "0"


def wait() -> None:
    """Wait until every rank is here."""
    if group := _group():
        group.barrier()


def from_first(value: T) -> T:
    """Give every rank the first one's value, which must pickle."""
    group = _group()
    if group is None:
        return value
    box = [value]
    group.broadcast_object_list(box, src=0)
    return box[0]


def first_does(work: Callable[[], T]) -> T:
    """Let the first rank do `work` and give its result to all. Where it fails, its error is raised there, and the other
    ranks leave without a word and with the same exit code."""
    if count() == 1:
        return work()
    result: T | None = None
    error: Exception | None = None
    if is_first():
        try:
            result = work()
        except Exception as caught:
            error = caught
    code = from_first(None if error is None else error.exit_code if isinstance(error, TagprError) else 1)
    if error is not None:
        raise error
    if code is not None:
        with suppress(RuntimeError):
            wait()  # until the first one is gone: a launcher ends it when another one ends before its message
        raise SystemExit(code)
    return from_first(result)  # pyright: ignore[reportReturnType] - there is one when there is no error


def gathered(values: Sequence[T]) -> list[T]:
    """Give the values of all ranks, those of the first one first; they must pickle."""
    group = _group()
    if group is None:
        return list(values)
    parts: list[Any] = [None] * group.get_world_size()
    group.all_gather_object(parts, list(values))
    return [value for part in parts for value in part]


def summed(*values: float) -> list[float]:
    """Give the sums over all ranks, in double precision."""
    group = _group()
    if group is None:
        return list(values)
    import torch

    device = "cuda" if group.get_backend() == "nccl" else "cpu"
    total = torch.tensor(values, dtype=torch.float64, device=device)
    group.all_reduce(total)
    return total.tolist()


@contextmanager
def lost_ranks_named() -> Generator[None, None, None]:
    """Turn the error of a connection to a rank that is gone into a message: CheckFailed."""
    try:
        yield
    except RuntimeError as error:
        if count() == 1 or not any(sign in str(error).lower() for sign in _LOST):
            raise
        raise CheckFailed(
            f"another process of this run is gone, so rank {index()} stops too ({str(error).splitlines()[0]}). "
            "The same command with --resume goes on from the last checkpoint"
        ) from error


@functools.cache
def _module() -> Any:
    import torch.distributed

    return torch.distributed


def _group() -> Any:
    """Give torch.distributed where it is in use."""
    group = _module()
    return group if group.is_available() and group.is_initialized() else None
