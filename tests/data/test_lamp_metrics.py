"""LaMP's metrics against the official evaluator's outputs, rouge_score, sklearn, and numbers by hand."""

import json
import math
import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer, scoring

from tagpr_data.errors import CheckFailed, InputError
from tagpr_data.lamp.metrics import (
    COUNTS,
    bootstrap_median,
    evaluate,
    reward,
    rouge,
    rouge_all,
    rouge_tokens,
)
from tagpr_data.tasks import LAMP_TASKS, find_task

CITATION, MOVIES, RATING, TITLE = (find_task(name) for name in ("LaMP-1", "LaMP-2", "LaMP-3", "LaMP-5"))


def by_place(values):
    return {str(place): value for place, value in enumerate(values)}


def score(task, golds, predictions, *args, **options):
    return evaluate(task, by_place(golds), by_place(predictions), *args, **options)


def counted(scores):
    return {name: count for name, count in scores.counts.items() if count}


@pytest.fixture(scope="module")
def reference(shared_lamp):
    return json.loads((shared_lamp / "official_metrics.json").read_text(encoding="utf-8"))


def test_every_official_case_is_reproduced_to_the_last_bit(reference):
    assert len(reference["cases"]) == 12
    for case in reference["cases"]:
        task = find_task(case["task"])
        if "exception" in case["result"]:
            with pytest.raises(CheckFailed, match="not finite"):
                score(task, case["golds"], case["predictions"], "official", case["numpy_seed"])
        else:
            result = score(task, case["golds"], case["predictions"], "official", case["numpy_seed"]).metrics
            assert result == case["result"], case["name"]


def test_exact_mode_gives_the_official_numbers_where_no_bootstrap_is_drawn(reference):
    for case in reference["cases"]:
        if case["task"] != "LaMP_5" and "exception" not in case["result"]:
            scores = score(find_task(case["task"]), case["golds"], case["predictions"])
            assert scores.metrics == pytest.approx(case["result"], abs=1e-12), case["name"]


def test_exact_rouge_is_the_plain_mean_and_official_lies_near_it(reference):
    case = reference["cases"][-1]
    exact = score(TITLE, case["golds"], case["predictions"]).metrics
    assert exact == pytest.approx(reference["rouge_exact_mean"], abs=1e-12)
    pairs = zip(case["predictions"], case["golds"], strict=True)
    error = np.std([rouge(prediction, gold) for prediction, gold in pairs], axis=0) / math.sqrt(len(case["golds"]))
    for seed in (0, 1, 42):
        official = score(TITLE, case["golds"], case["predictions"], "official", seed).metrics
        assert abs(official["rouge-1"] - exact["rouge-1"]) < 3 * error[0]
        assert abs(official["rouge-L"] - exact["rouge-L"]) < 3 * error[1]


# Numbers that evaluate 0.4.6 gave with its mae and mse scripts (values pass through float32).
FLOAT32_CASES = [
    (["3"], ["3.3"], 0.2999999523162842, 0.2999999523162842),
    (["3", "1", "5"], ["3.3", "1.1", "4.7"], 0.23333338896433511, 0.25166120784307044),
]


@pytest.mark.parametrize(("golds", "predictions", "mae", "rmse"), FLOAT32_CASES)
def test_official_ratings_pass_through_float32(golds, predictions, mae, rmse):
    assert score(RATING, golds, predictions, "official").metrics == {"MAE": mae, "RMSE": rmse}
    assert score(RATING, golds, predictions).metrics["MAE"] != mae


@pytest.mark.parametrize("size", [1, 2, 9, 129, 2500])
def test_official_ratings_equal_sklearn_on_float32_values(size):
    from sklearn.metrics import mean_absolute_error, root_mean_squared_error

    generator = random.Random(size)
    golds = [str(generator.randint(1, 5)) for _ in range(size)]
    predictions = [repr(generator.uniform(0, 7)) for _ in range(size)]
    there, here = ([float(np.float32(value)) for value in values] for values in (golds, predictions))
    assert score(RATING, golds, predictions, "official").metrics == {
        "MAE": float(mean_absolute_error(there, here)),
        "RMSE": float(root_mean_squared_error(there, here)),
    }


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(MOVIES.labels), st.sampled_from((*MOVIES.labels, "junk", ""))), min_size=1))
def test_accuracy_and_macro_f1_equal_sklearn(pairs):
    from sklearn.metrics import accuracy_score, f1_score

    golds, predictions = zip(*pairs, strict=True)
    places = {label: place for place, label in enumerate(MOVIES.labels)}
    there, here = ([places.get(label, -1) for label in labels] for labels in (golds, predictions))
    result = score(MOVIES, golds, predictions).metrics
    expected = f1_score(there, here, labels=list(range(15)), average="macro", zero_division=0)
    assert result == {"accuracy": accuracy_score(there, here), "f1": pytest.approx(expected, abs=1e-15)}


def test_labels_are_stripped_and_looked_up_exactly():
    scores = score(MOVIES, ["comedy"] * 5, [" comedy\n", "Comedy", "comedy.", "tag: comedy", " "])
    assert scores.metrics["accuracy"] == 0.2
    assert counted(scores) == {"empty": 1, "unknown_label": 3}


def test_two_unknown_labels_are_equal_officially_and_counted():
    for mode in ("exact", "official"):
        scores = score(MOVIES, ["politics", "comedy"], ["garbage", "comedy"], mode)
        assert scores.metrics == {"accuracy": 1.0, "f1": pytest.approx(1 / 15)}
        assert counted(scores) == {"unknown_label": 1, "unknown_gold": 1}


def test_only_one_label_present_and_right_gives_half_the_f1():
    assert score(CITATION, ["[1]", "[1]"], ["[1]", " [1] "]).metrics == {"accuracy": 1.0, "f1": 0.5}


@pytest.mark.parametrize(("gold", "error"), [("1", 4), ("2", 3), ("3", 2), ("4", 3), ("5", 4)])
@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("4 stars", "unparseable"),
        ("", "empty"),
        ("nan", "non_finite"),
        ("-inf", "non_finite"),
        ("1e39", "non_finite"),
        ("9" * 400, "non_finite"),
    ],
)
def test_what_is_no_rating_is_the_worst_one_for_its_gold(gold, error, text, kind):
    scores = score(RATING, [gold], [text])
    assert scores.metrics == {"MAE": error, "RMSE": error}
    assert counted(scores) == {kind: 1}


@pytest.mark.parametrize(
    ("text", "value"), [("4.0", 4), (" 3\n", 3), ("1e1", 10), ("1_0", 10), ("５", 5), ("10", 10), ("-2", -2)]
)
def test_python_numbers_are_ratings_and_are_not_clipped(text, value):
    scores = score(RATING, ["3"], [text], "official")
    assert scores.metrics["MAE"] == abs(value - 3)
    assert scores.counts["out_of_range"] == (not 1 <= value <= 5)


def test_rmse_by_hand():
    assert score(RATING, ["1", "5"], ["2", "3"]).metrics == {"MAE": 1.5, "RMSE": math.sqrt(2.5)}


def test_the_largest_float32_passes_and_the_next_number_fails_officially():
    assert score(RATING, ["1"], ["3.4028235e38"], "official").metrics["MAE"] == 3.4028234663852886e38
    assert score(RATING, ["1"], ["3.40282356e38"], "official").metrics["MAE"] == 3.4028234663852886e38
    with pytest.raises(CheckFailed, match="not finite in float32"):
        score(RATING, ["1"], ["3.4028235677973366e38"], "official")


@pytest.mark.parametrize("gold", ["", "good", "nan"])
def test_a_gold_rating_must_be_a_number(gold):
    with pytest.raises(CheckFailed, match="gold of id '0'"):
        score(RATING, [gold], ["3"])


VOCABULARY = ["the", "cat", "sat", "The", "cat.", "x1", "é", "中", "\n", "\n\n", "A-B", "it's"]
WORDS = st.lists(st.sampled_from(VOCABULARY), max_size=14).map(" ".join)


@settings(max_examples=400, deadline=None)
@given(WORDS | st.text(max_size=40), WORDS | st.text(max_size=40))
def test_rouge_equals_rouge_score(prediction, gold):
    names = ("rouge1", "rouge2", "rougeL", "rougeLsum")
    theirs = rouge_scorer.RougeScorer(names, use_stemmer=False).score(gold, prediction)
    assert tuple(rouge_all(prediction, gold)) == tuple(theirs[name].fmeasure for name in names)
    assert rouge(prediction, gold) == (theirs["rouge1"].fmeasure, theirs["rougeL"].fmeasure)


def test_rouge_by_hand():
    # tokens a b c d / a c b d x: 4 shared of 4 and 5; longest common subsequence 3
    assert rouge("a b c d", "A, c b d x!") == (pytest.approx(8 / 9), pytest.approx(6 / 9))
    assert rouge_tokens("Don't 中 X_1") == ["don", "t", "x", "1"]


def test_rouge_of_long_texts_is_fast():
    generator = random.Random(0)
    first, second = (" ".join(str(generator.randrange(50)) for _ in range(20_000)) for _ in range(2))
    started = time.perf_counter()
    rouge(first, second)
    assert time.perf_counter() - started < 5  # a table of 4·10⁸ cells would take minutes


@pytest.mark.parametrize(("size", "seed"), [(1, 0), (2, 42), (17, 2**32 - 1), (150, 1)])
def test_official_bootstrap_equals_rouge_scores_aggregator(size, seed):
    generator = random.Random(size)
    rows = [[generator.random() for _ in range(4)] for _ in range(size)]
    names = ("rouge1", "rouge2", "rougeL", "rougeLsum")
    aggregator = scoring.BootstrapAggregator()
    for row in rows:
        aggregator.add_scores({name: scoring.Score(0.5, 0.5, value) for name, value in zip(names, row, strict=True)})
    state = np.random.get_state()
    try:
        np.random.seed(seed)
        theirs = aggregator.aggregate()
    finally:
        np.random.set_state(state)
    columns = [[row[place] for row in rows] for place in range(4)]
    assert bootstrap_median(columns, seed, (0, 0, 0, 0)) == [float(theirs[name].mid.fmeasure) for name in names]
    assert bootstrap_median(columns[::2], seed, (0, 1)) == [float(theirs[name].mid.fmeasure) for name in names[::2]]


def test_the_bootstrap_in_blocks_equals_the_bootstrap_at_once():
    """10,000 samples do not fit one block; numpy's own choices, one resample at a time, are the other side."""
    scores = np.random.RandomState(5).random_sample(10_000)
    generator = np.random.RandomState(3)
    pairs = np.stack([scores, scores], axis=1)
    means = [pairs[generator.choice(np.arange(10_000), size=10_000)].mean(axis=0)[0] for _ in range(1000)]
    assert bootstrap_median([scores.tolist()], 3, (0,)) == [float(np.percentile(means, 50))]


SAMPLES = {
    "LaMP-1": ([f"[{1 + place % 2}]" for place in range(40)], [f"[{1 + place % 3}]" for place in range(40)]),
    "LaMP-3": ([str(1 + place % 5) for place in range(40)], [repr(0.1 + place % 7 / 3) for place in range(40)]),
    "LaMP-5": (["a b c d e"[: 1 + place % 9] for place in range(40)], ["a c e b"[: place % 8] for place in range(40)]),
}


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(40)))
def test_the_order_of_samples_changes_only_official_rouge(places):
    for name, (golds, predictions) in SAMPLES.items():
        task = find_task(name)
        shuffled = {str(place): golds[place] for place in places}
        there = by_place(golds)
        here = {str(place): predictions[place] for place in reversed(places)}
        assert evaluate(task, shuffled, here) == evaluate(task, there, here)
        if name != "LaMP-5":
            official = evaluate(task, shuffled, here, "official").metrics
            assert official == pytest.approx(evaluate(task, there, here, "official").metrics, rel=1e-12)
        order = sorted(there, key=int)
        ordered = evaluate(task, shuffled, here, "official", 7, order=order)
        assert ordered == evaluate(task, there, here, "official", 7)


def test_order_and_seed_do_change_official_rouge():
    golds, predictions = (by_place(values) for values in SAMPLES["LaMP-5"])
    one = evaluate(TITLE, golds, predictions, "official", 0)
    assert one != evaluate(TITLE, golds, predictions, "official", 1)
    assert one != evaluate(TITLE, golds, predictions, "official", 0, order=list(golds)[::-1])
    assert one == evaluate(TITLE, golds, predictions, "official")  # the default seed is 0


def test_text_without_latin_letters_or_digits_scores_zero_and_is_counted():
    scores = score(TITLE, ["中文", "a"], ["中文", " "])
    assert scores.metrics == {"rouge-1": 0.0, "rouge-L": 0.0}
    assert counted(scores) == {"no_rouge_tokens": 1, "empty": 1}


def test_ids_that_differ_are_named():
    golds = {"a": "x", "b": "x", "c": "x"}
    with pytest.raises(CheckFailed, match=r"2 golds have no prediction \(for example 'b', 'c'\); 1 predictions .*'z'"):
        evaluate(TITLE, golds, {"a": "x", "z": "x"})
    with pytest.raises(CheckFailed, match="nothing to score"):
        evaluate(TITLE, {}, {})


def test_misuse_is_refused():
    golds = {"a": "x", "b": "y"}
    with pytest.raises(InputError, match="known: exact, official"):
        evaluate(TITLE, golds, golds, "best")
    with pytest.raises(InputError, match="each of the 2 gold ids once"):
        evaluate(TITLE, golds, golds, "official", order=["a", "a"])
    with pytest.raises(InputError, match="seed -1"):
        evaluate(TITLE, golds, golds, "official", -1)
    with pytest.raises(InputError, match="without labels"):
        evaluate(MOVIES.model_copy(update={"labels": None}), golds, golds)


def test_all_counts_are_always_there():
    assert tuple(score(TITLE, ["a"], ["a"]).counts) == COUNTS


@pytest.mark.parametrize(
    ("task", "prediction", "gold", "expected"),
    [
        (MOVIES, " comedy ", "comedy", 1),
        (MOVIES, "Comedy", "comedy", 0),
        (RATING, "4", "5", 0.75),
        (RATING, "x", "3", 0.5),
        (RATING, "nan", "5", 0),
        (RATING, "100", "5", 0),
        (TITLE, "a b c d", "a c b d x", 7 / 9),  # mean of 8/9 and 6/9
    ],
)
def test_reward_by_hand(task, prediction, gold, expected):
    assert reward(task, prediction, gold) == pytest.approx(expected)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(LAMP_TASKS), st.text(max_size=30) | st.floats().map(str), st.text(max_size=30))
def test_reward_lies_between_0_and_1_and_a_right_answer_gets_1(task, prediction, gold):
    gold = task.labels[len(gold) % len(task.labels)] if task.labels else gold
    assert 0 <= reward(task, prediction, gold) <= 1
    assert reward(task, gold, gold) == (1 if task.labels or rouge_tokens(gold) else 0)


def test_reward_averages_to_the_exact_metric():
    golds, predictions = SAMPLES["LaMP-5"]
    rewards = [reward(TITLE, prediction, gold) for prediction, gold in zip(predictions, golds, strict=True)]
    metrics = score(TITLE, golds, predictions).metrics
    assert np.mean(rewards) == pytest.approx((metrics["rouge-1"] + metrics["rouge-L"]) / 2)
