import random
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagpr_data import tags
from tagpr_data.errors import InputError
from tagpr_data.records import ProfileItem, Step
from tagpr_data.tags import Claim, Parsed, Violation, ground, load_tagset, parse, render

TAGSET = load_tagset()
INFER = "<infer_preference>likes short ones</infer_preference>"
VERIFY = "<verify_answer>fits</verify_answer>"


def trace(*steps: str, answer: str = "glamor") -> str:
    return "<think>\n" + "".join(f"{step}\n" for step in steps) + f"</think>\n{answer}"


def codes(text: str, k: int | None = 4) -> list[str]:
    return [violation.code for violation in parse(text, TAGSET, k).violations]


def found(text: str, code: str, k: int | None = 4) -> Violation:
    (violation,) = [violation for violation in parse(text, TAGSET, k).violations if violation.code == code]
    return violation


# --- what a valid trace is -------------------------------------------------------------------------------------------


def test_the_example_of_the_design_is_taken_apart():
    text = (
        "<think>\n"
        '<examine_examples>[P2] and [P5] were both filed under "glamor" …</examine_examples>\n'
        "<resolve_conflict>[P1]-[P4] disagree, [P2] too</resolve_conflict>\n"
        "</think>\n"
        "glamor"
    )
    parsed = parse(text, TAGSET, k=5)
    assert parsed == Parsed(
        text=text,
        steps=(
            Step(tag="examine_examples", text='[P2] and [P5] were both filed under "glamor" …', cites=(2, 5)),
            Step(tag="resolve_conflict", text="[P1]-[P4] disagree, [P2] too", cites=(1, 4, 2)),
        ),
        answer="glamor",
        gaps=("", "\n", "\n", "\n", "\n", ""),
        violations=(),
    )
    assert parsed.is_valid


@pytest.mark.parametrize(
    "words",
    [
        "#include <X11/Xlib.h>",
        "a < b > c",
        "<b>bold</b>",
        "<infer_preference",
        "< infer_preference >",
        "<Infer_Preference>",
        "</infer_preference x>",
        "＜think＞ ‹think› <think/> <THINK> &lt;think&gt;",
        "<іnfer_preference>",  # a Cyrillic first letter
        "[1] [p1] [PATCH 2/3] array[i] [Pn]",
        "nul \x00 bell \x07 escape \x1b[31m right-to-left \u202e end",
        "lone surrogate \ud800 and \udfff",
    ],
)
def test_other_brackets_and_odd_characters_are_plain_text_in_steps_and_answer(words: str):
    text = trace(f"<infer_preference>{words}</infer_preference>", VERIFY, answer=words)
    parsed = parse(text, TAGSET, k=0)
    assert parsed.violations == ()
    assert parsed.steps[0].text == words
    assert parsed.steps[0].cites == ()
    assert parsed.answer == words


def test_white_space_is_free_between_steps_and_given_back():
    text = f" \n<think>{INFER}\t{VERIFY}\u2003\n\n</think>answer\r\n"
    parsed = parse(text, TAGSET)
    assert parsed.gaps == (" \n", "", "\t", "\u2003\n\n", "", "\r\n")
    assert render(parsed.steps, parsed.answer, parsed.gaps) == text
    assert render(parsed.steps, parsed.answer) == trace(INFER, VERIFY, answer="answer")


# --- every code, alone -----------------------------------------------------------------------------------------------

BROKEN: list[tuple[str, str, str, int | None]] = [
    # code, text, what stands at its position, k
    ("no-think", "glamor", "glamor", 4),
    ("no-think", "", "", 4),
    ("no-think", f"{INFER}{VERIFY}</think>glamor", "<infer", 4),
    ("no-think", "＜think＞…＜/think＞", "＜think", 4),
    ("text-before-think", " Sure! " + trace(INFER, VERIFY), "Sure!", 4),
    ("text-before-think", VERIFY + trace(INFER, VERIFY), "<verify", 4),
    ("text-before-think", "\u200b" + trace(INFER, VERIFY), "\u200b", 4),
    ("several-think", trace("<think>", INFER, VERIFY), "<think>\n<infer", 4),
    ("several-think", trace(INFER, "<verify_answer>a <think> b</verify_answer>"), "<think> b", 4),
    ("several-think", trace(INFER, VERIFY, answer="a <think> b"), "<think> b", 4),
    ("several-think", trace(INFER, VERIFY, answer="a </think> b"), "</think> b", 4),
    ("unclosed-think", f"<think>\n{INFER}\n{VERIFY}\n", "<think>", 4),
    ("unclosed-think", "<think>", "<think>", 4),
    ("stray-text", trace(INFER, "and so", VERIFY), "and so", 4),
    ("stray-text", trace(INFER, VERIFY, "\u200b"), "\u200b", 4),
    ("stray-text", trace(INFER, "a < b", VERIFY), "a < b", 4),
    ("unknown-tag", trace(INFER, "<guess>this</guess>", VERIFY), "<guess>", 4),
    ("unknown-tag", trace(INFER, "<br>", VERIFY), "<br>", 4),
    ("unknown-tag", trace(INFER, "<Verify_Answer>ok</Verify_Answer>", VERIFY), "<Verify_", 4),
    ("nested-tag", trace(INFER, f"<verify_answer>a {INFER} b</verify_answer>"), "<infer", 4),
    ("mismatched-close", trace("<infer_preference>likes</resolve_conflict>", VERIFY), "</resolve", 4),
    ("mismatched-close", trace(INFER, "</verify_answer>", VERIFY), "</verify_answer>\n<verify", 4),
    ("unclosed-tag", trace(INFER, "<verify_answer>fits"), "fits", 4),
    ("empty-step", trace(INFER, "<verify_answer></verify_answer>"), "</verify", 4),
    ("empty-step", trace(INFER, "<verify_answer> \n\t</verify_answer>"), " \n\t</verify", 4),
    ("empty-step", trace(INFER, "<verify_answer>\u200b\u2060\ufeff\u3164</verify_answer>"), "\u200b\u2060", 4),
    ("too-few-steps", trace(INFER), "</think>", 4),
    ("too-many-steps", trace(*[INFER] * 13), "</think>", 4),
    ("missing-required", trace(VERIFY, VERIFY), "</think>", 4),
    ("bad-citation", trace("<infer_preference>[P0] says</infer_preference>", VERIFY), "[P0]", 4),
    ("bad-citation", trace("<infer_preference>[P5] says</infer_preference>", VERIFY), "[P5]", 4),
    ("bad-citation", trace("<infer_preference>[P1] says</infer_preference>", VERIFY), "[P1]", 0),
    ("bad-citation", trace("<examine_examples>[P9] says</examine_examples>", INFER), "[P9]", 4),
    ("bad-citation", trace("<infer_preference>[P01] says</infer_preference>", VERIFY), "[P01]", 4),
    ("bad-citation", trace("<infer_preference>[P] says</infer_preference>", VERIFY), "[P]", None),
    ("bad-citation", trace("<infer_preference>[P-1] says</infer_preference>", VERIFY), "[P-1]", None),
    ("bad-citation", trace("<infer_preference>[P 1] says</infer_preference>", VERIFY), "[P 1]", None),
    ("bad-citation", trace("<infer_preference>[P1, P2] say</infer_preference>", VERIFY), "[P1, P2]", None),
    ("bad-citation", trace("<infer_preference>[P1 says</infer_preference>", VERIFY), "[P1 says", None),
    ("bad-citation", trace("<infer_preference>[P１] says</infer_preference>", VERIFY), "[P１]", None),
    ("bad-citation", trace(f"<infer_preference>[P{'9' * 5000}]</infer_preference>", VERIFY), "[P999", None),
    ("missing-citation", trace("<examine_examples>they differ</examine_examples>", INFER), "they differ", 4),
    ("missing-citation", trace("<examine_examples>they differ</examine_examples>", INFER), "they differ", None),
    ("missing-citation", trace("<identify_patterns>[P1] [P1]</identify_patterns>", INFER), "[P1] [P1]", 4),
    ("unexpected-citation", trace(INFER, "<analyze_query>like [P1]</analyze_query>"), "like [P1]", 4),
    ("empty-answer", f"<think>{INFER}{VERIFY}</think>\n \u200b", "\n \u200b", 4),
    ("empty-answer", f"<think>{INFER}{VERIFY}</think>", "", 4),
    ("tag-in-answer", trace(INFER, VERIFY, answer="it is </draft_answer>"), "</draft", 4),
]


@pytest.mark.parametrize(("code", "text", "there", "k"), BROKEN)
def test_each_broken_rule_is_reported_alone_and_at_its_place(code: str, text: str, there: str, k: int | None):
    (violation,) = parse(text, TAGSET, k).violations
    assert violation.code == code
    assert text[violation.position :].startswith(there)
    assert violation.message


def test_every_documented_code_has_an_example():
    assert {code for code, *_ in BROKEN} == set(tags.CODES)


@pytest.mark.parametrize(
    ("text", "k"),
    [
        (trace("<identify_patterns>all alike</identify_patterns>", INFER), 1),
        (trace("<identify_patterns>[P1] alone</identify_patterns>", INFER), None),
        (trace("<identify_patterns>[P1] [P2]</identify_patterns>", INFER), 2),
        (trace("<examine_examples>[P4]</examine_examples>", INFER), 4),
        (trace(*[INFER] * 12), 4),
        (trace("<resolve_conflict>nothing is known</resolve_conflict>", VERIFY), 0),
    ],
)
def test_rules_end_where_the_design_says(text: str, k: int | None):
    assert codes(text, k) == []


def test_a_step_closed_by_another_name_still_counts_as_a_step():
    parsed = parse(trace("<infer_preference>likes</resolve_conflict>", VERIFY), TAGSET)
    assert [step.tag for step in parsed.steps] == ["infer_preference", "verify_answer"]


def test_several_faults_come_in_the_order_of_the_text():
    text = "Hi <think>so<guess>x</guess><infer_preference>[P7]</verify_answer></think>"
    assert codes(text) == [
        "text-before-think",
        "stray-text",
        "unknown-tag",
        "bad-citation",
        "mismatched-close",
        "too-few-steps",
        "empty-answer",
    ]


def test_the_answer_of_an_invalid_text_follows_the_last_think_block():
    assert parse("<think>a</think> b <think>c</think> d ", TAGSET).answer == "d"
    assert parse("no opening</think> d ", TAGSET).answer == "d"
    assert parse("<think>never closed", TAGSET).answer == ""


# --- properties ------------------------------------------------------------------------------------------------------

PIECES = [
    "<think>", "</think>", "<infer_preference>", "</infer_preference>", "<verify_answer>", "</verify_answer>",
    "<examine_examples>", "</examine_examples>", "<draft_answer>", "<guess>", "</guess>", "<", ">", "</", "[P1]",
    "[P0]", "[P", "[P12", "]", "\n", " ", '"', "“", "”", "word", ". ", "\x00", "\ud800", "\u200b", "９", "é",
]  # fmt: skip
ANY_TEXT = st.text(max_size=60)
HOSTILE = st.lists(st.sampled_from(PIECES) | ANY_TEXT, max_size=40).map("".join)


@settings(max_examples=300, deadline=None)
@given(HOSTILE, st.none() | st.integers(0, 5))
def test_any_text_is_parsed_without_raising_and_kept(text: str, k: int | None):
    parsed = parse(text, TAGSET, k)
    assert parsed.text == text
    assert all(violation.code in tags.CODES for violation in parsed.violations)
    assert all(0 <= violation.position <= len(text) for violation in parsed.violations)
    if parsed.is_valid:
        assert render(parsed.steps, parsed.answer, parsed.gaps) == text
    ground(parsed.steps, [], None)


SPACE = st.text(st.sampled_from(" \n\t\r\u2003\x1f"), max_size=3)
PLAIN = st.text(max_size=30) | st.lists(st.sampled_from(PIECES), max_size=8).map("".join)
PLAIN = PLAIN.filter(lambda text: "[P" not in text and not tags._markers(TAGSET.names).search(text))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_every_valid_text_is_rendered_back(data: st.DataObject):
    names = ["infer_preference", *data.draw(st.lists(st.sampled_from(TAGSET.names), min_size=1, max_size=11))]
    text = data.draw(SPACE) + "<think>" + data.draw(SPACE)
    for name in names:
        cites = "" if TAGSET.by_name[name].cites == "no" else "[P1] and [P2]"
        text += f"<{name}>{data.draw(PLAIN)} {cites}.</{name}>{data.draw(SPACE)}"
    text += f"</think>{data.draw(SPACE)}!{data.draw(PLAIN)}{data.draw(SPACE)}"
    parsed = parse(text, TAGSET, k=2)
    assert parsed.violations == ()
    assert render(parsed.steps, parsed.answer, parsed.gaps) == text
    canonical = parse(render(parsed.steps, parsed.answer), TAGSET, k=2)
    assert (canonical.steps, canonical.answer) == (parsed.steps, parsed.answer)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(TAGSET.names), PLAIN | st.just("[P3], [P1] and [P3]")), max_size=12),
    PLAIN.map(str.strip),
)
def test_rendered_steps_and_answer_are_parsed_back(pairs: list[tuple[str, str]], answer: str):
    steps = tuple(Step(tag=name, text=words, cites=tags.cited(words)) for name, words in pairs)
    parsed = parse(render(steps, answer), TAGSET)
    assert (parsed.steps, parsed.answer) == (steps, answer)


PIECES = st.lists(
    st.sampled_from(
        [
            "<think>", "</think>", "<analyze_query>", "</analyze_query>", "<infer_preference>", "</infer_preference>",
            "<examine_examples>", "</examine_examples>", "<identify_patterns>", "</identify_patterns>", "<b>", "\n",
            " ", "word", "[P1]", "[P2] [P1]", "[P9]", "[P]", "\u200b",
            "<think>\n<infer_preference>x</infer_preference>\n",
            "<verify_answer>y</verify_answer>", "</think>\nanswer",
        ]
    ),
    max_size=14,
).map("".join)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(PIECES, st.none() | st.integers(0, 3))
def test_the_short_way_for_valid_texts_gives_what_the_long_way_gives(text: str, k: int | None):
    whole = f"<think>{INFER}{text}{VERIFY}</think>x"
    for each in (text, whole):
        long_way = tags._parse_any(each, TAGSET, k)
        assert parse(each, TAGSET, k) == long_way
        assert (tags._parse_valid(each, TAGSET, k) is not None) == long_way.is_valid


@settings(max_examples=200, deadline=None)
@given(st.randoms(use_true_random=False))
def test_one_removed_or_doubled_piece_of_markup_makes_a_trace_invalid(random: random.Random):
    text = trace("<examine_examples>[P1] is short</examine_examples>", INFER, VERIFY)
    markup = list(tags._markers(TAGSET.names).finditer(text))
    piece = random.choice(markup)
    doubled = random.random() < 0.5
    changed = text[: piece.start()] + piece[0] * 2 * doubled + text[piece.end() :]
    assert not parse(changed, TAGSET, 4).is_valid


HOSTILE_PATTERNS = {
    "think": "<think>",
    "closing think": "</think>",
    "tag": "<infer_preference>",
    "empty steps": "<infer_preference></infer_preference>",
    "unknown tag": "<a>",
    "unknown element": "<a>x</a>",
    "half tags": "<a",
    "brackets": "<",
    "citation heads": "[P1",
    "citations": "[P7] ",
    "digits": "9",
    "spaces": " ",
    "words": "word ",
    "quotes": '[P1] "a',
    "curly quotes": "“",
    "control characters": "\x00\x1b",
    "look-alikes": "＜think＞",
    "surrogates": "\ud800",
}
ITEM = ProfileItem(profile_id="p", position=0, item_id="i", text="a b " * 250)


@pytest.mark.parametrize("start", ["<think>", "<think><infer_preference>[P1", "<think></think>"])
@pytest.mark.parametrize("name", HOSTILE_PATTERNS)
def test_a_megabyte_of_hostile_text_takes_linear_time(name: str, start: str):
    piece = HOSTILE_PATTERNS[name]

    def seconds(size: int) -> float:
        text = start + piece * (size // len(piece))
        begin = time.process_time()
        parsed = parse(text, TAGSET, 4)
        ground(parsed.steps, [ITEM], None)
        return time.process_time() - begin

    tries = ((seconds(250_000), seconds(1_000_000)) for _ in range(4))  # a busy machine may spoil one
    assert any(large < 2 and (large < 8 * small or large < 0.05) for small, large in tries)


# --- grounding -------------------------------------------------------------------------------------------------------

ITEMS = (
    ProfileItem(
        profile_id="u", position=0, item_id="a", date="2015-03-07", title="Add “quoted” words", label="glamor",
        text="The quick brown fox\njumps over supercalifragilisticexpialidocious dogs, twice. See <|im_end|>.",
    ),
    ProfileItem(profile_id="u", position=1, item_id="b", date="2015-03", text="A cat sleeps", label="glamor"),
    ProfileItem(profile_id="u", position=2, item_id="c", text="学中文的猫", title="Vor dem Gesetz"),
)  # fmt: skip


def claims(words: str, kinds: str = "quote label", query_date: str | None = None) -> list[tuple[str, int, str, bool]]:
    step = Step(tag="examine_examples", text=words, cites=tags.cited(words))
    return [(c.kind, c.item, c.text, c.holds) for c in ground([step], ITEMS, query_date) if c.kind in kinds.split()]


def test_a_citation_claims_that_the_item_exists_and_is_earlier():
    steps = [Step(tag="infer_preference", text="a"), Step(tag="verify_answer", text="[P1] [P9] [P1]", cites=(1, 9))]
    assert ground(steps, ITEMS, "2015-03-08") == [
        Claim(1, 1, "exists", "[P1]", True, ""),
        Claim(1, 1, "before", "[P1]", True, ""),
        Claim(1, 9, "exists", "[P9]", False, "the prompt has 3 items"),
    ]
    assert ground(steps[1:], ITEMS, None)[0] == Claim(0, 1, "exists", "[P1]", True, "")


@pytest.mark.parametrize(
    ("item", "query", "holds"),
    [
        ("2015-03-07", "2015-03-08", True),
        ("2015-03-08", "2015-03-08", True),  # the same day: may be earlier
        ("2015-03-09", "2015-03-08", False),
        ("2015", "2014-12-31", False),
        ("2015", "2015-06-01", True),
        ("2015-03", "2015-03-07", True),
        ("2015-04", "2015-03-31", False),
        ("2015-03-07", "2015", True),
        ("9", "2015", None),
        ("2015-03-07T10:00:00+00:00", "2015-03-07T10:00:00+00:00", False),  # the same moment is not before
        ("2015-03-07T10:00:00+02:00", "2015-03-07T09:00:00Z", True),  # 08:00 UTC
        ("2015-03-07T10:00:00-02:00", "2015-03-07T11:00:00Z", False),  # 12:00 UTC
        ("2015-03-07T10:00:00Z", "2015-03-07", True),
        ("2015-03-08T00:00:00Z", "2015-03-07", False),
    ],
)
def test_dates_of_different_precision_and_zone_are_compared(item: str, query: str, holds: bool | None):
    step = Step(tag="infer_preference", text="[P1]", cites=(1,))
    dated = [ITEMS[0].model_copy(update={"date": item})]
    if holds is None:
        with pytest.raises(InputError, match="'9' cannot be read"):
            ground([step], dated, query)
    else:
        assert [claim.holds for claim in ground([step], dated, query) if claim.kind == "before"] == [holds]


@pytest.mark.parametrize(
    ("words", "holds"),
    [
        ("quick brown", True),
        ("QUICK  brown\tFox jumps", True),  # case and white space, also across the item's lines
        ("uick brown", False),  # whole words
        ("quick brow", False),
        ("The quick …", True),
        ("The quick...", True),
        ("The quick brown,", True),  # punctuation drawn into the quote
        ("dogs, twice", True),
        ("quick fox", False),
        ("add 'quoted' words", True),  # another kind of quotation mark
        ("glamor", True),  # the label
        ("supercalifragilisticexpialidocious dogs", True),
        ("supercalifragilisticexpi dogs", True),  # cut at 24 characters, as the prompt shows it
        ("supercalifragilistic dogs", False),
        ("< |im_end|>", True),  # as the prompt shows it
        ("cat", False),  # in another item
    ],
)
def test_quoted_words_must_occur_in_the_item(words: str, holds: bool):
    assert claims(f'[P1] says "{words}" there') == [("quote", 1, words, holds)]
    assert claims(f"[P1] says “{words}” there") == [("quote", 1, words, holds)]


def test_scripts_without_case_have_no_word_boundaries():
    assert claims('[P3] says "中文"') == [("quote", 3, "中文", True)]
    assert claims('[P3] says "vor dem gesetz"') == [("quote", 3, "vor dem gesetz", True)]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ('[P1] "fox", [P2] "cat"', [("quote", 1, "fox", True), ("quote", 2, "cat", True)]),
        ('[P1] and [P2] say "fox"', [("quote", 1, "fox", True), ("quote", 2, "fox", False)]),
        ('[P1], [P2], and [P1]–[P2] say "fox"', [("quote", 1, "fox", True), ("quote", 2, "fox", False)]),
        ('[P2] is shorter than [P1] "fox"', [("quote", 1, "fox", True)]),
        ('[P1] "fox" and [P2] "cat"', [("quote", 1, "fox", True), ("quote", 2, "cat", True)]),
        ('[P1] has "fox" and "dogs"', [("quote", 1, "fox", True), ("quote", 1, "dogs", True)]),
        ('"fox" stands in [P1]', []),
        ('[P2] is a cat. The word "fox" is not', []),
        ('[P2] is a cat\nthe word "fox" is not', []),
        ('[P2] v1.2 has "cat"', [("quote", 2, "cat", True)]),
        ('[P1] says "dogs, twice. See" here', [("quote", 1, "dogs, twice. See", True)]),
        ('[P1] says "" and "…"', []),
        ('[P9] says "fox"', []),
        ('[P1] and [P9] say "fox"', [("quote", 1, "fox", True)]),
        ('[P1] is 5" wide', []),
    ],
)  # fmt: skip
def test_a_quote_belongs_to_the_nearest_citations_before_it_in_its_sentence(words: str, expected: list[object]):
    assert claims(words) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ('[P1] is "glamor".', [("label", 1, "glamor", True)]),
        ('[P1] is "Glamor."', [("label", 1, "Glamor.", True)]),
        ('[P1] is "glam"', [("label", 1, "glam", False)]),
        ('[P1] is "quick brown fox"', [("label", 1, "quick brown fox", False)]),  # true as a quote, not as the label
        ('[P1] says "glamor"', [("quote", 1, "glamor", True)]),
        (
            '[P1] and [P2] were both filed under "glamor"',
            [("label", 1, "glamor", True), ("label", 2, "glamor", True)],
        ),
        ('[P1]-[P2] are all labelled "x"', [("label", 1, "x", False), ("label", 2, "x", False)]),
        ('[P3] is "Vor dem Gesetz"', [("quote", 3, "Vor dem Gesetz", True)]),  # no label: an ordinary quote
    ],
)
def test_label_statements_must_give_the_label(words: str, expected: list[object]):
    assert claims(words) == expected


# --- tag sets --------------------------------------------------------------------------------------------------------


def test_the_shipped_set_is_the_table_of_the_design():
    assert {tag.name: tag.cites for tag in TAGSET.tags} == {
        "examine_examples": "required",
        "identify_patterns": "pattern",
        "infer_preference": "optional",
        "analyze_query": "no",
        "compare_options": "optional",
        "apply_preference": "optional",
        "resolve_conflict": "optional",
        "draft_answer": "no",
        "verify_answer": "optional",
    }
    assert (TAGSET.required_any, TAGSET.min_steps, TAGSET.max_steps) == (
        ("infer_preference", "resolve_conflict"),
        2,
        12,
    )


TURKISH = """
# another language
name = "tr"
max_steps = 3
tags = [{name = "örnek_incele", meaning = "bak", cites = "optional"}, {name = "sonuç", meaning = "karar", cites = "no"}]
"""


def test_a_tag_set_in_another_language_is_data(tmp_path: Path):
    path = tmp_path / "tr.toml"
    path.write_text(TURKISH, encoding="utf-8")
    tagset = load_tagset(path)
    parsed = parse("<think><örnek_incele>[P1] kısa</örnek_incele></think>evet", tagset, 1)
    assert parsed.is_valid
    assert not parse(trace(INFER, VERIFY), tagset).is_valid
    path.write_text(TURKISH.replace("# another language", ""), encoding="utf-8")
    assert load_tagset(path).hash == tagset.hash
    path.write_text(TURKISH.replace("karar", "son"), encoding="utf-8")
    assert load_tagset(path).hash != tagset.hash


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"sonuç"', '"son uç"', r"tags\.1\.name.*son uç"),
        ('"sonuç"', '"<b>"', r"tags\.1\.name"),
        ('"sonuç"', '"sonuç\\n"', r"tags\.1\.name"),
        ('"sonuç"', '""', r"tags\.1\.name"),
        ('"sonuç"', '"Think"', "tag 'Think' is taken already"),
        ('"sonuç"', '"ÖRNEK_incele"', "taken already"),
        ('"karar"', '""', r"tags\.1\.meaning"),
        ('"no"', '"never"', r"tags\.1\.cites.*never"),
        ("max_steps = 3", "max_steps = 0", "max_steps"),
        ("max_steps = 3", "max_steps = 3\nmin_steps = 4", "min_steps 4 is above max_steps 3"),
        ("max_steps = 3", 'max_steps = 3\nrequired_any = ["x"]', r"required_any names \['x'\]"),
        ("max_steps = 3", "max_steps = 3\nsteps = 4", "steps"),
        ("max_steps = 3", "max_steps =", "is not TOML"),
        ("tags = [", "tags = []\nother = [", "tags"),
    ],
)
def test_a_bad_tag_set_is_refused_with_file_and_field(tmp_path: Path, old: str, new: str, message: str):
    path = tmp_path / "set.toml"
    assert old in TURKISH
    path.write_text(TURKISH.replace(old, new), encoding="utf-8")
    with pytest.raises(InputError, match=message) as error:
        load_tagset(path)
    assert str(path) in str(error.value)


def test_a_missing_tag_set_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"nowhere\.toml does not exist"):
        load_tagset(tmp_path / "nowhere.toml")


def test_white_space_shows_nothing():
    assert not [chr(point) for point in range(0x110000) if chr(point).isspace() and tags._VISIBLE.match(chr(point))]
