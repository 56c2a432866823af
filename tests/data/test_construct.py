"""construct.py: the time split never looks ahead, users keep their split, the seed decides every draw."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagpr_data import construct
from tagpr_data.construct import Event, SplitOptions, histories, joint_histories
from tagpr_data.dataset import write_dataset
from tagpr_data.dates import interval
from tagpr_data.records import Task

TASK = Task(name="toy", kind="generation", answer_form="a word", item_template="{text}")


def event(user, second, number=None):
    number = second if number is None else number
    return Event(
        user_id=user, event_id=f"{number:03}", moment=float(second), date=f"1970-01-01T00:00:{second:02}+00:00",
        input=f"in {number}", output=f"out {number}", text=f"text {number}",
    )  # fmt: skip


def history(user="u1", length=12):
    return [event(user, second) for second in range(length)]


def places(result, split):
    return [(example.id.rsplit("/")[-1], example.profile_size) for example in result.examples[split]]


def test_last_events_are_test_those_before_validation_the_rest_train():
    result = histories(TASK, history(), SplitOptions(min_history=10, min_earlier=5))
    assert places(result, "train") == [("005", 5), ("006", 6), ("007", 7)]
    assert places(result, "validation") == [("008", 8), ("009", 9)]
    assert places(result, "test") == [("010", 10), ("011", 11)]
    assert [item.item_id for item in result.items] == [f"{n:03}" for n in range(11)]  # the last one is never seen


def test_events_of_the_same_second_do_not_see_each_other():
    events = [event("u1", 0), event("u1", 1, 1), event("u1", 1, 2), event("u1", 1, 3), event("u1", 2, 4)]
    result = histories(TASK, events, SplitOptions(min_history=1, min_earlier=1, held_out=1))
    sizes = dict(places(result, "train") + places(result, "validation") + places(result, "test"))
    assert sizes == {"001": 1, "002": 1, "003": 1, "004": 4}


def test_short_histories_are_left_out_and_counted():
    result = histories(TASK, history("u1", 12) + history("u2", 9) + history("u3", 4), SplitOptions(min_history=10))
    assert {example.user_id for example in result.examples["train"]} == {"u1"}
    assert result.skipped == {"toy: user with fewer than 10": 13}


def test_the_cap_draws_training_examples_by_seed_and_leaves_the_profile_whole():
    options = SplitOptions(train_cap=4)
    drawn = histories(TASK, history(length=30), options)
    assert len(drawn.examples["train"]) == 4
    assert len(drawn.items) == 29
    assert drawn == histories(TASK, history(length=30), options)
    other = histories(TASK, history(length=30), SplitOptions(train_cap=4, seed=1))
    assert places(other, "train") != places(drawn, "train")
    assert places(other, "test") == places(drawn, "test")


def test_user_split_puts_every_user_in_one_split():
    events = [e for n in range(20) for e in history(f"u{n:02}")]
    options = SplitOptions(split="user", validation_users=0.1, test_users=0.25)
    result = histories(TASK, events, options)
    users = {split: {example.user_id for example in rows} for split, rows in result.examples.items()}
    assert {split: len(names) for split, names in users.items()} == {"train": 13, "validation": 2, "test": 5}
    assert len(set.union(*users.values())) == 20
    assert len(result.examples["test"]) == 5 * 2  # the last two events of each


def test_cold_start_users_of_a_time_split_are_seen_in_test_only():
    events = [e for n in range(10) for e in history(f"u{n}")]
    result = histories(TASK, events, SplitOptions(test_users=0.2))
    users = {split: {example.user_id for example in rows} for split, rows in result.examples.items()}
    assert len(users["test"]) == 10
    assert len(users["train"]) == 8
    assert users["train"] == users["validation"]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 20)), max_size=40),
    st.integers(0, 3),
    st.integers(0, 99),
    st.sampled_from(["time", "user"]),
)
def test_no_profile_reaches_the_date_of_its_example(rows, min_earlier, seed, split):
    events = [event(user, second, number) for number, (user, second) in enumerate(rows)]
    options = SplitOptions(
        split=split, min_history=1, min_earlier=min_earlier, train_cap=None, test_users=0.3, seed=seed
    )
    result = histories(TASK, events, options)
    random.Random(seed).shuffle(events)
    assert histories(TASK, events, options) == result
    items = {}
    for item in result.items:
        items.setdefault(item.profile_id, []).append(item)
    for example in [example for rows in result.examples.values() for example in rows]:
        shown = items.get(example.profile_id, [])[: example.profile_size]
        own = [e for e in events if e.user_id == example.user_id]
        earlier = [e for e in own if e.moment < interval(example.date)[0]]
        assert {item.item_id for item in shown} == {e.event_id for e in earlier}
        assert len(shown) >= min_earlier


OTHER = TASK.model_copy(update={"name": "other"})


def test_an_event_is_in_one_split_for_all_tasks_that_ask_about_it():
    both, own = history(length=14), [event("u1", second) for second in (20, 21, 22)]
    result = joint_histories([(TASK, both), (OTHER, both + own)], SplitOptions())
    assert {split: [example.id for example in result.examples[split]] for split in ("test", "validation")} == {
        "test": ["toy/u1/012", "toy/u1/013", "other/u1/021", "other/u1/022"],
        "validation": ["toy/u1/010", "toy/u1/011", "other/u1/011", "other/u1/020"],
    }  # 12 and 13 are test of toy, so other takes 20 and then 11 for validation
    assert [example.id.split("/")[-1] for example in result.examples["train"]] == [
        *("005", "006", "007", "008", "009"),
        *("005", "006", "007", "008", "009"),
    ]
    assert result.skipped == {"other: held out by another task": 3}  # 10, 12 and 13


def test_a_held_out_user_is_held_out_for_all_tasks():
    events = [e for n in range(10) for e in history(f"u{n}")]
    more = events + history("u10") + history("u11", 3)
    for options in (SplitOptions(test_users=0.3), SplitOptions(split="user", test_users=0.3, validation_users=0.3)):
        result = joint_histories([(TASK, events), (OTHER, more)], options)
        trained = {example.user_id for example in result.examples["train"]}
        cold = {example.user_id for example in result.examples["test"]} - trained
        assert len(cold) == 3
        assert len(trained) == (8 if options.split == "time" else 5)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 20), st.booleans(), st.booleans()), max_size=40),
    st.integers(1, 3),
    st.sampled_from(["time", "user"]),
)
def test_no_event_is_in_two_splits_and_each_task_keeps_the_order_of_time(rows, held_out, split):
    events = [event(user, second, number) for number, (user, second, _, _) in enumerate(rows)]
    asked = [
        (TASK, [e for e, row in zip(events, rows, strict=True) if row[2]]),
        (OTHER, [e for e, row in zip(events, rows, strict=True) if row[3]]),
    ]
    options = SplitOptions(split=split, min_history=1, min_earlier=1, held_out=held_out, train_cap=None, test_users=0.3)
    result = joint_histories(asked, options)
    splits = {}
    for name, examples in result.examples.items():
        for example in examples:
            splits.setdefault(example.id.partition("/")[2], set()).add(name)
    assert all(len(names) == 1 for names in splits.values())
    moments = {event.event_id: event.moment for event in events}
    for profile in {example.profile_id for examples in result.examples.values() for example in examples}:
        latest = -1.0
        for name in ("train", "validation", "test"):
            own = [moments[e.id.split("/")[-1]] for e in result.examples[name] if e.profile_id == profile]
            assert min(own, default=latest) >= latest
            latest = max(own, default=latest)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(0, 2), st.integers(1, 4))
def test_one_history_alone_is_split_as_it_is_with_the_events_that_all_tasks_hold_out(seconds, min_earlier, last):
    events = [event("u1", second, number) for number, second in enumerate(seconds)]
    options = SplitOptions(min_history=1, min_earlier=min_earlier, held_out=last, train_cap=None)
    alone = construct.history(TASK, events, None, options)
    assert alone == construct.history(TASK, events, None, options, construct.held_out([events], options))


def test_an_event_that_is_not_askable_is_only_an_item():
    events = history(length=12)
    events[11] = replace(events[11], is_askable=False)
    events[10] = replace(events[10], is_askable=False)
    result = histories(TASK, events, SplitOptions())
    assert places(result, "test") == [("008", 8), ("009", 9)]
    assert places(result, "train") == [("005", 5)]


def test_the_result_passes_the_checks_of_the_writer(tmp_path):
    result = histories(TASK, history("u1") + history("u2", 15), SplitOptions())
    manifest = write_dataset(
        tmp_path / "toy", name="toy", source="ours", licence="CC0-1.0", tasks=(TASK,), examples=result.examples,
        items=result.items, parameters={}, skipped={},
    )  # fmt: skip
    assert manifest.users == 2


@pytest.mark.parametrize("wrong", [{"min_history": 0}, {"test_users": 1.0}, {"split": "random"}, {"mini_history": 3}])
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SplitOptions(**wrong)
