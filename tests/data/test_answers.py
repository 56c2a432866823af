import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagpr_data.answers import count_problems, parsed, strict
from tagpr_data.records import Task
from tagpr_data.tasks import LAMP_TASKS, find_task

CITATION, MOVIE, RATING, HEADLINE = (find_task(name) for name in ("LaMP-1", "LaMP-2", "LaMP-3", "LaMP-4"))


def answer(text: str, task: Task) -> str | None:
    """The answer, or the problem between angle brackets."""
    result = parsed(text, task)
    assert (result.answer is None) == (result.problem is not None)
    return f"<{result.problem}>" if result.problem else result.answer


def test_strict_changes_nothing():
    assert strict("<think>\n \ud800") == "<think>\n \ud800"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>action?</think>comedy", "comedy"),
        ("<think>a</think>action<think>b</think>\n\ncomedy\n", "comedy"),
        ("action? no</think>comedy", "comedy"),  # the template wrote <think>
        ("<think>comedy", "<unclosed-think>"),
        ("<think>a</think>comedy <think> or", "<unclosed-think>"),
        ("<think>comedy</think>", "<empty>"),
        ("<think>comedy</think> \n\u200b ", "<empty>"),
        ("", "<empty>"),
        ("```\n```", "<empty>"),
        ("Answer:", "<empty>"),
    ],
)
def test_only_what_follows_the_think_block_counts(text: str, expected: str):
    assert answer(text, MOVIE) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("comedy", "comedy"),
        (" Comedy.\n", "comedy"),
        ("dark comedy", "dark comedy"),
        ("DARK\nCOMEDY", "dark comedy"),
        ("**Sci-Fi**", "sci-fi"),
        ("`sci-fi`", "sci-fi"),
        ('Tag: "based on a book"', "based on a book"),
        ("**Answer:** classic", "classic"),
        ("Answer:\n\n- classic", "classic"),
        ("This could be action or fantasy.\nThe answer is fantasy.", "fantasy"),
        ("The movie is a comedy; yes, comedy it is", "comedy"),
        ("comedy or action", "<unparseable>"),
        ("dark comedy, not comedy", "<unparseable>"),
        ("tragicomedy", "<unparseable>"),
        ("comedy-drama", "<unparseable>"),
        ("comedyish", "<unparseable>"),
        ("Romance", "romance"),
        ("I cannot tell", "<unparseable>"),
        ("cla\u017f\u017fic", "classic"),  # long s folds to s
        ("f\u0131ction", "<unparseable>"),
    ],
)
def test_one_label_is_found(text: str, expected: str):
    assert answer(text, MOVIE) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1]", "[1]"),
        ("[2].", "[2]"),
        ("1", "[1]"),
        ("Reference 2", "[2]"),
        ("(1)", "[1]"),
        ("[1] because [2] is older", "<unparseable>"),
        ("[1], as 2 is older", "[1]"),  # the label as spelt wins over its number
        ("12", "<unparseable>"),
        ("[3]", "<unparseable>"),
    ],
)
def test_bracketed_labels_may_lack_their_brackets(text: str, expected: str):
    assert answer(text, CITATION) == expected


def test_labels_of_a_script_without_case_need_no_word_ends():
    task = Task(
        name="films", kind="classification", labels=("喜剧", "黑色喜剧"), answer_form="一个标签", item_template=""
    )
    assert answer("这是喜剧的", task) == "喜剧"
    assert answer("这是黑色喜剧的", task) == "黑色喜剧"


def test_the_longest_label_wins_where_one_begins_another():
    task = Task(name="t", kind="classification", labels=("rock", "rock music"), answer_form="a", item_template="")
    assert answer("It is Rock Music.", task) == "rock music"
    assert answer("It is rock, music.", task) == "rock"


def test_labels_that_differ_in_case_are_told_apart_where_they_stand_alone():
    task = Task(name="t", kind="classification", labels=("us", "US"), answer_form="a", item_template="")
    assert (answer("us", task), answer("US", task)) == ("us", "US")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4", "4"),
        ("4.0", "4"),
        ("4.5", "4.5"),
        ("**4**", "4"),
        ("4/5", "4"),
        ("4 out of 5 stars", "4"),
        ("Rating: 3", "3"),
        ("On a scale of 1 to 5.\nScore: 3", "3"),
        ("I say 2, not 5", "2"),
        ("４", "4"),  # a full-width digit
        ("6", "<out-of-range>"),
        ("0", "<out-of-range>"),
        ("-3", "<out-of-range>"),
        ("9" * 5000, "<out-of-range>"),
        ("five", "<unparseable>"),
        ("nan", "<unparseable>"),
        ("B2B", "<unparseable>"),
        ("5th", "<unparseable>"),
    ],
)
def test_the_first_number_is_the_rating(text: str, expected: str):
    assert answer(text, RATING) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ten Ways to Sleep", "Ten Ways to Sleep"),
        ('"Ten Ways to Sleep"', "Ten Ways to Sleep"),
        ("“Ten Ways to Sleep”\n", "Ten Ways to Sleep"),
        ('**Headline:** "Ten Ways to Sleep"', "Ten Ways to Sleep"),
        ("**Headline**: Ten *Ways* to Sleep", "Ten *Ways* to Sleep"),
        ("Headline: *Ten Ways to Sleep*", "Ten Ways to Sleep"),
        ("# Ten Ways to Sleep", "Ten Ways to Sleep"),
        ("Sleep - Ten Ways", "Sleep - Ten Ways"),
        ("Here is a headline:\n\nTen Ways to Sleep\n\nIt is short.", "Ten Ways to Sleep"),
        ("Sure!\nHeadline: Ten Ways to Sleep", "Ten Ways to Sleep"),
        ("```text\nTen Ways to Sleep\n```", "Ten Ways to Sleep"),
        ("Ten Ways:", "Ten Ways:"),
        ('"Ten" and "Two"', '"Ten" and "Two"'),
        ("Sleep: Ten Ways", "Sleep: Ten Ways"),
        ("The Answer Is Sleep", "Sleep"),  # the price of the rule
        ("*", "*"),
        ('""', '""'),
        ("#sleep", "#sleep"),
    ],
)
def test_generation_takes_the_first_line_unwrapped(text: str, expected: str):
    assert answer(text, HEADLINE) == expected


def test_problems_are_counted_and_zeros_named():
    answers = [parsed(text, RATING) for text in ("", "3", "7", "8", "x", "<think>")]
    assert count_problems(answers) == {"empty": 1, "unclosed-think": 1, "unparseable": 1, "out-of-range": 2}


PIECES = [
    "<think>",
    "</think>",
    "**",
    '"',
    "'",
    "“",
    "”",
    "_",
    "`",
    "Answer:",
    "\n",
    " ",
    "- ",
    "# ",
    "4",
    "comedy",
    "[1]",
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=20), max_size=20).map("".join), st.sampled_from(LAMP_TASKS))
def test_any_text_gives_an_answer_in_the_tasks_form_or_a_problem(text: str, task: Task):
    result = parsed(text, task)
    assert (result.answer is None) == (result.problem is not None)
    if result.answer is not None:
        assert task.kind != "classification" or result.answer in (task.labels or ())
        assert task.kind != "rating" or 1 <= float(result.answer) <= 5
        assert task.kind != "generation" or (result.answer in text and result.answer.strip() == result.answer)


@pytest.mark.parametrize("task", [MOVIE, RATING, HEADLINE], ids=lambda task: task.name)
@pytest.mark.parametrize(
    "piece", ["<think>", "</think>", '"', "**", "*_", "#", "Answer:", "comedy ", "4", "a\n", " ", "-"]
)
def test_hostile_text_is_read_quickly(piece: str, task: Task):
    begin = time.process_time()
    parsed(piece * (200_000 // len(piece)), task)
    assert time.process_time() - begin < 2  # quadratic would be many
