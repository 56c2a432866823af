"""`tagpr-data rank` and `tagpr-data prompts` on whole files."""

import json
import subprocess
import sys

import pytest

from tagpr_data.cli import main
from tagpr_data.errors import CheckFailed, InputError
from tagpr_data.lamp.export import Ranker, write_prompts, write_rankings
from tagpr_data.lamp.files import LampQuestion, write_questions
from tagpr_data.lamp.prompts import LampTokenizer

START = "What is the score of the following review on a scale of 1 to 5? review: "
DATES = ["2014", "2015-02-01", "2015-02-01", "2013-12"]
ITEMS = tuple(
    {"id": f"i{place}", "text": text, "score": "4", "date": date}
    for place, (text, date) in enumerate(zip(["nice film", "good book", "a lamp", "old film"], DATES, strict=True))
)


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "q.json"
    write_questions(path, [LampQuestion("a", START + "good", ITEMS), LampQuestion("b", START + "book", ITEMS[:2])])
    return path


@pytest.fixture
def command(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["tagpr-data", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        return int(caught.value.code or 0), *capsys.readouterr()

    return run


def rankings(path, questions, retriever, **options):
    write_rankings(path, Ranker("LaMP-3", questions, retriever, **options))
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("retriever", "first"),
    [
        ("bm25", ["i1", "i3", "i2", "i0"]),  # one item has the word; of equal scores the last comes first
        ("recency", ["i2", "i1", "i0", "i3"]),  # of equal dates the later in the file first
        ("ranked", ["i0", "i1", "i2", "i3"]),
        ("full", ["i0", "i1", "i2", "i3"]),
    ],
)
def test_rankings_by_hand(tmp_path, questions, retriever, first):
    result = rankings(tmp_path / "r.json", questions, retriever)
    assert list(result) == ["a", "b"]
    assert result["a"] == first
    assert sorted(result["b"]) == ["i0", "i1"]


def test_random_is_the_same_for_a_seed_and_another_for_another(tmp_path):
    path = tmp_path / "q.json"
    items = tuple({"id": str(place), "text": "x", "score": "1"} for place in range(50))
    write_questions(path, [LampQuestion("a", START + "x", items), LampQuestion("b", START + "y", items)])
    one, same, other = (rankings(tmp_path / "r.json", path, "random", seed=seed) for seed in (0, 0, 1))
    assert one == same != other
    assert one["a"] != one["b"]
    assert sorted(one["a"], key=int) == [item["id"] for item in items]


def test_recency_without_dates_names_the_row(tmp_path, shared_lamp):
    path = shared_lamp / "LaMP_3_time_derived" / "dev_questions.json"
    with pytest.raises(InputError, match=r"dev_questions\.json, row 0 \(id '00005020_540'\): .*date"):
        rankings(tmp_path / "r.json", path, "recency")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("date", ["soon", "2015-x-1", ""])
def test_a_date_that_does_not_parse_names_the_row(tmp_path, date):
    path = tmp_path / "q.json"
    write_questions(path, [LampQuestion("a", START, ({**ITEMS[0], "date": date}, ITEMS[1]))])
    with pytest.raises(InputError, match=r"row 0 \(id 'a'\)"):
        rankings(tmp_path / "r.json", path, "recency")


def test_the_rank_command_gives_the_official_rankings(tmp_path, shared_lamp, command):
    output = tmp_path / "r.json"
    questions = shared_lamp / "LaMP_3_time_derived" / "dev_questions.json"
    arguments = ("--task", "LaMP_3", "--questions", questions, "--retriever", "bm25", "--output", output)
    code, out, err = command("rank", *arguments)
    official = json.loads((shared_lamp / "official_bm25_LaMP_3.json").read_text(encoding="utf-8"))
    assert (code, out, err) == (0, f"{output}: 30 questions\n", "")
    assert json.loads(output.read_text()) == {row["id"]: row["ranking"] for row in official}


def test_the_prompts_command_gives_the_official_prompts_of_every_task(tmp_path, shared_lamp, command):
    rows = json.loads((shared_lamp / "official_prompts_bm25.json").read_text(encoding="utf-8"))["rows"]
    inputs = [row for row in rows if row["input"] is not None]
    for task, k, length in [(row["task"], 4, 256) for row in inputs[::4]] + [("LaMP-2-old", 40, 512)]:
        questions, output = tmp_path / "q.json", tmp_path / "p.jsonl"
        own = [row for row in inputs if row["task"] == task]
        write_questions(
            questions, [LampQuestion(str(row["query_index"]), row["input"], tuple(row["profile"])) for row in own]
        )
        options = ("--style", "official", "--retriever", "bm25", "--k", k, "--max-length", length)
        files = ("--tokenizer", shared_lamp / "tokenizer.json", "--output", output)
        code, *_ = command("prompts", "--task", task, "--questions", questions, *options, *files)
        wanted = [
            {"id": str(row["query_index"]), "prompt": row["prompt"]}
            for row in rows
            if (row["task"], row["k"], row["max_length"]) == (task, k, length)
        ]
        assert code == 0
        assert len(wanted) == 4
        assert [json.loads(line) for line in output.read_text().splitlines()] == wanted


def test_k_0_gives_the_raw_input(tmp_path, questions, shared_lamp):
    tokenizer = LampTokenizer.load(shared_lamp)
    export = write_prompts(tmp_path / "p", Ranker("LaMP-3", questions, "bm25"), tokenizer, 0, 256)
    assert [json.loads(line)["prompt"] for line in (tmp_path / "p").read_text().splitlines()] == [
        START + "good",
        START + "book",
    ]
    assert export.rows == 2
    assert not +export.notes


def test_what_the_official_code_crashes_on_or_hides_is_counted(tmp_path, shared_lamp, command):
    long_item = {"id": "l", "title": "very long " * 300, "text": "x"}
    item = {"id": "s", "title": "t", "text": "x"}
    rows = [
        LampQuestion("no marker", "a malformed input", (item, item)),
        LampQuestion("empty", "Generate a headline for the following article: x", ()),
        LampQuestion("dropped", "Generate a headline for the following article: x", (long_item, item)),
        LampQuestion(
            "no words", "Generate a headline for the following article: x", ({**item, "title": "", "text": ""},)
        ),
    ]
    write_questions(tmp_path / "q.json", rows)
    output = tmp_path / "p"
    arguments = ("--task", "LaMP-4", "--questions", tmp_path / "q.json", "--k", 2, "--output", output)
    code, _, err = command("prompts", *arguments, "--tokenizer", shared_lamp)
    prompts = {row["id"]: row["prompt"] for row in map(json.loads, output.read_text().splitlines())}
    assert code == 0
    assert prompts["no marker"] == '"t" is the title for "x" , and "t" is the title for "x" . a malformed input'
    assert prompts["empty"] == rows[1].input
    assert prompts["dropped"] == rows[2].input
    assert prompts["no words"] == f'"" is the title for "" . {rows[3].input}'
    assert "1 inputs without the task's marker" in err
    assert "1 questions with an empty profile" in err
    assert "1 prompts without any item" in err
    assert "1 questions with fewer than k items" in err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--retriever": "bm52"}, "bm52"),
        ({"--style": "chat"}, "style 'chat' is unknown"),
        ({"--tokenizer": "nowhere"}, "tokenizer nowhere does not exist"),
        ({"--questions": "nowhere.json"}, "nowhere.json does not exist"),
        ({"--task": "LaMP-9"}, "'LaMP-9' is not a LaMP task"),
        ({"--task": "LaMP-7"}, "is one of LaMP-3, not of LaMP-7"),
        ({"--k": -1}, "k is -1"),
        ({"--max-length": 0}, "max_length 0"),
        ({"--output": "/dev/null"}, "/dev/null is not a regular file"),
    ],
)
def test_misuse_ends_with_code_2_and_one_message(tmp_path, questions, shared_lamp, command, changes, message):
    options = {"--task": "LaMP-3", "--questions": questions, "--tokenizer": shared_lamp, "--output": tmp_path / "p"}
    code, out, err = command("prompts", *(part for option in (options | changes).items() for part in option))
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "p").exists()


def test_a_fault_in_a_later_row_leaves_nothing_and_keeps_an_earlier_output(tmp_path, command):
    good = {"id": "a", "input": START, "profile": [ITEMS[0]]}
    (tmp_path / "q.json").write_text(json.dumps([good, {**good, "id": "b", "profile": 3}]))
    output = tmp_path / "r.json"
    output.write_text("earlier")
    code, _, err = command("rank", "--task", "LaMP-3", "--questions", tmp_path / "q.json", "--output", output)
    assert code == 2
    assert "row 1 (id 'b'): profile is 3" in err
    assert output.read_text() == "earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["q.json", "r.json"]


def test_a_disk_that_fills_up_ends_with_code_1_and_leaves_nothing(tmp_path):
    """The system's limit on file size stands for the disk."""
    items = tuple({"id": f"{place:04}", "text": "x", "score": "1"} for place in range(1000))
    write_questions(tmp_path / "q.json", [LampQuestion(str(place), START, items) for place in range(20)])
    arguments = ["rank", "--task", "LaMP-3", "--retriever", "ranked", "--questions", "q.json", "--output", "out/r.json"]
    program = f"""
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
sys.argv = ["tagpr-data", *{arguments!r}]
from tagpr_data.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: File too large")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_file_without_questions_is_bad_and_leaves_nothing(tmp_path):
    (tmp_path / "q.json").write_text("[]")
    with pytest.raises(CheckFailed, match="holds no question"):
        write_rankings(tmp_path / "r.json", Ranker("LaMP-3", tmp_path / "q.json", "bm25"))
    assert not (tmp_path / "r.json").exists()
