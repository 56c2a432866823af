"""Nothing appended is lost, a torn line is dropped, and two processes do not share a folder."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tagpr_data.errors import InputError
from tagpr_data.journal import IndexedJournal, Journal, folder_lock
from tagpr_data.records import Message, Rejected, Sampling


def message(number: int) -> Message:
    return Message(role="user", content=f"line {number}\nwith a break and é")


def test_rows_come_back_in_order(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.jsonl", Message) as journal:
        for number in range(5):
            journal.append(message(number))
    with Journal(tmp_path / "j.jsonl", Message) as again:
        assert again.rows == [message(number) for number in range(5)]


def test_a_torn_last_line_is_dropped_and_redone(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with Journal(path, Message) as journal:
        journal.append(message(0))
        journal.append(message(1))
    whole = path.read_bytes()
    for cut in range(len(whole) // 2 + 1, len(whole)):
        path.write_bytes(whole[:cut])
        with Journal(path, Message) as journal:
            assert journal.rows == [message(0)]
            journal.append(message(1))
        assert path.read_bytes() == whole


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    path.write_text('{"role": "user", "content": "x"}\nnonsense\n')
    with pytest.raises(InputError, match=r"j\.jsonl, line 2 is not a Message"):
        Journal(path, Message)


def test_unicode_line_separators_do_not_split_a_row(tmp_path: Path) -> None:
    row = Message(role="user", content="a\u2028b\x85c\x0cd")
    with Journal(tmp_path / "j.jsonl", Message) as journal:
        journal.append(row)
    with Journal(tmp_path / "j.jsonl", Message) as again:
        assert again.rows == [row]


def test_kill_minus_nine_loses_nothing_that_was_appended(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys\n"
        "from tagpr_data.journal import Journal\n"
        "from tagpr_data.records import Message\n"
        "journal = Journal(pathlib.Path(sys.argv[1]), Message)\n"
        "for n in range(10**9):\n"
        "    journal.append(Message(role='user', content=str(n)))\n"
        "    print(n, flush=True)\n"
    )
    path = tmp_path / "j.jsonl"
    process = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(200):
        last = int(process.stdout.readline())
    process.kill()
    process.wait()
    rest = process.stdout.read().split()
    process.stdout.close()
    last = max([last, *map(int, rest)])
    with Journal(path, Message) as journal:
        contents = [row.content for row in journal.rows]
    assert contents == [str(n) for n in range(len(contents))]
    assert len(contents) >= last + 1


def test_a_second_process_is_refused_and_told_who_holds_the_folder(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys, time\n"
        "from tagpr_data.journal import folder_lock\n"
        "with folder_lock(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(InputError, match=f"in use by process {process.pid}"), folder_lock(tmp_path):
        pass
    process.kill()
    process.wait()
    process.stdout.close()
    for _ in range(50):
        try:
            with folder_lock(tmp_path):
                return
        except InputError:
            time.sleep(0.1)
    pytest.fail("the lock did not go with its process")


def pointed(number: int, text: str) -> Rejected:
    return Rejected(
        id=f"{number:064x}", example_id="e", task="t", user_id="u", retriever="bm25", k=0, item_ids=(), messages=(),
        prompt_hash="0" * 64, teacher="t", teacher_revision="1", sampling=Sampling(), seed=0, attempt=0, text=text,
        finish_reason="stop", reason="grammar", detail="",
    )  # fmt: skip


def test_an_indexed_journal_reads_back_any_row_after_a_torn_line_and_the_later_of_two(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    rows = [pointed(1, "one\u2028é"), pointed(2, "two"), pointed(1, "one again")]
    with IndexedJournal(path, Rejected) as journal:
        for row in rows:
            journal.append(row)
        assert journal.read(rows[1].id) == rows[1]
    with path.open("ab") as file:
        file.write(b'{"id": "torn')
    seen: list[Rejected] = []
    with IndexedJournal(path, Rejected, seen.append) as journal:
        assert seen == rows and len(journal) == 2
        assert rows[0].id in journal and f"{9:064x}" not in journal
        journal.append(pointed(3, "three"))
        assert [journal.read(f"{number:064x}").text for number in (3, 1, 2)] == ["three", "one again", "two"]
