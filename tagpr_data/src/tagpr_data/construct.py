"""Per-user events → examples and profiles, split so that an answer never looks into the future.

An example's profile is all of its user's events with an earlier date; events of the same second are left out of it.
Each history is stored once, as long as the longest look-back needs. Pure: no file, no clock, seeds are arguments.
"""

import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from tagpr_data.config import Config
from tagpr_data.records import Example, ProfileItem, Split, Task


@dataclass(frozen=True, slots=True)
class Event:
    """One thing a user did: as an example it is asked for `output`, as a past item it shows title, text, label."""

    user_id: str
    event_id: str
    """Unique in the history of its user."""
    moment: float
    """When, in seconds since 1970 UTC."""
    date: str
    """The same for people, as records hold it."""
    input: str
    output: str
    text: str
    title: str | None = None
    label: str | None = None
    is_askable: bool = True
    """False: never an example, only an item of later examples' profiles."""


class SplitOptions(Config):
    """Who and what becomes an example."""

    split: Literal["time", "user"] = "time"
    """time: each user's last events are test, those before validation, the rest train. user: every user is in one
    split only."""
    min_history: int = Field(default=10, ge=1)
    """Users with fewer events are left out."""
    min_earlier: int = Field(default=5, ge=0)
    """An event becomes an example only with so many earlier events to look at."""
    held_out: int = Field(default=2, ge=1)
    """Test examples a user, and as many for validation."""
    train_cap: int | None = Field(default=40, ge=1)
    """At most so many training examples a user, drawn by seed; None takes all."""
    validation_users: float = Field(default=0.1, ge=0, lt=1)
    """Share of users in validation; `split = "user"` only."""
    test_users: float = Field(default=0.0, ge=0, lt=1)
    """Share of users in test and in nothing else: the test users of `split = "user"`, the cold-start users of
    `split = "time"`."""
    seed: int = 0
    """Decides which users are held out and which training examples are drawn."""


@dataclass
class Histories:
    """Examples and items, ready for `write_dataset`; several tasks add up."""

    examples: dict[Split, list[Example]] = field(default_factory=lambda: {"train": [], "validation": [], "test": []})
    items: list[ProfileItem] = field(default_factory=list[ProfileItem])
    skipped: Counter[str] = field(default_factory=Counter[str])

    def add(self, other: "Histories") -> None:
        """Take over everything of another."""
        for split, examples in other.examples.items():
            self.examples[split].extend(examples)
        self.items.extend(other.items)
        self.skipped.update(other.skipped)


def histories(task: Task, events: Iterable[Event], options: SplitOptions) -> Histories:
    """Give examples of `task` and the profiles they look at.

    Profiles are named `TASK/USER`, examples `TASK/USER/EVENT`. Events of users with too short a history are counted
    as `TASK: user with fewer than N`. Depends on the events, not on their order.
    """
    return joint_histories([(task, events)], options)


def joint_histories(asked: Iterable[tuple[Task, Iterable[Event]]], options: SplitOptions) -> Histories:
    """Give the same for several tasks that ask about the same events, known by user and event id: an event is in one
    split for all of them, and so is a user held out.

    Each task holds out its own last events; what another task holds out for another split is no example, only an item,
    and counted as `TASK: held out by another task`.
    """
    result = Histories()
    kept: list[tuple[Task, dict[str, list[Event]]]] = []
    for task, events in asked:
        by_user: dict[str, list[Event]] = {}
        for event in events:
            by_user.setdefault(event.user_id, []).append(event)
        long_enough = {user: own for user, own in by_user.items() if len(own) >= options.min_history}
        left_out = sum(map(len, by_user.values())) - sum(map(len, long_enough.values()))
        if left_out:
            result.skipped[f"{task.name}: user with fewer than {options.min_history}"] = left_out
        kept.append((task, long_enough))
    users = {user for _, by_user in kept for user in by_user}
    split_of = roles(users, options)
    held = {
        user: held_out([by_user[user] for _, by_user in kept if user in by_user], options)
        for user, role in split_of.items()
        if role is None
    }
    for task, by_user in kept:
        for user in sorted(by_user):
            result.add(history(task, by_user[user], split_of[user], options, held.get(user)))
    return result


def roles(users: Iterable[str], options: SplitOptions) -> dict[str, Split | None]:
    """Give the one split of each user, or None where its own events are split by time; in the order of the names."""
    users = sorted(users)
    shuffled = users.copy()
    random.Random(options.seed).shuffle(shuffled)
    test = round(len(users) * options.test_users)
    validation = round(len(users) * options.validation_users) if options.split == "user" else 0
    rest: Split | None = "train" if options.split == "user" else None
    given: dict[str, Split | None] = {
        user: "test" if rank < test else "validation" if rank < test + validation else rest
        for rank, user in enumerate(shuffled)
    }
    return {user: given[user] for user in users}


def held_out(histories_of_user: Iterable[Sequence[Event]], options: SplitOptions) -> dict[str, Split]:
    """Give, by event id, the split of what is held out of training where one user's events are split by time: each
    history's last askable events are test, the last of those that are not test for any of them validation."""
    askable = [
        [own[place].event_id for place in _askable(own, _sizes(own), options)]
        for own in map(_in_order, histories_of_user)
    ]
    test = {event_id for ids in askable for event_id in ids[-options.held_out :]}
    rests = [[event_id for event_id in ids if event_id not in test] for ids in askable]
    validation = {event_id for rest in rests for event_id in rest[-options.held_out :]}
    return {event_id: "test" if event_id in test else "validation" for event_id in sorted(test | validation)}


def history(
    task: Task,
    events: Sequence[Event],
    role: Split | None,
    options: SplitOptions,
    held: Mapping[str, Split] | None = None,
) -> Histories:
    """Give the examples and the profile of one user; `events` are all of that user's, in any order.

    held: `held_out` over all tasks that ask about these events; None where there is this one only.
    """
    own = _in_order(events)
    sizes = _sizes(own)
    askable = _askable(own, sizes, options)
    last = options.held_out
    result = Histories()
    places: dict[Split, list[int]]
    if role is None and held is None:  # what `held_out` says of this history alone
        places = {"test": askable[-last:], "validation": askable[:-last][-last:], "train": askable[: -2 * last]}
    elif role is None:
        assert held is not None
        of_split = {
            split: [place for place in askable if held.get(own[place].event_id) == split]
            for split in ("test", "validation", None)
        }
        places = {"test": of_split["test"][-last:], "validation": of_split["validation"][-last:]}
        places["train"] = of_split[None]
        if lost := len(askable) - sum(map(len, places.values())):
            result.skipped[f"{task.name}: held out by another task"] = lost
    elif role == "train":
        places = {"train": askable}
    else:
        places = {role: askable[-last:]}
    if options.train_cap is not None and len(places.get("train", [])) > options.train_cap:
        draw = random.Random(f"{options.seed}/{task.name}/{own[0].user_id}")
        places["train"] = sorted(draw.sample(places["train"], options.train_cap))
    profile_id = f"{task.name}/{own[0].user_id}"
    longest = 0
    for split, chosen in places.items():
        for place in chosen:
            event = own[place]
            longest = max(longest, sizes[place])
            result.examples[split].append(
                Example(
                    id=f"{profile_id}/{event.event_id}",
                    task=task.name,
                    user_id=event.user_id,
                    profile_id=profile_id,
                    profile_size=sizes[place],
                    input=event.input,
                    output=event.output,
                    date=event.date,
                )
            )
    result.items = [
        ProfileItem(
            profile_id=profile_id,
            position=position,
            item_id=event.event_id,
            date=event.date,
            title=event.title,
            text=event.text,
            label=event.label,
        )
        for position, event in enumerate(own[:longest])
    ]
    return result


def _in_order(events: Iterable[Event]) -> list[Event]:
    return sorted(events, key=lambda event: (event.moment, event.event_id))


def _sizes(own: Sequence[Event]) -> list[int]:
    """Give how many events are earlier than each."""
    moments = [event.moment for event in own]
    return [bisect_left(moments, moment) for moment in moments]


def _askable(own: Sequence[Event], sizes: Sequence[int], options: SplitOptions) -> list[int]:
    """Give the places of the events that may become examples."""
    return [place for place, size in enumerate(sizes) if size >= options.min_earlier and own[place].is_askable]
