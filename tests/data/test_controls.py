import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagpr_data.controls import wrong_user
from tagpr_data.errors import InputError
from tagpr_data.records import Example


def example(user, size, number=0, task="T"):
    return Example(
        id=f"{task}-{user}-{number}", task=task, user_id=user, profile_id=f"p-{user}", profile_size=size, input="?"
    )


def test_the_only_other_user_lends_the_latest_items():
    a, b = example("a", 3), example("b", 10)
    loans = wrong_user([a, b], seed=0)
    assert (loans[a.id].lender, loans[a.id].start, loans[a.id].stop) == (b, 7, 10)
    assert (loans[b.id].lender, loans[b.id].start, loans[b.id].stop) == (a, 0, 3)  # nobody has ten: all three


def test_where_nobody_has_enough_the_longest_others_lend():
    loans = wrong_user([example("a", 9), example("b", 2), example("c", 5), example("d", 5)], seed=0)
    assert loans["T-a-0"].lender.user_id in {"c", "d"}
    assert loans["T-a-0"].stop - loans["T-a-0"].start == 5


users = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9), st.sampled_from("TU")), min_size=1, max_size=25)


@settings(max_examples=200, deadline=None)
@given(users, st.integers(0, 3))
def test_a_loan_is_a_strangers_of_the_same_task_and_length_where_anybody_has_it(rows, seed):
    examples = [example(f"u{user}", size, number, task) for number, (user, size, task) in enumerate(rows)]
    if any(len({e.user_id for e in examples if e.task == task}) == 1 for task in "TU"):
        with pytest.raises(InputError, match="needs two users"):
            wrong_user(examples, seed)
        return
    loans = wrong_user(examples, seed)
    assert loans.keys() == {e.id for e in examples}
    for e in examples:
        loan = loans[e.id]
        others = [o.profile_size for o in examples if o.task == e.task and o.user_id != e.user_id]
        assert loan.lender.user_id != e.user_id and loan.lender.task == e.task
        assert loan.stop == loan.lender.profile_size
        assert loan.stop - loan.start == min(e.profile_size, max(others))


def test_the_draw_depends_on_seed_but_not_on_order():
    examples = [example(f"u{n}", 5) for n in range(40)]
    shuffled = random.Random(1).sample(examples, len(examples))
    assert wrong_user(examples, 0) == wrong_user(shuffled, 0)
    assert wrong_user(examples, 0) != wrong_user(examples, 1)


def test_all_users_with_enough_items_lend_equally_often():
    examples = [example("asker", 5, n) for n in range(3000)] + [example(f"u{n}", 4 + n) for n in range(4)]
    lenders = Counter(loan.lender.user_id for name, loan in wrong_user(examples, 0).items() if "asker" in name)
    assert lenders.keys() == {"u1", "u2", "u3"}  # u0 has four items only
    assert all(abs(count - 1000) < 130 for count in lenders.values())  # 5 standard deviations


def test_a_user_stands_with_the_example_that_sees_most_items():
    loans = wrong_user([example("a", 2, 0), example("a", 7, 1), example("a", 4, 2), example("b", 6)], seed=0)
    assert loans["T-b-0"].lender.profile_size == 7


def test_one_user_alone_is_named():
    with pytest.raises(InputError, match="needs two users; task T has 'a' only"):
        wrong_user([example("a", 2, 0), example("a", 3, 1)], seed=0)
