"""Statistics against loops, formulae and simulation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from tagpr_eval import stats


def cell(values, users, rows=None):
    rows = np.arange(len(values)) if rows is None else np.asarray(rows)
    return stats.Observations(rows, np.asarray(users), stats.mean_features(np.asarray(values, dtype=float)))


def grid(metric, cells, users, **options):
    return stats.Grid(stats.METRICS[metric], cells, stats.draw(users, **options))


def loop_bootstrap(score, rows_by_user, draws):
    """The same resamples, the slow way: repeat each user's rows as often as the user was drawn."""
    values = []
    for counts in draws.counts.astype(int):
        rows = [row for user, times in enumerate(counts) for row in rows_by_user[user] * times]
        values.append(score(rows))
    return np.quantile(values, [0.025, 0.975])


def test_interval_of_a_mean_equals_a_loop_over_the_same_resamples():
    rng = np.random.default_rng(1)
    users, values = rng.integers(0, 12, 60), rng.random(60)
    draws = stats.draw(12, resamples=200, seed=3)
    found = stats.Grid(stats.METRICS["MAE"], [cell(values, users)], draws).estimates()[0]
    expected = loop_bootstrap(np.mean, [list(values[users == user]) for user in range(12)], draws)
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=1e-6)
    assert (found.n, found.users) == (60, 12)


def test_macro_f1_and_its_interval_equal_scikit_learn_in_a_loop():
    rng = np.random.default_rng(2)
    labels, n, count = 5, 80, 15
    users = np.concatenate([np.arange(count), rng.integers(0, count, n - count)])
    gold, predicted = rng.integers(0, 4, n), rng.integers(-1, labels, n)  # label 4 is never gold, −1 never right
    features = stats.f1_features(predicted, gold, labels)
    draws = stats.draw(count, resamples=60, seed=5)
    found = stats.Grid(stats.METRICS["f1"], [stats.Observations(np.arange(n), users, features)], draws).estimates()[0]

    def score(rows):
        return f1_score(gold[rows], predicted[rows], labels=range(labels), average="macro", zero_division=0)

    expected = loop_bootstrap(score, [list(np.flatnonzero(users == user)) for user in range(count)], draws)
    assert found.value == pytest.approx(score(list(range(n))), abs=1e-12)
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=1e-6)


def test_macro_f1_counts_absent_labels_as_zero():
    predicted = gold = np.array([3, 7])
    found = grid("f1", [stats.Observations(np.arange(2), np.arange(2), stats.f1_features(predicted, gold, 15))], 2)
    assert found.estimates()[0].value == pytest.approx(2 / 15)


def test_rmse_is_the_root_of_the_mean_square():
    found = grid("RMSE", [cell(np.array([0.0, 3.0, 4.0]) ** 2, [0, 1, 2])], 3).estimates()[0]
    assert found.value == pytest.approx(np.sqrt(25 / 3))


def test_interval_of_a_mean_has_the_width_of_the_formula():
    """Normal theory for independent users: ±1.96 σ / √n."""
    values = np.random.default_rng(4).normal(size=2000)
    found = grid("MAE", [cell(values, np.arange(2000))], 2000, resamples=2000).estimates()[0]
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(2000), rel=0.06)


def test_intervals_cover_the_truth_where_answers_of_a_user_agree_and_unclustered_ones_do_not():
    rng = np.random.default_rng(7)
    users, each, truth = 40, 8, 0.5
    clustered = unclustered = 0
    rounds = 200
    for seed in range(rounds):
        user_effect = rng.normal(0, 1, users)
        values = (truth + user_effect[:, None] + rng.normal(0, 0.3, (users, each))).ravel()
        whose = np.repeat(np.arange(users), each)
        by_user = grid("MAE", [cell(values, whose)], users, resamples=300, permutations=1, seed=seed).estimates()[0]
        by_row = grid(
            "MAE", [cell(values, np.arange(len(values)))], len(values), resamples=300, permutations=1, seed=seed
        ).estimates()[0]
        clustered += by_user.low <= truth <= by_user.high
        unclustered += by_row.low <= truth <= by_row.high
    assert 0.89 <= clustered / rounds <= 0.99
    assert unclustered / rounds < 0.65


def test_p_values_are_uniform_enough_when_nothing_differs():
    rng = np.random.default_rng(8)
    p = [
        grid("MAE", [cell(a, np.arange(20)), cell(b, np.arange(20))], 20, resamples=10, permutations=199, seed=seed)
        .differences([(0, 1)])[0]
        .p
        for seed, (a, b) in enumerate(rng.normal(size=(300, 2, 20)))
    ]
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.035)
    assert np.mean(p) == pytest.approx(0.5, abs=0.06)


def test_p_of_few_users_is_the_exact_share_of_swaps():
    """Three users, all in favour of the first by the same amount: 2 of the 8 sign patterns are as large."""
    found = grid("accuracy", [cell([1, 1, 1], [0, 1, 2]), cell([0, 0, 0], [0, 1, 2])], 3, permutations=4000)
    assert found.differences([(0, 1)])[0].p == pytest.approx(2 / 8, abs=0.03)


def test_difference_uses_only_common_rows_whatever_their_order():
    first = cell([1, 0, 1, 1], [0, 0, 1, 2], rows=[10, 11, 12, 13])
    second = cell([0, 1, 1], [2, 0, 0], rows=[13, 11, 10])
    found = grid("accuracy", [first, second], 3).differences([(0, 1)])[0]
    assert found.n == 3
    assert found.users == 2
    assert found.value == pytest.approx(2 / 3 - 2 / 3)


def test_difference_without_common_rows_says_nothing():
    found = grid("accuracy", [cell([1], [0], rows=[1]), cell([0], [0], rows=[2])], 1).differences([(0, 1)])[0]
    assert np.isnan(found.value)
    assert (found.n, found.p) == (0, 1.0)


def test_difference_is_positive_when_the_first_has_the_smaller_error():
    found = grid("MAE", [cell([0.1] * 9, range(9)), cell([0.5] * 9, range(9))], 9).differences([(0, 1)])[0]
    assert found.value == pytest.approx(0.4)
    assert found.low == pytest.approx(0.4)
    assert found.p < 0.02


def test_pairing_makes_the_interval_of_a_difference_narrower_than_of_either_score():
    rng = np.random.default_rng(9)
    hard = rng.random(300)
    first, second = cell(hard, np.arange(300)), cell(hard - 0.01 + rng.normal(0, 0.01, 300), np.arange(300))
    both = grid("accuracy", [first, second], 300)
    difference, score = both.differences([(0, 1)])[0], both.estimates()[0]
    assert difference.high - difference.low < (score.high - score.low) / 5
    assert difference.low > 0


def test_a_model_that_ignores_profiles_has_a_lift_interval_with_zero_in_it():
    rng = np.random.default_rng(10)
    users = np.repeat(np.arange(50), 4)
    answers = rng.integers(0, 2, (2, 200))  # right profile, wrong user: same skill, other noise
    lift = grid("accuracy", [cell(row, users) for row in answers], 50).differences([(0, 1)])[0]
    assert lift.low <= 0 <= lift.high
    assert lift.p > 0.05
    same = grid("accuracy", [cell(answers[0], users)] * 2, 50).differences([(0, 1)])[0]
    assert (same.low, same.value, same.high, same.p) == (0, 0, 0, 1)


def test_holm_equals_the_worked_example():
    """m = 4, sorted 0.005 0.01 0.03 0.04: times 4, 3, 2, 1 and never falling."""
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([]) == []


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_keeps_the_order_and_lies_between_raw_and_bonferroni(p_values):
    corrected = stats.holm(p_values)
    for p, after in zip(p_values, corrected, strict=True):
        assert p <= after <= min(1.0, p * len(p_values)) + 1e-12
    assert [corrected[i] for i in np.argsort(p_values, kind="stable")] == sorted(corrected)


def test_resamples_without_rows_are_left_out_of_the_interval():
    found = grid("accuracy", [cell([1, 1], [0, 0])], 5, resamples=50).estimates()[0]
    assert (found.low, found.high) == (1, 1)
    empty = grid("accuracy", [cell([], np.zeros(0, dtype=int))], 5, resamples=50).estimates()[0]
    assert np.isnan([empty.value, empty.low, empty.high]).all()


def test_draws_depend_on_the_seed_only():
    first, again, other = (stats.draw(30, 20, 20, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.counts, again.counts)
    assert np.array_equal(first.swaps, again.swaps)
    assert not np.array_equal(first.counts, other.counts)
    assert (first.counts.sum(1) == 30).all()


def test_bands_name_whole_numbers_and_keep_unknown_apart():
    index, names = stats.bands([0, 1, 3, 3.9, 4, 1000, None], (1, 4))
    assert names == ["0", "1-3", "4+"]
    assert index.tolist() == [0, 1, 1, 1, 2, 2, -1]
