"""dataset.py and dates.py: what is written is checked, whole, the same bytes; what is read is unchanged."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagpr_data import dataset, tables
from tagpr_data.dataset import Dataset, write_chunks, write_dataset
from tagpr_data.dates import interval
from tagpr_data.errors import InputError
from tagpr_data.records import Example, ProfileItem, Task

COLOUR = Task(
    name="colour",
    kind="classification",
    labels=("red", "blue"),
    answer_form="a colour",
    item_template="{label}: {text}",
)


def item(profile_id="u1", position=0, **fields):
    fields = {"item_id": f"i{position}", "text": f"text {position}", "label": "red", **fields}
    return ProfileItem(profile_id=profile_id, position=position, **fields)


def example(id="e1", **fields):
    defaults = {"task": "colour", "user_id": "u1", "profile_id": "u1", "profile_size": 2, "input": "?", "output": "red"}
    return Example(id=id, **{**defaults, **fields})


def write(folder: Path, examples=None, items=None, tasks=(COLOUR,), name="toy"):
    return write_dataset(
        folder,
        name=name,
        source="our own words",
        licence="CC0-1.0",
        tasks=tasks,
        examples={"train": [example()]} if examples is None else examples,
        items=[item(position=n) for n in range(3)] if items is None else items,
        parameters={"seed": 0},
        skipped={"empty": 1},
    )


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_written_is_read_back(tmp_path):
    examples = {"train": [example("b"), example("a", profile_size=1)], "test": [example("c", output=None)]}
    manifest = write(tmp_path / "toy", examples)
    opened = Dataset.load(tmp_path / "toy")
    assert opened.manifest == manifest
    assert opened.splits == ("train", "test")
    assert opened.examples("train") == [example("a", profile_size=1), example("b")]
    assert opened.profile(opened.examples("train")[0]) == (item(),)
    assert opened.profile(opened.examples("test")[0]) == (item(), item(position=1))
    assert opened.task("colour") == COLOUR
    assert (manifest.users, manifest.skipped, manifest.parameters) == (1, {"empty": 1}, {"seed": 0})


def test_profiles_of_several_users_are_kept_apart(tmp_path):
    items = [item(user, n, text=f"{user} {n}") for n in (2, 0, 1) for user in ("u2", "u10", "u1")]
    examples = [
        example(user, user_id=user, profile_id=user, profile_size=size)
        for user, size in (("u1", 3), ("u2", 1), ("u10", 2))
    ]
    write(tmp_path / "toy", {"train": examples}, items)
    opened = Dataset.load(tmp_path / "toy")
    texts = {e.id: [i.text for i in opened.profile(e)] for e in opened.examples("train")}
    assert texts == {"u1": ["u1 0", "u1 1", "u1 2"], "u2": ["u2 0"], "u10": ["u10 0", "u10 1"]}


def test_same_records_in_another_order_give_the_same_bytes(tmp_path):
    items = [item(position=n) for n in range(5)]
    examples = [example(f"e{n}") for n in range(5)]
    write(tmp_path / "a", {"train": examples}, items)
    write(tmp_path / "b", {"train": examples[::-1]}, items[::-1])
    assert all_bytes(tmp_path / "a") == all_bytes(tmp_path / "b")


def test_frames_serve_as_well_as_records(tmp_path):
    items = [item(position=n) for n in range(3)]
    write(tmp_path / "a", {"train": [example()]}, items)
    write(
        tmp_path / "b",
        {"train": tables.frame_from_records([example()], Example)},
        tables.frame_from_records(items, ProfileItem),
    )
    assert all_bytes(tmp_path / "a") == all_bytes(tmp_path / "b")


def test_an_empty_profile_is_an_empty_tuple(tmp_path):
    write(tmp_path / "toy", {"train": [example(profile_size=0, date="2020")]}, [])
    opened = Dataset.load(tmp_path / "toy")
    assert opened.profile(opened.examples("train")[0]) == ()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"examples": {"train": [example()], "test": [example()]}}, "'e1': id occurs more than once"),
        ({"examples": {"train": [example(task="size")]}}, "task is not defined; task = 'size'"),
        ({"examples": {"train": [example(output="Red")]}}, "not among the labels of colour; output = 'Red'"),
        ({"examples": {"train": [example(profile_id="u9")]}}, "fewer items than profile_size; stored = 0"),
        ({"examples": {"train": [example(profile_size=4)]}}, "fewer items than profile_size; stored = 3"),
        ({"items": [item(position=0), item(position=2)]}, "profile 'u1': positions do not run from 0"),
        ({"items": [item(position=0), item(position=0, item_id="x")]}, "profile 'u1': positions do not run from 0"),
        ({"items": [item(position=1), item(position=2)]}, "profile 'u1': positions do not run from 0"),
        ({"items": [item(item_id="x"), item(position=1, item_id="x")]}, "an item_id occurs twice"),
        ({"tasks": (COLOUR, COLOUR)}, "task names must be unique"),
        ({"items": [item(text="\ud800"), item(position=1)]}, "text that UTF-8 cannot"),
    ],
)
def test_a_broken_rule_is_refused_with_its_place_and_nothing_is_left(tmp_path, broken, message):
    with pytest.raises(InputError, match=message):
        write(tmp_path / "toy", **broken)
    assert list(tmp_path.iterdir()) == []


def test_an_item_dated_after_the_input_is_refused(tmp_path):
    items = [item(position=0, date="2020-05-01"), item(position=1, date="2020-07"), item(position=2, date="2020-06")]
    late = {"train": [example(profile_size=3, date="2020-06-30T12:00:00+02:00")]}
    with pytest.raises(InputError, match="'e1': an item of its profile is dated after the input"):
        write(tmp_path / "toy", late, items)
    write(tmp_path / "toy", {"train": [example(profile_size=1, date="2020-06-30T12:00:00+02:00")]}, items)
    write(tmp_path / "toy", {"train": [example(profile_size=3, date="2020")]}, items)  # may still be later


dates = st.sampled_from([None, "2019", "2020-01", "2020-01-15", "2020-02", "2020-01-31T23:30:00-02:00", "2021"])


@settings(max_examples=60, deadline=None)
@given(st.lists(dates, min_size=1, max_size=5), st.lists(dates, min_size=1, max_size=3), st.data())
def test_dates_are_refused_exactly_when_one_visible_item_is_surely_later(tmp_path_factory, items, inputs, data):
    sizes = [data.draw(st.integers(0, len(items))) for _ in inputs]
    late = any(
        date is not None and shown is not None and interval(shown)[0] > interval(date)[1]
        for date, size in zip(inputs, sizes, strict=True)
        for shown in items[:size]
    )
    folder = tmp_path_factory.mktemp("dates") / "toy"
    examples = [
        example(f"e{n}", date=date, profile_size=size) for n, (date, size) in enumerate(zip(inputs, sizes, strict=True))
    ]
    history = [item(position=n, date=date) for n, date in enumerate(items)]
    other = [item("u2", n, date="2030") for n in range(3)]
    if late:
        with pytest.raises(InputError, match="dated after"):
            write(folder, {"train": examples}, history + other)
    else:
        write(folder, {"train": examples}, history + other)


def test_a_changed_file_is_refused_unless_told_not_to_look(tmp_path):
    write(tmp_path / "toy")
    path = tmp_path / "toy" / "examples" / "train.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match=r"examples/train.parquet is not the file"):
        Dataset.load(tmp_path / "toy")
    Dataset.load(tmp_path / "toy", verify=False)


@pytest.mark.parametrize("file", ["manifest.json", "profiles.parquet", "examples/train.parquet"])
def test_a_folder_without_one_of_its_files_is_refused(tmp_path, file):
    write(tmp_path / "toy")
    (tmp_path / "toy" / file).unlink()
    with pytest.raises(InputError, match=file):
        Dataset.load(tmp_path / "toy")


def test_a_manifest_of_another_version_is_refused(tmp_path):
    write(tmp_path / "toy")
    path = tmp_path / "toy" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 2}))
    with pytest.raises(InputError, match="format_version"):
        Dataset.load(tmp_path / "toy")


def test_unknown_folder_split_and_task_are_named(tmp_path):
    write(tmp_path / "toy")
    opened = Dataset.load(tmp_path / "toy")
    with pytest.raises(InputError, match="no split 'test'; it has: train"):
        opened.examples("test")
    with pytest.raises(InputError, match="no task 'LaMP-3'; it has: colour"):
        opened.task("LaMP-3")
    with pytest.raises(InputError, match="does not exist"):
        Dataset.load(tmp_path / "none")


def test_a_second_writing_replaces_the_first(tmp_path):
    write(tmp_path / "toy", {"train": [example()], "test": [example("e2")]})
    write(tmp_path / "toy")
    assert Dataset.load(tmp_path / "toy").splits == ("train",)
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_a_folder_with_other_things_in_it_is_refused(tmp_path):
    (tmp_path / "toy").mkdir()
    write(tmp_path / "toy")  # an empty folder is fine
    with pytest.raises(InputError, match="holds the data set 'toy'"):
        write(tmp_path / "toy", name="other")
    (tmp_path / "toy" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"notes.txt"):
        write(tmp_path / "toy")
    (tmp_path / "toy" / "manifest.json").unlink()
    with pytest.raises(InputError, match="holds no data set"):
        write(tmp_path / "toy")
    assert (tmp_path / "toy" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("earlier", [False, True])
def test_a_disk_that_fills_up_leaves_everything_as_it_was(tmp_path, monkeypatch, earlier):
    if earlier:
        write(tmp_path / "toy")
    before = all_bytes(tmp_path)

    def full(path, record):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(dataset, "write_json", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "toy", {"train": [example("new")]})
    assert all_bytes(tmp_path) == before
    assert not any(path.name.startswith(".") for path in tmp_path.iterdir())


def test_the_content_hash_follows_the_content_not_the_name(tmp_path):
    one = write(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert Dataset.load(tmp_path / "b").manifest.content_hash == one.content_hash
    assert write(tmp_path / "c", {"train": [example(input="!")]}).content_hash != one.content_hash


def test_dates_of_each_precision_span_what_they_say():
    day = 86_400.0
    assert interval("1970-01-01") == (0.0, day)
    assert interval("1970-01") == (0.0, 31 * day)
    assert interval("1970") == (0.0, 365 * day)
    assert interval("1972-02") == (761 * day, 790 * day)  # 731 days to 1972, 29 days in that February
    assert interval("1970-01-01T02:00:00+02:00") == (0.0, 0.0)
    assert interval("1970-01-01T00:00:01") == (1.0, 1.0)


@pytest.mark.parametrize("text", ["", "yesterday", "2020-13", "2020-02-30", "0000", "20", "2020-01-01T99:00"])
def test_a_date_that_cannot_be_read_is_named(text):
    with pytest.raises(InputError, match="cannot be read"):
        interval(text)


def test_chunks_hold_the_same_as_one_writing(tmp_path):
    items = [item(f"u{user}", n) for user in range(4) for n in range(3)]
    examples = [example(f"e{user}", user_id=f"u{user}", profile_id=f"u{user}") for user in range(4)]
    write(tmp_path / "whole", {"train": examples}, items)
    skipped: dict[str, int] = {}

    def chunks():
        for user in range(0, 4, 2):
            skipped["seen"] = user
            own = {f"u{user}", f"u{user + 1}"}
            yield (
                {"train": [e for e in examples if e.user_id in own], "test": []},
                [i for i in items if i.profile_id in own],
            )

    manifest = write_chunks(
        tmp_path / "parts", name="toy", source="x", licence="x", tasks=(COLOUR,), chunks=chunks(), parameters={},
        skipped=skipped,
    )  # fmt: skip
    whole, parts = Dataset.load(tmp_path / "whole"), Dataset.load(tmp_path / "parts")
    assert parts.profiles.equals(whole.profiles)
    assert parts.examples("train") == whole.examples("train")
    assert parts.examples("test") == []
    assert (manifest.users, manifest.skipped) == (4, {"seen": 2})
