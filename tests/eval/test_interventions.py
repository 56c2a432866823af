"""Interventions before a model is asked, and how an answer to one is judged."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagpr_data.prompts import PromptOptions, prompt_hash
from tagpr_data.records import Example, Prediction, ProfileItem, Task
from tagpr_data.tags import load_tagset
from tagpr_eval.interventions import (
    NOT_MADE,
    SKIPPED,
    Case,
    Plan,
    Wording,
    cited_items,
    is_same,
    judge,
    plan,
    relabelled,
    rewritten,
    take,
    without,
)  # fmt: skip

SHADE = Task(
    name="shade", kind="classification", labels=("amber", "black", "coral", "denim", "ebony"), question="Which?",
    answer_form="a shade", item_template='"{title}" is {label}',
)  # fmt: skip
NAME = Task(
    name="name", kind="generation", question="Name it:", answer_form="a name", item_template='"{title}": {text}'
)
TEXT_ONLY = NAME.model_copy(update={"item_template": "{text}"})
TWO = SHADE.model_copy(update={"labels": ("amber", "black")})
WORDING = Wording(PromptOptions(), load_tagset())


def item(n, label="amber", owner="u", title=None):
    title = f"thing {n} of {owner}" if title is None else title
    return ProfileItem(profile_id=owner, position=n, item_id=f"{owner}{n}", title=title, text=f"words {n}", label=label)


def trace(*steps, answer="amber"):
    return "<think>\n" + "".join(f"<{tag}>{text}</{tag}>\n" for tag, text in steps) + f"</think>\n{answer}"


USUAL = (
    ("examine_examples", '[P1] is "amber".'),
    ("infer_preference", "This user keeps to amber."),
    ("apply_preference", "[P1] and [P3] fit."),
)


def case(steps=USUAL, answer="amber", user="u", items=None, task=SHADE, gold="amber", text=None):
    items = tuple(item(n, owner=user) for n in range(4)) if items is None else items
    example = Example(
        id=f"e-{user}", task=task.name, user_id=user, profile_id=user, profile_size=len(items), input="new", output=gold
    )
    prediction = Prediction(
        model="m", task=task.name, retriever="bm25", k=4, style="trace", seed=0, example_id=example.id, user_id=user,
        profile_size=len(items), item_ids=tuple(one.item_id for one in items), profile_id=user,
        text=text or trace(*steps, answer=answer),
        prompt_hash=prompt_hash(WORDING.prompt(task, example, items)), finish_reason="stop", gold=gold,
    )  # fmt: skip
    taken = take(prediction, task, example, items, WORDING)
    assert isinstance(taken, Case), taken
    return taken


OTHER = case(
    (
        ("examine_examples", '[P2] is "denim".'),
        ("infer_preference", "This user keeps to denim."),
        ("verify_answer", "It is a shade."),
    ),
    answer="denim", user="v",
)  # fmt: skip


def of(plans, action, **facts):
    return [
        one for one in plans if one.action == action and all(getattr(one, name) == facts[name] for name in facts)
    ]  # fmt: skip


def begun(done):
    assert done.messages[-1].role == "assistant"
    return done.messages[-1].content


def test_the_label_put_in_is_neither_the_answer_nor_any_items_and_the_same_everywhere():
    shown = tuple(item(n, label) for n, label in enumerate(("amber", "black", "coral", "black")))
    plans, _ = plan(case(items=shown), [], seed=0)
    assert {one.expected for one in of(plans, "relabel")} <= {"denim", "ebony"}
    assert len({one.expected for one in of(plans, "relabel")}) == 1
    (cited,) = of(plans, "relabel", target="cited", tag=None)
    assert cited.items == (1, 3)
    label = cited.expected
    lines = [f'[P1] "thing 0 of u" is {label}', '[P2] "thing 1 of u" is black', f'[P3] "thing 2 of u" is {label}']
    assert "\n".join(lines) in cited.messages[1].content
    (control,) = of(plans, "relabel", target="uncited", tag=None)
    assert control.items == (2, 4)


def test_items_cited_by_the_steps_of_a_tag_are_changed_apart_with_as_many_others_as_control():
    plans, missing = plan(case(), [], seed=0)
    assert {(one.tag, one.items) for one in of(plans, "remove", target="cited")} == {
        (None, (1, 3)), ("examine_examples", (1,)), ("apply_preference", (1, 3)),
    }  # fmt: skip
    sizes = {one.tag: len(one.items) for one in of(plans, "remove", target="uncited")}
    assert sizes == {None: 2, "examine_examples": 1, "apply_preference": 2}
    assert not missing["too-few-uncited"]


def test_items_left_after_a_removal_keep_their_order_and_are_numbered_anew():
    (removed,) = of(plan(case(), [], seed=0)[0], "remove", target="cited", tag=None)
    assert '[P1] "thing 1 of u" is amber\n[P2] "thing 3 of u" is amber\n\n' in removed.messages[1].content
    everything = case((("examine_examples", "[P1] [P2] [P3] [P4]"), ("infer_preference", "So.")))
    plans, missing = plan(everything, [], seed=0)
    (removed,) = of(plans, "remove", tag=None)
    assert "Nothing is known about this user." in removed.messages[1].content
    assert missing["too-few-uncited"] == 2  # all steps, and the one tag that cites


def test_titles_come_from_other_users_where_items_show_no_label_of_the_task():
    mine, yours = case(task=NAME, answer="a name", gold="a name"), case(task=NAME, answer="x", user="v", gold="x")
    plans, _ = plan(mine, [mine, yours], seed=0)
    (changed,) = of(plans, "rewrite", target="cited", tag=None)
    lines = re.findall(r'\[P\d\] "(.*)": (.*)', changed.messages[1].content)
    assert [title.endswith("of v") for title, _ in lines] == [True, False, True, False]
    assert [text for _, text in lines] == ["words 0", "words 1", "words 2", "words 3"]
    assert not of(plans, "relabel")
    text_only = [case(task=TEXT_ONLY, answer="a", user=user, gold="a", items=tuple(
        ProfileItem(profile_id=user, position=n, item_id=f"{user}{n}", text=f"{user} wrote {n}") for n in range(4)
    )) for user in ("u", "v")]  # fmt: skip
    (changed,) = of(plan(text_only[0], text_only, seed=0)[0], "rewrite", target="uncited", tag=None)
    assert re.findall(r"\[P\d\] (.) wrote", changed.messages[1].content) == ["u", "v", "u", "v"]
    assert plan(mine, [mine], seed=0)[1]["no-donor-item"] == 6  # three tags or none, cited and uncited


def test_a_label_that_an_item_to_change_has_already_is_not_put_in():
    shown = tuple(item(n, label) for n, label in enumerate(("amber", "black", "amber", "amber")))
    plans, missing = plan(case(items=shown, task=TWO), [], seed=0)
    assert {one.expected for one in of(plans, "relabel")} == {"black"}
    assert all(2 not in one.items for one in of(plans, "relabel"))
    assert missing["no-other-label"] >= 1


def test_forced_answers_begin_with_the_recorded_trace_less_what_was_done_to_it():
    plans, _ = plan(case(), [OTHER], seed=0)
    first, second, third = (f"<{tag}>{text}</{tag}>\n" for tag, text in USUAL)
    (repeat,) = of(plans, "repeat")
    assert begun(repeat) == f"<think>\n{first}{second}{third}</think>\n"
    assert [begun(one) for one in of(plans, "cut")] == [
        "<think>\n</think>\n", f"<think>\n{first}</think>\n", f"<think>\n{first}{second}</think>\n",
    ]  # fmt: skip
    assert [(one.step, one.tag, begun(one)) for one in of(plans, "delete")] == [
        (1, "examine_examples", f"<think>\n{second}{third}</think>\n"),
        (2, "infer_preference", f"<think>\n{first}{third}</think>\n"),
        (3, "apply_preference", f"<think>\n{first}{second}</think>\n"),
    ]
    strange = "<infer_preference>This user keeps to denim.</infer_preference>\n"
    (replaced,) = of(plans, "replace", step=2)
    assert begun(replaced) == f"<think>\n{first}{strange}{third}</think>\n"
    assert (replaced.expected, replaced.donor_example_id) == ("denim", "e-v")
    (transplant,) = of(plans, "transplant")
    assert begun(transplant) == OTHER.prediction.text.removesuffix("denim")


def test_a_step_is_never_replaced_by_one_of_the_same_user_answer_or_words_or_with_a_citation_the_prompt_lacks():
    same_user = case((("infer_preference", "Denim."), ("draft_answer", "x")), answer="denim")
    same_answer = case((("infer_preference", "Else."), ("draft_answer", "x")), user="w")
    same_words = case((*USUAL[:2], ("draft_answer", "x")), answer="coral", user="x")
    five = tuple(item(n, owner="y") for n in range(5))
    beyond = case((("infer_preference", "[P5] says it."), ("draft_answer", "x")), answer="coral", user="y", items=five)
    plans, missing = plan(case(), [same_user, same_answer, same_words, beyond], seed=0)
    assert of(plans, "replace") == []
    assert missing["no-donor-step"] == 3


def test_odd_white_space_of_the_recorded_trace_stays():
    text = "\n<think><infer_preference>So.</infer_preference> \n<draft_answer>a</draft_answer>\n\n</think>\n\n amber \n"
    plans, _ = plan(case(text=text), [], seed=0)
    assert begun(of(plans, "repeat")[0]) == text.removesuffix("amber \n")
    assert begun(of(plans, "cut", step=1)[0]) == (
        "\n<think><infer_preference>So.</infer_preference>\n\n</think>\n\n "
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "finish", "reason"),
    [
        (trace(*USUAL), "length", "cut-at-length"),
        ("", "error", "model-error"),
        (trace(*USUAL[:1]), "stop", "invalid-trace"),
        (trace(*USUAL, answer="mauve"), "stop", "unreadable-answer"),
    ],
)
def test_what_cannot_be_looked_into_has_a_reason(text, finish, reason):
    whole = case()
    prediction = whole.prediction.model_copy(update={"text": text, "finish_reason": finish})
    assert take(prediction, SHADE, whole.example, whole.items, WORDING) == reason
    assert reason in SKIPPED


def test_a_prompt_that_cannot_be_built_again_is_not_looked_into():
    whole = case()
    other = Wording(PromptOptions(item_words=1), load_tagset())
    assert take(whole.prediction, SHADE, whole.example, whole.items, other) == "other-prompt"
    assert take(whole.prediction, SHADE, whole.example, None, WORDING) == "items-unknown"


def test_the_system_prompt_of_the_run_is_in_every_prompt():
    wording = Wording(PromptOptions(), load_tagset(), "Be brief.")
    assert wording.prompt(SHADE, case().example, ())[0].content.startswith("Be brief.\n\nAnswer as this user would.")


def asked(**facts):
    return Plan("relabel", case().prompt(()), **{"expected": "denim", **facts})


@pytest.mark.parametrize(
    ("text", "base", "is_changed", "is_following", "score"),
    [
        (trace(*USUAL, answer="denim"), "amber", True, True, 0.0),
        (trace(*USUAL, answer="coral"), "amber", True, False, 0.0),
        (trace(*USUAL, answer="**amber**"), "amber", False, False, 1.0),
        (trace(*USUAL, answer="mauve"), "amber", True, False, 0.0),  # no answer: changed, follows nothing
        ("<think>without end", "amber", True, False, 0.0),
        (trace(*USUAL, answer="denim"), "denim", False, None, 0.0),  # nowhere to go
    ],
)
def test_a_label_follows_where_it_becomes_the_expected_one(text, base, is_changed, is_following, score):
    row = judge(case(), asked(), text, base)
    assert (row.is_changed, row.is_following, row.score) == (is_changed, is_following, score)


def test_a_text_follows_where_it_takes_up_a_word_that_only_the_change_brought_in():
    whole = case(task=NAME, answer="A quick fix", gold=None)
    done = Plan("rewrite", whole.prompt(()), brought_in=frozenset({"kernel", "quick"}))
    for answer, expected in (("Kernel repair", True), ("A quick repair", False), ("kernels", False)):
        assert judge(whole, done, trace(*USUAL, answer=answer), "A quick fix").is_following is expected
    nothing_new = Plan("rewrite", whole.prompt(()), brought_in=frozenset({"quick"}))
    row = judge(whole, nothing_new, trace(*USUAL, answer="a QUICK  fix"), "A quick fix")
    assert (row.is_following, row.is_changed, row.score) == (None, False, None)


def test_a_forced_answer_is_read_behind_the_trace_that_was_given():
    (repeat,) = of(plan(case(), [], seed=0)[0], "repeat")
    assert judge(case(), repeat, "amber", "amber").is_changed is False
    for text in ("<think>on and on", "<infer_preference>Amber it is.</infer_preference>\namber", "so</think>\namber"):
        assert judge(case(), repeat, text, "amber").answer is None, "it went on reasoning instead of answering"


def test_ratings_that_say_the_same_number_are_the_same_answer():
    rating = Task(name="stars", kind="rating", labels=("1", "2"), answer_form="1 or 2", item_template="{label}: {text}")
    whole = case(task=rating, answer="2.0", gold="2", items=tuple(item(n, "1") for n in range(4)))
    assert whole.answer == "2"
    assert is_same(rating, whole.answer, "2")
    assert {one.expected for one in of(plan(whole, [], seed=0)[0], "relabel")} <= {"1"}


LINE = re.compile(r"^\[P\d+\] (.*)$", re.MULTILINE)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_interventions_never_change_an_item_they_do_not_name(data):
    rng = random.Random(data.draw(st.integers(0, 10**6)))
    task = rng.choice((SHADE, NAME))
    count = rng.randint(1, 6)
    items = tuple(item(n, rng.choice(SHADE.labels)) for n in range(count))
    cited = sorted(rng.sample(range(1, count + 1), rng.randint(1, count)))
    steps = (("infer_preference", " ".join(f"[P{n}]" for n in cited)), ("draft_answer", "It."))
    subject = case(steps, items=items, task=task)
    stranger = case(user="v", task=task, answer="denim")
    plans, missing = plan(subject, [subject, stranger], seed=rng.randint(0, 9))
    assert set(missing) <= set(NOT_MADE)
    before = LINE.findall(subject.prompt(items)[1].content)
    for done in plans:
        after = LINE.findall(done.messages[1].content)
        kept = [line for number, line in enumerate(before, start=1) if number not in done.items]
        if done.action == "remove":
            assert after == kept
            continue
        assert [line for number, line in enumerate(after, start=1) if number not in done.items] == kept
        changed = [n for n, (old, new) in enumerate(zip(before, after, strict=True), start=1) if old != new]
        assert changed == list(done.items)
        assert done.messages[1].content.rpartition("\n\n")[2] == subject.prompt(items)[1].content.rpartition("\n\n")[2]
    assert all(set(one.items) <= set(cited) for one in plans if one.target == "cited")
    assert not any(set(one.items) & set(cited) for one in plans if one.target == "uncited")


def test_the_changes_themselves_by_hand():
    items = tuple(item(n) for n in range(3))
    assert [one.label for one in relabelled(items, (2,), "ebony")] == ["amber", "ebony", "amber"]
    assert [one.title for one in rewritten(items, {3: item(9, owner="v")}, "title")] == [
        "thing 0 of u", "thing 1 of u", "thing 9 of v",
    ]  # fmt: skip
    assert [one.position for one in without(items, (1, 3))] == [1]
    assert cited_items(case().trace.steps) == (1, 3)
    assert cited_items(case().trace.steps, "examine_examples") == (1,)
