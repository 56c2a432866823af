"""Deterministic bytes, atomic writes, and messages that name file, row and field."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tagpr_data.errors import InputError
from tagpr_data.records import Example, Message, ProfileItem, Sampling, Step, Trace
from tagpr_data.tables import (
    arrow_schema,
    atomic_path,
    frame_from_records,
    iter_records,
    read_json,
    read_records,
    read_table,
    table_writer,
    write_json,
    write_table,
)


def example(number: int) -> Example:
    return Example(
        id=f"e{number}", task="t", user_id="u", profile_id="p", profile_size=number, input="x – 中", date=None
    )


def trace() -> Trace:
    return Trace(
        id="0" * 64, example_id="e", task="t", user_id="u", retriever="bm25", k=2, item_ids=("a", "b"),
        messages=(Message(role="user", content="q"),), prompt_hash="1" * 64, teacher="scripted", teacher_revision="1",
        sampling=Sampling(stop=("x",)), seed=1, attempt=0, text="raw", finish_reason="stop", gold="g",
        steps=(Step(tag="draft_answer", text="…", cites=(1, 2)),), answer="a", score=1.0, claims=2, grounded_claims=1,
    )  # fmt: skip


def test_a_record_with_nested_parts_comes_back_equal(tmp_path: Path) -> None:
    frame = frame_from_records([trace()], Trace)
    write_table(tmp_path / "t.parquet", frame, Trace, ["id"])
    assert read_records(tmp_path / "t.parquet", Trace) == [trace()]


def test_an_empty_table_keeps_its_columns(tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", frame_from_records([], Trace), Trace, ["id"])
    assert read_table(tmp_path / "t.parquet", Trace).columns == arrow_schema(Trace).names


def test_the_order_of_rows_does_not_change_the_bytes(tmp_path: Path) -> None:
    rows = [example(number) for number in range(20)]
    first = write_table(tmp_path / "a.parquet", frame_from_records(rows, Example), Example, ["id"])
    second = write_table(tmp_path / "b.parquet", frame_from_records(rows[::-1], Example), Example, ["id"])
    assert first == second
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_a_key_that_occurs_twice_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"id = \('e1',\) occurs twice"):
        write_table(tmp_path / "t.parquet", frame_from_records([example(1), example(1)], Example), Example, ["id"])
    assert list(tmp_path.iterdir()) == []


def test_foreign_columns_are_named(tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", frame_from_records([example(1)], Example), Example, ["id"])
    with pytest.raises(InputError, match="ProfileItem needs"):
        read_table(tmp_path / "t.parquet", ProfileItem)


def test_a_truncated_parquet_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_table(path, frame_from_records([example(1)], Example), Example, ["id"])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"t\.parquet is not a whole Parquet file"):
        read_table(path, Example)


def test_a_row_that_breaks_a_rule_is_named(tmp_path: Path) -> None:
    frame = frame_from_records([example(1)], Example).with_columns(profile_size=-1)
    write_table(tmp_path / "t.parquet", frame, Example, ["id"])
    with pytest.raises(InputError, match=r"row 0: profile_size: .*greater than or equal to 0 \(got -1\)"):
        read_records(tmp_path / "t.parquet", Example)


def test_json_with_an_unknown_key_names_it(tmp_path: Path) -> None:
    path = tmp_path / "e.json"
    write_json(path, example(1))
    assert read_json(path, Example) == example(1)
    path.write_text(path.read_text().replace('"task"', '"tusk"'))
    with pytest.raises(InputError, match="tusk"):
        read_json(path, Example)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "x") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    """A file-size limit in a child process stands in for the full disk: the same error path, without a disk."""
    code = (
        "import resource, signal, sys, pathlib\n"
        "from tagpr_data.errors import run_cli\n"
        "from tagpr_data.tables import write_text\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "run_cli(lambda: write_text(pathlib.Path(sys.argv[1]), 'x' * 5000))\n"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "f"], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.startswith("error: File too large")
    assert list(tmp_path.iterdir()) == []


def test_records_written_and_read_one_by_one_are_the_same_bytes_however_they_came(tmp_path):
    rows = [Message(role="user", content=f"question {number}") for number in range(7)]
    for name in ("a", "b"):
        with table_writer(tmp_path / f"{name}.parquet", Message, group_rows=3) as write:
            for row in rows:
                write(row)
            assert not (tmp_path / f"{name}.parquet").exists()
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert list(iter_records(tmp_path / "a.parquet", Message, batch_rows=2)) == rows
    with table_writer(tmp_path / "none.parquet", Message):
        pass
    assert list(iter_records(tmp_path / "none.parquet", Message)) == []


def test_a_table_that_is_torn_or_of_another_record_is_named_when_read_one_by_one(tmp_path):
    with table_writer(tmp_path / "a.parquet", Message) as write:
        write(Message(role="user", content="x"))
    with pytest.raises(InputError, match=r"a\.parquet has the columns .* Step needs"):
        list(iter_records(tmp_path / "a.parquet", Step))
    (tmp_path / "a.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(InputError, match=r"a\.parquet is not a whole Parquet file"):
        list(iter_records(tmp_path / "a.parquet", Message))
