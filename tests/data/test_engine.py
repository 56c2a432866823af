"""Batches in, batches out, in order: in this process, in several, and on a Ray cluster that loses a node."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pyarrow as pa
import pytest

from tagpr_data import engine
from tagpr_data.engine import map_batches
from tagpr_data.errors import CheckFailed, InputError

_spec = spec_from_file_location("engine_functions", Path(__file__).with_name("engine_functions.py"))
assert _spec is not None
assert _spec.loader is not None
functions = module_from_spec(_spec)
sys.modules["engine_functions"] = functions
_spec.loader.exec_module(functions)


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes take over `sys.path`, those of Ray the environment."""
    folder = str(Path(__file__).parent)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", folder)


def _batches(count: int, rows: int = 10) -> list[pa.RecordBatch]:
    """A table of 0, 1, 2, … cut into slices, as a reader gives them."""
    table = pa.table({"x": pa.array(range(count * rows), pa.int64())})
    return [table.slice(start, rows).to_batches()[0] for start in range(0, count * rows, rows)]


def _numbers(batches: Iterator[pa.RecordBatch]) -> list[int]:
    return [x for batch in batches for x in batch["x"].to_pylist()]


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_batches(workers: int) -> None:
    assert _numbers(map_batches(iter(_batches(20)), functions.doubled, workers=workers)) == list(range(0, 400, 2))


def test_no_batch_gives_no_batch() -> None:
    assert list(map_batches([], functions.doubled, workers=2)) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_a_refusal_names_its_batch_and_stays_a_refusal(workers: int) -> None:
    with pytest.raises(CheckFailed, match=r"^batch 5 \(rows 50 to 59\): x is 57$"):
        list(map_batches(_batches(9), partial(functions.refused_at, x=57), workers=workers))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_fault_of_the_function_keeps_its_kind_and_says_which_batch(workers: int) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        list(map_batches(_batches(9), partial(functions.broken_at, x=31), workers=workers))
    assert caught.value.__notes__ == ["in batch 3 (rows 30 to 39)"]


def test_a_killed_worker_is_told_of_and_not_waited_for() -> None:
    with pytest.raises(InputError, match=r"a worker process died at batch .* fewer workers"):
        list(map_batches(_batches(9), partial(functions.killed_at, x=31), workers=2))


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_are_taken_only_as_results_are(workers: int) -> None:
    taken: list[int] = []

    def source() -> Iterator[pa.RecordBatch]:
        for number, batch in enumerate(_batches(50)):
            taken.append(number)
            yield batch

    results = map_batches(source(), functions.doubled, workers=workers)
    for _ in range(10):
        next(results)
    assert len(taken) <= 10 + 2 * workers
    results.close()  # type: ignore[attr-defined]


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = (
        "import pyarrow as pa\nfrom functools import partial\nfrom pathlib import Path\n"
        "from engine_functions import with_pid\nfrom tagpr_data.engine import map_batches\n"
        "if __name__ == '__main__':\n"
        f"    batches = (pa.record_batch({{'x': [x]}}) for x in range(10**9))\n"
        f"    for _ in map_batches(batches, partial(with_pid, folder=Path({str(tmp_path)!r})), workers=2): pass\n"
    )
    path = tmp_path / "script.py"
    path.write_text(script, encoding="utf-8")
    with subprocess.Popen([sys.executable, path]) as parent:
        _wait_for(lambda: len(_pids(tmp_path)) == 2)
        parent.kill()
    _wait_for(lambda: not any(_is_alive(pid) for pid in _pids(tmp_path)))


def _pids(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    return state != "Z"  # an orphan may wait for whoever inherits it


def _wait_for(is_true: object, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():  # type: ignore[operator]
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "dask"}, "engine 'dask' is unknown; expected local or ray"),
        ({"workers": 0}, "workers is 0; expected 1 or more"),
        ({"address": "auto"}, "address 'auto' belongs to engine ray"),
        ({"engine": "ray"}, "needs the address of a running cluster"),
        ({"engine": "ray", "address": "nonsense"}, "'nonsense' is not of the form 10.0.0.1:6379"),
        ({"engine": "ray", "address": "127.0.0.1:1"}, "no Ray cluster answers at '127.0.0.1:1'"),
    ],
)
def test_wrong_use_is_refused_with_what_would_be_right(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(map_batches(_batches(1), functions.doubled, **options))  # type: ignore[arg-type]


def test_without_ray_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'tagpr-data\[ray\]'"):
        list(map_batches(_batches(1), functions.doubled, engine="ray", address="auto"))


@pytest.mark.slow
def test_a_cluster_that_loses_a_node_on_the_way_gives_the_rows_of_the_local_run() -> None:
    from ray.cluster_utils import Cluster

    node: dict[str, object] = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        second = cluster.add_node(**node)
        cluster.wait_for_nodes()
        batches = _batches(60, rows=2_000)  # results of 16 kB, in the owner's memory, and inputs that travel
        slowly = partial(functions.doubled_slowly, seconds=0.05)
        rows: list[int] = []
        for number, batch in enumerate(map_batches(batches, slowly, engine="ray", address=cluster.address)):
            rows += batch["x"].to_pylist()
            if number == 10:
                cluster.remove_node(second, allow_graceful=False)
        assert rows == _numbers(map_batches(batches, functions.doubled, workers=1))
        with pytest.raises(CheckFailed, match=r"^batch 5 \(rows 50 to 59\): x is 57$"):
            refusing = partial(functions.refused_at, x=57)
            list(map_batches(_batches(9), refusing, engine="ray", address=cluster.address))
    finally:
        cluster.shutdown()


def _two_cores(pid: int) -> set[int]:
    return {pid, pid + 1}


def test_few_rows_are_worked_on_in_this_process_and_more_in_others_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "FEW_ROWS", 30)
    monkeypatch.setattr(os, "sched_getaffinity", _two_cores)
    here = os.getpid()
    assert set(_numbers(map_batches(_batches(3), functions.process_ids))) == {here}
    assert here not in _numbers(map_batches(_batches(4), functions.process_ids))
    assert here not in _numbers(map_batches(_batches(3), functions.process_ids, workers=2))
