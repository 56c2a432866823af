import json
from pathlib import Path

import jsonschema
import pytest
from typer.testing import CliRunner

from tagpr_data import dataset as dataset_module
from tagpr_data.audit import CHECKS, QUESTIONS, audit, limits_from, raise_for
from tagpr_data.cli import app
from tagpr_data.dataset import Dataset, write_dataset
from tagpr_data.errors import CheckFailed, InputError
from tagpr_data.records import Audit, Example, ProfileItem, Task
from tagpr_data.schema import render
from tagpr_data.tables import read_json

GENRE = Task(name="genre", kind="classification", labels=("rock", "jazz"), answer_form="a genre", item_template="")
TITLE = Task(name="title", kind="generation", answer_form="a title", item_template="")
SPLITS = ("train", "test")


def example(name, split, task="title", **changes):
    """An example of a user of its own, with a question that is like no other."""
    words = " ".join(f"{name}{split}{task}{n}" for n in range(20))
    fields = {
        "id": f"{name}-{split}-{task}", "task": task, "user_id": f"{name}-{split}", "profile_id": f"{name}-{split}",
        "profile_size": 2, "input": words, "output": "rock" if task == "genre" else f"Gold title of {name} {split}",
        "date": "2020-05",
    }  # fmt: skip
    return Example(**(fields | changes))


def item(profile_id, position, **changes):
    fields = {
        "item_id": f"{profile_id}/{position}", "date": f"2020-0{position + 1}", "title": f"Song {position}",
        "text": f"words about {profile_id} and {position}", "label": "rock",
    }  # fmt: skip
    return ProfileItem(profile_id=profile_id, position=position, **(fields | changes))


@pytest.fixture
def clean():
    """Examples and items in which no check finds anything; half the labels are rock."""
    examples = {
        split: [example("ann", split), example("bob", split, "genre"), example("cyd", split, "genre", output="jazz")]
        for split in SPLITS
    }
    items = [item(f"{name}-{split}", n) for split in SPLITS for name in ("ann", "bob", "cyd") for n in range(3)]
    return examples, items


@pytest.fixture
def found(tmp_path, monkeypatch):
    """What an audit finds, by check; data sets are written unchecked, as other programs may write them."""
    monkeypatch.setattr(dataset_module, "_check", lambda *arguments: None)

    def run(examples, items, **options) -> dict[str, dict[tuple[str, str], list[str]]]:
        write_dataset(
            tmp_path / "dataset", name="songs", source="made up", licence="CC0-1.0", tasks=[GENRE, TITLE],
            examples=examples, items=items, parameters={}, skipped={},
        )  # fmt: skip
        rows = audit(Dataset.load(tmp_path / "dataset"), **options).rows
        return {
            check: {(row.split, row.task): list(row.ids) for row in rows if row.check == check and row.found}
            for check in CHECKS
            if check != "label-skew" and any(row.found for row in rows if row.check == check)
        }

    return run


def changed(rows, place, **changes):
    rows[place] = rows[place].model_copy(update=changes)


def test_a_clean_data_set_has_no_finding(clean, found):
    assert found(*clean) == {}


def gold_in_text(examples, items):
    changed(items, 1, text="He sang: GOLD title, of Ann train!")


def gold_nearly_in_title(examples, items):
    changed(items, 1, title="gold old title of ann train")  # 5 of 6 words: 0.83


def question_in_two_splits(examples, items):
    changed(examples["train"], 0, input=examples["test"][1].input.upper())


def user_in_two_splits(examples, items):
    changed(examples["test"], 0, user_id="ann-train")


def item_from_the_future(examples, items):
    changed(items, 1, date="2020-06-02")


def the_same_item_twice(examples, items):
    changed(items, 2, title=items[0].title, text=items[0].text)


def an_empty_profile(examples, items):
    changed(examples["train"], 0, profile_size=0)


BREAK = {
    "gold-in-profile": (gold_in_text, {("train", "title"): ["ann-train-title"]}),
    "near-gold-in-profile": (gold_nearly_in_title, {("train", "title"): ["ann-train-title"]}),
    "near-duplicate-across-splits": (
        question_in_two_splits,
        {("train", "title"): ["ann-train-title"], ("test", "genre"): ["bob-test-genre"]},
    ),
    "user-in-several-splits": (
        user_in_two_splits,
        {("train", "title"): ["ann-train"], ("test", "title"): ["ann-train"]},
    ),
    "item-after-query": (item_from_the_future, {("train", "title"): ["ann-train-title"]}),
    "duplicate-items": (the_same_item_twice, {("train", "title"): ["ann-train"]}),
    "empty-profile": (an_empty_profile, {("train", "title"): ["ann-train-title"]}),
}


@pytest.mark.parametrize("check", BREAK)
def test_a_data_set_that_breaks_one_rule_is_found_by_exactly_that_check(check, clean, found):
    break_it, expected = BREAK[check]
    break_it(*clean)
    assert found(*clean) == {check: expected}


def test_every_check_has_a_question_and_a_data_set_that_breaks_it():
    assert {*BREAK, "label-skew"} == set(CHECKS) == set(QUESTIONS)


def test_only_items_the_example_may_look_at_count(clean, found):
    changed(clean[1], 2, title="Gold title of ann train", date="2021")  # the third item; profiles show two
    assert found(*clean) == {}


def test_skew_is_the_share_of_the_commonest_label(clean, tmp_path, found):
    changed(clean[0]["train"], 2, output="rock")
    found(*clean)
    rows = [row for row in audit(Dataset.load(tmp_path / "dataset")).rows if row.check == "label-skew"]
    assert [(row.split, row.found, row.rows, row.share) for row in rows] == [("train", 2, 2, 1.0), ("test", 1, 2, 0.5)]
    assert rows[0].detail == "'rock' is the commonest of 1 labels; no other label"
    assert rows[1].detail == "'jazz' is the commonest of 2 labels; evenness 1.00 (1 is even)"


def test_the_frame_that_all_lamp_questions_share_makes_them_no_duplicates(tmp_path):
    frame = "Which tag does this movie relate to among the following tags? Just answer with the tag name. description: "
    task = Task(name="LaMP-2", kind="classification", labels=("rock",), answer_form="a tag", item_template="")
    rows = {
        split: [example("ann", split, "LaMP-2", input=f"{frame}a {split} story of six words", output="rock")]
        for split in SPLITS
    }
    items = [item(f"ann-{split}", n) for split in SPLITS for n in range(2)]
    folder = tmp_path / "dataset"
    write_dataset(
        folder, name="songs", source="made up", licence="CC0-1.0", tasks=[task], examples=rows, items=items,
        parameters={}, skipped={},
    )  # fmt: skip
    assert not [
        row for row in audit(Dataset.load(folder)).rows if row.check == "near-duplicate-across-splits" and row.found
    ]


def test_the_command_prints_a_table_writes_the_record_and_fails_only_when_told(song_folder, tmp_path):
    path = tmp_path / "audit.json"
    result = CliRunner().invoke(app, ["audit", str(song_folder), "--json", str(path)])
    assert result.exit_code == 0
    assert "user-in-several-splits: " in result.stdout and "train      genre" in result.stdout
    found = read_json(path, Audit)
    assert found == audit(Dataset.load(song_folder)) and found.dataset == "songs"
    jsonschema.validate(json.loads(path.read_text()), json.loads(render(Audit)))
    failing = CliRunner().invoke(app, ["audit", str(song_folder), "--fail-on", "user-in-several-splits"])
    assert isinstance(failing.exception, CheckFailed)
    assert "user-in-several-splits, train, genre: 3 of 3 (100.0%, at most 0.0%); ann: also in validation" in str(
        failing.exception
    )
    fine = CliRunner().invoke(
        app, ["audit", str(song_folder), "--fail-on", "empty-profile", "--fail-on", "label-skew=1"]
    )
    assert fine.exit_code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fail-on", "mood"], "'mood' is no check; known: gold-in-profile"),
        (["--fail-on", "label-skew=2"], "'2' is no share; expected 0 to 1"),
        (["--fail-on", "label-skew=much"], "'much' is no share"),
        (["--near", "0.5"], "near is 0.5; expected 0.8 to 1"),
        (["--near-gold", "0"], r"near_gold is 0\.0; expected above 0"),
    ],
)
def test_wrong_options_are_input_errors(options, message, song_folder):
    result = CliRunner().invoke(app, ["audit", str(song_folder), *options])
    assert isinstance(result.exception, InputError) and message.replace("\\", "") in str(result.exception)


def test_limits_apply_to_their_check_alone(song_folder):
    found = audit(Dataset.load(song_folder))
    raise_for(found, limits_from([]))
    raise_for(found, limits_from(["user-in-several-splits=1", "item-after-query"]))
    with pytest.raises(CheckFailed, match="findings above their limit"):
        raise_for(found, limits_from(["user-in-several-splits=0.5"]))


def test_the_derived_lamp_users_can_be_audited(shared_lamp, tmp_path):
    from tagpr_data.lamp.convert import import_lamp

    folder = Path(shared_lamp) / "LaMP_3_time_derived"
    import_lamp("LaMP-3", folder / "dev_questions.json", folder / "dev_outputs.json", tmp_path / "lamp", "validation")
    rows = {row.check: row for row in audit(Dataset.load(tmp_path / "lamp")).rows}
    assert rows["empty-profile"].found == 0 and rows["label-skew"].rows == rows["empty-profile"].rows > 0
    assert rows["near-duplicate-across-splits"].found == 0  # there is one split
