import asyncio
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagpr_data.build import ScriptedTeacherConfig
from tagpr_data.phrases import telling_span
from tagpr_data.records import ProfileItem, Sampling, Task
from tagpr_data.tags import ground, load_tagset, parse
from tagpr_data.teachers import Assignment, ScriptedTeacher, scripted_trace

TAGSET = load_tagset()
LABELS = ("glamor", "exa", "hw/xwin", "based on a book")
COMPONENT = Task(
    name="component", kind="classification", labels=LABELS, answer_form="one", item_template='"{title}" is {label}'
)
RATING = Task(
    name="rating", kind="rating", labels=("1", "2", "3"), answer_form="1, 2 or 3", item_template='{label}: "{text}"'
)
SUBJECT = Task(name="subject", kind="generation", answer_form="a subject line", item_template='"{title}": {text}')

WORDS = """
pixmap upload glamor_fbo fbo [P9] <draft_answer> don't Straße 修正 "quoted" x86: fix: GLXFoo a the … deadbeef12 exa
"""
words = st.sampled_from(re.findall(r"\S+", WORDS))
lines = st.lists(words, min_size=1, max_size=8).map(" ".join)


def item(number: int, title: str | None, label: str | None, text: str = "") -> ProfileItem:
    return ProfileItem(
        profile_id="u", position=number, item_id=str(number), date="2020", title=title, text=text, label=label
    )


profiles = st.lists(st.tuples(lines, lines, st.sampled_from(LABELS) | st.none()), max_size=8).map(
    lambda rows: [item(number, title, label, text) for number, (title, text, label) in enumerate(rows)]
)


@pytest.mark.parametrize("patterns", ["counts", "pairs"])
@given(profile=profiles, query=lines, gold=st.sampled_from(LABELS), seed=st.integers(0, 2**31))
@settings(max_examples=150, deadline=None)
def test_every_label_trace_is_valid_reaches_the_gold_and_claims_only_what_is_true(patterns, profile, query, gold, seed):
    text = scripted_trace(COMPONENT, query, profile, gold, seed, patterns=patterns)
    parsed = parse(text, TAGSET, k=len(profile))
    assert parsed.violations == ()
    assert parsed.answer == gold
    assert [claim for claim in ground(parsed.steps, profile, "2021") if not claim.holds] == []


@given(
    profile=profiles,
    query=lines,
    gold=st.lists(words.filter(lambda w: w[0] not in "<…"), min_size=2),
    seed=st.integers(0, 99),
)
@settings(max_examples=150, deadline=None)
def test_every_text_trace_is_valid_reaches_the_gold_and_claims_only_what_is_true(profile, query, gold, seed):
    text = scripted_trace(SUBJECT, query, profile, " ".join(gold), seed)
    parsed = parse(text, TAGSET, k=len(profile))
    assert parsed.violations == ()
    assert parsed.answer == " ".join(gold)
    assert [claim for claim in ground(parsed.steps, profile, "2021") if not claim.holds] == []


def test_labels_counts_and_evidence_are_stated_as_they_are():
    profile = [
        item(0, "fix pixmap upload", "glamor"),
        item(1, "drop unused hook", "exa"),
        item(2, "speed up tiles", "glamor"),
    ]
    steps = parse(scripted_trace(COMPONENT, "leak in pixmap upload path", profile, "glamor", 1), TAGSET, k=3).steps
    said = {step.tag: step.text for step in steps}
    assert said["examine_examples"] == '[P1] is "glamor", [P2] is "exa", [P3] is "glamor".'
    assert said["identify_patterns"] == '[P1] and [P3] are "glamor", 2 of 3.'
    assert said["apply_preference"] == '[P1] shares "pixmap" and "upload" with the input and is "glamor".'


def test_pairs_set_the_first_item_against_the_first_that_differs():
    labels = {
        "glamor exa exa": '[P1] is "glamor", X [P2] is "exa".',
        "exa exa exa": '[P1] is "exa", and [P3] is "exa" X.',
    }
    for row, wanted in labels.items():
        profile = [item(number, "drop hook", label) for number, label in enumerate(row.split())]
        seen = set()
        for seed in range(20):
            text = scripted_trace(COMPONENT, "pixmap leak", profile, "exa", seed, patterns="pairs")
            said = {step.tag: step.text for step in parse(text, TAGSET, k=3).steps}["identify_patterns"]
            assert len(ground(parse(text, TAGSET, k=3).steps, profile, "2021")) > 4
            seen.add(re.sub("but|while|too|as well", "X", said))
        assert seen == {wanted}


def test_pairs_are_refused_where_the_policy_knows_no_such_choice():
    assert ScriptedTeacherConfig(patterns="pairs").patterns == "pairs"
    with pytest.raises(ValueError, match="is for policy"):
        ScriptedTeacherConfig(policy="weighed", patterns="pairs")


def test_a_gold_that_no_item_carries_is_admitted_instead_of_justified_by_an_item():
    profile = [item(0, "fix pixmap", "glamor"), item(1, "drop hook", "glamor")]
    steps = parse(scripted_trace(COMPONENT, "exa: offscreen memory", profile, "exa", 0), TAGSET, k=2).steps
    conflict = next(step for step in steps if step.tag == "resolve_conflict")
    assert conflict.text == "No past item is exa, but the input names exa itself."
    assert not any(step.tag == "infer_preference" for step in steps)


def test_a_label_is_found_beyond_the_six_most_similar_items():
    """Six items that share the word carry no label; the one labelled item shares none."""
    profile = [*(item(number, "upload", None) for number in range(6)), item(6, "drop hook", "glamor")]
    steps = parse(scripted_trace(COMPONENT, "upload", profile, "glamor", 0), TAGSET, k=7).steps
    assert steps[0].text == '[P7] is "glamor".'


def test_an_empty_profile_is_called_unknown():
    text = scripted_trace(COMPONENT, "offscreen memory", [], "exa", 0)
    assert "Nothing is known about this user" in text
    assert parse(text, TAGSET, k=0).is_valid


def test_without_hindsight_the_label_with_most_votes_wins_and_shared_words_are_votes():
    profile = [item(0, "nothing here", "exa"), item(1, "nor there", "exa"), item(2, "pixmap upload leak", "glamor")]
    query = "pixmap upload leak"  # glamor: 1 + 3 votes, exa: 2
    assignment = Assignment(COMPONENT, query, tuple(profile), (), "exa", Sampling(), 0)
    reply = asyncio.run(ScriptedTeacher(hindsight=False).write(assignment))
    assert parse(reply.text, TAGSET).answer == "glamor"
    assert parse(asyncio.run(ScriptedTeacher().write(assignment)).text, TAGSET).answer == "exa"


def test_without_hindsight_a_title_takes_the_users_prefix_length_and_case():
    profile = [item(0, "glamor: fix upload", None), item(1, "glamor: drop hook", None)]
    text = scripted_trace(SUBJECT, "Pixmaps leak when the screen is closed. So free them.", profile, None, 0)
    assert parse(text, TAGSET).answer == "glamor: pixmaps leak when"


def test_a_text_takes_its_form_from_the_items_and_its_matter_from_a_quoted_sentence_of_the_input():
    profile = [item(0, "glamor: Fix upload", None), item(1, "Drop hook", None), item(2, "dix: Free grabs", None)]
    query = "Screens may close early. The pixmaps are leaked when the screen closes, which was seen by hand twice."
    steps = parse(scripted_trace(SUBJECT, query, profile, "dix: Free pixmaps on closing screens", 1), TAGSET, k=3).steps
    assert [(step.tag, step.text.replace("has", "says")) for step in steps] == [
        ("examine_examples", 'Prefixes: [P1] "glamor", [P3] "dix".'),
        ("infer_preference", "This user mostly sets a prefix, then goes on with a capital."),
        ("analyze_query", 'The input says "The pixmaps are leaked when the screen closes, which was".'),
        ("apply_preference", "Prefix dix as in [P3]."),
    ]


def test_always_is_said_of_all_shown_items_and_not_of_the_nearest_alone():
    alike = [item(number, "dix: Free pixmaps", None) for number in range(6)]
    for profile, how in ((alike, "always"), ([*alike, item(6, "Drop hook", None)], "mostly")):
        text = scripted_trace(SUBJECT, "free pixmaps", profile, "dix: Free", 0)
        assert f"This user {how} sets a prefix" in text


def test_the_sentence_taken_up_has_most_words_of_the_text_and_nothing_that_ends_a_quotation():
    query = 'One two. Close the "old" screen now; closing screens [P9] leaks.\nThree four five'
    assert telling_span(query, "closed screens") == "closing screens"  # "screen now" has one of the two words
    assert telling_span(query, "nothing of it") == "Three four five"  # of equals the first of three words or more
    assert telling_span(query, "three", most=2) == "Three four"
    assert telling_span("", "five") == telling_span('"[<', "five") == ""


def test_ratings_and_unlabelled_items_are_handled():
    rated = [item(0, None, "3", "great phone"), item(1, None, "1", "broken phone")]
    assert parse(scripted_trace(RATING, "great camera", rated, "3", 0), TAGSET, k=2).is_valid
    unlabelled = [item(0, "graph learning", None)]
    assert parse(scripted_trace(COMPONENT, "graph matching", unlabelled, "exa", 0), TAGSET, k=1).is_valid


def test_the_seed_varies_the_wording_and_nothing_else_does():
    profile = [item(0, "fix pixmap upload", "glamor"), item(1, "drop hook", "glamor")]
    texts = [scripted_trace(COMPONENT, "pixmap leak", profile, "glamor", seed) for seed in range(20)]
    assert len(set(texts)) > 3
    assert texts == [scripted_trace(COMPONENT, "pixmap leak", profile, "glamor", seed) for seed in range(20)]


def test_blind_attempts_do_not_know_the_gold_and_later_ones_do() -> None:
    """STaR: the first try must stand on the profile alone; only the retry argues towards the given answer."""
    teacher = ScriptedTeacher(hindsight=True, blind_attempts=1)
    item = ProfileItem(profile_id="p", position=0, item_id="a", text="a slow tune", label="calm")
    task = Task(
        name="mood", kind="classification", labels=("calm", "wild"), answer_form="a mood", item_template="{text}"
    )

    def answer(attempt: int) -> str:
        assignment = Assignment(
            task=task, input="a slow song", items=(item,), messages=(), gold="wild", sampling=Sampling(), seed=0,
            attempt=attempt,
        )  # fmt: skip
        return asyncio.run(teacher.write(assignment)).text.rpartition("\n")[2]

    assert [answer(0), answer(1)] == ["calm", "wild"]
    assert teacher.name == "scripted-hindsight-after-1"


def test_a_habit_is_true_ignores_the_input_and_takes_its_share_of_attempts() -> None:
    """Most frequent label, no look at the input, no claim that fails; told or not, the gold plays no part in it."""
    profile = [
        item(0, "drop hook", "exa"), item(1, "fix pixmap upload", "glamor"), item(2, "add tiles", "exa"),
    ]  # fmt: skip
    text = scripted_trace(COMPONENT, "pixmap upload leak", profile, None, 0, by_habit=True)
    parsed = parse(text, TAGSET, k=3)
    assert parsed.is_valid and parsed.answer == "exa"
    assert [claim for claim in ground(parsed.steps, profile, "2021") if not claim.holds] == []
    assert "analyze_query" not in {step.tag for step in parsed.steps}
    teacher = ScriptedTeacher(habit_share=0.25)
    assert teacher.name == "scripted-hindsight-habit-0.25"
    answers = [
        parse(
            asyncio.run(
                teacher.write(Assignment(COMPONENT, "pixmap upload", tuple(profile), (), "glamor", Sampling(), seed))
            ).text,
            TAGSET,
        ).answer
        for seed in range(200)
    ]
    assert 30 <= answers.count("exa") <= 70 and answers.count("exa") + answers.count("glamor") == 200
