"""sources/events.py: any event table becomes a task; every row that does not is counted with its reason."""

import csv
import gzip
import json
import sys

import duckdb
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tagpr_data import pseudonyms
from tagpr_data.cli import app
from tagpr_data.construct import SplitOptions
from tagpr_data.dataset import Dataset
from tagpr_data.errors import InputError
from tagpr_data.sources import events
from tagpr_data.sources.events import EventColumns

ALL = EventColumns(
    user="who", time="when", text="what", label="tag", title="head", score="stars", plain="bare", id="nr"
)


def row(user, day, **other):
    return {
        "who": user, "when": f"2020-01-{day:02}", "what": f'text, {day} of "{user}"', "tag": f"tag {day % 3}",
        "head": f"head {user} {day}", "stars": f"{day % 5}.0", "bare": f"bare {day}", "nr": f"{user}-{day}", **other,
    }  # fmt: skip


def rows(users=3, days=12):
    return [row(f"user {user}", day) for user in range(users) for day in range(1, days + 1)]


def write_csv(path, table, delimiter=",", encoding="utf-8"):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, list(table[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(table)
    return path


def write_json(path, table):
    path.write_text("".join(json.dumps(line) + "\n" for line in table))
    return path


def construct(folder, file, form="classification", columns=ALL, said=None, **other):
    return events.construct(
        folder, file, name="toy", form=form, columns=columns, report=[].append if said is None else said.append, **other
    )


def last_test(folder):
    opened = Dataset.load(folder)
    example = max(opened.examples("test"), key=lambda example: example.id)
    return example, opened.profile(example)


@pytest.mark.parametrize(
    ("form", "asked", "answer", "labels", "kind"),
    [
        ("classification", 'text, 12 of "user 2"', "tag 0", ("tag 0", "tag 1", "tag 2"), "classification"),
        ("rating", 'text, 12 of "user 2"', "2", ("0", "1", "2", "3", "4"), "rating"),
        ("generation", 'text, 12 of "user 2"', "head user 2 12", None, "generation"),
        ("paraphrase", "bare 12", 'text, 12 of "user 2"', None, "generation"),
    ],
)
def test_each_form_asks_for_its_column(tmp_path, form, asked, answer, labels, kind):
    manifest = construct(tmp_path / "out", write_csv(tmp_path / "t.csv", rows()), form)
    example, profile = last_test(tmp_path / "out")
    assert (example.id, example.input, example.output) == ("toy/u0003/user 2-12", asked, answer)
    assert (manifest.tasks[0].labels, manifest.tasks[0].kind) == (labels, kind)
    assert [item.item_id for item in profile] == [f"user 2-{day}" for day in range(1, 12)]
    assert profile[0].date == "2020-01-01T00:00:00+00:00"
    assert not manifest.skipped


def test_a_choice_shows_this_users_title_and_another_users(tmp_path):
    construct(tmp_path / "out", write_csv(tmp_path / "t.csv", rows(5)), "choice")
    opened = Dataset.load(tmp_path / "out")
    heads = {item["item_id"]: item["title"] for item in opened.profiles.iter_rows(named=True)}
    heads |= {f"user {user}-12": f"head user {user} 12" for user in range(5)}
    answers = []
    for example in [example for split in opened.splits for example in opened.examples(split)]:
        first, second = example.input.removeprefix('[1]: "').removesuffix('"').split('" [2]: "')
        own, other = (first, second) if example.output == "[1]" else (second, first)
        assert own == heads[example.id.rsplit("/", 1)[1]]
        assert other.split()[2] != own.split()[2]
        answers.append(example.output)
    assert 0.2 < answers.count("[1]") / len(answers) < 0.8


def test_csv_tsv_gzip_json_lines_and_parquet_give_the_same_data_set(tmp_path):
    typed = pl.DataFrame(rows()).with_columns(pl.col("when").str.to_datetime("%Y-%m-%d"), pl.col("stars").cast(float))
    typed.write_parquet(tmp_path / "t.parquet")
    files = [
        write_csv(tmp_path / "t.csv", rows()),
        write_csv(tmp_path / "t.tsv", rows(), "\t"),
        write_csv(tmp_path / "semicolons.csv", rows(), ";"),
        write_csv(tmp_path / "latin.csv", rows(), encoding="utf-8-sig"),
        write_csv(tmp_path / "t.csv.gz", rows()),
        write_json(tmp_path / "t.jsonl", [{**line, "stars": float(line["stars"])} for line in rows()]),
        tmp_path / "t.parquet",
    ]
    hashes = [construct(tmp_path / "out", file, "rating").content_hash for file in files]
    assert len(set(hashes)) == 1


def test_unusable_rows_are_counted_and_the_first_of_each_kind_is_named(tmp_path):
    bad = [
        row("", 1), row("user 0", 1, when="", nr="a"), row("user 0", 1, when="yesterday", nr="b"),
        row("user 0", 1, when="2020-02-30", nr="c"), row("user 0", 1, what=" ", nr="d"),
        row("user 0", 1, tag="", nr="e"), row("user 0", 1),
        row("user 1", 1, when="90000000000", nr="f"),
    ]  # fmt: skip
    said = []
    manifest = construct(tmp_path / "out", write_csv(tmp_path / "t.csv", rows() + bad), said=said)
    assert manifest.skipped == {
        "user missing": 1, "time missing": 1, "time unreadable": 2, "text missing": 1, "label missing": 1,
        "id repeated": 1, "time out of range": 1,
    }  # fmt: skip
    assert "data row 39: time unreadable ('yesterday')" in said
    assert "data row 43: id repeated ('user 0-1')" in said
    again = construct(tmp_path / "clean", write_csv(tmp_path / "c.csv", rows()))
    assert again.content_hash == manifest.content_hash


def test_csv_lines_that_are_no_rows_are_counted(tmp_path):
    path = write_csv(tmp_path / "t.csv", rows())
    path.write_bytes(
        path.read_bytes() + b"user 1,2020-01-05\r\nuser 1,2020-01-05,caf\xe9,a,b,1,c,d\r\n1,2,3,4,5,6,7,8,9\r\n"
    )
    said = []
    manifest = construct(tmp_path / "out", path, said=said)
    assert manifest.skipped == {
        "not a row: invalid encoding": 1, "not a row: missing columns": 1, "not a row: too many columns": 1,
    }  # fmt: skip
    assert "t.csv, line 39: not a row (invalid encoding)" in said
    assert any("--encoding" in line for line in said)


def test_a_table_in_another_encoding_is_read_when_told(tmp_path):
    table = [{**line, "what": f"café {line['what']}"} for line in rows()]
    latin = write_csv(tmp_path / "t.csv", table, encoding="latin-1")
    with pytest.raises(InputError, match=r"no row is usable.*invalid encoding"):
        construct(tmp_path / "out", latin)
    construct(tmp_path / "out", latin, encoding="latin-1")
    assert last_test(tmp_path / "out")[0].input.startswith("café text")


def test_json_numbers_are_read_as_text_is_and_broken_lines_counted(tmp_path):
    path = write_json(tmp_path / "t.jsonl", [{**line, "tag": int(line["tag"][-1]), "who": 7} for line in rows(1)])
    path.write_text(path.read_text() + '{"who": "x", \n[1]\n' + json.dumps({"who": None}) + "\n")
    manifest = construct(tmp_path / "out", path)
    assert manifest.tasks[0].labels == ("0", "1", "2")
    assert manifest.skipped["not a row: no JSON object"] >= 1
    assert sum(manifest.skipped.values()) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"when": 1234}, r"t\.jsonl, data row 5: 'when' \(the time\) is a number, '1234', while in data row 1 it is "
         r"text, '2020-01-01'; write it as text in all rows"),
        ({"who": 7}, r"data row 5: 'who' \(the user\) is a number, '7', while in data row 1 it is text, 'user 0'"),
        ({"what": ["a"]}, r"""data row 5: 'what' \(the text\) is a list, '\["a"\]'; expected text$"""),
        ({"what": 12}, r"data row 5: 'what' \(the text\) is a number, '12'; expected text$"),
        ({"tag": {"a": 1}}, r"'tag' \(the label\) is an object, .*; expected text or a number$"),
        ({"tag": True}, r"'tag' \(the label\) is true or false, 'true'; expected text or a number$"),
    ],
)  # fmt: skip
def test_json_values_of_another_type_are_refused_with_row_field_and_value(tmp_path, change, message):
    table = rows()
    table[4] |= change
    with pytest.raises(InputError, match=message):
        construct(tmp_path / "out", write_json(tmp_path / "t.jsonl", table))
    assert [path.name for path in tmp_path.iterdir()] == ["t.jsonl"]


def test_a_missing_json_value_is_no_other_type(tmp_path):
    table = rows()
    table[4] |= {"tag": None}
    del table[5]["when"]
    manifest = construct(tmp_path / "out", write_json(tmp_path / "t.jsonl", table))
    assert manifest.skipped == {"label missing": 1, "time missing": 1}


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pl.col("what").str.split(" "), r"the column 'what' \(the text\) is of type large_list<.*expected text$"),
        (pl.lit(3).alias("what"), r"'what' \(the text\) is of type int32; expected text$"),
        ((pl.col("who") == "a").alias("who"), r"'who' \(the user\) is of type bool; expected text or numbers$"),
    ],
)
def test_parquet_columns_of_another_type_are_refused(tmp_path, column, message):
    pl.DataFrame(rows()).with_columns(column).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(InputError, match=message):
        construct(tmp_path / "out", tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("value", "date"),
    [
        ("2020", "2020-01-01T00:00:00+00:00"),
        ("2020-02", "2020-02-01T00:00:00+00:00"),
        ("2020-02-03 04:05:06", "2020-02-03T04:05:06+00:00"),
        ("2020-02-03T04:05:06+02:00", "2020-02-03T02:05:06+00:00"),
        ("1580702706", "2020-02-03T04:05:06+00:00"),
    ],
)
def test_times_are_read_in_each_form(tmp_path, value, date):
    table = [*rows(1, 12), row("user 0", 13, when=value), row("user 0", 14, when="2021")]
    construct(tmp_path / "out", write_csv(tmp_path / "t.csv", table))
    _, profile = last_test(tmp_path / "out")
    assert date in {item.date for item in profile}


def test_a_time_format_is_obeyed(tmp_path):
    table = [{**line, "when": f"{int(line['when'][-2:]):02}/01/2020"} for line in rows(1)]
    manifest = construct(tmp_path / "out", write_csv(tmp_path / "t.csv", table), time_format="%d/%m/%Y")
    assert not manifest.skipped
    assert last_test(tmp_path / "out")[0].date == "2020-01-12T00:00:00+00:00"


def test_users_are_numbered_by_first_event_and_short_histories_counted(tmp_path):
    table = [row("zoe", day) for day in range(1, 12)] + [row("adam", day) for day in range(2, 14)]
    manifest = construct(tmp_path / "out", write_csv(tmp_path / "t.csv", [*table, row("eve", 1), row("eve", 2)]))
    assert manifest.skipped == {"user with fewer than 10 events": 2}
    opened = Dataset.load(tmp_path / "out")
    assert {e.id.split("-")[0] for e in opened.examples("test")} == {"toy/u0001/zoe", "toy/u0002/adam"}


def test_the_map_of_users_says_who_is_who_and_stays_out_of_the_data_set(tmp_path):
    table = [row("zoé, the 2nd", day) for day in range(1, 12)] + [row("adam", day) for day in range(2, 14)]
    path, kept = write_csv(tmp_path / "t.csv", table), tmp_path / "who.csv"
    construct(tmp_path / "out", path, user_map=kept)
    assert kept.read_bytes().decode() == 'pseudonym,user\r\nu0001,"zoé, the 2nd"\r\nu0002,adam\r\n'
    assert kept.stat().st_mode & 0o777 == 0o600
    assert pseudonyms.pseudonym_of(kept, "adam") == "u0002"
    with pytest.raises(InputError, match="has no user 'eve'"):
        pseudonyms.pseudonym_of(kept, "eve")
    with pytest.raises(InputError, match="has no user 'user'"):
        pseudonyms.pseudonym_of(kept, "user")
    with pytest.raises(InputError, match="which is to be shared"):
        construct(tmp_path / "out", path, user_map=tmp_path / "out/who.csv")
    with pytest.raises(InputError, match="is no map of users"):
        construct(tmp_path / "out", path, user_map=path)
    with pytest.raises(InputError, match="cannot be read as a map"):
        pseudonyms.pseudonym_of(tmp_path / "none.csv", "adam")


def test_chunks_of_any_size_hold_the_same(tmp_path, monkeypatch):
    path = write_csv(tmp_path / "t.csv", rows(7))
    construct(tmp_path / "whole", path, "choice")
    monkeypatch.setattr(events, "CHUNK_EVENTS", 1)
    construct(tmp_path / "parts", path, "choice")
    whole, parts = Dataset.load(tmp_path / "whole"), Dataset.load(tmp_path / "parts")
    assert parts.profiles.equals(whole.profiles)
    assert all(parts.examples(split) == whole.examples(split) for split in whole.splits)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.xlsx", b"x", ".xlsx suffix; an event table is one of"),
        ("t.csv", b"", "is empty"),
        ("t.csv", b"who,when\n", r"no column 'what' \(for the text\); it has: who, when"),
        ("t.csv", b"who,when,what,tag,head,stars,bare,nr\n", "no row is usable; left out: nothing; the table is empty"),
        ("t.csv", b"\xff\xfew\x00h\x00o\x00", "line 1 cannot be read as utf-8"),
        ("t.csv.gz", b"who,when", "line 1 cannot be read"),
        ("t.jsonl", b"[1]\n", "line 1 is not a JSON object"),
        ("t.jsonl", b"{\n", "line 1 is not a JSON object"),
        ("t.parquet", b"PAR1 broken", "not a whole Parquet file"),
        ("t.csv", b"<html><body>moved</body></html>\n", "no column 'who'"),
    ],
)
def test_a_table_that_cannot_serve_is_refused_and_nothing_is_left(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        construct(tmp_path / "out", tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_missing_file_column_or_encoding_is_named(tmp_path):
    path = write_csv(tmp_path / "t.csv", rows())
    with pytest.raises(InputError, match="does not exist"):
        construct(tmp_path / "out", tmp_path / "none.csv")
    with pytest.raises(InputError, match="a rating task needs the column that holds the score: give --score"):
        construct(tmp_path / "out", path, "rating", EventColumns(user="who", time="when", text="what"))
    with pytest.raises(InputError, match="'klingon' is not one that is read"):
        construct(tmp_path / "out", path, encoding="klingon")


def test_too_many_labels_are_no_closed_set(tmp_path):
    path = write_csv(tmp_path / "t.csv", [{**line, "tag": f"t{n}"} for n, line in enumerate(rows(10))])
    with pytest.raises(InputError, match="more than 100 different values"):
        construct(tmp_path / "out", path)


def test_a_full_disk_is_told_as_such(tmp_path):
    with pytest.raises(OSError, match="No space left"), events._database(tmp_path):
        raise duckdb.IOException("IO Error: Could not write all bytes: No space left on device")


names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=4)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.tuples(names, st.integers(0, 9), names), min_size=1, max_size=30), st.booleans())
def test_every_row_is_used_or_counted(tmp_path_factory, table, as_json):
    folder = tmp_path_factory.mktemp("events")
    lines = [{"who": who, "when": f"2020-01-0{day}", "what": what} for who, day, what in table]
    file = write_json(folder / "t.jsonl", lines) if as_json else write_csv(folder / "t.csv", lines)
    options = SplitOptions(min_history=1, min_earlier=0, held_out=100)
    columns = EventColumns(user="who", time="when", text="what", label="when")
    usable = [line for line in lines if line["who"].strip() and line["what"].strip() and line["when"][-1] != "0"]
    if not usable:
        return
    manifest = construct(folder / "out", file, columns=columns, options=options)
    written = sum(entry.rows for name, entry in manifest.files.items() if name.startswith("examples"))
    assert written + sum(manifest.skipped.values()) == len(lines)


def test_the_command_says_what_came_out(tmp_path):
    path = write_csv(tmp_path / "reviews.csv", [*rows(4), row("user 1", 3, when="never", nr="x")])
    done = CliRunner().invoke(
        app,
        [
            *("construct", "events", str(path), "--output", str(tmp_path / "out"), "--user", "who", "--time", "when"),
            *("--text", "what", "--score", "stars", "--task", "rating", "--test-users", "0.25", "--held-out", "1"),
        ],
    )
    assert done.exit_code == 0, done.output
    assert done.stdout == (
        f"{tmp_path / 'out'}: reviews-rating with reviews-rating; 4 users; examples: test 4, train 15, validation 3\n"
    )
    assert "data row 49: time unreadable ('never')" in done.stderr


@pytest.mark.slow
def test_memory_stays_bounded_on_a_large_table(tmp_path):
    """100 MB of CSV in a fresh process: the peak stays far under the table's size in Python."""
    import subprocess

    path = tmp_path / "t.csv"
    with path.open("w") as file:
        file.write("who,when,what,tag\n")
        words = "the quick brown fox jumps over the lazy dog while it rains " * 3
        for number in range(500_000):
            file.write(f"user {number % 20_011},{1_500_000_000 + number},{words}{number},tag {number % 7}\n")
    script = (
        "import sys; from pathlib import Path; from tagpr_data.sources import events as e;"
        "e.construct(Path(sys.argv[2]), Path(sys.argv[1]), name='big', form='classification', "
        "columns=e.EventColumns(user='who', time='when', text='what', label='tag'));"
        # not ru_maxrss: a child begins with that of the process that started it, here a large one
        "status = dict(line.split(':', 1) for line in Path('/proc/self/status').read_text().splitlines());"
        "print(int(status['VmHWM'].split()[0]) // 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, path, tmp_path / "out"], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 1_000


def test_a_row_too_long_or_without_an_end_costs_no_other_row(tmp_path):
    path, said = write_csv(tmp_path / "t.csv", rows()), list[str]()
    text = path.read_text()
    path.write_text(text + f"user 1,2020-02-01,{'x' * 3_000_000},tag,head,1,bare,long\n")
    construct(tmp_path / "out", path, said=said)
    assert "t.csv, line 38: not a row (line size over maximum)" in said
    path.write_text(text + 'user 1,2020-02-01,"never closed,tag,head,1,bare,open\n' + text.split("\n", 1)[1])
    manifest = construct(tmp_path / "out", path, said=said)
    assert manifest.users == 3 and "t.csv, line 38: not a row (unquoted value)" in said


def test_line_ends_breaks_inside_quotes_and_columns_without_a_name_are_read(tmp_path):
    table = rows()
    table[5]["what"] = 'two\nlines, "quoted"'
    plain = write_csv(tmp_path / "t.csv", table).read_bytes()
    whole = construct(tmp_path / "crlf", tmp_path / "t.csv")
    (tmp_path / "t.csv").write_bytes(plain.replace(b"\r\n", b"\n"))
    assert construct(tmp_path / "lf", tmp_path / "t.csv").files == whole.files
    lines = plain.replace(b"two\nlines", b"two lines").split(b"\r\n")
    (tmp_path / "t.csv").write_bytes(b"\r\n".join(line + b",," if line else line for line in lines))
    assert construct(tmp_path / "unnamed", tmp_path / "t.csv").users == whole.users


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("who,when,what,what,tag", "2 columns 'what' \\(for the text\\)"),
        ('who,when,"what', "opens a quote that it does not close"),
    ],
)
def test_a_header_that_can_be_read_in_two_ways_is_refused(tmp_path, header, message):
    (tmp_path / "t.csv").write_text(f"{header}\na,2020-01-01,b,c,d\n")
    columns = EventColumns(user="who", time="when", text="what", label="tag")
    with pytest.raises(InputError, match=message):
        construct(tmp_path / "out", tmp_path / "t.csv", columns=columns)


def test_a_task_has_a_name_also_where_its_table_is_called_something_else(tmp_path):
    path = write_csv(tmp_path / "my posts (é).csv", rows())
    command = ["construct", "events", str(path), "--user", "who", "--time", "when", "--text", "what", "--label", "tag"]
    command += ["--task", "classification", "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0 and "my-posts-classification" in result.stdout, result.output
    result = CliRunner().invoke(app, [*command, "--name", "my posts"])
    assert isinstance(result.exception, InputError) and "'my posts' is no name for a task" in str(result.exception)


@pytest.mark.parametrize("name", ["latin1", "ISO-8859-1"])
def test_other_names_of_an_encoding_are_known_and_other_encodings_refused(tmp_path, name):
    table = [{**line, "tag": "é"} for line in rows()]
    path = write_csv(tmp_path / "t.csv", table, encoding="latin-1")
    assert construct(tmp_path / "out", path, encoding=name).tasks[0].labels == ("é",)
    with pytest.raises(InputError, match="'cp1252' is not one that is read; a table is utf-8, latin-1 or utf-16"):
        construct(tmp_path / "out", path, encoding="cp1252")
