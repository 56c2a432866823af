"""ROUGE dialects against hand computation and the reference scorer."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from tagpr_data.errors import InputError
from tagpr_eval import dialects

GOLD = "garden garden garden flower"
SYSTEMS = {
    "A": "gardens gardens gardens flowers",  # right but for the endings: the stemmer's favourite
    "B": "garden garden garden house",  # three of four tokens
    "C": "garden flower",  # both distinct words, and nothing else
}
SETS = "character-segmented set-based"


def report(systems=SYSTEMS, gold=GOLD):
    return dialects.compare_dialects({name: {"x": answer} for name, answer in systems.items()}, {"x": gold})


def test_each_dialect_crowns_another_of_three_systems_and_the_flip_is_flagged():
    found = report()
    assert found.scores["official", "rouge-1"] == pytest.approx((0, 3 / 4, 2 * 2 / 6))
    assert found.scores["mean", "rouge-1"] == pytest.approx((0, 3 / 4, 2 * 2 / 6))
    assert found.scores["stemmed", "rouge-1"] == pytest.approx((1, 3 / 4, 2 * 2 / 6))
    assert found.scores[SETS, "rouge-1"] == pytest.approx((0, 1 / 2, 1))
    assert [found.winner(dialect, "rouge-1") for dialect in dialects.DIALECTS] == ["B", "B", "A", "C"]
    assert found.has_flip("rouge-1")
    assert found.has_flip("rouge-L")


def test_no_flip_is_flagged_where_all_dialects_agree():
    found = report({"good": GOLD, "bad": "something else"})
    assert not found.has_flip("rouge-1")
    assert not found.has_flip("rouge-L")
    assert found.winner("official", "rouge-1") == "good"


def test_a_tie_in_one_dialect_that_another_breaks_is_no_flip():
    found = report({"first": "gardens", "second": "flower"})  # official: 0 and more; stemmed: equal
    assert found.scores["stemmed", "rouge-1"][0] == found.scores["stemmed", "rouge-1"][1]
    assert found.winner("stemmed", "rouge-1") != found.winner("mean", "rouge-1")
    assert not found.has_flip("rouge-1")


words = st.lists(st.sampled_from(["painting", "painted", "painter", "a", "the", "skies", "sky", "is"]), max_size=8)


@settings(max_examples=60, deadline=None)
@given(words, words)
def test_stemmed_scores_equal_the_reference_scorer(prediction, gold):
    prediction, gold = " ".join(prediction), " ".join(gold)
    reference = rouge_scorer.RougeScorer(["rouge1", "rougeL"], use_stemmer=True).score(gold, prediction)
    expected = (reference["rouge1"].fmeasure, reference["rougeL"].fmeasure)
    assert dialects.stemmed_rouge(prediction, gold) == pytest.approx(expected)


def test_repetition_costs_nothing_in_the_set_based_dialect():
    assert dialects.character_set_rouge("a a b", "a b b")[0] == 1
    assert dialects.character_set_rouge("A, b.", "a b")[0] == pytest.approx(2 * 2 / 6)  # the marks are tokens


def test_scripts_without_spaces_are_compared_by_character_where_others_see_nothing():
    assert dialects.character_set_rouge("東京都", "京都") == pytest.approx((4 / 5, 4 / 5))
    assert dialects.stemmed_rouge("東京都", "京都") == (0, 0)


def test_set_based_rouge_l_counts_distinct_tokens_of_a_common_subsequence():
    assert dialects.character_set_rouge("b a", "a b")[1] == pytest.approx(2 * 1 / 4)
    assert dialects.character_set_rouge("a x a y", "a a")[1] == pytest.approx(2 * 1 / (3 + 1))


def test_only_examples_that_every_system_answered_count():
    found = dialects.compare_dialects(
        {"one": {"x": "sun", "y": "moon"}, "two": {"x": "sun"}}, {"x": "sun", "y": "star", "z": "rain"}
    )
    assert found.n == 1
    assert found.scores["mean", "rouge-1"] == (1, 1)
    with pytest.raises(InputError, match="share no example"):
        dialects.compare_dialects({"one": {"x": "sun"}, "two": {"y": "sun"}}, {"x": "sun", "y": "sun"})


def test_official_is_the_median_of_bootstrap_means_and_depends_on_the_seed_only():
    systems = {"s": {str(i): "sun" if i % 3 else "moon" for i in range(30)}}
    golds = {str(i): "sun" for i in range(30)}
    first, again, other = (dialects.compare_dialects(systems, golds, seed=seed) for seed in (1, 1, 2))
    assert first.scores == again.scores
    assert abs(first.scores["official", "rouge-1"][0] - 2 / 3) < 0.05
    assert first.scores["mean", "rouge-1"] == other.scores["mean", "rouge-1"] == (pytest.approx(2 / 3),)
