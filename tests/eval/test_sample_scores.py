"""Per-sample scores, failure counts and evidence."""

import polars as pl
import pytest

from tagpr_data.errors import CheckFailed, InputError
from tagpr_data.lamp.metrics import evaluate
from tagpr_data.records import Example, Prediction, ProfileItem, Task
from tagpr_data.tables import frame_from_records, sha256_text
from tagpr_data.tags import load_tagset
from tagpr_eval import sample_scores, stats

LABELS = Task(
    name="labels",
    kind="classification",
    labels=("red", "green", "blue"),
    answer_form="a colour",
    item_template="{text}",
)
STARS = Task(
    name="stars", kind="rating", labels=("1", "2", "3", "4", "5"), answer_form="1 to 5", item_template="{text}"
)
TITLES = Task(name="titles", kind="generation", answer_form="a title", item_template="{text}")
TASKS = {task.name: task for task in (LABELS, STARS, TITLES)}
TRACE = (
    "<think>\n<examine_examples>{claim}</examine_examples>\n<infer_preference>Likes red.</infer_preference>\n"
    "</think>\n{answer}"
)


def prediction(task, text, gold, **changes):
    row = {
        "model": "m", "task": task.name, "retriever": "bm25", "k": 1, "style": "direct", "seed": 0, "example_id": "e1",
        "user_id": "u1", "profile_size": 3, "profile_id": "p1", "item_ids": ("i1",), "prompt_hash": sha256_text(""),
        "text": text, "finish_reason": "stop", "gold": gold,
    }  # fmt: skip
    return Prediction(**(row | changes))


def score(*rows, evidence=None):
    return sample_scores.score(frame_from_records(rows, Prediction), TASKS, load_tagset(), evidence)


def one(task, text, gold, **changes):
    return score(prediction(task, text, gold, **changes)).row(0, named=True)


def test_strict_takes_the_raw_text_and_parsed_what_the_extractor_finds():
    row = one(LABELS, '**"Red"**', "red")
    assert (row["strict_value"], row["parsed_value"]) == (0, 1)
    assert (row["strict_label"], row["parsed_label"], row["gold_label"]) == (-1, 0, 0)
    assert row["answer"] == "red"
    assert row["is_strict_unreadable"]


@pytest.mark.parametrize(("gold", "worst"), [("1", 4), ("2", 3), ("3", 2), ("4", 3), ("5", 4)])
@pytest.mark.parametrize("text", ["nan", "inf", "no idea", ""])
def test_a_rating_that_is_no_finite_number_is_the_worst_one_and_counted(text, gold, worst):
    row = one(STARS, text, gold)
    assert (row["strict_value"], row["parsed_value"]) == (worst, worst)
    assert (row["strict_second"], row["parsed_second"]) == (worst**2, worst**2)
    assert row["is_strict_unreadable"]
    assert row["problem"] in ("empty", "unparseable")


def test_a_constant_five_has_the_error_computed_by_hand():
    frame = score(*(prediction(STARS, "5", gold, example_id=f"e{gold}") for gold in "12345"))
    assert frame["strict_value"].to_list() == [4, 3, 2, 1, 0]
    assert frame["strict_reward"].to_list() == [0, 0.25, 0.5, 0.75, 1]
    rows = {(f"e{gold}", 0): int(gold) for gold in "12345"}
    for metric, expected in (("MAE", 2.0), ("RMSE", (30 / 5) ** 0.5)):
        found = sample_scores.observations(frame, STARS, metric, "strict", rows, {"u1": 0})
        assert float(stats.METRICS[metric].value(found.sums())) == pytest.approx(expected)


def test_generation_scores_are_the_rouge_of_each_answer():
    row = one(TITLES, "<think>hm</think>\nthe red sun", "red sun")
    assert (row["parsed_value"], row["parsed_second"]) == pytest.approx((2 * 2 / 5, 2 * 2 / 5))
    assert row["strict_value"] < row["parsed_value"]


@pytest.mark.parametrize(
    ("task", "golds", "texts"),
    [
        (LABELS, ["red", "green", "blue", "red"], ["red", "red", "violet", "red"]),
        (STARS, ["1", "5", "3", "2"], ["4.5", "nan", "10", "2"]),
        (TITLES, ["a red sun", "moon", "stars fall", "x"], ["red sun", "", "falling stars", "x"]),
    ],
)
def test_statistics_of_the_frame_equal_the_metric_over_the_whole_file(task, golds, texts):
    frame = score(
        *(
            prediction(task, text, gold, example_id=f"e{i}")
            for i, (gold, text) in enumerate(zip(golds, texts, strict=True))
        )
    )
    ids = [f"e{i}" for i in range(len(golds))]
    whole = evaluate(task, dict(zip(ids, golds, strict=True)), dict(zip(ids, texts, strict=True))).metrics
    rows = {(name, 0): place for place, name in enumerate(ids)}
    for name, value in whole.items():
        found = sample_scores.observations(frame, task, name, "strict", rows, {"u1": 0})
        assert float(stats.METRICS[name].value(found.sums())) == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize(
    ("changes", "text", "flag"),
    [
        ({}, " \n", "is_empty"),
        ({"finish_reason": "length"}, "re", "is_truncated"),
        ({"finish_reason": "error"}, "", "is_error"),
        ({}, "<think>and on", "is_unclosed"),
        ({}, "violet", "is_unparseable"),
    ],
)
def test_each_failure_has_its_flag(changes, text, flag):
    assert one(LABELS, text, "red", **changes)[flag]
    assert not one(LABELS, "red", "red")[flag]


def test_a_rating_outside_the_scale_is_flagged():
    assert one(STARS, "9", "5")["is_out_of_range"]
    assert not one(STARS, "5", "5")["is_out_of_range"]


def test_a_prediction_without_gold_is_kept_but_not_scored():
    frame = score(prediction(LABELS, "red", None), prediction(LABELS, "red", "red", example_id="e2"))
    assert frame["is_scored"].to_list() == [False, True]
    assert frame["strict_value"].to_list() == [None, 1]
    assert len(sample_scores.observations(frame, LABELS, "f1", "parsed", {("e2", 0): 5}, {"u1": 0}).rows) == 1


def evidence():
    def item(profile, name, label):
        return ProfileItem(profile_id=profile, position=0, item_id=name, text="sky", label=label, date="2020-01-01")

    example = Example(
        id="e1",
        task="labels",
        user_id="u1",
        profile_id="p1",
        profile_size=1,
        input="?",
        output="red",
        date="2020-01-11",
    )
    items = {("p1", "i1"): item("p1", "i1", "red"), ("p2", "i2"): item("p2", "i2", "blue")}
    return sample_scores.Evidence({"e1": example}, items, {"e1": "2020-01-01"})


@pytest.mark.parametrize(("claim", "holds"), [('[P1] was "red"', True), ('[P1] was "blue"', False)])
def test_claims_are_looked_up_in_the_cited_items(claim, holds):
    text = TRACE.format(claim=claim, answer="red")
    row = score(prediction(LABELS, text, "red", style="trace"), evidence=evidence()).row(0, named=True)
    assert row["is_valid_trace"]
    assert row["step_tags"] == ["examine_examples", "infer_preference"]
    assert (row["claims"] > 0, row["grounded_claims"] == row["claims"]) == (True, holds)
    assert row["recency_days"] == 10


def test_claims_about_a_wrong_users_items_are_looked_up_there():
    text = TRACE.format(claim='[P1] was "blue"', answer="red")
    row = prediction(LABELS, text, "red", style="trace", retriever="wrong-user", profile_id="p2", item_ids=("i2",))
    found = score(row, evidence=evidence()).row(0, named=True)
    assert found["claims"] == found["grounded_claims"] > 0


def test_items_are_those_of_the_profile_that_was_shown_where_another_has_the_same_ids():
    one, other = evidence().items.values()
    shared = sample_scores.Evidence({}, {("p1", "i1"): one, ("p2", "i1"): other})
    assert shared.prompt_items("p1", ["i1"]) == (one,)
    assert shared.prompt_items("p2", ["i1"]) == (other,)
    assert shared.prompt_items("p1", ["i1", "i9"]) is None
    assert shared.prompt_items("p3", ["i1"]) is None
    assert shared.prompt_items("p1", []) == ()


def test_claims_are_unknown_where_the_items_are():
    text = TRACE.format(claim='[P1] was "red"', answer="red")
    assert one(LABELS, text, "red", style="trace")["claims"] is None
    assert one(LABELS, text, "red", style="trace")["is_valid_trace"]
    assert one(LABELS, text, "red")["is_valid_trace"] is None


def test_a_citation_beyond_the_prompt_breaks_the_trace():
    row = one(LABELS, TRACE.format(claim="[P2] was red", answer="red"), "red", style="trace")
    assert not row["is_valid_trace"]
    assert row["violations"] == ["bad-citation"]


def test_bad_predictions_are_named():
    row = prediction(LABELS, "red", "red")
    with pytest.raises(InputError, match="occurs twice"):
        score(row, row)
    with pytest.raises(InputError, match=r"'shapes'.*known: labels"):
        score(row.model_copy(update={"task": "shapes"}))
    with pytest.raises(CheckFailed, match=r"task stars: .*e1.*'many'"):
        one(STARS, "5", "many")


def test_no_predictions_give_an_empty_frame():
    frame = sample_scores.score(frame_from_records([], Prediction), TASKS, load_tagset())
    assert frame.height == 0
    assert frame.schema["parsed_value"] == pl.Float64
