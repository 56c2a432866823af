"""LaMP files as a data set folder: nothing lost, equal profiles stored once."""

import json
import sys

import pytest

from tagpr_data.cli import main
from tagpr_data.dataset import Dataset
from tagpr_data.errors import CheckFailed, InputError
from tagpr_data.lamp.convert import FIELDS, import_lamp
from tagpr_data.lamp.files import ITEM_FIELDS, LampQuestion, read_questions, write_outputs, write_questions

INPUT = "review: x"
ITEM = {"id": "i", "text": "t", "score": "4"}


@pytest.fixture
def files(tmp_path):
    def write(questions, golds=None, task="LaMP-3"):
        write_questions(tmp_path / "q.json", questions)
        if golds is None:
            return tmp_path / "q.json", None
        write_outputs(tmp_path / "o.json", task, golds)
        return tmp_path / "q.json", tmp_path / "o.json"

    return write


def test_real_lamp_3_comes_back_item_by_item(tmp_path, shared_lamp):
    questions = shared_lamp / "LaMP_3_time_derived" / "dev_questions.json"
    import_lamp("LaMP_3", questions, questions.with_name("dev_outputs.json"), tmp_path / "d", "validation")
    dataset = Dataset.load(tmp_path / "d")
    examples = {example.id: example for example in dataset.examples("validation")}
    golds = json.loads(questions.with_name("dev_outputs.json").read_text())["golds"]
    assert {key: example.output for key, example in examples.items()} == {row["id"]: row["output"] for row in golds}
    for question in read_questions(questions, "LaMP-3"):
        example = examples[question.id]
        items = dataset.profile(example)
        assert [{"id": item.item_id, "text": item.text, "score": item.label} for item in items] == list(
            question.profile
        )
        assert (example.input, example.user_id, example.date) == (question.input, question.user_id, None)


@pytest.mark.parametrize("task", FIELDS)
def test_every_field_of_every_task_is_kept(tmp_path, files, task):
    item = {"id": "i", **{field: f"<{field}>" for field in ITEM_FIELDS[task]}}
    import_lamp(task, *files([LampQuestion("a", "article: x", (item,))]), tmp_path / "d", "test")
    dataset = Dataset.load(tmp_path / "d")
    (example,) = dataset.examples("test")
    (kept,) = dataset.profile(example)
    assert {kept.title, kept.text, kept.label} - {None} == {f"<{field}>" for field in ITEM_FIELDS[task]}
    assert example.output is None


def test_equal_profiles_are_stored_once_and_name_the_user_where_the_file_does_not(tmp_path, files):
    rows = [LampQuestion("a", INPUT, (ITEM,)), LampQuestion("b", INPUT, (ITEM,)), LampQuestion("c", INPUT, ())]
    manifest = import_lamp("LaMP-3", *files(rows, {"a": "1", "b": "2", "c": "3"}), tmp_path / "d", "train")
    dataset = Dataset.load(tmp_path / "d")
    first, second, empty = dataset.examples("train")
    assert manifest.files["profiles.parquet"].rows == 1
    assert first.user_id == first.profile_id == second.profile_id != empty.profile_id
    assert dataset.profile(empty) == ()
    assert manifest.users == 2


def test_dates_become_iso_and_repeated_item_ids_are_told_apart(tmp_path, files):
    dates = ["2015-3-7", "2015", "2014-12"]
    items = tuple({**ITEM, "date": date} for date in dates)
    import_lamp("LaMP-3", *files([LampQuestion("a", INPUT, items, "u")]), tmp_path / "d", "test")
    dataset = Dataset.load(tmp_path / "d")
    kept = dataset.profile(dataset.examples("test")[0])
    assert [item.date for item in kept] == ["2015-03-07", "2015", "2014-12"]
    assert [item.item_id for item in kept] == ["i", "i#2", "i#3"]


def test_the_same_files_give_the_same_content_hash(tmp_path, files):
    both = files([LampQuestion("a", INPUT, (ITEM,))], {"a": "1"})
    one, two = (import_lamp("LaMP-3", *both, tmp_path / name, "test") for name in ("one", "two"))
    assert one == two


@pytest.mark.parametrize("date", ["2015-13-01", "soon"])
def test_a_date_that_does_not_parse_names_row_and_item(tmp_path, files, date):
    both = files([LampQuestion("a", INPUT, ({**ITEM, "date": date},))])
    with pytest.raises(InputError, match=r"row 0 \(id 'a'\): profile item 0 \(id 'i'\): date"):
        import_lamp("LaMP-3", *both, tmp_path / "d", "test")
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("golds", "message"),
    [({"b": "1"}, "row 0: id 'a' has no output"), ({"a": "1", "z": "1"}, "1 outputs have no question .* 'z'")],
)
def test_questions_and_outputs_must_have_the_same_ids(tmp_path, files, golds, message):
    with pytest.raises(CheckFailed, match=message):
        import_lamp("LaMP-3", *files([LampQuestion("a", INPUT, (ITEM,))], golds), tmp_path / "d", "test")
    assert not (tmp_path / "d").exists()


def test_outputs_of_another_task_or_with_an_id_twice_are_refused(tmp_path, files):
    questions, outputs = files([LampQuestion("a", INPUT, (ITEM,))], {"a": "1"}, "LaMP-7")
    with pytest.raises(InputError, match="is of task LaMP-7, not LaMP-3"):
        import_lamp("LaMP-3", questions, outputs, tmp_path / "d", "test")
    outputs.write_text(json.dumps([{"id": "a", "output": "1"}] * 2))
    with pytest.raises(CheckFailed, match="id 'a' has more than one output"):
        import_lamp("LaMP-3", questions, outputs, tmp_path / "d", "test")


def test_the_command_imports(tmp_path, files, monkeypatch, capsys):
    questions, outputs = files([LampQuestion("a", INPUT, (ITEM,))], {"a": "1"})
    arguments = ["--task", "LaMP_3", "--questions", questions, "--outputs", outputs, "--output", tmp_path / "d"]
    for extra, code in (([], 0), (["--split", "dev"], 2)):
        monkeypatch.setattr(sys, "argv", ["tagpr-data", "import", "lamp", *map(str, [*arguments, *extra])])
        with pytest.raises(SystemExit) as caught:
            main()
        assert (caught.value.code or 0) == code
    out, err = capsys.readouterr()
    assert "1 examples of 1 users" in out
    assert "split 'dev' is unknown; known: train, validation, test" in err
