"""Baselines that need no model: what a table of scores has to beat.

They read whole profiles instead of prompts, so retriever and k do not matter to them; a profile of the wrong user
does. A user with an empty profile gets the majority of the train split, or the first label where there is none;
`majority` itself is refused then. All are deterministic and take no time.

    majority       the commonest gold answer of the train split; of ratings the median
    own-majority   the commonest label among the user's items; of ratings the median. Without labels: like copy-last
    knn            label of the user's item nearest to the input by BM25; for generation its title
    copy-last      label of the user's last item; for generation its title
    oracle         the gold answer: what perfect scores look like
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tagpr_data.generate import retrieval_text
from tagpr_data.records import Example, ProfileItem, Task
from tagpr_data.retrieve import rank


@dataclass(frozen=True, slots=True)
class Situation:
    """What a baseline may look at."""

    task: Task
    """What is asked."""
    example: Example
    """The example to answer."""
    profile: tuple[ProfileItem, ...]
    """All items of the user, or of the wrong user, oldest first where dates are known."""
    train_golds: Sequence[str]
    """Gold answers of the task in the train split."""


def majority(situation: Situation) -> str:
    """Give the commonest gold of the train split (of ratings the median), or the first label without one."""
    if situation.train_golds:
        return _centre(situation.task, situation.train_golds)
    return situation.task.labels[0] if situation.task.labels else ""


def own_majority(situation: Situation) -> str:
    """Give the commonest label of the profile, of ratings the median."""
    labels = [item.label for item in situation.profile if item.label and item.label in (situation.task.labels or ())]
    if not labels:
        return copy_last(situation)
    return _centre(situation.task, labels)


def knn(situation: Situation) -> str:
    """Give what the item nearest to the input has: its label, or its title for generation."""
    texts = [retrieval_text(item) for item in situation.profile]
    order = rank("bm25", situation.example.input, texts) if texts else []
    return _answer_of(situation, [situation.profile[position] for position in order])


def copy_last(situation: Situation) -> str:
    """Give what the last item has: its label, or its title for generation."""
    return _answer_of(situation, situation.profile[::-1])


def oracle(situation: Situation) -> str:
    """Give the gold; empty where it is withheld."""
    return situation.example.output or ""


BASELINES: dict[str, Callable[[Situation], str]] = {
    "majority": majority,
    "own-majority": own_majority,
    "knn": knn,
    "copy-last": copy_last,
    "oracle": oracle,
}
READS_PROFILE = frozenset({"own-majority", "knn", "copy-last"})
"""Baselines for which the wrong user's profile makes a difference."""


def _answer_of(situation: Situation, items: Sequence[ProfileItem]) -> str:
    """What the first of the items that can answer has; LaMP-7's items have no title, their text is the answer."""
    for item in items:
        if situation.task.labels is None:
            return item.title or item.text
        if item.label and item.label in situation.task.labels:
            return item.label
    return majority(situation)


def _centre(task: Task, answers: Sequence[str]) -> str:
    """The median of ratings, else the commonest answer; ties go to the first in label or alphabetical order."""
    if task.kind == "rating":
        return sorted(answers, key=float)[(len(answers) - 1) // 2]
    counts = Counter(answers)
    order = {label: position for position, label in enumerate(task.labels or ())}
    return min(counts, key=lambda answer: (-counts[answer], order.get(answer, len(order)), answer))
