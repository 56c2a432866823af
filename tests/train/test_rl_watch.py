"""The hacking stop by hand: it fires on a gamed reward, and on nothing else."""

import pytest

from tagpr_train.rl_watch import Measurement, best, paired_change, why_stop

USERS = {f"e{number}": f"u{number // 2}" for number in range(40)}
WEIGHTS = {"answer": 1.0, "tags": 0.3, "personal": 0.3}


def measured(step: int, right: int, tags: float, personal: float | None = None) -> Measurement:
    """The first `right` of 40 examples answered rightly."""
    answers = {name: float(number < right) for number, name in enumerate(USERS)}
    return Measurement(step, answers, USERS, tags, personal)


def test_a_rising_reward_with_falling_answers_stops_and_says_why() -> None:
    reason = why_stop([measured(0, 30, 0.5, 0.4), measured(10, 10, 0.9, 0.3)], WEIGHTS)
    assert reason is not None
    assert "tags rose from 0.500 to 0.900" in reason and "personal" not in reason
    assert "from 0.750 to 0.250" in reason and "step 0 " in reason


@pytest.mark.parametrize(
    "history",
    [
        [measured(0, 30, 0.5)],
        [measured(0, 10, 0.5), measured(10, 30, 0.9)],  # both rise: learning
        [measured(0, 30, 0.9), measured(10, 10, 0.5)],  # both fall: a bad run, but nothing is gamed
        [measured(0, 30, 0.5), measured(10, 29, 0.9)],  # one example: within the interval
        [measured(0, 30, 0.5), measured(10, 10, 0.51)],  # a bad run, and a rise that games nothing
    ],
)
def test_no_other_change_stops(history: list[Measurement]) -> None:
    assert why_stop(history, WEIGHTS) is None


def test_what_has_no_weight_is_no_sign_of_hacking() -> None:
    history = [measured(0, 30, 0.5, 0.4), measured(10, 10, 0.9, 0.8)]
    assert why_stop(history, {"answer": 1.0, "tags": 0.0, "personal": 0.0}) is None
    assert "personal rose" in str(why_stop(history, {"answer": 1.0, "tags": 0.0, "personal": 0.1}))


def test_the_last_measurement_is_compared_with_the_best_before() -> None:
    history = [measured(0, 20, 0.5), measured(10, 34, 0.6), measured(20, 20, 0.7)]
    assert "step 10" in str(why_stop(history, WEIGHTS))
    assert best(history).step == 10


def test_the_interval_is_the_bootstrap_over_users_by_hand() -> None:
    """Two users, one example each, changes +1 and 0: a resample has mean 0, 0.5 or 1."""
    users = {"a": "u", "b": "v"}
    change = paired_change({"a": 0.0, "b": 1.0}, {"a": 1.0, "b": 1.0}, users)
    assert (change.mean, change.low, change.high) == (0.5, 0.0, 1.0)
    same = paired_change({"a": 0.0, "b": 1.0}, {"a": 0.0, "b": 1.0}, users)
    assert (same.mean, same.low, same.high) == (0.0, 0.0, 0.0)
    together = paired_change({"a": 0.0, "b": 1.0}, {"a": 1.0, "b": 1.0}, {"a": "u", "b": "u"})
    assert (together.low, together.high) == (0.5, 0.5)  # one user: nothing to resample
