"""One of several answers to a question, by one of four rules. Pure; definitions ours.

    majority   the answer most like the others by the task's own metric: the most frequent label, a rating in their
               middle, the text that shares most with the rest (for labels self-consistency, arXiv 2203.11171; for the
               other kinds the same idea, known as minimum Bayes risk)
    grounded   of the traces that break no rule, those of whose checkable claims about shown items most hold
               (`tags.ground`; no claim counts as none that holds), and the majority among these. It knows no gold
    prmu       the answer whose completion a reward model with user embeddings scores highest
    oracle     the best answer by the gold: what no rule can beat, an upper bound and no result

A completion without an answer is chosen only where none has one. Of equals the first drawn wins.
"""

from collections.abc import Sequence
from typing import Literal

from tagpr_data.lamp.metrics import reward
from tagpr_data.records import Task

Rule = Literal["majority", "grounded", "prmu", "oracle"]
RULES: tuple[Rule, ...] = ("majority", "grounded", "prmu", "oracle")


def most_agreed(task: Task, answers: Sequence[str | None]) -> int:
    """Give the place of the majority's answer; None stands for a completion without one."""
    given = [answer for answer in answers if answer is not None]
    # each is also compared with itself: the same for all, so that it decides nothing
    return _best(
        [None if answer is None else sum(reward(task, answer, other) for other in given) for answer in answers]
    )


def most_grounded(task: Task, answers: Sequence[str | None], truths: Sequence[tuple[bool, float]]) -> int:
    """Give the place of the majority's answer among the truest traces; `truths` say of each whether it breaks no rule,
    and the share of its claims that hold."""
    most = max((truth for answer, truth in zip(answers, truths, strict=True) if answer is not None), default=None)
    return most_agreed(task, [answer if truth == most else None for answer, truth in zip(answers, truths, strict=True)])


def best_scored(answers: Sequence[str | None], scores: Sequence[float]) -> int:
    """Give the place of the highest score among those with an answer."""
    return _best([None if answer is None else score for answer, score in zip(answers, scores, strict=True)])


def best_known(task: Task, answers: Sequence[str | None], gold: str | None) -> int:
    """Give the place of the best answer by the gold; the first where no gold is known."""
    if gold is None:
        return 0
    return _best([None if answer is None else reward(task, answer, gold) for answer in answers])


def _best(worths: Sequence[float | None]) -> int:
    """Give the first place of the largest number; 0 where there is none."""
    found = [(-worth, place) for place, worth in enumerate(worths) if worth is not None]
    return min(found, default=(0.0, 0))[1]
