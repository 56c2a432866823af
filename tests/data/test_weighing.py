"""What speaks for a label, weighed, and traces that say what decided."""

import asyncio
import math
import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagpr_data.dataset import Dataset, write_dataset
from tagpr_data.records import Example, ProfileItem, Sampling, Split, Task
from tagpr_data.tags import ground, load_tagset, parse
from tagpr_data.teachers import Assignment, ScriptedTeacher, weighed_scripted_trace
from tagpr_data.weighing import LabelWords, likeliest, weigh, weighed_trace

TAGSET = load_tagset()
LABELS = ("glamor", "exa", "hw/xwin", "os")
COMPONENT = Task(
    name="component", kind="classification", labels=LABELS, answer_form="one", item_template='"{title}" is {label}'
)
SUBJECT = Task(name="subject", kind="generation", answer_form="a subject line", item_template='"{title}": {text}')
COUNTED = LabelWords(
    {
        "a": (
            ("glamor", frozenset({"pixmap", "upload"})),
            ("glamor", frozenset({"pixmap"})),
            ("exa", frozenset({"upload"})),
        ),
        "b": (("os", frozenset({"pixmap", "socket"})), ("os", frozenset({"socket"}))),
    }
)

WORDS = """pixmap upload fbo [P9] <x> don't 修正 "quoted" x86: GLXFoo a the … socket xwin glamor"""
words = st.sampled_from(WORDS.split())
lines = st.lists(words, min_size=1, max_size=8).map(" ".join)


def item(number: int, title: str | None, label: str | None, text: str = "", profile: str = "u") -> ProfileItem:
    return ProfileItem(
        profile_id=profile, position=number, item_id=str(number), date="2020", title=title, text=text, label=label
    )


profiles = st.lists(st.tuples(lines, st.sampled_from(LABELS) | st.none()), max_size=8).map(
    lambda rows: [item(number, title, label) for number, (title, label) in enumerate(rows)]
)


def test_the_score_is_the_one_written_down():
    items = [
        item(0, "drop hook", "exa"), item(1, "fix pixmap upload", "glamor"), item(2, "xwin pixmap", "hw/xwin"),
        item(3, "add tiles", "glamor"),
    ]  # fmt: skip
    query = "xwin: leak in upload of a pixmap"
    by_label = {one.label: one for one in weigh(query, items)}
    assert by_label["exa"].parts == {"place": 1.5, "shared": 0, "named": 0, "typical": 0}
    assert by_label["glamor"].parts["place"] == pytest.approx(1.5 * (0.7 + 0.343))
    assert by_label["glamor"].parts["shared"] == pytest.approx(0.4)  # "upload"; "pixmap" stands in another label's item
    assert by_label["hw/xwin"].parts["named"] == 1.0
    assert [one.label for one in weigh(query, items)] == ["hw/xwin", "glamor", "exa"]  # 2.135, 1.965, 1.5


def test_a_lift_compares_with_the_label_at_large_and_leaves_the_users_own_items_out():
    lifts = COUNTED.lifts("socket pixmap", leave_out=None)
    share = {"glamor": 3 / 8, "exa": 2 / 8, "os": 3 / 8}
    assert lifts["pixmap"]["glamor"] == pytest.approx(math.log((2 + 2 * share["glamor"]) / (3 + 2) / share["glamor"]))
    assert lifts["socket"]["exa"] == pytest.approx(math.log(0.5))  # 2 · P / (2 + 2) / P
    assert COUNTED.lifts("socket pixmap", leave_out="b").keys() == {"pixmap"}
    assert COUNTED.lifts("socket pixmap", leave_out="a").keys() == {"socket"}
    assert likeliest("socket", LABELS, COUNTED) == "os"
    assert likeliest("unheard of", LABELS, COUNTED) is None


@given(profile=profiles, query=lines, seed=st.integers(0, 2**31), is_counted=st.booleans())
@settings(max_examples=300, deadline=None)
def test_every_weighed_trace_is_valid_true_and_ends_with_an_item_that_carries_its_answer(
    profile: list[ProfileItem], query: str, seed: int, is_counted: bool
):
    counted = COUNTED if is_counted else None
    text = weighed_scripted_trace(COMPONENT, query, profile, None, seed, counted)
    parsed = parse(text, TAGSET, k=len(profile))
    assert parsed.violations == ()
    assert [claim for claim in ground(parsed.steps, profile, "2021") if not claim.holds] == []
    if labels := [one.label for one in profile if one.label]:
        assert parsed.answer in labels
        last = re.search(r'\[P(\d)\] is "([^"]+)"\.$', parsed.steps[-1].text)
        assert last is not None
        assert profile[int(last[1]) - 1].label == last[2] == parsed.answer


@given(profile=profiles, query=lines, gold=lines.filter(lambda text: text[0] not in "<…"), seed=st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_every_plan_of_a_text_is_valid_true_and_reaches_the_gold(
    profile: list[ProfileItem], query: str, gold: str, seed: int
):
    parsed = parse(weighed_scripted_trace(SUBJECT, query, profile, gold, seed), TAGSET, k=len(profile))
    assert parsed.violations == ()
    assert parsed.answer == gold
    assert [claim for claim in ground(parsed.steps, profile, "2021") if not claim.holds] == []


@pytest.mark.parametrize(
    ("query", "titles", "answer", "decisions"),
    [
        ("pixmap upload leak of tiles", ("drop hook", "fix pixmap upload of tiles"), "exa", '"(tiles|pixmap|upload)"'),
        ("xwin crash", ("drop hook", "resize"), "hw/xwin", "xwin"),
        ("socket closed", ("drop hook", "resize"), "os", "socket"),
        ("nothing known", ("drop hook", "resize"), "glamor", "first|First"),
    ],
)
def test_the_last_step_names_what_decided(query: str, titles: tuple[str, str], answer: str, decisions: str):
    """The first item is glamor's; the second wins by shared words, by its name in the input or by typical words."""
    counted = LabelWords({"a": (*[("os", frozenset({"socket"}))] * 8, *[("glamor", frozenset({"tiling"}))] * 40)})
    items = [item(0, titles[0], "glamor"), item(1, titles[1], "os" if answer == "glamor" else answer)]
    for seed in range(30):
        steps, said = weighed_trace(query, weigh(query, items, counted), random.Random(seed))
        assert said == answer
        assert re.search(decisions, steps[-1][1]), steps[-1]


def test_hindsight_moves_a_label_only_where_no_item_shows_one():
    """What argues against the evidence cannot be learned from it; a cold start has no evidence but the input."""
    shown = (item(0, "drop hook", "exa"), item(1, "resize", "exa"))
    teacher = ScriptedTeacher(policy="weighed", words={"component": COUNTED})

    def answer(items: tuple[ProfileItem, ...]) -> str:
        assignment = Assignment(COMPONENT, "pixmap leak", items, (), "glamor", Sampling(), 0)
        return parse(asyncio.run(teacher.write(assignment)).text, TAGSET).answer

    assert answer(shown) == "exa"
    assert answer(()) == "glamor"
    assert teacher.name == "scripted-weighed-hindsight"
    assert teacher.revision != ScriptedTeacher(policy="weighed").revision != ScriptedTeacher().revision


def test_wording_varies_in_substance_with_the_seed():
    items = [item(0, "fix pixmap upload", "glamor"), item(1, "drop hook", "exa"), item(2, "add tiles", "glamor")]
    texts = {weighed_scripted_trace(COMPONENT, "pixmap leak", items, None, seed, COUNTED) for seed in range(200)}
    assert len(texts) > 100
    assert len({tuple(step.tag for step in parse(text, TAGSET).steps) for text in texts}) >= 4


def test_only_items_before_the_last_training_question_are_counted(tmp_path: Path):
    items = [item(number, f"word{number}", "exa", profile="p") for number in range(6)]
    items += [item(number, f"held{number}", "os", profile="q") for number in range(2)]

    def example(name: str, profile: str, size: int) -> Example:
        return Example(
            id=name, task="component", user_id=profile, profile_id=profile, profile_size=size, input="x", output="exa"
        )

    examples: dict[Split, list[Example]] = {
        "train": [example("1", "p", 2), example("2", "p", 4)],
        "validation": [example("3", "p", 5), example("4", "q", 2)],
    }
    write_dataset(
        tmp_path / "d", name="d", source="s", licence="MIT", tasks=[COMPONENT], parameters={}, skipped={},
        examples=examples, items=items,
    )  # fmt: skip
    counted = LabelWords.count(Dataset.load(tmp_path / "d"), "component").by_profile
    assert {name: [sorted(found) for _, found in rows] for name, rows in counted.items()} == {
        "p": [["word0"], ["word1"], ["word2"], ["word3"]]
    }
