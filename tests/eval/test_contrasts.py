"""Statistics of several cells: numbers by hand, a computation of one's own, and what must hold whatever the numbers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagpr_eval import contrasts, stats

ACCURACY, ERROR = stats.METRICS["accuracy"], stats.METRICS["MAE"]


def cell(values, users=None, rows=None):
    """One answer a user unless said otherwise."""
    count = len(values)
    users = np.arange(count) if users is None else np.array(users)
    rows = np.arange(count) if rows is None else np.array(rows)
    return stats.Observations(rows, users, stats.mean_features(np.array(values, dtype=float)))


def test_a_contrast_is_the_weighted_sum_on_the_answers_that_all_cells_have():
    """Lift after minus lift before, on rows 1 to 3: (3/3 - 1/3) - (2/3 - 1/3) = 1/3."""
    draws = stats.draw(5, 200)
    cells = [
        cell([0, 1, 1, 1]),
        cell([1, 0, 0], [3, 2, 1], [3, 2, 1]),  # in another order
        cell([1, 1, 0], [1, 2, 3], [1, 2, 3]),
        cell([0, 0, 1, 0, 0]),
    ]
    found = contrasts.contrast(ACCURACY, cells, (1, -1, -1, 1), draws)
    assert found.value == pytest.approx(1 / 3)
    assert (found.n, found.users) == (3, 3)
    assert contrasts.contrast(ERROR, cells, (1, -1, -1, 1), draws).value == pytest.approx(-1 / 3)


def test_a_contrast_of_two_is_the_paired_difference_with_its_interval():
    rng = np.random.default_rng(1)
    users = np.repeat(np.arange(20), 3)
    first, second = (cell(rng.integers(0, 2, 60), users) for _ in range(2))
    draws = stats.draw(20, 500)
    (paired,) = stats.Grid(ACCURACY, [first, second], draws).differences([(0, 1)], has_p=False)
    found = contrasts.contrast(ACCURACY, [first, second], (1, -1), draws)
    assert (found.value, found.low, found.high) == pytest.approx((paired.value, paired.low, paired.high), abs=1e-6)


def test_cells_without_a_common_answer_have_no_contrast():
    found = contrasts.contrast(ACCURACY, [cell([1]), cell([1], [1], [1])], (1, -1), stats.draw(2, 50))
    assert np.isnan(found.value)
    assert (found.n, found.p) == (0, 1.0)


def test_the_mean_over_seeds_is_that_of_each_seeds_score_and_not_of_pooled_answers():
    """Macro-F1 with labels 0 and 1: seed 0 all right (1.0); seed 1 always says 0 (F1 of 0 is 2/3, of 1 is 0)."""
    gold = np.array([0, 1])
    seeds = [
        stats.Observations(np.arange(2), np.arange(2), stats.f1_features(np.array(given), gold, 2))
        for given in ([0, 1], [0, 0])
    ]
    found, by_seed = contrasts.seed_mean(stats.METRICS["f1"], seeds, stats.draw(2, 100))
    assert by_seed == pytest.approx([1.0, 1 / 3])
    assert found.value == pytest.approx(2 / 3)
    assert (found.n, found.users) == (2, 2)


def test_one_seed_has_the_interval_of_its_users_alone():
    draws = stats.draw(8, 300)
    one = cell([1, 0, 1, 1, 0, 1, 0, 1])
    (alone,) = stats.Grid(ACCURACY, [one], draws).estimates()
    found, _ = contrasts.seed_mean(ACCURACY, [one], draws)
    assert (found.value, found.low, found.high) == pytest.approx((alone.value, alone.low, alone.high), abs=1e-6)


def test_seeds_that_differ_widen_the_interval_by_just_their_variance():
    """All users answer alike within a seed, so only seeds vary: scores 0, 0, 1 and 1 have s² = 1/3, their mean s²/4."""
    seeds = [cell([value] * 10) for value in (0, 0, 1, 1)]
    weights = contrasts._seed_weights(4, 20_000)
    assert weights.sum(0) == pytest.approx(1)
    assert (weights[2:].sum(0)).var() == pytest.approx(1 / 12, rel=0.03)
    found, _ = contrasts.seed_mean(ACCURACY, seeds, stats.draw(10, 1000))
    assert found.value == 0.5
    assert (found.low, found.high) == pytest.approx((0, 1), abs=1e-6)


def test_seeds_are_paired_so_what_they_share_cancels():
    """Seed 1 is better for both variants; the difference is 0.1 in each seed, and has no width."""
    first = [cell([0, 0, 1, 0, 0, 0, 0, 0, 0, 0]), cell([1] * 10)]
    second = [cell([0] * 10), cell([1] * 9 + [0])]
    alike = contrasts.seed_difference(ACCURACY, first, second, stats.draw(10, 500))
    assert alike.value == pytest.approx(0.1)
    apart = contrasts.seed_difference(ACCURACY, first, second[::-1], stats.draw(10, 500))
    assert apart.value == pytest.approx(0.1)
    assert apart.high - apart.low > 1 > alike.high - alike.low
    assert contrasts.seed_difference(ERROR, first, second, stats.draw(10, 500)).value == pytest.approx(-0.1)


def test_p_counts_the_rarer_side_of_zero_twice():
    assert contrasts.bootstrap_p(np.array([1.0] * 97 + [-1.0, -2.0])) == pytest.approx(2 * 3 / 100)
    assert contrasts.bootstrap_p(np.zeros(9)) == 1.0
    assert contrasts.bootstrap_p(np.array([np.nan, np.nan])) == 1.0


def test_spread_is_the_mean_over_sets_of_best_minus_worst():
    """Scores 0.2, 0.8, 0.5, 0.4: sets (0, 1, 2) and (2, 3) spread 0.6 and 0.1."""
    cells = [cell([1] * right + [0] * (10 - right)) for right in (2, 8, 5, 4)]
    found = contrasts.spread(ACCURACY, cells, [(0, 1, 2), (2, 3)], stats.draw(10, 400))
    assert found.value == pytest.approx(0.35)
    assert 0 <= found.low < 0.35 < found.high
    assert np.isnan(contrasts.spread(ACCURACY, cells, [], stats.draw(10, 50)).value)


def test_the_interval_of_a_spread_is_the_basic_one():
    rng = np.random.default_rng(3)
    cells = [cell(rng.integers(0, 2, 30)) for _ in range(4)]
    draws = stats.draw(30, 1000)
    resampled = np.ptp(stats.Grid(ACCURACY, cells, draws).resampled, axis=0)
    low, high = np.quantile(resampled, [0.025, 0.975])
    found = contrasts.spread(ACCURACY, cells, [range(4)], draws)
    assert (found.low, found.high) == pytest.approx((max(0, 2 * found.value - high), 2 * found.value - low), abs=1e-6)


def test_less_spread_than_another_is_positive_for_scores_and_errors():
    narrow = [cell([1] * right + [0] * (10 - right)) for right in (5, 6)]
    wide = [cell([1] * right + [0] * (10 - right)) for right in (1, 9)]
    for metric in (ACCURACY, ERROR):
        found = contrasts.spread_difference(metric, narrow, wide, [(0, 1)], stats.draw(10, 500))
        assert found.value == pytest.approx(0.7)
        assert found.low > 0
        assert found.p < 0.05


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 1), min_size=6, max_size=6), min_size=2, max_size=4),
    st.integers(0, 3),
)
def test_a_variant_does_not_differ_from_itself_and_seeds_may_stand_in_any_order(scores, turn):
    seeds = [cell(values) for values in scores]
    draws = stats.draw(6, 100)
    same = contrasts.seed_difference(ACCURACY, seeds, seeds, draws)
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)
    place = turn % len(seeds)
    turned = contrasts.seed_mean(ACCURACY, seeds[place:] + seeds[:place], draws)[0]
    assert turned.value == pytest.approx(contrasts.seed_mean(ACCURACY, seeds, draws)[0].value)


def test_a_p_is_fine_enough_for_a_large_table_and_leaves_the_interval_as_it_was():
    """30 variants of two seeds, each clearly worse than the whole: Holm over all must let every one pass. In 1000
    resamples no p is below 2/1001, and 30 times that is above 0.05."""
    rng = np.random.default_rng(4)
    draws = stats.draw(40, 1000)
    whole = [cell([1.0] * 40), cell([1.0] * 39 + [0.0])]
    found = [
        contrasts.seed_difference(ACCURACY, [cell(rng.random(40) < 0.5) for _ in whole], whole, draws)
        for _ in range(30)
    ]
    assert all(one.high < 0 for one in found)
    assert max(stats.holm([one.p for one in found])) < 0.05
    first, second = cell(rng.random(40) < 0.5), whole[0]
    again = np.subtract(*stats.Grid(ACCURACY, [first, second], draws).resampled.astype(float))
    one = contrasts.contrast(ACCURACY, [first, second], (1, -1), draws)
    assert (one.low, one.high) == pytest.approx(stats.interval(again))
    assert np.array_equal(draws.longer.counts[:1000], draws.counts)
    assert draws.longer.counts.shape == (10_000, 40) and (draws.longer.counts.sum(1) == 40).all()
