"""The evaluation of a PRMU: numbers by hand, baselines that see only what they say, and a gate that shuts."""

from typing import Any

import numpy as np
import pytest

from tagpr_data.records import Message, PreferencePair
from tagpr_data.tables import sha256_text
from tagpr_train import prmu_eval


def pair(
    number: int, chosen: str = "yes", rejected: str = "no", asked: str = "what", user: str = "ann"
) -> PreferencePair:
    return PreferencePair(
        id=sha256_text(str(number)), split="unseen", kind="user", task="t", example_id=str(number), user_id=user,
        profile_id="p", profile_size=0, other_user_id="bob", other_profile_id="q", other_profile_size=0,
        prompt=(Message(role="user", content=asked),), chosen=chosen, rejected=rejected, chosen_score=1.0,
        rejected_score=0.0, margin=1.0, rejected_from="rule",
    )  # fmt: skip


def row(right: tuple[float, float, float], lost: tuple[float, float, float]) -> dict[str, Any]:
    names = ("estimate", "low", "high")
    value = dict(zip(names, right, strict=True))
    difference = dict(zip(names, lost, strict=True))
    return {
        "pairs": 100, "users": 10, "right": value, "swapped": value, "length": value, "text": value,
        "right_minus": {"swapped": difference, "length": difference, "text": difference},
    }  # fmt: skip


def test_gate_passes_only_when_every_interval_lies_above_zero() -> None:
    good = row((0.9, 0.85, 0.95), (0.4, 0.3, 0.5))
    passed = prmu_eval.gate({"splits": {"unseen": {"groups": {"kind user": good}}}})
    assert passed.passed and len(passed.reasons) == 3
    assert "pair accuracy 0.900" in passed.reasons[0] and "+0.400 [+0.300, +0.500]" in passed.reasons[0]
    for column in ("swapped", "length", "text"):
        bad = {**good, "right_minus": {**good["right_minus"], column: {"estimate": 0.1, "low": -0.01, "high": 0.2}}}
        verdict = prmu_eval.gate({"splits": {"unseen": {"groups": {"kind user": bad}}}})
        assert not verdict.passed and sum(reason.startswith("NOT MET") for reason in verdict.reasons) == 1


def test_gate_shuts_without_pairs_of_right_and_wrong_user() -> None:
    good = row((0.9, 0.85, 0.95), (0.4, 0.3, 0.5))
    assert not prmu_eval.gate({"splits": {"unseen": {"groups": {"kind gold": good}}}}).passed


def test_unseen_users_decide_the_gate_before_seen_ones() -> None:
    good, bad = row((0.9, 0.85, 0.95), (0.4, 0.3, 0.5)), row((0.5, 0.4, 0.6), (0.0, -0.1, 0.1))
    splits = {"unseen": {"groups": {"kind user": bad}}, "seen": {"groups": {"kind user": good}}}
    assert not prmu_eval.gate({"splits": splits}).passed


def test_length_baseline_finds_that_longer_wins() -> None:
    training = [pair(n, "a long answer indeed", "short") for n in range(20)]
    judge = prmu_eval.length_baseline(training)
    scores = judge([pair(0, "word " * 9, "word"), pair(1, "b", "ccccccccc")])
    assert scores[0, 0] > scores[0, 1] and scores[1, 0] < scores[1, 1]


def test_length_baseline_is_at_chance_where_lengths_are_equal() -> None:
    judge = prmu_eval.length_baseline([pair(n, "aaaa", "bbbb") for n in range(20)])
    assert (judge([pair(0, "cccc", "dddd")])[0] == judge([pair(0, "dddd", "cccc")])[0]).all()


def test_text_baseline_learns_which_answer_goes_with_which_prompt() -> None:
    """Neither word wins by itself; only word pairs of prompt and completion tell."""
    cases = [("hot", "red", "blue"), ("cold", "blue", "red")]
    training = [pair(n, cases[n % 2][1], cases[n % 2][2], cases[n % 2][0]) for n in range(60)]
    scores = prmu_eval.text_baseline(training)([pair(0, "red", "blue", "hot"), pair(1, "red", "blue", "cold")])
    assert scores[0, 0] > scores[0, 1] and scores[1, 0] < scores[1, 1]


def test_calibration_by_hand() -> None:
    """Four pairs at confidence σ(ln 3) = 0.75, three of them right: the error is 0."""
    even = np.array([[np.log(3), 0.0]] * 3 + [[0.0, np.log(3)]])
    assert prmu_eval.calibration(even)["expected_calibration_error"] == pytest.approx(0.0, abs=1e-9)
    sure = prmu_eval.calibration(np.array([[9.0, 0.0], [0.0, 9.0]]))
    assert sure["expected_calibration_error"] == pytest.approx(1 / (1 + np.exp(-9)) - 0.5)


def test_bootstrap_resamples_users_not_pairs() -> None:
    """One user with many right pairs and one with many wrong ones: by pairs the interval would be narrow."""
    values = np.array([1.0] * 50 + [0.0] * 50)
    found = prmu_eval.bootstrap(values, ["ann"] * 50 + ["bob"] * 50)
    assert found == {"estimate": 0.5, "low": 0.0, "high": 1.0}
    assert prmu_eval.bootstrap(values, [str(n) for n in range(100)])["low"] > 0.39


def test_a_tie_is_half_right() -> None:
    assert prmu_eval._wins(np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])).tolist() == [1.0, 0.5, 0.0]


def test_ranks_share_ties() -> None:
    assert prmu_eval._ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [2.5, 0.0, 2.5, 1.0]
