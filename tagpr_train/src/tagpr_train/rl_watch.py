"""The hacking stop: a learned or formal reward that rises while held-out answers get worse is being gamed.

Pure: measurements in, a verdict out. The answer's change is judged by its paired 95 % interval, resampled by user, as
in evaluation; tags and PRMU are compared by their means, since they are what is being optimised, and must have risen by
`SMALLEST_RISE`: runs have been stopped for a rise of 0.003, which games nothing. The rule and the number are ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

SMALLEST_RISE = 0.02
"""Of a component's mean, in [0, 1], to count as a rise."""
_RESAMPLES = 1000


@dataclass(frozen=True)
class Measurement:
    """The held-out examples, answered greedily at one step."""

    step: int
    """Optimiser steps taken."""
    answers: Mapping[str, float]
    """Example id → the task metric of the parsed answer, in [0, 1]."""
    users: Mapping[str, str]
    """Example id → its user."""
    tags: float
    """Mean of the tag component, in [0, 1]."""
    personal: float | None
    """Mean of the PRMU component, in [0, 1]; None without a PRMU."""

    @property
    def answer(self) -> float:
        """Mean of the answers."""
        return sum(self.answers.values()) / len(self.answers)


@dataclass(frozen=True)
class Change:
    """A paired difference with its 95 % percentile interval."""

    mean: float
    """Of the differences, over examples."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""


def paired_change(before: Mapping[str, float], after: Mapping[str, float], users: Mapping[str, str]) -> Change:
    """Give after minus before over the same examples, with whole users resampled; deterministic."""
    names = sorted(before)
    assert names and names == sorted(after), "the same examples are measured every time"
    people = {user: place for place, user in enumerate(sorted({users[name] for name in names}))}
    sums = np.zeros((len(people), 2))
    for name in names:
        sums[people[users[name]]] += (after[name] - before[name], 1.0)
    draws = np.random.default_rng(0).multinomial(len(people), np.full(len(people), 1 / len(people)), size=_RESAMPLES)
    totals = draws @ sums
    low, high = np.percentile(totals[:, 0] / totals[:, 1], (2.5, 97.5))
    return Change(float(sums[:, 0].sum() / len(names)), float(low), float(high))


def best(history: Sequence[Measurement]) -> Measurement:
    """Give the measurement with the best answers, the latest of equals."""
    return max(history, key=lambda measured: (measured.answer, measured.step))


def why_stop(history: Sequence[Measurement], weights: Mapping[str, float]) -> str | None:
    """Say why the last measurement shows hacking, compared with the best one before; None where it does not.

    `weights` are those of the reward, by component (`tags`, `personal`): what has no weight is not optimised, so its
    rise is no sign.
    """
    if len(history) < 2:
        return None
    then, now = best(history[:-1]), history[-1]
    change = paired_change(then.answers, now.answers, now.users)
    if change.high >= 0:
        return None
    risen = [
        f"{name} rose from {before:.3f} to {after:.3f}"
        for name, before, after in (("tags", then.tags, now.tags), ("personal", then.personal, now.personal))
        if weights.get(name, 0) > 0 and before is not None and after is not None and after - before >= SMALLEST_RISE
    ]
    if not risen:
        return None
    return (
        f"reward hacking: from step {then.step} to step {now.step} {' and '.join(risen)}, while held-out answers fell "
        f"from {then.answer:.3f} to {now.answer:.3f} (95 % interval of the paired change {change.low:+.3f} to "
        f"{change.high:+.3f}, {len(now.answers)} examples); the weights of step {then.step} are kept"
    )
