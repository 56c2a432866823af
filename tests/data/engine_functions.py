"""Functions that worker processes can import: the folder of this file is put on their path."""

import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from tagpr_data.errors import CheckFailed


def doubled(batch: pa.RecordBatch) -> pa.RecordBatch:
    return pa.record_batch({"x": pc.multiply(batch["x"], 2)})


def doubled_slowly(batch: pa.RecordBatch, seconds: float) -> pa.RecordBatch:
    time.sleep(seconds)
    return doubled(batch)


def refused_at(batch: pa.RecordBatch, x: int) -> pa.RecordBatch:
    if x in batch["x"].to_pylist():
        raise CheckFailed(f"x is {x}")
    return batch


def broken_at(batch: pa.RecordBatch, x: int) -> pa.RecordBatch:
    if x in batch["x"].to_pylist():
        raise ZeroDivisionError("a fault of the function")
    return batch


def killed_at(batch: pa.RecordBatch, x: int) -> pa.RecordBatch:
    import os
    import signal

    if x in batch["x"].to_pylist():
        os.kill(os.getpid(), signal.SIGKILL)
    return batch


def with_pid(batch: pa.RecordBatch, folder: Path) -> pa.RecordBatch:
    """Leave the process id behind and take a while."""
    import os

    (folder / str(os.getpid())).touch()
    time.sleep(0.05)
    return batch


def process_ids(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Give the process that works on a batch."""
    import os

    return pa.record_batch({"x": pa.array([os.getpid()], pa.int64())})
