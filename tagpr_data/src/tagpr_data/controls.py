"""The wrong-user control: which other user's items an example is answered with, to see whether the person matters.

A model that really uses the person must do worse with a stranger's items. So that only the person differs, the stranger
has the same task and lends just as many items. How the official benchmark would do this is not defined; this is ours.
"""

import hashlib
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tagpr_data.errors import InputError
from tagpr_data.records import Example


@dataclass(frozen=True)
class Loan:
    """Items lent to an example: `profile(lender)[start:stop]`, the latest ones the lender has."""

    lender: Example
    """An example of the other user, whose profile is lent."""
    start: int
    """First lent item."""
    stop: int
    """One past the last lent item; equals the lender's `profile_size`."""


def wrong_user(examples: Sequence[Example], seed: int) -> dict[str, Loan]:
    """Give each example, by id, the latest `profile_size` items of another user with the same task.

    The lender is drawn evenly from the users who have as many items or more, each standing with the example of theirs
    that sees the most. Where nobody has as many, the others with the most items lend fewer. The order of `examples`
    does not matter. Raises InputError for a task with one user only.
    """
    by_task: defaultdict[str, list[Example]] = defaultdict(list)
    for example in examples:
        by_task[example.task].append(example)
    loans: dict[str, Loan] = {}
    for task, members in by_task.items():
        lenders = _lenders(members)
        if len(lenders) == 1:
            raise InputError(f"the control wrong-user needs two users; task {task} has {lenders[0].user_id!r} only")
        sizes = [lender.profile_size for lender in lenders]
        place_of_user = {lender.user_id: place for place, lender in enumerate(lenders)}
        for example in members:
            own = place_of_user[example.user_id]
            enough = bisect_left(sizes, example.profile_size)
            if enough == own == len(lenders) - 1:
                enough = bisect_left(sizes, sizes[-2])
            places = len(lenders) - enough - (own >= enough)
            place = enough + _draw(f"{seed}\0{example.id}", places)
            lender = lenders[place + (enough <= own <= place)]  # steps over the user's own place
            lent = min(example.profile_size, lender.profile_size)
            loans[example.id] = Loan(lender, lender.profile_size - lent, lender.profile_size)
    return loans


def _lenders(examples: Iterable[Example]) -> list[Example]:
    """One example a user, the one that sees most items (of equal ones the first id), shortest profile first."""
    best: dict[str, Example] = {}
    for example in examples:
        known = best.get(example.user_id)
        if known is None or (-example.profile_size, example.id) < (-known.profile_size, known.id):
            best[example.user_id] = example
    return sorted(best.values(), key=lambda example: (example.profile_size, example.id))


def _draw(identity: str, choices: int) -> int:
    digest = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:16], "big") % choices
