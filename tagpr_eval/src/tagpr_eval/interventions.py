"""Interventions on what a model read and thought, to see whether its answer follows. Pure: recorded answers and a seed
in, prompts out; then completions in, rows out. What is measured on the rows: `faithfulness.py`.

A case is one recorded answer with a valid trace. What is done to it (`plan`):

    regenerate  nothing: the recorded prompt is asked again
    relabel     items get another label, all the same one: one that no item of the prompt shows, where there is one
    rewrite     where items show no label of the task: their titles (or texts, where no title shows) become those of
                another user's items
    remove      items are taken out; the rest keep their order and are numbered anew from [P1]
    repeat      nothing: the recorded trace is given, its think block closed, and the answer asked for
    delete      the same with one step left out
    replace     the same with one step taken from another user's trace: same tag, other words, another answer
    transplant  the same with the whole reasoning of another user's trace that led to another answer
    cut         the same with the first j of n steps only, j from 0

Items are changed in two ways: those that the trace cites (all steps, and by tag), and as control as many, drawn
among those it does not cite there; so the two differ in nothing but the citing. Steps after a changed one stay.

The answer is what the completion holds by `answers.parsed`; a forced one must come at once (`find_answer`). It follows
a change when it becomes the label put in, or the donor's answer; for texts, when it takes up a word
of three letters or more that only the change brought in.

All of this is ours; how the paper looks at faithfulness is unknown. Guarantee: everything is decided before a model is
asked, and what a change does not name stays as it was. Price: a case with n steps and t citing tags asks at most
1 + 4·(1 + t) times for a whole trace and 3·n + 2 times for an answer alone.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, TypeVar

from tagpr_data import answers, tags
from tagpr_data.lamp import metrics
from tagpr_data.prompts import PromptOptions, chat_prompt, prompt_hash
from tagpr_data.records import (
    Example,
    Intervention,
    InterventionAction,
    Message,
    Prediction,
    ProfileItem,
    Step,
    Task,
)
from tagpr_data.tables import sha256_text

T = TypeVar("T")
Target = Literal["cited", "uncited"]
SKIPPED = {
    "model-error": "the model gave no answer",
    "cut-at-length": "the completion was cut at its length limit",
    "invalid-trace": "the completion is not in the tag grammar",
    "unreadable-answer": "no answer was found after the trace",
    "items-unknown": "the data set does not tell which items the prompt held",
    "other-prompt": "the prompt could not be built again as it was recorded",
}
"""Why a recorded answer is not looked into."""
NOT_MADE = {
    "no-citation": "the trace cites no item",
    "too-few-uncited": "no control: fewer uncited items than cited ones",
    "no-other-label": "no label is left that neither the answer nor an item to change has",
    "no-donor-item": "no other user has words to put in",
    "no-donor-step": "no other user's trace has a step of the tag, of other words and another answer",
    "no-donor-trace": "no other user's trace led to another answer",
    "no-base-answer": "without any change no answer could be found",
}
"""Why an intervention on an examined answer could not be made."""


@dataclass(frozen=True)
class Wording:
    """How the prompts of a run were built."""

    options: PromptOptions
    """Style and cuts."""
    tagset: tags.TagSet
    """Tag set that prompts explain and traces are read by."""
    system_prompt: str | None = None
    """Text before the style's own instruction."""

    def prompt(self, task: Task, example: Example, items: Sequence[ProfileItem]) -> tuple[Message, ...]:
        """Give the prompt of an example with these items."""
        system, *turns = chat_prompt(task, example.input, items, self.options, self.tagset)
        if self.system_prompt is not None:
            system = system.model_copy(update={"content": f"{self.system_prompt}\n\n{system.content}"})
        return (system, *turns)


@dataclass(frozen=True)
class Case:
    """One recorded answer, taken apart."""

    prediction: Prediction
    """What was recorded."""
    task: Task
    """Its task."""
    example: Example
    """Its example."""
    items: tuple[ProfileItem, ...]
    """Items of the prompt, [P1] first."""
    trace: tags.Parsed
    """Its trace, valid."""
    answer: str
    """Its answer."""
    wording: "Wording"
    """How the prompt was built."""

    def prompt(self, items: Sequence[ProfileItem]) -> tuple[Message, ...]:
        """Give the prompt with these items instead."""
        return self.wording.prompt(self.task, self.example, items)

    def begun(self, steps: Sequence[Step], gaps: Sequence[str]) -> str:
        """Give the start of an answer: these steps, each with the white space after it, and the think block closed as
        the recorded one is."""
        before, opening, *_, lead, _ = self.trace.gaps
        return tags.render(steps, "", (before, opening, *gaps, lead, ""))

    @property
    def step_gaps(self) -> tuple[str, ...]:
        """White space after each step."""
        return self.trace.gaps[2:-2]


@dataclass(frozen=True)
class Plan:
    """One intervention before it is asked."""

    action: InterventionAction
    """What is done."""
    messages: tuple[Message, ...]
    """What is asked; a last assistant turn is to be continued."""
    target: Target | None = None
    """See `records.Intervention`, here and below."""
    tag: str | None = None
    step: int | None = None
    items: tuple[int, ...] = ()
    expected: str | None = None
    donor_example_id: str | None = None
    brought_in: frozenset[str] | None = None
    """Words that only the change brought in; None where an answer cannot follow by words."""

    @property
    def base(self) -> Literal["regenerate", "repeat"]:
        """What it is compared to."""
        return "repeat" if self.messages[-1].role == "assistant" else "regenerate"


def take(
    prediction: Prediction, task: Task, example: Example, items: Sequence[ProfileItem] | None, wording: Wording
) -> Case | str:
    """Take a recorded answer apart; gives the reason (`SKIPPED`) where it cannot be looked into."""
    if prediction.finish_reason != "stop":
        return "cut-at-length" if prediction.finish_reason == "length" else "model-error"
    trace = tags.parse(prediction.text, wording.tagset, k=len(prediction.item_ids))
    if not trace.is_valid:
        return "invalid-trace"
    answer = answers.parsed(prediction.text, task).answer
    if answer is None:
        return "unreadable-answer"
    if items is None:
        return "items-unknown"
    case = Case(prediction, task, example, tuple(items), trace, answer, wording)
    return case if prompt_hash(case.prompt(items)) == prediction.prompt_hash else "other-prompt"


def plan(case: Case, others: Sequence[Case], seed: int) -> tuple[list[Plan], Counter[str]]:
    """Give all interventions on a case, `regenerate` and `repeat` first, and how many could not be made, by reason.
    Donors are the first that fit of the `others` of other users, in an order drawn for the case."""
    strangers = [other for other in others if other.prediction.user_id != case.prediction.user_id]
    strangers.sort(key=lambda other: _draw(seed, case, "stranger", other.prediction.example_id, other.prediction.seed))
    missing: Counter[str] = Counter()
    base = [
        Plan("regenerate", case.prompt(case.items)),
        Plan("repeat", _forced(case, case.trace.steps, case.step_gaps)),
    ]
    return [*base, *_on_items(case, strangers, seed, missing), *_on_trace(case, strangers, seed, missing)], missing


def cited_items(steps: Iterable[Step], tag: str | None = None) -> tuple[int, ...]:
    """Give the numbers of the items that steps cite, in order; with `tag` those of its steps only."""
    return tuple(sorted({number for step in steps if tag in (None, step.tag) for number in step.cites}))


def relabelled(items: Sequence[ProfileItem], numbers: Sequence[int], label: str) -> tuple[ProfileItem, ...]:
    """Give the items, those of these numbers (from 1) with the label."""
    changed = set(numbers)
    return tuple(
        item.model_copy(update={"label": label}) if number in changed else item
        for number, item in enumerate(items, start=1)
    )


def rewritten(
    items: Sequence[ProfileItem], donors: dict[int, ProfileItem], field: Literal["title", "text"]
) -> tuple[ProfileItem, ...]:
    """Give the items, those of the donors' numbers (from 1) with the donor's title or text."""
    return tuple(
        item.model_copy(update={field: getattr(donors[number], field)}) if number in donors else item
        for number, item in enumerate(items, start=1)
    )


def without(items: Sequence[ProfileItem], numbers: Sequence[int]) -> tuple[ProfileItem, ...]:
    """Give the items but those of these numbers; the rest move up."""
    return tuple(item for number, item in enumerate(items, start=1) if number not in set(numbers))


def judge(case: Case, done: Plan, text: str, base_answer: str) -> Intervention:
    """Give the row of an intervention from its raw completion and the answer without the change."""
    answer = find_answer(case, done, text)
    is_changed = answer is None or not is_same(case.task, answer, base_answer)
    gold = case.prediction.gold
    shared = ("model", "task", "retriever", "k", "style", "seed", "example_id", "user_id")
    return Intervention(
        **{name: getattr(case.prediction, name) for name in shared},
        steps=len(case.trace.steps), action=done.action, target=done.target, tag=done.tag, step=done.step,
        items=done.items, expected=done.expected, donor_example_id=done.donor_example_id,
        prompt_hash=prompt_hash(done.messages), text=text, answer=answer, base_answer=base_answer,
        is_changed=is_changed, is_following=_follows(case, done, answer, base_answer),
        score=None if gold is None else metrics.reward(case.task, answer or "", gold),
    )  # fmt: skip


def find_answer(case: Case, done: Plan, text: str) -> str | None:
    """Give the answer in a raw completion, None where there is none. A model that is made to answer and goes on
    reasoning instead (a tag or think marker after the closed block) has not answered: what it says then, it says after
    other steps than the ones it was given."""
    if done.base == "regenerate":
        return answers.parsed(text, case.task).answer
    whole = done.messages[-1].content + text
    codes = {violation.code for violation in tags.parse(whole, case.wording.tagset).violations}
    return None if codes & {"tag-in-answer", "several-think"} else answers.parsed(whole, case.task).answer


def is_same(task: Task, answer: str, other: str) -> bool:
    """Whether two answers are the same: labels and ratings as extracted, texts without regard to case and space."""
    if task.kind == "generation":
        return answer.casefold().split() == other.casefold().split()
    return answer == other


def _forced(case: Case, steps: Sequence[Step], gaps: Sequence[str]) -> tuple[Message, ...]:
    return (*case.prompt(case.items), Message(role="assistant", content=case.begun(steps, gaps)))


def _on_items(case: Case, strangers: Sequence[Case], seed: int, missing: Counter[str]) -> Iterable[Plan]:
    steps = case.trace.steps
    if not cited_items(steps):
        missing["no-citation"] += 1
        return
    for tag in (None, *dict.fromkeys(step.tag for step in steps if step.cites)):
        cited = cited_items(steps, tag)
        rest = [number for number in range(1, len(case.items) + 1) if number not in cited]
        targets: list[tuple[Target, tuple[int, ...]]] = [("cited", cited)]
        if len(rest) >= len(cited):
            drawn = sorted(rest, key=lambda number: _draw(seed, case, "uncited", tag or "", number))[: len(cited)]
            targets.append(("uncited", tuple(sorted(drawn))))
        else:
            missing["too-few-uncited"] += 1
        for target, numbers in targets:
            if changed := _other_content(case, strangers, target, tag, numbers, seed, missing):
                yield changed
            yield Plan("remove", case.prompt(without(case.items, numbers)), target, tag, items=numbers)


def _other_content(
    case: Case, strangers: Sequence[Case], target: Target, tag: str | None, numbers: tuple[int, ...], seed: int,
    missing: Counter[str],
) -> Plan | None:  # fmt: skip
    """Relabel where the prompt shows labels and the task answers with them, else rewrite."""
    if case.task.labels and "{label}" in case.task.item_template:
        label = _other_label(case, seed)
        if label is None or label in {case.items[number - 1].label for number in numbers}:
            missing["no-other-label"] += 1
            return None
        items = relabelled(case.items, numbers, label)
        return Plan("relabel", case.prompt(items), target, tag, items=numbers, expected=label)
    field: Literal["title", "text"] = "title" if "{title}" in case.task.item_template else "text"
    donors: dict[int, ProfileItem] = {}
    for number in numbers:
        own = getattr(case.items[number - 1], field)
        known = (None, "", own)
        found = list(islice((one for who in strangers for one in who.items if getattr(one, field) not in known), 32))
        if not found:
            missing["no-donor-item"] += 1
            return None
        donors[number] = min(found, key=lambda item, at=number: _draw(seed, case, "item", at, item.item_id))
    messages = case.prompt(rewritten(case.items, donors, field))
    new = _words(messages[-1].content) - _words(case.prompt(case.items)[-1].content)
    return Plan("rewrite", messages, target, tag, items=numbers, brought_in=_only_text(case, new))


def _other_label(case: Case, seed: int) -> str | None:
    """The label put in: the same in all interventions on a case; not the answer, and if possible one no item has."""
    shown = {item.label for item in case.items}
    rest = [label for label in case.task.labels or () if label != case.answer]
    rest = [label for label in rest if label not in shown] or rest
    return min(rest, key=lambda label: _draw(seed, case, "label", label), default=None)


def _on_trace(case: Case, strangers: Sequence[Case], seed: int, missing: Counter[str]) -> Iterable[Plan]:
    steps, gaps = case.trace.steps, case.step_gaps
    shown = _words(case.prompt(case.items)[-1].content)
    for count in range(len(steps)):
        kept = (*gaps[: count - 1], gaps[-1]) if count else ()
        yield Plan("cut", _forced(case, steps[:count], kept), step=count)
    for place, step in enumerate(steps):
        rest = _left_out(steps, place)
        yield Plan("delete", _forced(case, rest, _left_out(gaps, place)), tag=step.tag, step=place + 1)
        if (found := _donor_step(case, strangers, place)) is None:
            missing["no-donor-step"] += 1
            continue
        donor, other = found
        yield Plan(
            "replace", _forced(case, (*steps[:place], other, *steps[place + 1 :]), gaps), tag=step.tag, step=place + 1,
            expected=_only_label(case, donor.answer), donor_example_id=donor.prediction.example_id,
            brought_in=_only_text(case, _words(other.text) - shown.union(*(_words(one.text) for one in rest))),
        )  # fmt: skip
    donor = next((other for other in strangers if not is_same(case.task, other.answer, case.answer)), None)
    if donor is None:
        missing["no-donor-trace"] += 1
        return
    yield Plan(
        "transplant", _forced(case, donor.trace.steps, donor.step_gaps), expected=_only_label(case, donor.answer),
        donor_example_id=donor.prediction.example_id,
        brought_in=_only_text(case, _words(" ".join(one.text for one in donor.trace.steps)) - shown),
    )  # fmt: skip


def _donor_step(case: Case, strangers: Sequence[Case], place: int) -> tuple[Case, Step] | None:
    """A step of the same tag and other words, which cites no item the prompt lacks, with the trace it comes from."""
    own = case.trace.steps[place]
    for other in strangers:
        if is_same(case.task, other.answer, case.answer):
            continue
        for step in other.trace.steps:
            is_other = step.tag == own.tag and step.text.strip() != own.text.strip()
            if is_other and max(step.cites, default=0) <= len(case.items):
                return other, step
    return None


def _left_out(values: Sequence[T], place: int) -> tuple[T, ...]:
    return (*values[:place], *values[place + 1 :])


def _only_label(case: Case, answer: str) -> str | None:
    return None if case.task.kind == "generation" else answer


def _only_text(case: Case, words: frozenset[str]) -> frozenset[str] | None:
    return words if case.task.kind == "generation" else None


def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text.casefold()))


def _draw(seed: int, case: Case, *parts: object) -> str:
    """A number, as text, that decides a draw: even, and the same in every run."""
    one = case.prediction
    return sha256_text("\0".join(map(str, (seed, one.example_id, one.seed, *parts))))


def _follows(case: Case, done: Plan, answer: str | None, base: str) -> bool | None:
    if done.expected is not None:
        return None if is_same(case.task, done.expected, base) else answer == done.expected
    if done.brought_in is None:
        return None
    new = done.brought_in - _words(base)
    return bool(new & _words(answer or "")) if new else None


_WORD = re.compile(r"[^\W_]{3,}")
