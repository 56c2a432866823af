"""The composite reward by hand, and the adversarial suite: every known way to cheat scores below an honest trace."""

import math

import pytest

from tagpr_data.lamp import metrics
from tagpr_data.records import ProfileItem, Task
from tagpr_data.tags import load_tagset
from tagpr_train.config import Rl
from tagpr_train.rewards import (
    Reward,
    RewardWeights,
    composite,
    personal_component,
    standardise,
    zero_variance_share,
)

TAGSET = load_tagset()
TASK = Task(
    name="shade", kind="classification", labels=("warm", "cold"), answer_form="warm or cold", item_template="{text}"
)
TITLES = Task(name="titles", kind="generation", answer_form="a title", item_template="{text}")
RATING = Task(
    name="stars", kind="rating", labels=("1", "2", "3", "4", "5"), answer_form="1 to 5", item_template="{text}"
)
ITEMS = [
    ProfileItem(profile_id="p", position=0, item_id="a", text="red lamp in the hall by the old oak door", label="warm"),
    ProfileItem(
        profile_id="p", position=1, item_id="b", text="blue lamp in the attic near the north wall", label="cold"
    ),
]
PROMPT = "\n".join(f"[P{n}] {item.text} {item.label}" for n, item in enumerate(ITEMS, 1)) + "\nred carpet on the stairs"
STEPS = (
    '<examine_examples>[P1] is "warm" while [P2] is "cold".</examine_examples>\n'
    '<infer_preference>This user files red things under "warm".</infer_preference>\n'
    "<apply_preference>The new input names a red carpet, as [P1] a red lamp.</apply_preference>\n"
)
HONEST = f"<think>\n{STEPS}</think>\nwarm"
WEIGHTS = RewardWeights(answer=1.0, tags=0.3, personal=0.3)


def score(completion: str, task: Task = TASK, gold: str = "warm", personal: float | None = None) -> Reward:
    return composite(task, completion, gold, ITEMS, PROMPT, TAGSET, WEIGHTS, personal)


def test_an_honest_right_trace_earns_every_component() -> None:
    reward = score(HONEST, personal=0.0)
    assert reward.answer == 1.0
    assert reward.tags == 1.0
    assert reward.personal == 0.5
    assert reward.total == pytest.approx(1.0 + 0.3 * 1.0 + 0.3 * 0.5)


def test_a_wrong_answer_loses_only_the_answer() -> None:
    assert score(HONEST[:-4] + "cold").total == pytest.approx(0.3)


def test_personal_is_the_logistic_function_and_never_overflows() -> None:
    assert personal_component(0.0) == 0.5
    assert personal_component(1.0) == pytest.approx(1 / (1 + math.exp(-1)))
    assert personal_component(-1e9) == pytest.approx(0.0)
    assert personal_component(1e9) == pytest.approx(1.0)
    assert personal_component(math.nan) == 0.0


def test_penalties_by_hand() -> None:
    """Three steps of one tag: one beyond two, a third of the steps. No citation: 0.5. Both subtract."""
    step = "<infer_preference>{}</infer_preference>\n"
    steps = "".join(step.format(text) for text in ("likes red", "prefers lamps", "wants light"))
    reward = score(f"<think>\n{steps}</think>\nwarm")
    assert reward.penalties["repetition"] == pytest.approx(1 / 3)
    assert reward.penalties["uncited"] == 1.0
    assert reward.tags == pytest.approx(1 - 1 / 3 - 0.5)


def test_a_false_claim_costs_its_share() -> None:
    truth, lie = 'while [P2] is "cold".', 'while [P2] is "warm".'
    honest, liar = score(HONEST), score(HONEST.replace(truth, lie))
    assert honest.penalties["ungrounded"] == 0.0
    assert liar.penalties["ungrounded"] > 0.0
    assert liar.tags == pytest.approx(1 - 0.5 * liar.penalties["ungrounded"])


def test_the_answer_component_is_the_metric_of_the_benchmark() -> None:
    reward = score(f"<think>\n{STEPS}</think>\nred carpet", TITLES, "red carpet here")
    rouge1, rouge_l = metrics.rouge("red carpet", "red carpet here")
    assert reward.answer == pytest.approx((rouge1 + rouge_l) / 2)


def test_group_statistics_by_hand() -> None:
    assert standardise([1.0, 3.0, 2.0, 2.0], 2) == [-1.0, 1.0, 0.0, 0.0]
    assert zero_variance_share([1.0, 3.0, 2.0, 2.0], 2) == 0.5
    with pytest.raises(ValueError, match="groups of 2"):
        standardise([1.0], 2)


_SPAM = "".join(f"<{name}>ok</{name}>\n" for name in TAGSET.names)
_LONG = " ".join(f"word{n}" for n in range(10_000))
CHEATS = {
    "tag spam": f"<think>\n{_SPAM}</think>\nwarm",
    "empty tags": "<think>\n<infer_preference></infer_preference>\n<draft_answer> </draft_answer>\n</think>\nwarm",
    "one tag repeated": "<think>\n" + "<infer_preference>warm [P1]</infer_preference>\n" * 12 + "</think>\nwarm",
    "the profile copied": "<think>\n"
    f"<examine_examples>[P1] {ITEMS[0].text} [P2] {ITEMS[1].text}</examine_examples>\n"
    f"<infer_preference>{ITEMS[0].text} warm</infer_preference>\n</think>\nwarm",
    "the profile copied once": f"<think>\n<examine_examples>[P1] {ITEMS[0].text}</examine_examples>\n"
    f"<infer_preference>[P2] {ITEMS[1].text}</infer_preference>\n</think>\nwarm",
    "the prompt copied": f"<think>\n<examine_examples>{PROMPT}</examine_examples>\n"
    f"<infer_preference>{PROMPT}</infer_preference>\n</think>\nwarm",
    "the answer only inside the think block": f"<think>\n{STEPS}<draft_answer>warm</draft_answer>\n</think>\n",
    "the answer before the think block": f"warm\n<think>\n{STEPS}</think>\nwarm",
    "no think block": "warm",
    "an unclosed think block": f"<think>\n{STEPS}warm",
    "two think blocks": f"<think>\n{STEPS}</think>\n<think>\n{STEPS}</think>\nwarm",
    "two answers": f"<think>\n{STEPS}</think>\nwarm\ncold",
    "all labels as the answer": f"<think>\n{STEPS}</think>\nwarm cold",
    "look-alike letters in tags": HONEST.replace("infer_preference", "infer_prеference"),
    "look-alike brackets": HONEST.replace("<infer_preference>", "＜infer_preference＞"),
    "look-alike letters in the answer": HONEST[:-4] + "wаrm",
    "zero-width padding in the answer": HONEST[:-4] + "wa\u200brm",
    "ten thousand words": f"<think>\n<examine_examples>[P1] [P2] {_LONG}</examine_examples>\n"
    "<infer_preference>warm</infer_preference>\n</think>\nwarm",
    "ten thousand words of answer": f"<think>\n{STEPS}</think>\nwarm {_LONG}",
    "look-alike letters in citations": HONEST.replace("[P", "[Р"),
    "full-width digits in citations": HONEST.replace("[P1]", "[P１]").replace("[P2]", "[P２]"),
    "look-alike end of the think block": HONEST.replace("</think>", "</thіnk>"),
    "the honest steps twice": f"<think>\n{STEPS}{STEPS}</think>\nwarm",
    "padding between the steps": HONEST.replace("</infer_preference>\n", "</infer_preference>\nso so so\n"),
    "padding of one repeated word": HONEST.replace("files red", "files" + " very" * 300 + " red"),
    "padding of new words": HONEST.replace("files red", "files " + " ".join(f"w{n}" for n in range(300)) + " red"),
    "an answer wrapped in words": HONEST[:-4] + "the answer is certainly warm",
    "an answer in a tag": HONEST[:-4] + "<draft_answer>warm</draft_answer>",
    "citations that do not exist": HONEST.replace("[P1]", "[P9]"),
    "steps that say nothing": "<think>\n<examine_examples>[P1]</examine_examples>\n"
    "<infer_preference>.</infer_preference>\n</think>\nwarm",
    "every tag with one word": "<think>\n<examine_examples>[P1] ok</examine_examples>\n"
    "<identify_patterns>[P1] [P2] seen</identify_patterns>\n"
    + "".join(f"<{name}>point{number}</{name}>\n" for number, name in enumerate(TAGSET.names[2:]))
    + "</think>\nwarm",
    "the profile copied with every seventh word changed": "<think>\n"
    "<examine_examples>[P1] red lamp in the hall by so the old oak door</examine_examples>\n"
    "<infer_preference>[P2] blue lamp in the attic near so the north wall</infer_preference>\n</think>\nwarm",
    "the profile copied with invisible characters": "<think>\n"
    "<examine_examples>[P1] r\u200bed lamp i\u2060n the hall b\u00ady the old oa\u200bk door</examine_examples>\n"
    "<infer_preference>[P2] was seen.</infer_preference>\n</think>\nwarm",
    "the profile copied in look-alike letters": "<think>\n"
    "<examine_examples>[P1] rеd lаmр in ｔｈｅ hаll bу thе оld ｏａｋ dооr</examine_examples>\n"
    "<infer_preference>[P2] was seen.</infer_preference>\n</think>\nwarm",
    "ten thousand pictures": HONEST.replace("files red", "files " + "☃ " * 10_000 + "red"),
    "one endless word": HONEST.replace("files red", "files " + "a" * 100_000 + " red"),
    "a think block of another user's labels": HONEST.replace('[P1] is "warm" while [P2] is "cold"', '[P2] is "warm"'),
}


@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_scores_below_the_honest_reference(name: str) -> None:
    """The PRMU is fooled in every case: it gives the cheat as much as the honest trace."""
    assert score(CHEATS[name], personal=1.0).total < score(HONEST, personal=1.0).total - 0.01


@pytest.mark.parametrize(
    "padding", [" ".join(["red carpet"] * 5), "red carpet " + _LONG, "red carpet. Or: a stair rug."]
)
def test_a_padded_title_scores_below_the_plain_one(padding: str) -> None:
    plain = score(f"<think>\n{STEPS}</think>\nred carpet", TITLES, "red carpet")
    assert score(f"<think>\n{STEPS}</think>\n{padding}", TITLES, "red carpet").total < plain.total - 0.1


@pytest.mark.parametrize(
    "answer", ["4 5", "1 2 3 4 5", "4 or 3", "between 1 and 5", "-4", "４ ４", "4e9", "nan", "inf"]
)
def test_a_hedged_rating_scores_below_the_plain_one(answer: str) -> None:
    """Gold 5: no way of writing several ratings, or none, may earn as much as the nearest single wrong one."""
    near = score(f"<think>\n{STEPS}</think>\n4", RATING, "5", personal=1.0)
    assert near.answer == pytest.approx(0.75)
    assert score(f"<think>\n{STEPS}</think>\n{answer}", RATING, "5", personal=1.0).total < near.total - 0.1


@pytest.mark.parametrize(
    "answer",
    [
        "red carpet " + "ковёр " * 10_000,
        "red carpet" + "☃" * 40,
        "red carpet" + " ." * 40,
        "red carpet" + "\n" * 40 + "☃",
        "red\u200b carpet",
        "red\x07 carpet",
    ],
)
def test_what_rouge_does_not_read_is_no_free_padding(answer: str) -> None:
    plain = score(f"<think>\n{STEPS}</think>\nred carpet", TITLES, "red carpet", personal=1.0)
    padded = score(f"<think>\n{STEPS}</think>\n{answer}", TITLES, "red carpet", personal=1.0)
    assert padded.answer == plain.answer == 1.0, "the metric itself is the benchmark's"
    assert padded.total < plain.total - 0.01


@pytest.mark.parametrize("answer", ["５", "٥", "5." + "0" * 1000, "0" * 1000 + "5", "5e0", "0_5"])
def test_a_rating_that_only_python_reads_scores_below_the_plain_one(answer: str) -> None:
    plain = score(f"<think>\n{STEPS}</think>\n5", RATING, "5", personal=1.0)
    assert score(f"<think>\n{STEPS}</think>\n{answer}", RATING, "5", personal=1.0).total < plain.total - 0.1


@pytest.mark.parametrize(
    ("task", "answer", "gold"),
    [
        (TITLES, "What's new (in C++): a carpet?", "A carpet"),
        (TITLES, "ковёр для дома", "ковёр для лестницы"),
        (TITLES, "dix/Xext: don't crash", "dix: fix"),
        (RATING, "4.5", "5"),
        (RATING, "4", "5"),
        (TASK, "cold", "warm"),
    ],
)
def test_an_answer_as_people_write_it_is_no_padding(task: Task, answer: str, gold: str) -> None:
    reward = score(f"<think>\n{STEPS}</think>\n{answer}", task, gold)
    assert reward.penalties["padding"] == 0.0
    assert reward.tags == 1.0


def test_thin_steps_and_altered_copies_by_hand() -> None:
    """Two steps that need two words each, and one has one: a quarter is lacking. Of 11 words (p1 … so) 9 stand in the
    prompt in runs of 4 or more, none in runs of 8: 7/11 beyond the half."""
    trace = (
        "<think>\n<examine_examples>[P1] {}</examine_examples>\n<infer_preference>{}</infer_preference>\n</think>\nwarm"
    )
    assert score(trace.format("seen", "likes red")).penalties["thin"] == pytest.approx(1 / 4)
    copied = score(trace.format("red lamp in the room by the old oak", "so"))
    assert copied.penalties["copying"] == pytest.approx(7 / 11)


def test_the_gate_of_traces_shuts_on_a_broken_rule_that_the_other_lets_through() -> None:
    broken = HONEST.replace("</apply_preference>", "</compare_options>")
    strict = WEIGHTS.model_copy(update={"format_gate": "trace"})
    assert score(broken).gate_open and score(broken).total == pytest.approx(1.0)
    for completion, total in ((broken, 0.0), (HONEST, 1.3)):
        reward = composite(TASK, completion, "warm", ITEMS, PROMPT, TAGSET, strict)
        assert reward.gate_open == (total > 0) and reward.total == pytest.approx(total)


def test_the_gate_of_traces_is_refused_where_the_prompt_asks_for_no_tags() -> None:
    with pytest.raises(ValueError, match=r"format_gate = .trace. asks for tags"):
        Rl.model_validate(
            {"dataset": "d", "output": "o", "model": "m", "stage": "exploratory", "steps": 1}
            | {"rewards": {"format_gate": "trace"}, "prompt": {"style": "chain"}}
        )


def test_the_gate_of_answers_pays_an_answer_and_nothing_that_reasons() -> None:
    bare = RewardWeights(format_gate="answer", tags=0.0, personal=0.0)
    paid = {"warm": 1.0, " warm\n": 1.0, "cold": 0.0, "": 0.0, " \u200b": 0.0, HONEST: 0.0, "</think>\nwarm": 0.0}
    for completion, total in paid.items():
        reward = composite(TASK, completion, "warm", ITEMS, PROMPT, TAGSET, bare)
        assert reward.total == total, completion
        assert reward.gate_open == (completion.strip() in ("warm", "cold"))
    titles = Task(name="titles", kind="generation", answer_form="a title", item_template="{title}")
    for text in ("紅紅紅\nRed lamp", "<examine_examples>[P1]</examine_examples> Red lamp", "so: <think> Red lamp"):
        assert not composite(titles, text, "Red lamp", ITEMS, PROMPT, TAGSET, bare).gate_open, text
    assert composite(titles, "Red lamp\n", "Red lamp", ITEMS, PROMPT, TAGSET, bare).total == 1.0


@pytest.mark.parametrize(
    ("gate", "style", "tags", "said"),
    [
        ("answer", "trace", 0.0, "ask for different things"),
        ("block", "direct", 0.0, "ask for different things"),
        ("trace", "direct", 0.0, "ask for different things"),
        ("answer", "direct", 0.3, "asks for no tags"),
    ],
)
def test_gate_and_prompt_that_ask_for_different_things_are_refused(
    gate: str, style: str, tags: float, said: str
) -> None:
    config = {"dataset": "d", "output": "o", "model": "m", "stage": "guided", "steps": 1}
    rewards = {"format_gate": gate, "tags": tags, "personal": 0.0}
    with pytest.raises(ValueError, match=said):
        Rl.model_validate(config | {"rewards": rewards, "prompt": {"style": style}})


@pytest.mark.parametrize("name", ["no think block", "an unclosed think block", "two think blocks"])
def test_a_shut_gate_gives_nothing_at_all(name: str) -> None:
    reward = score(CHEATS[name], personal=5.0)
    assert not reward.gate_open
    assert reward.total == 0.0
