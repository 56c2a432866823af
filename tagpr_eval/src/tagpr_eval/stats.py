"""How sure a score is: intervals, paired differences and corrected p-values, all clustered by user.

Every metric here is a function of sums: a row (one answer) adds F numbers, and the metric reads the totals, for
example accuracy = hits / rows, or macro-F1 from hits, answers and golds per label. So a bootstrap over users is one
matrix product of how often each user was drawn (R, U) with the totals per user (U, F), for all cells at once.

Guarantee: deterministic for a seed; rows of one user always stay together; pairs are compared on the rows both have;
in every difference positive means the first is better, also for errors.
Price: O((R + P)·U·F) floating point operations a cell; the draws hold (R + P)·U numbers of 4 bytes.

Letters: U users, R bootstrap resamples, P permutations, F features, L labels, n rows of a cell.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]

CONFIDENCE = 0.95
SIZE_EDGES = (1, 4, 8, 16, 32, 64, 128)
"""Lower ends of the profile-size bands after the first (items): 0, 1-3, 4-7, … 128 and more."""
RECENCY_EDGES = (1, 7, 30, 180, 365)
"""Lower ends of the recency bands after the first (days between the newest profile item and the query)."""
_ROUNDING = 1e-6
"""Totals are kept in 32 bits: differences closer than this are equal."""
_LONGER = 10
"""How many times as many resamples p-values are counted in."""
_BLOCK = 1000
"""Permutations computed together."""
_CLEARLY_LARGE = 0.1
"""A p-value above this is not made more exact."""


@dataclass(frozen=True)
class Metric:
    """A score that is a function of sums."""

    name: str
    """As printed: `accuracy`, `f1`, `MAE`, `RMSE`, `rouge-1`, `rouge-L`."""
    is_higher_better: bool
    """False for errors."""
    value: Callable[[Floats], Floats]
    """(…, F) totals → (…) values; nan where there are no rows."""


@dataclass(frozen=True)
class Observations:
    """The rows of one cell under one metric."""

    rows: Ints
    """(n,) what was answered (example and seed): equal numbers in two cells are a pair. Unique."""
    users: Ints
    """(n,) index of the row's user, 0 ≤ index < U."""
    features: Floats
    """(n, F) what each row adds to the totals."""

    def take(self, places: NDArray[np.bool_] | Ints) -> "Observations":
        """Give the rows at `places`: a mask (n,) or indices."""
        return Observations(self.rows[places], self.users[places], self.features[places])

    def sums(self) -> Floats:
        """Give the totals (F,) over all rows."""
        return self.features.sum(0, dtype=np.float64)


@dataclass(frozen=True)
class Estimate:
    """One score with its interval; nan where there are no rows."""

    value: float
    """On all rows."""
    low: float
    """Lower end of the 95 % percentile interval."""
    high: float
    """Upper end."""
    n: int
    """Rows."""
    users: int
    """Users with at least one row."""


@dataclass(frozen=True)
class Difference(Estimate):
    """First minus second on their common rows, turned so that positive means the first is better."""

    p: float
    """Two-sided, from swapping the two answers of whole users; not yet corrected for other comparisons. nan where it
    was not asked for."""


@dataclass(frozen=True)
class Draws:
    """The random part, drawn once and used for every cell of a task, so that cells stay comparable."""

    counts: NDArray[np.float32]
    """(R, U) how often each user was drawn."""
    swaps: NDArray[np.uint8]
    """(P, U) 1 where the user's two answers change places."""

    @cached_property
    def longer(self) -> "Draws":
        """These resamples and nine times as many more, (10·R, U), drawn when first asked for. A p counted in R
        resamples is never below 2 / (R + 1): with 1000 of them Holm would let nothing pass in a family of 26."""
        resamples, users = self.counts.shape
        more = _counts(np.random.default_rng((_LONGER, users)), (_LONGER - 1) * resamples, users)
        return Draws(np.concatenate([self.counts, more]), self.swaps)


def mean_features(values: Floats) -> Floats:
    """Give the (n, 2) features of a plain mean of (n,) values; for RMSE pass the squared errors."""
    return np.column_stack([values, np.ones(len(values))]).astype(np.float64)


def f1_features(predicted: Ints, gold: Ints, labels: int) -> Floats:
    """Give the (n, 3·L) features of macro-F1 from label indices; −1 (no known label) counts for no label."""
    features = np.zeros((len(predicted), 3, labels), dtype=np.float32)
    everyone = np.arange(len(predicted))
    hit = (predicted == gold) & (gold >= 0)
    for column, index, is_counted in ((0, gold, hit), (1, predicted, predicted >= 0), (2, gold, gold >= 0)):
        features[everyone[is_counted], column, index[is_counted]] = 1.0
    return features.reshape(len(predicted), 3 * labels)


def _mean(totals: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return totals[..., 0] / totals[..., 1]


def _root_mean(totals: Floats) -> Floats:
    return np.sqrt(_mean(totals))


def _macro_f1(totals: Floats) -> Floats:
    """Mean over all L labels of 2·hits / (answers + golds), 0 for a label that nobody used (the official rule)."""
    hits, answers, golds = np.moveaxis(totals.reshape(*totals.shape[:-1], 3, -1), -2, 0)
    sums = answers + golds
    per_label = np.divide(2 * hits, sums, out=np.zeros_like(hits), where=sums > 0)
    return np.where(golds.sum(-1) > 0, per_label.mean(-1), np.nan)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", True, _mean),
        Metric("f1", True, _macro_f1),
        Metric("MAE", False, _mean),
        Metric("RMSE", False, _root_mean),
        Metric("rouge-1", True, _mean),
        Metric("rouge-L", True, _mean),
    )
}


def draw(users: int, resamples: int = 1000, permutations: int = 10_000, seed: int = 0) -> Draws:
    """Draw the bootstrap counts and the swaps for `users` users. With P permutations no p is below 1 / (P + 1)."""
    rng = np.random.default_rng(seed)
    counts = _counts(rng, resamples, users)
    swaps = rng.integers(0, 2, (permutations, users), dtype=np.uint8)
    return Draws(counts, swaps)


def _counts(rng: np.random.Generator, resamples: int, users: int) -> NDArray[np.float32]:
    """(R, U) how often each user is drawn."""
    counts = np.empty((resamples, users), dtype=np.float32)
    for row in counts:
        row[:] = np.bincount(rng.integers(0, users, users), minlength=users)
    return counts


class Grid:
    """The cells of one task under one metric, resampled once."""

    def __init__(self, metric: Metric, cells: Sequence[Observations], draws: Draws) -> None:
        self.metric = metric
        self.cells = cells
        self.draws = draws
        self.totals, self.resampled = _resample(metric, cells, draws)  # (C, U, F), (C, R)

    def estimates(self) -> list[Estimate]:
        """Give each cell's score with its interval."""
        return [
            Estimate(
                float(self.metric.value(cell.sums())),
                *interval(resampled),
                n=len(cell.rows),
                users=len(np.unique(cell.users)),
            )
            for cell, resampled in zip(self.cells, self.resampled, strict=True)
        ]

    def differences(self, pairs: Sequence[tuple[int, int]], has_p: bool = True) -> list[Difference]:
        """Give first minus second for each pair of places in `cells`, on the rows both have; nan and p = 1 where
        they share none.

        The interval resamples users. p asks how often a difference as large comes up when, for each user by a coin,
        all answers of the two are swapped: no distribution is assumed, and few users cannot make it too small."""
        return [self._difference(first, second, has_p) for first, second in pairs]

    def _difference(self, first: int, second: int, has_p: bool) -> Difference:
        rows, other, pair = self.cells[first], self.cells[second], [first, second]
        totals, resampled = self.totals[pair], self.resampled[pair]  # (2, U, F), (2, R)
        if not np.array_equal(rows.rows, other.rows):
            rows, other = common(rows, other)
            totals, resampled = _resample(self.metric, [rows, other], self.draws)
        if not len(rows.rows):
            return Difference(np.nan, np.nan, np.nan, n=0, users=0, p=1.0)
        sign = 1.0 if self.metric.is_higher_better else -1.0
        sums = np.stack([rows.sums(), other.sums()])
        value = sign * float(np.subtract(*self.metric.value(sums)))
        return Difference(
            value,
            *interval(sign * (resampled[0] - resampled[1])),
            n=len(rows.rows),
            users=len(np.unique(rows.users)),
            p=self._p(totals[0] - totals[1], sums, abs(value)) if has_p else np.nan,
        )

    def _p(self, gap: Floats, sums: Floats, size: float) -> float:
        """gap (U, F) first minus second by user, sums (2, F). Stops after the first block when p is clearly large."""
        differs = gap.any(0)
        as_large = done = 0
        while done < len(self.draws.swaps) and as_large < _CLEARLY_LARGE * _BLOCK:
            block = self.draws.swaps[done : done + _BLOCK].astype(np.float32)
            moved = np.zeros((len(block), gap.shape[1]))  # (P, F): leaves the first, enters the second
            moved[:, differs] = block @ gap[:, differs]
            swapped = self.metric.value(sums[0] - moved) - self.metric.value(sums[1] + moved)
            as_large += np.count_nonzero(np.abs(swapped) >= size - _ROUNDING)
            done += len(block)
        return (1 + as_large) / (1 + done)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct a family of p-values for its size by Holm's step-down rule; the result is in the given order."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected.tolist()


def bands(values: Sequence[float | None], edges: Sequence[int]) -> tuple[Ints, list[str]]:
    """Sort values into bands: (n,) index of each value's band, −1 for None, and the names of all bands.

    Edges (1, 4) give the bands `0`, `1-3`, `4+` of whole numbers; a fraction belongs to the band it has reached."""
    numbers = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    index = np.searchsorted(np.asarray(edges), numbers, side="right")
    starts = (0, *edges)
    names = [_band_name(start, end) for start, end in zip(starts, (*edges, None), strict=True)]
    return np.where(np.isnan(numbers), -1, index), names


def _band_name(start: int, end: int | None) -> str:
    if end is None:
        return f"{start}+"
    return str(start) if end == start + 1 else f"{start}-{end - 1}"


def common(first: Observations, second: Observations) -> tuple[Observations, Observations]:
    """Give both cells cut down to their common rows, in the same order."""
    _, at_first, at_second = np.intersect1d(first.rows, second.rows, assume_unique=True, return_indices=True)
    return first.take(at_first), second.take(at_second)


def _resample(metric: Metric, cells: Sequence[Observations], draws: Draws) -> tuple[Floats, Floats]:
    """Give the cells' totals by user (C, U, F) and their values on each resample (C, R), by one product."""
    if not cells:
        return np.zeros((0, 0, 0)), np.zeros((0, 0))
    totals = np.stack([_user_totals(cell, draws) for cell in cells], axis=1)  # (U, C, F)
    users, count, features = totals.shape
    resampled = (draws.counts @ totals.reshape(users, count * features)).reshape(-1, count, features)
    return totals.transpose(1, 0, 2), metric.value(resampled).T


def _user_totals(cell: Observations, draws: Draws) -> NDArray[np.float32]:
    """(n, F) → (U, F)."""
    totals = np.zeros((draws.counts.shape[1], cell.features.shape[1]), dtype=np.float32)
    np.add.at(totals, cell.users, cell.features.astype(np.float32))
    return totals


def interval(resampled: Floats) -> tuple[float, float]:
    """(R,) → ends of the percentile interval; resamples without rows (nan) are left out."""
    known = resampled[~np.isnan(resampled)]
    if not len(known):
        return float("nan"), float("nan")
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    return float(low), float(high)
