"""sources/personas.py: the answers follow the recorded preferences, and only the profile gives them away."""

import re
from collections import Counter, defaultdict

import pytest
from typer.testing import CliRunner

from tagpr_data.cli import app
from tagpr_data.construct import SplitOptions
from tagpr_data.dataset import Dataset
from tagpr_data.errors import InputError
from tagpr_data.sources import personas


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("personas") / "out"
    personas.construct(folder, users=60)
    return Dataset.load(folder)


def of_task(opened, split, task):
    return [example for example in opened.examples(split) if example.task == task]


def mood_of(text):
    return text.rsplit(" ", 1)[1]


def test_users_are_disjoint_and_a_share_is_held_out(opened):
    users = {split: {example.user_id for example in opened.examples(split)} for split in opened.splits}
    assert {split: len(names) for split, names in users.items()} == {"train": 42, "validation": 6, "test": 12}
    assert len(set.union(*users.values())) == 60
    assert opened.manifest.source.startswith("synthetic")


def test_every_choice_follows_the_preference_in_the_manifest_and_stands_in_the_profile(opened):
    preferences = opened.manifest.parameters["preferences"]
    for split in opened.splits:
        for example in of_task(opened, split, "personas-choice"):
            mood = mood_of(example.input)
            assert example.output == preferences[example.user_id]["shelf_by_mood"][mood]
            shown = {item.label for item in opened.profile(example) if mood_of(item.text) == mood}
            assert shown == {example.output}


def test_every_phrase_can_be_put_together_from_the_profile(opened):
    for example in of_task(opened, "test", "personas-phrase"):
        shown = {word for item in opened.profile(example) for word in item.title.split()}
        said = set(example.output.split())
        case = str.upper if example.output.isupper() else str.lower
        noun, day = case(example.input.split()[1]), case(example.input.split()[-1])
        assert said - {noun, day} <= shown
        assert {noun, day} <= said


def test_the_same_input_has_different_answers_for_different_users(opened):
    answers = defaultdict(set)
    for example in of_task(opened, "train", "personas-choice"):
        answers[example.input].add(example.output)
    assert sum(len(found) > 1 for found in answers.values()) > 0.8 * len(answers)


def test_without_the_profile_the_choice_is_chance(opened):
    test, train = of_task(opened, "test", "personas-choice"), of_task(opened, "train", "personas-choice")
    best = {}
    for mood in personas.MOODS:
        best[mood] = Counter(e.output for e in train if mood_of(e.input) == mood).most_common(1)[0][0]
    right = sum(best[mood_of(example.input)] == example.output for example in test) / len(test)
    assert right < 0.45  # 0.25 expected; 12 users of 4 examples each


def test_no_user_meets_an_input_twice(opened):
    seen = Counter((row["profile_id"], row["text"]) for row in opened.profiles.iter_rows(named=True))
    assert set(seen.values()) == {1}


def test_the_vocabulary_is_small(opened):
    words = set()
    for row in opened.profiles.iter_rows(named=True):
        words.update(re.findall(r"\w+", f"{row['text']} {row['title']} {row['label']}".lower()))
    assert len(words) < 100


def test_the_seed_decides_everything(tmp_path):
    hashes = []
    for seed in (1, 1, 2):
        options = SplitOptions(split="time", min_history=1, min_earlier=6, test_users=0.5, seed=seed)
        hashes.append(personas.construct(tmp_path / "out", users=6, events=12, options=options).content_hash)
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--users", "0"], "--users 0 is out of range"),
        (["--events", "6"], "--events 6 is out of range; more than the 6 earlier events"),
        (["--events", "500"], "--events 500 is out of range"),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path, arguments, message):
    done = CliRunner().invoke(app, ["construct", "personas", "--output", str(tmp_path / "out"), *arguments])
    assert isinstance(done.exception, InputError)
    assert message in str(done.exception)


def test_the_command_offers_a_time_split_with_cold_start_users(tmp_path):
    arguments = ["--users", "10", "--events", "12", "--split", "time", "--test-users", "0.3", "--held-out", "2"]
    done = CliRunner().invoke(app, ["construct", "personas", "--output", str(tmp_path / "out"), *arguments])
    assert done.exit_code == 0, done.output
    opened = Dataset.load(tmp_path / "out")
    users = {split: {example.user_id for example in opened.examples(split)} for split in opened.splits}
    assert {split: len(names) for split, names in users.items()} == {"train": 7, "validation": 7, "test": 10}
    assert "examples: test 40, train 28, validation 28" in done.stdout
