"""Synthetic people whose preferences are known: the ground truth that real data cannot give. All words are ours.

`personas-choice`: a thing with a mood goes onto one of four shelves; which mood goes where is the user's own hidden
rule, so the same input has different answers for different users and chance (0.25) is all there is without the
profile. `personas-phrase`: a plain note said in the user's own words (opener, closer, three words of choice, case).

Guarantee: every example can be solved from its profile, because a user's first six events show every mood and every
kind of note. Under 100 distinct words (half of the users write phrases in capitals), so that a model of a few million
parameters can learn it from scratch.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any

from tagpr_data.construct import Event, Histories, SplitOptions, histories
from tagpr_data.dataset import check_target, write_dataset
from tagpr_data.errors import InputError
from tagpr_data.records import DatasetManifest, Task

SHELVES = ("amber", "cedar", "indigo", "slate")
MOODS = ("calm", "wild", "sad", "funny", "strange", "proud")
KINDS = ("book", "film", "song")
TOPICS = (
    "birds", "trains", "rain", "bread", "chess", "ships", "gardens", "clocks", "horses", "maps", "snow", "castles",
)  # fmt: skip
OPENERS = ("hello friends", "hey", "dear all", "attention", "good news", "listen")
CLOSERS = ("thanks", "cheers", "take care", "see you", "regards", "love")
CHANGES: Mapping[str, tuple[str, ...]] = {
    "moved": ("shifted", "pushed", "rescheduled"),
    "dropped": ("cancelled", "scrapped", "abandoned"),
    "fixed": ("confirmed", "settled", "certain"),
}
"""What a plain note says → the words people have for it."""
NOUNS = ("meeting", "dinner", "lesson", "match", "concert", "trip", "call", "party")
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
CHOICE_TASK = Task(
    name="personas-choice",
    kind="classification",
    labels=SHELVES,
    question=f"Onto which shelf would this user put it: {', '.join(SHELVES)}?",
    answer_form="the name of one shelf",
    item_template="{text} : {label}",
)
PHRASE_TASK = Task(
    name="personas-phrase",
    kind="generation",
    question="How would this user say it?",
    answer_form="the note in this user's words",
    item_template="{text} : {title}",
)
FIRST_DATE = datetime(2020, 1, 1, 12, tzinfo=UTC)
MAX_EVENTS = min(len(MOODS) * len(KINDS) * len(TOPICS), len(NOUNS) * len(CHANGES) * len(DAYS))
"""So many different inputs there are in each task; no user meets one twice."""


@dataclass(frozen=True)
class Persona:
    """One synthetic user: everything that decides their answers."""

    user_id: str
    shelf_by_mood: dict[str, str]
    word_by_change: dict[str, str]
    opener: str
    closer: str
    is_loud: bool
    """Writes in capitals."""

    def phrase(self, noun: str, change: str, day: str) -> str:
        """Give the note as this user says it."""
        text = f"{self.opener} {noun} {self.word_by_change[change]} {day} {self.closer}"
        return text.upper() if self.is_loud else text


def persona(user_id: str, seed: int) -> Persona:
    """Draw a user's preferences; each is independent of the others and of other users."""
    draw = random.Random(f"persona/{seed}/{user_id}")
    return Persona(
        user_id=user_id,
        shelf_by_mood={mood: draw.choice(SHELVES) for mood in MOODS},
        word_by_change={change: draw.choice(words) for change, words in CHANGES.items()},
        opener=draw.choice(OPENERS),
        closer=draw.choice(CLOSERS),
        is_loud=draw.random() < 0.5,
    )


def construct(
    folder: Path, *, users: int = 400, events: int = 24, options: SplitOptions | None = None
) -> DatasetManifest:
    """Write the data set: `users` people with `events` dated events in each task. The preferences stand in the
    manifest's parameters. Default split: users are disjoint, 10 % in validation and 20 % in test."""
    options = options or SplitOptions(
        split="user", min_history=1, min_earlier=len(MOODS), held_out=4, train_cap=None, test_users=0.2
    )
    if not 1 <= users <= 99_999:
        raise InputError(f"--users {users} is out of range; 1 to 99999")
    if not options.min_earlier < events <= MAX_EVENTS:
        raise InputError(
            f"--events {events} is out of range; more than the {options.min_earlier} earlier events an example needs, "
            f"at most {MAX_EVENTS}, the number of different inputs"
        )
    check_target(folder, "personas")
    people = [persona(f"u{number:05}", options.seed) for number in range(1, users + 1)]
    result = Histories()
    for task, make in ((CHOICE_TASK, choice_events), (PHRASE_TASK, phrase_events)):
        result.add(histories(task, (event for who in people for event in make(who, events, options.seed)), options))
    preferences = {
        who.user_id: {
            "shelf_by_mood": who.shelf_by_mood,
            "word_by_change": who.word_by_change,
            "opener": who.opener,
            "closer": who.closer,
            "is_loud": who.is_loud,
        }
        for who in people
    }
    return write_dataset(
        folder,
        name="personas",
        source="synthetic: users, preferences and texts are made up by tagpr_data.sources.personas",
        licence="Apache-2.0",
        tasks=(CHOICE_TASK, PHRASE_TASK),
        examples=result.examples,
        items=result.items,
        parameters={**options.model_dump(mode="json"), "users": users, "events": events, "preferences": preferences},
        skipped=dict(result.skipped),
    )


def choice_events(who: Persona, count: int, seed: int) -> Iterator[Event]:
    """Give `count` different things and where this user puts them; the first six show every mood."""
    draw = random.Random(f"choice/{seed}/{who.user_id}")
    things = draw.sample(list(product(KINDS, TOPICS, MOODS)), MAX_EVENTS)
    for number, (kind, topic, mood) in enumerate(_every_kind_first(things, 2, count)):
        text = f"a {kind} about {topic} that is {mood}"
        shelf = who.shelf_by_mood[mood]
        yield _event(who, number, input=text, output=shelf, text=text, label=shelf)


def phrase_events(who: Persona, count: int, seed: int) -> Iterator[Event]:
    """Give `count` different notes and how this user says them; the first three show every kind of change."""
    draw = random.Random(f"phrase/{seed}/{who.user_id}")
    notes = draw.sample(list(product(NOUNS, CHANGES, DAYS)), MAX_EVENTS)
    for number, (noun, change, day) in enumerate(_every_kind_first(notes, 1, count)):
        text = f"the {noun} is {change} on {day}"
        said = who.phrase(noun, change, day)
        yield _event(who, number, input=text, output=said, text=text, title=said)


def answer(preferences: Mapping[str, Any], task: str, input: str) -> str:
    """Give what a user with these preferences (a value of the manifest's `preferences`) answers to any input."""
    who = Persona(user_id="", **preferences)
    words = input.split()
    if task == CHOICE_TASK.name:
        return who.shelf_by_mood[words[-1]]
    return who.phrase(words[1], words[3], words[5])


def _every_kind_first(rows: Sequence[tuple[str, str, str]], key: int, count: int) -> list[tuple[str, str, str]]:
    """Reorder so that the first row of each value of column `key` comes before all others; cut to `count`."""
    first: dict[str, tuple[str, str, str]] = {}
    for row in rows:
        first.setdefault(row[key], row)
    chosen = set(first.values())
    return [*first.values(), *(row for row in rows if row not in chosen)][:count]


def _event(
    who: Persona, number: int, *, input: str, output: str, text: str, title: str | None = None, label: str | None = None
) -> Event:
    date = FIRST_DATE + timedelta(days=number)
    return Event(
        user_id=who.user_id,
        event_id=f"e{number:03}",
        moment=date.timestamp(),
        date=date.isoformat(),
        input=input,
        output=output,
        text=text,
        title=title,
        label=label,
    )
