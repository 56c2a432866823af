"""Statistics of several cells together: a sum with weights, the mean over training seeds, the spread.

Each is computed on the answers that all cells involved have. The intervals resample users, with all their answers in
all cells, by the draws that single scores use (`stats`). What is ours, as the paper does not say how it averages:

seeds      A trained model is one draw of its training seed. The estimate is the mean over seeds of the metric of each.
           Each resample draws users, and of S seeds S − 1 with replacement: the mean of so many has just the variance
           that the spread between S seeds estimates for their mean. Two variants are paired by seed.
spread     Best minus worst of some cells. The largest of noisy numbers is too large, and more so in a resample; the
           interval is therefore the basic one (2·estimate − quantiles), which takes that bias off instead of doubling
           it, cut off at 0 where a spread cannot be less.

Intervals are of the R resamples that single scores have; p-values count in 10·R, the same ones first, as a p counted in
1000 is too coarse for Holm over the differences of a large table.

Letters: C cells, S seeds, R resamples.
"""

from collections.abc import Sequence
from functools import reduce

import numpy as np

from tagpr_eval import stats


def contrast(
    metric: stats.Metric, cells: Sequence[stats.Observations], weights: Sequence[float], draws: stats.Draws
) -> stats.Difference:
    """Give the sum of the cells' scores times `weights`, turned so that positive is better; p as in `bootstrap_p`."""
    values, resampled, n, users = _values(metric, cells, draws.longer)
    weighing = np.asarray(weights, dtype=np.float64)
    return _difference(metric, float(weighing @ values), weighing @ resampled, n, users, draws)


def mean(metric: stats.Metric, cells: Sequence[stats.Observations], draws: stats.Draws) -> stats.Estimate:
    """Give the mean of the cells' scores on their common answers, and its interval over users."""
    values, resampled, n, users = _values(metric, cells, draws)
    return stats.Estimate(float(values.mean()), *stats.interval(resampled.mean(0)), n, users)


def seed_mean(
    metric: stats.Metric, seeds: Sequence[stats.Observations], draws: stats.Draws
) -> tuple[stats.Estimate, list[float]]:
    """Give the mean over training seeds with its interval, and each seed's score; `seeds` holds a cell for each."""
    values, resampled, n, users = _values(metric, seeds, draws)
    mean = (_seed_weights(len(seeds), resampled.shape[1]) * resampled).sum(0)
    return stats.Estimate(float(values.mean()), *stats.interval(mean), n, users), values.tolist()


def seed_difference(
    metric: stats.Metric,
    first: Sequence[stats.Observations],
    second: Sequence[stats.Observations],
    draws: stats.Draws,
) -> stats.Difference:
    """Give the mean over seeds of first minus second, which are paired by place (one seed each) and by answer; positive
    means the first is better; p as in `bootstrap_p`."""
    values, resampled, n, users = _values(metric, [*first, *second], draws.longer)
    seeds = len(first)
    value = float(values[:seeds].mean() - values[seeds:].mean())
    again = (_seed_weights(seeds, resampled.shape[1]) * (resampled[:seeds] - resampled[seeds:])).sum(0)
    return _difference(metric, value, again, n, users, draws)


def spread(
    metric: stats.Metric, cells: Sequence[stats.Observations], sets: Sequence[Sequence[int]], draws: stats.Draws
) -> stats.Estimate:
    """Give best minus worst of each set of places in `cells`, the mean over the sets; nan without a set."""
    values, resampled, n, users = _values(metric, cells, draws)
    found, again = _spread(values[:, None], sets), _spread(resampled, sets)
    low, high = _basic(float(found[0]), again)
    return stats.Estimate(float(found[0]), max(0.0, low), max(0.0, high), n, users)


def spread_difference(
    metric: stats.Metric,
    first: Sequence[stats.Observations],
    second: Sequence[stats.Observations],
    sets: Sequence[Sequence[int]],
    draws: stats.Draws,
) -> stats.Difference:
    """Give how much less the first spreads than the second, whose cells stand at the same places; p as in
    `bootstrap_p`, of the resamples without their bias."""
    values, resampled, n, users = _values(metric, [*first, *second], draws.longer)
    places = len(first)
    value = float(_spread(values[places:, None], sets)[0] - _spread(values[:places, None], sets)[0])
    again = _spread(resampled[places:], sets) - _spread(resampled[:places], sets)
    ends = _basic(value, again[: len(draws.counts)])
    return stats.Difference(value, *ends, n, users, p=bootstrap_p(2 * value - again))


def bootstrap_p(resampled: stats.Floats) -> float:
    """Give the two-sided p of resampled differences (R,): twice the share on the rarer side of 0, counted with one more
    on each side, at most 1. It agrees with the percentile interval, and takes in what the resamples draw (users, and
    seeds where there are several)."""
    known = resampled[~np.isnan(resampled)]
    if not len(known):
        return 1.0
    rarer = min(np.count_nonzero(known <= 0), np.count_nonzero(known >= 0))
    return min(1.0, 2 * (1 + rarer) / (1 + len(known)))


def _values(
    metric: stats.Metric, cells: Sequence[stats.Observations], draws: stats.Draws
) -> tuple[stats.Floats, stats.Floats, int, int]:
    """Scores (C,) on the common answers, the same on each resample (C, R), and how many answers and users."""
    rows = reduce(np.intersect1d, [cell.rows for cell in cells])
    cut = [cell.take(np.flatnonzero(np.isin(cell.rows, rows))) for cell in cells]
    cut = [cell.take(np.argsort(cell.rows, kind="stable")) for cell in cut]
    grid = stats.Grid(metric, cut, draws)
    values = np.array([float(metric.value(cell.sums())) for cell in cut])
    return values, grid.resampled.astype(np.float64), len(rows), len(np.unique(cut[0].users))


def _difference(
    metric: stats.Metric, value: float, resampled: stats.Floats, n: int, users: int, draws: stats.Draws
) -> stats.Difference:
    """Turn it, so that positive is better; `resampled` begins with those of `draws`."""
    sign = 1.0 if metric.is_higher_better else -1.0
    if not n:
        return stats.Difference(np.nan, np.nan, np.nan, n=0, users=0, p=1.0)
    ends = stats.interval(sign * resampled[: len(draws.counts)])
    return stats.Difference(sign * value, *ends, n, users, p=bootstrap_p(sign * resampled))


def _seed_weights(seeds: int, resamples: int) -> stats.Floats:
    """(S, R): what each seed weighs in each resample; of S seeds S − 1 are drawn, of one that one."""
    if seeds == 1:
        return np.ones((1, resamples))
    drawn = np.random.default_rng(seeds).integers(0, seeds, (resamples, seeds - 1))
    return np.stack([(drawn == seed).mean(1) for seed in range(seeds)])


def _spread(values: stats.Floats, sets: Sequence[Sequence[int]]) -> stats.Floats:
    """(C, R) → (R,)."""
    if not sets:
        return np.full(values.shape[1], np.nan)
    return np.mean([np.ptp(values[list(places)], axis=0) for places in sets], axis=0)


def _basic(value: float, resampled: stats.Floats) -> tuple[float, float]:
    low, high = stats.interval(resampled)
    return 2 * value - high, 2 * value - low
