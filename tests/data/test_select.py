import random

import pytest

from tagpr_data.prompts import prompt_hash
from tagpr_data.records import Candidate, Message, ProfileItem, Rejected, Sampling, Task, Trace
from tagpr_data.select import REASONS, Selection, acceptance, count_reasons, judge, select
from tagpr_data.tables import sha256_text
from tagpr_data.tags import load_tagset

TAGSET = load_tagset()
GENRE = Task(name="genre", kind="classification", labels=("rock", "jazz"), answer_form="a genre", item_template="")
TITLE = Task(name="title", kind="generation", answer_form="a title", item_template="")
ITEMS = (
    ProfileItem(profile_id="u", position=0, item_id="a", date="2020", title="Loud road", text="", label="rock"),
    ProfileItem(profile_id="u", position=1, item_id="b", date="2021", title="Slow river", text="", label="jazz"),
)
GOOD = (
    "<think>\n"
    '<examine_examples>[P1] is "rock", [P2] is "jazz".</examine_examples>\n'
    "<infer_preference>This user likes rock.</infer_preference>\n"
    "</think>\n"
    "rock"
)


def candidate(text=GOOD, attempt=0, prompt="q", task="genre", gold: str | None = "rock", finish="stop", user="u"):
    messages = (Message(role="user", content=prompt),)
    return Candidate(
        id=sha256_text(f"{prompt} {attempt} {user}"),
        example_id=prompt,
        task=task,
        user_id=user,
        retriever="bm25",
        k=2,
        item_ids=("a", "b"),
        messages=messages,
        prompt_hash=prompt_hash(messages),
        teacher="t",
        teacher_revision="1",
        sampling=Sampling(),
        seed=attempt,
        attempt=attempt,
        text=text,
        finish_reason=finish,
        gold=gold,
    )


def run(*candidates, rules=None, date="2022"):
    rules = rules or Selection()
    tasks = {"genre": GENRE, "title": TITLE}
    return select(candidates, lambda row: judge(row, tasks[row.task], ITEMS, date, rules, TAGSET), rules)


def reason_of(row, **options):
    kept, rejected = run(row, **options)
    assert len(kept) + len(rejected) == 1
    return rejected[0].reason if rejected else None


def test_a_good_candidate_is_kept_with_what_was_measured():
    (trace,), rejected = run(candidate())
    assert rejected == []
    assert (trace.answer, trace.score, len(trace.steps)) == ("rock", 1.0, 2)
    # [P1] and [P2]: exists, lies before the query, label: 3 claims each
    assert (trace.claims, trace.grounded_claims) == (6, 6)


@pytest.mark.parametrize(
    ("reason", "changes", "options"),
    [
        ("cut-off", {"finish": "length"}, {}),
        ("grammar", {"text": "rock"}, {}),
        ("grammar", {"text": GOOD.replace("[P2]", "[P3]")}, {}),
        ("no-gold", {"gold": None}, {}),
        ("leaks-gold", {"text": GOOD.replace("This user", "As the gold says this user")}, {}),
        ("too-long", {}, {"rules": Selection(max_characters=50)}),
        ("low-score", {"gold": "jazz"}, {}),
        ("ungrounded", {"text": GOOD.replace('[P1] is "rock"', '[P1] is "jazz"')}, {}),
        ("ungrounded", {}, {"date": "2021"}),
    ],
)
def test_a_bad_candidate_is_rejected_for_its_reason(reason, changes, options):
    if reason == "ungrounded" and options:  # [P2] of 2021 is not before a query of 2020
        options = {"date": "2020"}
    assert reason_of(candidate(**changes), **options) == reason


def test_groundedness_may_be_recorded_instead_of_demanded():
    row = candidate(text=GOOD.replace('[P1] is "rock"', '[P1] is "jazz"'))
    (trace,), _ = run(row, rules=Selection(require_grounded=False))
    assert (trace.claims, trace.grounded_claims) == (6, 5)


def test_a_generated_answer_needs_the_threshold_in_rouge():
    text = GOOD.replace("\nrock", "\nloud road song")
    # ROUGE-1 = ROUGE-L = 2·2/(3+3) = 0.667
    assert reason_of(candidate(text=text, task="title", gold="loud river song")) is None
    strict = Selection(min_score={"generation": 0.7})
    assert reason_of(candidate(text=text, task="title", gold="loud river song"), rules=strict) == "low-score"


def test_the_best_attempt_of_a_prompt_is_kept_and_the_others_say_so():
    partly = candidate(text=GOOD.replace("\nrock", "\nloud road"), attempt=0, task="title", gold="loud road song")
    best = candidate(text=GOOD.replace("\nrock", "\nloud road song"), attempt=1, task="title", gold="loud road song")
    kept, rejected = run(partly, best)
    assert [row.id for row in kept] == [best.id]
    assert [row.reason for row in rejected] == ["not-best"]
    assert len(run(partly, best, rules=Selection(best_of=2))[0]) == 2


def test_the_same_text_of_one_user_is_kept_once():
    kept, rejected = run(candidate(prompt="q1"), candidate(prompt="q2"), candidate(prompt="q3", user="v"))
    assert len(kept) == 2
    assert [row.reason for row in rejected] == ["duplicate"]


def test_every_candidate_comes_out_once_whatever_their_order():
    rows = [
        candidate(prompt=f"q{n}", attempt=attempt, text=GOOD if n % 3 else "rock", gold="rock" if n % 2 else "jazz")
        for n in range(12)
        for attempt in range(3)
    ]
    kept, rejected = run(*rows)
    assert sorted(row.id for row in (*kept, *rejected)) == sorted(row.id for row in rows)
    assert sum(count_reasons(rejected).values()) == len(rejected)
    shuffled = rows.copy()
    random.Random(1).shuffle(shuffled)
    assert run(*shuffled) == (kept, rejected)


def test_every_reason_given_is_in_the_table_and_has_a_meaning():
    row = candidate()
    rejected = [Rejected(**dict(row), reason=reason, detail="") for reason in REASONS]
    assert count_reasons(rejected) == dict.fromkeys(REASONS, 1)
    assert all(REASONS.values())


def test_acceptance_is_the_share_kept_by_task():
    kept: list[Trace] = run(candidate(prompt="q1"))[0]
    rejected = run(candidate(prompt="q2", text=""), candidate(prompt="q3", text="", task="title"))[1]
    assert acceptance(kept, rejected) == {"genre": 0.5, "title": 0.0}


def test_an_answer_no_item_carries_is_guesswork_when_support_is_required():
    text = GOOD.replace("likes rock", "likes folk").replace("</think>\nrock", "</think>\nfolk")
    rules = Selection(require_support=True)
    assert reason_of(candidate(text, gold="folk")) is None
    assert reason_of(candidate(text, gold="folk"), rules=rules) == "unsupported"
    assert reason_of(candidate(), rules=rules) is None
    title = candidate(GOOD.replace("</think>\nrock", "</think>\nOpen sky"), task="title", gold="Open sky")
    assert reason_of(title, rules=rules) is None  # a title need not be one of the labels
