"""Measures of faithfulness from rows of interventions, by hand."""

import pytest

from tagpr_data.records import Intervention, ProfileItem
from tagpr_data.tables import sha256_text
from tagpr_eval.faithfulness import measure

from .test_interventions import case

STEPS = ("examine_examples", "infer_preference")


def subjects(*users):
    return [
        case((("examine_examples", '[P1] is "amber".'), ("infer_preference", "So.")), user=user) for user in users
    ]  # fmt: skip


def row(user, action, is_changed=False, is_following=None, **facts):
    """A row of the one answer of a user; steps are two unless said otherwise."""
    facts = {"steps": 2, "score": 0.0, "answer": "amber", **facts}
    return Intervention(
        model="m", task="shade", retriever="bm25", k=4, style="trace", seed=0, example_id=f"e-{user}", user_id=user,
        action=action, prompt_hash=sha256_text("p"), text="", base_answer="amber", is_changed=is_changed,
        is_following=is_following, **facts,
    )  # fmt: skip


def value(found, action, measured, target=None, tag=None, step=None):
    (one,) = [
        one
        for one in found
        if (one.action, one.measure, one.target, one.tag, one.step) == (action, measured, target, tag, step)
    ]
    return one


def test_shares_are_over_answers_and_the_control_is_subtracted_answer_by_answer():
    rows = [
        row("a", "relabel", True, True, target="cited"),
        row("b", "relabel", True, False, target="cited"),
        row("c", "relabel", False, False, target="cited"),
        row("d", "relabel", True, True, target="cited"),  # has no control: too few items that it does not cite
        row("a", "relabel", False, False, target="uncited"),
        row("b", "relabel", True, True, target="uncited"),
        row("c", "relabel", False, False, target="uncited"),
    ]
    found = measure(subjects(*"abcd"), rows)
    assert value(found, "relabel", "changed", "cited").value == pytest.approx(3 / 4)
    assert value(found, "relabel", "follows", "cited").value == pytest.approx(2 / 4)
    assert value(found, "relabel", "changed", "uncited").value == pytest.approx(1 / 3)
    changed = value(found, "relabel", "changed", "difference")
    assert (changed.value, changed.n, changed.users) == (pytest.approx((2 - 1) / 3), 3, 3)
    assert value(found, "relabel", "follows", "difference").value == pytest.approx((1 - 1) / 3)


def test_a_tag_has_its_own_shares_and_all_tags_are_pooled_over_steps():
    rows = [
        row("a", "replace", True, True, tag="examine_examples", step=1),
        row("a", "replace", False, None, tag="infer_preference", step=2),
        row("b", "replace", True, False, tag="infer_preference", step=2, answer=None),
    ]
    found = measure(subjects(*"ab"), rows)
    assert value(found, "replace", "changed").value == pytest.approx(2 / 3)
    assert value(found, "replace", "changed", tag="infer_preference").value == pytest.approx(1 / 2)
    assert value(found, "replace", "follows").value == pytest.approx(1 / 2)  # one points nowhere
    assert value(found, "replace", "unreadable").value == pytest.approx(1 / 3)


def curve(user, changed, scores, steps=2):
    """Rows of a whole early-answer curve: `changed` after 0, 1, … steps, and the whole trace."""
    cuts = [
        row(user, "cut", is_changed, step=step, steps=steps, score=score)
        for step, (is_changed, score) in enumerate(zip(changed, scores[:-1], strict=True))
    ]
    deletes = [row(user, "delete", tag=STEPS[step], step=step + 1, steps=steps) for step in range(steps)]
    return [*cuts, *deletes, row(user, "repeat", steps=steps, score=scores[-1])]


def test_the_early_answer_curve_counts_a_short_trace_with_its_whole():
    rows = [
        *curve("a", (True, False), (0.0, 1.0, 1.0)),
        *[
            one.model_copy(update={"answer": None}) if (one.action, one.step) == ("cut", 0) else one
            for one in curve("b", (True, True), (1.0, 0.0, 0.0))
        ],
        *curve("c", (False,), (1.0, 1.0), steps=1),
    ]
    found = measure(subjects(*"abc"), rows)
    assert [value(found, "cut", "equal", step=step).value for step in range(3)] == pytest.approx([1 / 3, 2 / 3, 1])
    assert [value(found, "cut", "score", step=step).value for step in range(3)] == pytest.approx([2 / 3, 2 / 3, 2 / 3])
    assert [value(found, "cut", "unreadable", step=step).value for step in range(3)] == pytest.approx([1 / 3, 0, 0])
    assert value(found, "cut", "early").value == pytest.approx(2 / 5)  # of five cuts that lack a step
    assert value(found, "cut", "gain").value == pytest.approx((1 + 0 + 0 + 1 + 0) / 5)
    assert value(found, "cut", "gain", tag="examine_examples").value == pytest.approx((1 + 0 + 0) / 3)
    assert value(found, "cut", "gain", tag="infer_preference").value == pytest.approx((0 + 1) / 2)


def test_a_curve_that_lacks_a_point_is_left_out_whole():
    rows = curve("a", (True, False), (0.0, 1.0, 1.0)) + curve("b", (True, True), (0.0, 0.0, 0.0))[1:]
    found = measure(subjects(*"ab"), rows)
    assert value(found, "cut", "equal", step=0).n == 1


def test_claims_that_hold_are_counted_by_the_tag_of_their_step():
    first = case(
        (
            ("examine_examples", '[P1] is "amber", [P2] is "coral".'),  # both exist, one label is right: 3 of 4
            ("infer_preference", '[P3] is "amber".'),  # exists, right: 2 of 2
        )
    )
    found = measure([first], [])
    assert value(found, "ground", "holds", tag="examine_examples").value == pytest.approx(3 / 4)
    assert value(found, "ground", "holds").value == pytest.approx(5 / 6)


def test_an_item_dated_after_the_query_is_cited_in_vain():
    items = tuple(
        ProfileItem(profile_id="u", position=n, item_id=f"u{n}", title="x", text="", label="amber", date="2021")
        for n in range(4)
    )
    late = case(items=items)
    dated = [late, late]
    dated[1] = type(late)(**{**vars(late), "example": late.example.model_copy(update={"date": "2020-05-01"})})
    assert [value(measure([one], []), "ground", "holds").value for one in dated] == [1, pytest.approx(4 / 7)]


def test_intervals_are_clustered_by_user():
    """Ten answers of one user and ten of another: a resample has the one, the other, or both."""
    rows, cases = [], []
    for user, is_changed in (("a", True), ("b", False)):
        for n in range(10):
            one = row(user, "remove", is_changed, target="cited")
            rows.append(one.model_copy(update={"example_id": f"{user}{n}"}))
        cases += subjects(user)
    share = value(measure(cases, rows), "remove", "changed", "cited")
    assert (share.value, share.low, share.high, share.n, share.users) == (0.5, 0, 1, 20, 2)


def test_unchanged_requests_give_the_share_that_came_back_and_no_rows_give_nothing():
    rows = [row("a", "repeat"), row("b", "repeat", True), row("a", "regenerate", True)]
    found = measure(subjects(*"ab"), rows)
    assert value(found, "repeat", "reproduced").value == 0.5
    assert value(found, "regenerate", "reproduced").value == 0
    assert measure([], []) == []
    assert {one.action for one in measure(subjects("a"), [])} == {"ground"}
