"""Per-row work on many batches: one function from Arrow batch to Arrow batch, run on all cores or on a Ray cluster.

    for batch in map_batches(batches, partial(judged, tagset=tagset), workers=2): ...

Guarantee: results come in the order of the batches, whichever engine runs them; batches are taken from their iterator
only as results are taken (but for the first `FEW_ROWS` rows), so memory does not grow with their number; a failure
names the batch and its rows. A worker process that outlives this one ends itself. On Ray, what ran or lay on a node
that was lost is run again, so the function must give the same rows for the same batch.

Price: a batch and its result are copied to another process and back (batches of 1,000 to 10,000 rows hide it), the
function is pickled once per worker, and a worker's start costs one Python and its imports, about a second.
At most two batches per worker are under way. One local worker, a single batch or, where the number of workers is not
given, all of at most `FEW_ROWS` rows are worked on in this process, which costs nothing.

On Ray these are plain tasks and not a Ray Data pipeline: Ray Data wants the whole input as its own blocks, tasks take
any iterator and need no further dependency. Where tasks run, and again after a fault, is Ray's business.
"""

import logging
import os
import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

from tagpr_data.errors import InputError, TagprError, shorten

if TYPE_CHECKING:
    from concurrent.futures import Future

    import pyarrow as pa

EngineName = Literal["local", "ray"]
BatchFunction = Callable[["pa.RecordBatch"], "pa.RecordBatch"]

_AHEAD = 2
"""Batches under way per worker: one at work, one waiting, so that no worker waits for the reader."""
FEW_ROWS = 10_000
"""Up to so many rows are done before worker processes would have started and imported what they need."""


@dataclass(frozen=True)
class Engine:
    """Where rows are worked on; the arguments of `map_batches`."""

    name: EngineName = "local"
    workers: int | None = None
    """None: all cores; for few rows this process alone."""
    address: str | None = None


LOCAL = Engine()


def map_batches(
    batches: "Iterable[pa.RecordBatch]",
    function: BatchFunction,
    *,
    engine: EngineName = "local",
    workers: int | None = None,
    address: str | None = None,
) -> "Iterator[pa.RecordBatch]":
    """Give `function(batch)` for each batch, in order.

    function: picklable (of a module, or a functools.partial of such a one), without side effects.
    workers: processes of engine `local`, tasks at once of engine `ray`; None takes all cores of the machine or cluster,
    and this process alone for few rows.
    address: of an existing Ray cluster, as `10.0.0.1:6379`, or `auto` for one that runs on this machine. Its nodes need
    the same Python and tagpr_data installed.

    Raises InputError for an engine that cannot be used, or when a worker died. A TagprError of the function is raised
    as one that names the batch; any other exception gets the batch as a note.
    """
    check(Engine(engine, workers, address))
    if engine == "ray":
        return _on_ray(batches, function, workers, address)
    few_rows = FEW_ROWS if workers is None else 0
    workers = workers or len(os.sched_getaffinity(0))
    return _here(batches, function) if workers == 1 else _in_processes(batches, function, workers, few_rows)


def check(engine: Engine) -> None:
    """Raise InputError for an engine that cannot be used, so that nothing long begins before it is known."""
    if engine.workers is not None and engine.workers < 1:
        raise InputError(f"workers is {engine.workers}; expected 1 or more")
    if engine.name == "ray":
        _check_ray(engine.address)
    elif engine.name != "local":
        raise InputError(f"engine {engine.name!r} is unknown; expected local or ray")
    elif engine.address is not None:
        raise InputError(f"address {engine.address!r} belongs to engine ray; the engine is local")


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a batch stands in the input, for messages."""

    number: int
    first_row: int
    rows: int

    def __str__(self) -> str:
        last = self.first_row + self.rows - 1
        return f"batch {self.number} (rows {self.first_row} to {last})" if self.rows else f"batch {self.number} (empty)"


def _placed(batches: "Iterable[pa.RecordBatch]") -> "Iterator[tuple[_Place, pa.RecordBatch]]":
    first_row = 0
    for number, batch in enumerate(batches):
        yield _Place(number, first_row, batch.num_rows), batch
        first_row += batch.num_rows


def _naming(error: BaseException, place: _Place) -> BaseException:
    """Give the error, with the batch in its message or, where it is not ours, as a note."""
    if isinstance(error, TagprError):
        return type(error)(f"{place}: {error}")
    error.add_note(f"in {place}")
    return error


def _here(batches: "Iterable[pa.RecordBatch]", function: BatchFunction) -> "Iterator[pa.RecordBatch]":
    for place, batch in _placed(batches):
        try:
            done = function(batch)
        except Exception as error:
            raise _naming(error, place) from error.__cause__
        yield done


def _in_processes(
    batches: "Iterable[pa.RecordBatch]", function: BatchFunction, workers: int, few_rows: int
) -> "Iterator[pa.RecordBatch]":
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    source = iter(batches)
    first: list[pa.RecordBatch] = []
    while len(first) < 2 or sum(batch.num_rows for batch in first) <= few_rows:
        if (batch := next(source, None)) is None:  # not worth a process
            yield from _here(first, function)
            return
        first.append(batch)
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (pickle.dumps(function),))
    under_way: deque[tuple[_Place, Future[bytes]]] = deque()

    def oldest() -> "pa.RecordBatch":
        place, future = under_way.popleft()
        try:
            return _batch_from_bytes(future.result())
        except BrokenProcessPool:
            raise InputError(
                f"a worker process died at {place} or at most {len(under_way)} batches after it, perhaps for want of "
                "memory; try fewer workers"
            ) from None
        except Exception as error:
            raise _naming(error, place) from error.__cause__

    try:
        for place, batch in _placed(chain(first, source)):
            under_way.append((place, pool.submit(_work, _bytes_from_batch(batch))))
            if len(under_way) >= _AHEAD * workers:
                yield oldest()
        while under_way:
            yield oldest()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_pickled = b""
"""In a worker process: the function."""


def _start_worker(pickled: bytes) -> None:
    """Make a fresh process a worker: it leaves Ctrl-C to its parent and ends when that is gone."""
    import signal
    from threading import Thread

    global _pickled
    _pickled = pickled
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    from multiprocessing import parent_process
    from multiprocessing.connection import wait

    parent = parent_process()
    assert parent is not None, "a worker has a parent"
    wait([parent.sentinel])
    os._exit(1)


def _work(batch: bytes) -> bytes:
    return _bytes_from_batch(_unpickled(_pickled)(_batch_from_bytes(batch)))


@lru_cache(maxsize=1)
def _unpickled(function: bytes) -> BatchFunction:
    return pickle.loads(function)


def _on_ray(
    batches: "Iterable[pa.RecordBatch]", function: BatchFunction, workers: int | None, address: str | None
) -> "Iterator[pa.RecordBatch]":
    ray, is_ours = _connected_ray(address)
    under_way: deque[tuple[_Place, Any]] = deque()

    def oldest() -> "pa.RecordBatch":
        place, reference = under_way.popleft()
        try:
            return _batch_from_bytes(ray.get(reference))
        except ray.exceptions.RayTaskError as error:
            raise _naming(error.cause, place) from None
        except ray.exceptions.RayError as error:
            raise InputError(f"Ray lost {place} and could not make it again: {shorten(str(error), 300)}") from None

    try:
        at_once = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        remote = ray.remote(_work_on_ray)
        shared = ray.put(pickle.dumps(function))
        for place, batch in _placed(batches):
            under_way.append((place, remote.remote(shared, _bytes_from_batch(batch))))
            if len(under_way) >= _AHEAD * at_once:
                yield oldest()
        while under_way:
            yield oldest()
    finally:
        for _, reference in under_way:
            ray.cancel(reference)
        if is_ours:
            ray.shutdown()


def _connected_ray(address: str | None) -> tuple[Any, bool]:
    """Give the module ray, connected, and whether it was this call that connected it."""
    import ray
    import ray.exceptions  # pyright: ignore[reportUnusedImport] - used as ray.exceptions

    if ray.is_initialized():
        return ray, False
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(f"no Ray cluster could be joined at {address!r}: {shorten(str(error), 300)}") from None
    return ray, True


def _check_ray(address: str | None) -> None:
    try:
        import ray
    except ImportError:
        raise InputError("engine ray needs the package ray: pip install 'tagpr-data[ray]'") from None
    if ray.is_initialized():
        return
    if address is None:
        raise InputError("engine ray needs the address of a running cluster, as 10.0.0.1:6379, or auto for one here")
    if address != "auto":
        _check_reachable(address)


def _check_reachable(address: str) -> None:
    """Raise InputError where nobody listens: Ray itself would try for more than ten minutes."""
    from socket import create_connection

    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise InputError(f"address {address!r} is not of the form 10.0.0.1:6379, and not auto")
    try:
        create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise InputError(f"no Ray cluster answers at {address!r}: {error}") from None


def _work_on_ray(function: bytes, batch: bytes) -> bytes:
    return _bytes_from_batch(_unpickled(function)(_batch_from_bytes(batch)))


def _bytes_from_batch(batch: "pa.RecordBatch") -> bytes:
    """Give a batch as an Arrow stream; of a slice only its rows, where pickle would take the whole it was cut from."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def _batch_from_bytes(stream: bytes) -> "pa.RecordBatch":
    import pyarrow as pa

    return pa.ipc.open_stream(stream).read_next_batch()
