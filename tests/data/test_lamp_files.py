"""LaMP's files: every shape is read, every fault is named, memory stays small."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagpr_data.errors import InputError
from tagpr_data.lamp import files
from tagpr_data.lamp.files import (
    LampQuestion,
    load_outputs,
    read_outputs,
    read_questions,
    write_outputs,
    write_questions,
)

REVIEW = "What is the score of the following review on a scale of 1 to 5? … review: good"
ITEM = {"id": "i1", "text": "fine", "score": "4"}
ROW = {"id": "q1", "input": REVIEW, "profile": [ITEM]}


@pytest.fixture
def written(tmp_path):
    def write(content):
        path = tmp_path / "file.json"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


def questions(path, task="LaMP-3"):
    return list(read_questions(path, task))


def test_list_and_dict_shape_give_the_same_rows(written):
    expected = [LampQuestion("q1", REVIEW, (ITEM,))]
    assert questions(written([ROW])) == expected
    assert questions(written({"task": "LaMP_3", "golds": [ROW]})) == expected
    assert questions(written({"golds": [ROW], "task": "LaMP-3", "more": {"a": [1]}})) == expected


def test_user_id_and_date_are_kept_where_the_time_split_has_them(written):
    dated = {**ITEM, "date": "2015-03-07"}
    (question,) = questions(written([{**ROW, "user_id": 7, "profile": [dated]}]))
    assert (question.user_id, question.profile) == ("7", (dated,))


def test_numbers_are_cast_to_text(written):
    (question,) = questions(
        written([{**ROW, "id": 5, "profile": [{"id": 9, "text": "x", "score": 4.5, "date": 2015}]}])
    )
    assert question.id == "5"
    assert question.profile == ({"id": "9", "text": "x", "score": "4.5", "date": "2015"},)


def test_an_empty_profile_and_an_empty_list_are_read(written):
    assert questions(written([{**ROW, "profile": []}]))[0].profile == ()
    assert questions(written("[]")) == []
    assert questions(written(b"\xef\xbb\xbf \n[ ]\n")) == []


def test_real_lamp_3_file_is_read_as_json_reads_it(shared_lamp):
    path = shared_lamp / "LaMP_3_time_derived" / "dev_questions.json"
    rows = [{"id": q.id, "user_id": q.user_id, "input": q.input, "profile": list(q.profile)} for q in questions(path)]
    assert rows == json.loads(path.read_text(encoding="utf-8"))
    task, golds = read_outputs(path.with_name("dev_outputs.json"))
    assert (task, len(golds), golds["00005020_540"]) == ("LaMP-3", 30, "4")


_TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
    st.sampled_from(['x"}]}', "a]}, {", "\\]", '", "user_id": "u"}', "é中😀\u2028"]),
)
_NUMBERS = st.one_of(st.integers(-(10**25), 10**25), st.sampled_from([-0.0, 1e300, 0.1, 2.0**64]))
_VALUES = st.one_of(_TEXTS, _TEXTS, _TEXTS, _NUMBERS)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.fixed_dictionaries({"id": _VALUES, "text": _VALUES, "score": _TEXTS}), max_size=3),
            _VALUES,
            st.permutations(["id", "input", "profile", "user_id"]),
        ),
        max_size=4,
    ),
    st.sampled_from([None, 1, "\t"]),
    st.booleans(),
)
def test_quick_decoding_gives_what_json_gives(tmp_path_factory, rows, indent, ascii_only):
    values = [
        {key: {"id": f"q{number}", "input": user, "profile": items, "user_id": user}[key] for key in order}
        for number, (items, user, order) in enumerate(rows)
    ]
    path = tmp_path_factory.mktemp("q") / "q.json"
    path.write_text(json.dumps(values, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    expected = [
        LampQuestion(
            row["id"],
            str(row["input"]),
            tuple({field: str(value) for field, value in item.items()} for item in row["profile"]),
            str(row["user_id"]),
        )
        for row in values
    ]
    assert questions(path) == expected


def test_rows_of_text_are_decoded_quickly_wherever_the_reads_cut(written, monkeypatch):
    monkeypatch.setattr(files, "_CHUNK_BYTES", 4_000)
    monkeypatch.setattr(files._Stream, "_value", lambda stream: pytest.fail("decoded by json"))
    rows = [{**ROW, "id": str(n), "profile": [{**ITEM, "text": "a]b} [é" * 40}] * 9} for n in range(40)]
    for order in (("id", "input", "profile", "user_id"), ("profile", "id", "input")):
        path = written([{key: {**row, "user_id": "u"}[key] for key in order} for row in rows])
        assert [question.id for question in questions(path)] == [row["id"] for row in rows]


def test_of_equal_keys_the_last_wins(written):
    (question,) = questions(written(json.dumps([ROW]).replace('"score": "4"', '"score": "4", "score": "5"')))
    assert question.profile == ({**ITEM, "score": "5"},)


BAD_QUESTIONS = {
    "page": (b"\n<!DOCTYPE html><html>", "web page"),
    "empty": (b"", "is empty"),
    "text": (b"id,input\n1,2", "is not JSON"),
    "gzip": (b"\x1f\x8b\x08\x00abc", "not UTF-8"),
    "truncated-text": (json.dumps([ROW, ROW])[:-60].encode(), "truncated: it ends inside row 1"),
    "truncated-list": (json.dumps([ROW])[:-1].encode(), "truncated"),
    "truncated-key": (b'{"task": "LaMP_3", "golds"', "truncated"),
    "broken": (b'[{"id": "q1" "input": "x"}]' + b" " * 99, "row 0 is not JSON"),
    "no-comma": (json.dumps(ROW).join(["[", " ", "]"]).encode(), "expected ',' or ']', found '{'"),
    "no-colon": (b'{"golds" []}', "expected ':' behind 'golds', found '['"),
    "two-lists": (b"[] []", "goes on after its end"),
    "no-golds": (b'{"task": "LaMP_3"}', 'without a list "golds"'),
    "latin-1": (json.dumps([{**ROW, "input": "caf\xe9"}], ensure_ascii=False).encode("latin-1"), "not UTF-8"),
    "nan": (b'[{"id": "q1", "input": "x", "profile": [{"id": "i", "text": "t", "score": NaN}]}]', "score is nan"),
    "half-pair-in-item": ([{**ROW, "profile": [{**ITEM, "text": "\ud800"}]}], "item 0 (id 'i1'): text has half"),
    "half-pair": (json.dumps([{**ROW, "input": "a\ud800b"}]).encode(), "'\\ud800', at character 1"),
    "row-not-object": (b'["a"]', "row 0 is 'a'"),
    "deep": (b"[" * 200_000, "nested too deeply"),
    "no-id": ([{"input": REVIEW, "profile": []}], "row 0: id is missing"),
    "empty-id": ([{**ROW, "id": ""}], "id is empty"),
    "null-id": ([{**ROW, "id": None}], "row 0: id is None"),
    "same-id": ([ROW, {**ROW, "id": "q2"}, ROW], "row 2: id 'q1' occurs a second time"),
    "no-profile": ([{"id": "q1", "input": REVIEW}], "row 0 (id 'q1'): profile is None"),
    "no-score": ([{**ROW, "profile": [ITEM, {"id": "i2", "text": "x"}]}], "profile item 1 (id 'i2')"),
    "no-item-id": ([{**ROW, "profile": [{"text": "x", "score": "1"}]}], "id is missing"),
    "missing-and-more": ([{**ROW, "profile": [{"id": "i", "score": "1", "x": "y"}]}], "text is missing"),
    "null-text": ([{**ROW, "profile": [{**ITEM, "text": None}]}], "text is None; it must be text"),
    "bool-score": ([{**ROW, "profile": [{**ITEM, "score": True}]}], "score is True"),
    "item-not-object": ([{**ROW, "profile": ["x"]}], "profile item 0 is 'x'"),
    "other-task-items": ([{**ROW, "profile": [{"id": "i", "tag": "a", "description": "b"}]}], "as in LaMP-2;"),
    "other-task-input": ([{**ROW, "input": "Paraphrase the following tweet: x"}], "is one of LaMP-7"),
    "other-task-key": ({"task": "LaMP_7", "golds": [ROW]}, "task is 'LaMP_7', not LaMP-3"),
    "other-task-key-last": ({"golds": [ROW], "task": "LaMP_7"}, "task is 'LaMP_7', not LaMP-3"),
    "task-not-text": ({"task": 3, "golds": []}, "task is 3"),
    "outputs": ([{"id": "q1", "output": "4"}], "looks like an output file"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_QUESTIONS)
def test_a_bad_question_file_is_refused_with_file_and_place(written, name):
    content, message = BAD_QUESTIONS[name]
    path = written(content)
    with pytest.raises(InputError) as caught:
        questions(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_items_of_two_tasks_that_look_alike_are_told_apart_by_the_input(written):
    item = {"id": "i", "title": "t", "abstract": "a"}
    path = written(
        [{"id": "q", "input": "Generate a title for the following abstract of a paper: x", "profile": [item]}]
    )
    assert len(questions(path, "LaMP_5")) == 1
    with pytest.raises(InputError, match="one of LaMP-5, not of LaMP-1"):
        questions(path, "LaMP-1")


def test_news_files_may_name_their_task_as_they_did_before_the_movies(written):
    item = {"id": "i", "title": "t", "text": "a", "category": "crime"}
    path = written({"task": "LaMP_2", "golds": [{"id": "q", "input": "article: x", "profile": [item]}]})
    assert len(questions(path, "LaMP-2N")) == 1


def test_a_missing_file_and_an_unknown_task_are_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.json does not exist"):
        questions(tmp_path / "none.json")
    with pytest.raises(InputError, match="known: LaMP-1"):
        questions(tmp_path / "none.json", "LaMP-9")


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
def test_rows_do_not_depend_on_where_the_reads_cut(written, monkeypatch, chunk):
    monkeypatch.setattr(files, "_CHUNK_BYTES", chunk)
    rows = [{**ROW, "id": str(number), "input": 'é中😀 "\\ \u2028'} for number in range(3)]
    path = written(json.dumps(rows, ensure_ascii=False))
    assert [question.input for question in questions(path)] == [row["input"] for row in rows]
    path = written(json.dumps({"task": "LaMP_3", "x": 12345, "golds": rows}, indent=1))
    assert [question.id for question in questions(path)] == ["0", "1", "2"]


def test_progress_counts_every_byte(written):
    path = written([ROW] * 1)
    counts = []
    list(read_questions(path, "LaMP-3", counts.append))
    assert sum(counts) == path.stat().st_size


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.text(st.characters(exclude_categories=["Cs"]))
    )
)
def test_outputs_come_back_as_written(tmp_path_factory, outputs):
    path = tmp_path_factory.mktemp("o") / "o.json"
    write_outputs(path, "lamp-2-old", outputs)
    assert load_outputs(path) == ("LaMP-2-old", outputs, ())


def test_outputs_are_written_in_lamps_own_shape(tmp_path):
    write_outputs(tmp_path / "o.json", "LaMP-3", {"a": "4"})
    assert json.loads((tmp_path / "o.json").read_text()) == {"task": "LaMP_3", "golds": [{"id": "a", "output": "4"}]}


def test_questions_come_back_as_written(tmp_path):
    rows = [LampQuestion("a", "é", (ITEM,), "u"), LampQuestion("b", REVIEW, ())]
    for some in (rows, rows[:1], []):
        write_questions(tmp_path / "q.json", some)
        assert questions(tmp_path / "q.json") == some


def test_of_equal_output_ids_the_last_wins_and_is_reported(written):
    rows = [{"id": 1, "output": 4}, {"id": "2", "output": "x"}, {"id": "1", "output": "5"}]
    assert load_outputs(written(rows)) == (None, {"1": "5", "2": "x"}, ("1",))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": "a"}], "row 0 (id 'a'): output is missing"),
        ([{"id": "a", "output": None}], "output is None"),
        ([{"output": "a"}], "row 0: id is missing"),
        ([{"id": "", "output": "a"}], "id is empty"),
        ([3], "row 0 is 3"),
        ([ROW], "looks like a question file"),
    ],
)
def test_a_bad_output_file_is_refused_with_the_row(written, rows, message):
    with pytest.raises(InputError) as caught:
        load_outputs(written(rows))
    assert message in str(caught.value)


def test_a_full_disk_leaves_nothing_under_the_final_name(tmp_path):
    """The system's limit on file size stands for the disk: the write fails in the middle."""
    program = f"""
import resource, signal
from pathlib import Path
from tagpr_data.lamp.files import LampQuestion, write_questions
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
write_questions(Path({str(tmp_path)!r}) / "q.json", (LampQuestion(str(n), "x" * 1000, ()) for n in range(1000)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "File too large" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_memory_does_not_grow_with_the_file(tmp_path):
    """A file of 60 MB is read in a process whose heap may hold some 30 MB more than the interpreter."""
    path = tmp_path / "big.json"
    write_questions(path, (LampQuestion(str(n), "x" * 1000, ({**ITEM, "text": "y" * 29_000},)) for n in range(2000)))
    program = f"""
from pathlib import Path
from tagpr_data.lamp.files import read_questions
def peak():  # not ru_maxrss: it begins with that of the process that started this one
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
assert sum(1 for _ in read_questions(Path({str(path)!r}), "LaMP-3")) == 2000
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert path.stat().st_size > 60e6
    assert int(done.stdout) < 30_000  # KiB


def test_a_missing_quote_does_not_cost_quadratic_time(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_LONGEST_ROW", 4_000_000)
    path = tmp_path / "q.json"
    path.write_text('[{"id": "' + "x" * 8_000_000 + '", "input": "y"}]')
    with pytest.raises(InputError, match="longer than 4000000 characters, or a quote is missing"):
        questions(path)
