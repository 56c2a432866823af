"""Prices, what is set aside for answers on their way, and the forecast, against numbers worked out by hand."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagpr_data.budget import Limits, Pilot, Purse, Usage, forecast, read_prices, tokens_of, total_from_sample
from tagpr_data.errors import InputError
from tagpr_data.records import Candidate, Message, Sampling

PRICE = (2.0, 8.0)


def answer(read: int | None = 100, written: int | None = 50, text: str = "x") -> Candidate:
    return Candidate(
        id="0" * 64, example_id="e", task="t", user_id="u", retriever="bm25", k=0, item_ids=(),
        messages=(Message(role="user", content="q" * 40),), prompt_hash="0" * 64, teacher="m", teacher_revision="1",
        sampling=Sampling(), seed=0, attempt=0, text=text, finish_reason="stop", input_tokens=read,
        output_tokens=written,
    )  # fmt: skip


@pytest.mark.parametrize("price", ["-1", "nan", "inf", '"cheap"'])
def test_a_price_that_is_no_number_from_0_is_refused(tmp_path, price):
    path = tmp_path / "prices.toml"
    path.write_text(f"[m]\ninput = 1\noutput = {price}\n")
    with pytest.raises(InputError, match="price file"):
        read_prices(path, None)


def test_what_an_answer_used_is_estimated_where_the_server_counts_nothing():
    assert tokens_of(answer()) == (100, 50, True)
    assert tokens_of(answer(None, None, "a text of 24 characters.")) == (10, 6, False)
    usage = Usage()
    usage.add(answer(), PRICE)
    usage.add(answer(None, 50), PRICE)
    # 100 · 2 + 50 · 8 = 600 millionths, and 10 · 2 + 50 · 8 = 420
    assert (usage.answers, usage.tokens, usage.uncounted) == (2, 210, 1)
    assert usage.cost == pytest.approx(0.00102)


def test_answers_on_their_way_are_held_at_the_mean_and_given_back():
    purse, most = Purse(Limits(max_cost=0.0025)), Usage(1, 0, 0, 0, 0.001)
    assert purse.hold(PRICE, most) and purse.hold(PRICE, most)
    assert not purse.hold(PRICE, most)  # 3 · 0.001 at most, before anything is known
    purse.pay(answer(), PRICE)
    purse.release(PRICE)
    # 0.0006 spent, one on its way and this one at the mean: 0.0018; then 0.0024; then 0.003
    assert purse.hold(PRICE, most) and purse.hold(PRICE, most)
    assert not purse.hold(PRICE, most)
    purse.release(PRICE)
    assert purse.hold(PRICE, most)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=60), st.integers(1, 8), st.integers(0, 3000))
@settings(max_examples=60, deadline=None)
def test_samples_never_pass_their_limit_and_tokens_only_by_what_was_on_its_way(written, concurrency, limit):
    purse = Purse(Limits(max_samples=len(written) // 2, max_tokens=limit))
    todo, on_their_way = list(written), list[int]()
    largest = 100 + max(written)
    while todo or on_their_way:
        if todo and len(on_their_way) < concurrency and purse.hold(PRICE, Usage(1, 0, 100, 400)):
            on_their_way.append(todo.pop())
        elif on_their_way:
            purse.pay(answer(100, on_their_way.pop(0)), PRICE)
            purse.release(PRICE)
        else:
            break
    assert purse.spent.answers <= len(written) // 2
    assert purse.spent.tokens <= limit + concurrency * largest


def test_the_interval_of_a_total_is_students_with_the_finite_population():
    # mean 3, variance 2.5, t(4) = 2.776: half width 2.776 · √(2.5 / 5) · √(1 − 5/20) = 1.7
    interval = total_from_sample([1, 2, 3, 4, 5], 20)
    assert interval.expected == 60
    assert interval.high == pytest.approx(60 + 20 * 1.7, rel=0.01)
    assert interval.low == pytest.approx(60 - 20 * 1.7, rel=0.01)
    whole = total_from_sample([1, 2, 3], 3)
    assert (whole.low, whole.expected, whole.high) == (6, 6, 6)
    assert total_from_sample([4], 10).high == math.inf and total_from_sample([4], 10).low == 4


def test_19_of_20_intervals_hold_the_true_total():
    draw = random.Random(3)
    values = [draw.lognormvariate(5, 0.4) for _ in range(2000)]
    held = 0
    for _ in range(300):
        interval = total_from_sample(draw.sample(values, 30), len(values))
        held += interval.low <= sum(values) <= interval.high
    assert 0.90 <= held / 300 <= 0.99


def test_time_is_that_of_the_slowest_teacher_side_by_side_and_the_sum_one_after_another():
    used = {(teacher, row): Usage(1, 1, 10, 10, 0.1) for teacher in (0, 1) for row in range(10)}
    pilot = Pilot(used, {0: [2.0] * 10, 1: [1.0] * 10}, {0: 10.0, 1: 5.0})
    remaining = {0: 3600, 1: 3600}  # one second, and half a second, each
    side_by_side, one_by_one = (forecast(pilot, 3610, remaining, joined) for joined in (False, True))
    assert side_by_side.hours is not None and one_by_one.hours is not None
    assert (side_by_side.hours.expected, one_by_one.hours.expected) == pytest.approx((1.0, 1.5))
    assert side_by_side.answers.expected == 7220 and side_by_side.cost.expected == pytest.approx(722)
    assert side_by_side.acceptance == 1.0
