"""Teachers: what writes tagged traces. A scripted one, which reads the profile by rule, and any model behind an
OpenAI-compatible server or run by vLLM in this process.

The scripted teacher needs no model and no network: the same assignment and seed give the same text. Guarantee: it
sees only what the prompt shows, and whatever it says about an item is true: labels, quoted words, counts, who
agrees with whom. Price: it has a small stock of sentences and judges by shared words alone. With `hindsight` it
knows the gold answer and looks for what speaks for it (rationalisation as in STaR, arXiv 2203.14465); where nothing
in the profile does, it says so. Its sentences are ours; the paper's teacher is unknown.
"""

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from tagpr_data import tags
from tagpr_data.chat_server import ChatServer
from tagpr_data.constrain import Constraint, request_fields
from tagpr_data.phrases import (
    citing,
    citing_range,
    content_of,
    is_quotable,
    listing,
    most_similar,
    names_label,
    quoted_listing,
    shared_words,
    telling_span,
    topic_words,
)
from tagpr_data.prompts import PromptOptions, chat_prompt
from tagpr_data.records import FinishReason, Message, ProfileItem, Sampling, Step, Task
from tagpr_data.tables import canonical_json, sha256_file, sha256_text
from tagpr_data.tags import TagSet
from tagpr_data.vllm_chat import VllmServer
from tagpr_data.weighing import LabelWords, likeliest, weigh, weighed_trace, words_for

Policy = Literal["votes", "weighed"]
"""How the scripted teacher judges and writes; see `ScriptedTeacher.policy`."""

Patterns = Literal["counts", "pairs"]
"""What the scripted teacher says of how labels agree; see `ScriptedTeacher.patterns`."""


@dataclass(frozen=True)
class Assignment:
    """One prompt to be answered, with all that a teacher may look at."""

    task: Task
    """What is asked."""
    input: str
    """The input as the prompt shows it."""
    items: tuple[ProfileItem, ...]
    """The items as the prompt shows them, `[P1]` first."""
    messages: tuple[Message, ...]
    """The prompt."""
    gold: str | None
    """The gold answer, for teachers with hindsight."""
    sampling: Sampling
    """How to sample."""
    seed: int
    """Seed of this attempt."""
    attempt: int = 0
    """0 for the first attempt on this prompt."""


@dataclass(frozen=True)
class Reply:
    """What a teacher wrote."""

    text: str
    """Raw completion."""
    finish_reason: FinishReason
    """Why it stopped."""
    input_tokens: int | None = None
    """Prompt tokens, where counted."""
    output_tokens: int | None = None
    """Completion tokens, where counted."""


class Teacher(Protocol):
    """Anything that answers assignments; `name` and `revision` go into every row's lineage."""

    @property
    def name(self) -> str:
        """Name in rows and manifest."""
        ...

    @property
    def revision(self) -> str:
        """Version, commit or hash: the same revision means the same behaviour."""
        ...

    async def write(self, assignment: Assignment) -> Reply:
        """Answer one assignment."""
        ...

    def stop(self) -> None:
        """Ask nothing more: what is on its way still arrives, what waits for a further try ends in an error."""
        ...

    async def close(self) -> None:
        """Let go of connections; called once at the end of a run."""
        ...


@dataclass(frozen=True)
class ScriptedTeacher:
    """The rule-based annotator; see the module docstring."""

    hindsight: bool = True
    """Whether it knows the gold answer."""
    blind_attempts: int = 0
    """The first so many attempts on a prompt do not know it: STaR rationalises only what failed without."""
    habit_share: float = 0.0
    """Share of attempts, in [0, 1], that go by habit: the user's most frequent label, whatever is asked. A teacher of
    mixed quality for experiments in which reinforcement learning has to choose the better way; true all the same."""
    policy: Policy = "votes"
    """votes: a vote an item and a shared word, long traces. weighed: the score of `weighing.py`, short traces that end
    with what decided; of labels it knows the gold answer only where no item shows any, as what speaks against the
    evidence cannot be learned from it."""
    patterns: Patterns = "counts"
    """Under `votes`. counts: which items have the most frequent label, and how many they are: small pupils learn the
    sentence and not the counting, and name items of other labels. pairs: the first item and the first that differs
    from it, or the last where none does, each with its label: nothing is said that the step before does not show."""
    words: Mapping[str, LabelWords] = field(default_factory=dict[str, LabelWords])
    """Task → words of its labels, for `weighed`."""

    @property
    def name(self) -> str:
        """Name in rows and manifest."""
        habit = f"-habit-{self.habit_share:g}" if self.habit_share else ""
        policy = "" if self.policy == "votes" else f"-{self.policy}"
        policy += "" if self.patterns == "counts" else f"-{self.patterns}"
        return "scripted" + policy + _suffix(self.hindsight, self.blind_attempts) + habit

    @property
    def revision(self) -> str:
        """Hash of the files with the rules, and of the words known: other rules, other revision."""
        modules = ("teachers.py", "phrases.py", *(("weighing.py",) if self.policy == "weighed" else ()))
        rules = [sha256_file(Path(__file__).with_name(module)) for module in modules]
        return sha256_text(canonical_json([*rules, *([task, self.words[task].hash] for task in sorted(self.words))]))[
            :16
        ]

    async def write(self, assignment: Assignment) -> Reply:
        """Answer one assignment; never fails, counts no tokens."""
        is_told = self.hindsight and assignment.attempt >= self.blind_attempts
        by_habit = random.Random(f"habit/{assignment.seed}").random() < self.habit_share
        gold = assignment.gold if is_told and not by_habit else None
        task = assignment.task
        if self.policy == "weighed" and not by_habit:
            words = self.words.get(task.name)
            text = weighed_scripted_trace(task, assignment.input, assignment.items, gold, assignment.seed, words)
        else:
            text = scripted_trace(
                task, assignment.input, assignment.items, gold, assignment.seed, by_habit, self.patterns
            )
        return Reply(text=text, finish_reason="stop")

    def stop(self) -> None:
        """Nothing waits."""

    async def close(self) -> None:
        """Nothing to let go of."""


class ServedTeacher:
    """A model behind an OpenAI-compatible server, or run by vLLM in this process, asked with the grammar spelled out.

    What it is told follows from the assignment, the tag set and `hindsight`; the row keeps the training prompt. Where
    the server takes grammars (`constrain` of its options), the answer is a trace in the tag grammar that cites only
    items of the prompt, and one of the labels where the task has some.
    """

    def __init__(
        self,
        server: ChatServer | VllmServer,
        tagset: TagSet,
        hindsight: bool,
        model_revision: str,
        blind_attempts: int = 0,
    ) -> None:
        self._server = server
        self._tagset = tagset
        self._hindsight = hindsight
        self._blind_attempts = blind_attempts
        self._model_revision = model_revision

    @property
    def name(self) -> str:
        """The model's name, with `-hindsight` where it is told the gold answer."""
        return self._server.options.name + _suffix(self._hindsight, self._blind_attempts)

    @property
    def revision(self) -> str:
        """The stated revision of the model and a hash of what it is told besides the assignment: grammar, hint, further
        fields of the request, and whether the server enforces the grammar."""
        wording: list[Any] = [self._tagset.hash, _HINT if self._hindsight else ""]
        if self._server.options.extra_body:
            wording.append(self._server.options.extra_body)
        if self._server.options.constrain != "none":
            wording.append("constrained")
        return f"{self._model_revision}+{sha256_text(canonical_json(wording))[:12]}"

    async def write(self, assignment: Assignment) -> Reply:
        """Answer one assignment; InputError when the server refuses or stays silent."""
        options = PromptOptions(style="trace-explained")
        messages = chat_prompt(assignment.task, assignment.input, assignment.items, options, self._tagset)
        is_told = self._hindsight and assignment.attempt >= self._blind_attempts
        if is_told and assignment.gold is not None:
            hint = Message(role="user", content=f"{messages[-1].content}\n\n{_HINT.format(gold=assignment.gold)}")
            messages = (*messages[:-1], hint)
        constraint = Constraint(self._tagset, len(assignment.items), assignment.task.labels or ())
        grammar = request_fields(self._server.options.constrain, constraint)
        answer = await self._server.ask(messages, assignment.sampling, assignment.seed, grammar)
        return Reply(answer.text, answer.finish_reason, answer.input_tokens, answer.output_tokens)

    def stop(self) -> None:
        """Let what is on its way arrive and ask nothing more."""
        self._server.stop()

    async def close(self) -> None:
        """Close the connections."""
        await self._server.close()


def _suffix(hindsight: bool, blind_attempts: int) -> str:
    """Give what a teacher's name adds about hindsight: it is part of every row's identity."""
    if not hindsight:
        return ""
    return f"-hindsight-after-{blind_attempts}" if blind_attempts else "-hindsight"


_HINT = (
    "This user's own answer was: {gold}\n"
    "Reason towards it from the past items and the input, as if you did not know it, and never say that it was given."
)


def scripted_trace(
    task: Task,
    input_text: str,
    items: Sequence[ProfileItem],
    gold: str | None,
    seed: int,
    by_habit: bool = False,
    patterns: Patterns = "counts",
) -> str:
    """Give a tagged trace for one prompt: towards `gold`, or without it towards the teacher's own prediction, which
    `by_habit` is the most frequent label (generation knows no such habit); `patterns` as in `ScriptedTeacher`.

    `items` and `input_text` are what the prompt shows. Deterministic in its arguments.
    """
    rng = random.Random(seed)
    if task.kind == "generation":
        steps, answer = _generation(task, input_text, items, gold, rng)
    else:
        steps, answer = _classification(task, input_text, items, gold, rng, by_habit and gold is None, patterns)
    return tags.render([Step(tag=tag, text=text) for tag, text in steps], answer)


def weighed_scripted_trace(
    task: Task,
    input_text: str,
    items: Sequence[ProfileItem],
    gold: str | None,
    seed: int,
    words: LabelWords | None = None,
) -> str:
    """Give a tagged trace for one prompt under the policy `weighed`. `gold` matters to generation and, of labels, where
    no item shows one; `words` are those of the task's labels. Else as `scripted_trace`."""
    rng = random.Random(seed)
    if task.kind == "generation":
        steps, answer = _generation(task, input_text, items, gold, rng)
    elif evidence := weigh(input_text, items, words):
        steps, answer = weighed_trace(input_text, evidence, rng)
    else:
        shared = shared_words(input_text, items)
        answer = (
            gold or likeliest(input_text, task.labels or (), words) or _predicted_label(task, input_text, items, shared)
        )
        steps = _without_labels(input_text, shared, answer, rng, words_for(answer, input_text, words))
    return tags.render([Step(tag=tag, text=text) for tag, text in steps], answer)


_Steps = list[tuple[str, str]]


# Classification and rating: labels decide, shared words break ties.


def _classification(
    task: Task,
    query: str,
    items: Sequence[ProfileItem],
    gold: str | None,
    rng: random.Random,
    by_habit: bool,
    patterns: Patterns,
) -> tuple[_Steps, str]:
    shared = shared_words(query, items)
    answer = gold if gold is not None else _predicted_label(task, query, items, shared)
    if not any(is_quotable(item.label) for item in items):
        return _without_labels(query, shared, answer, rng), answer

    seen = most_similar(items, shared, limit=6)
    labels = {number: label for number in seen if is_quotable(label := items[number - 1].label) and label}
    if not labels:  # the most similar ones carry none
        quotable = {number: item.label for number, item in enumerate(items, start=1) if is_quotable(item.label)}
        labels = {number: label for number, label in list(quotable.items())[:6] if label}
    counts = Counter(labels.values())
    usual, usual_count = counts.most_common(1)[0]
    if by_habit:
        answer = usual
    supporters = [number for number, label in labels.items() if label == answer]
    nearest, evidence = _evidence(supporters, shared, items)
    topic = topic_words(query, [word for word, _ in evidence])

    steps: _Steps = [("examine_examples", ", ".join(f'[P{n}] is "{label}"' for n, label in labels.items()) + ".")]
    if len(labels) > 1:
        said = _agreement(labels, counts, rng) if patterns == "counts" else _first_pair(labels, rng)
        steps.append(("identify_patterns", said))
    decided = usual == answer and (usual_count > len(labels) - usual_count or len(counts) == 1)
    if by_habit:
        steps.append(("infer_preference", f"This user leans to {answer}."))
    elif decided:
        habit = ("keeps to", "always chose") if len(counts) == 1 else ("leans to", "mostly chose")
        steps.append(("infer_preference", f"This user {rng.choice(habit)} {answer}."))
    if by_habit:
        steps.append(("apply_preference", f"The habit holds: {answer}, as in [P{supporters[0]}]."))
        return steps, answer
    if topic:
        steps.append(("analyze_query", f"The input {rng.choice(('mentions', 'speaks of'))} {listing(topic)}."))
    if nearest is None:
        why = f"the input names {answer} itself" if names_label(query, answer) else _suggestion(topic, answer)
        steps.append(("resolve_conflict", f"No past item is {answer}, but {why}."))
    elif decided:
        steps.append(("apply_preference", _support(nearest, evidence, answer, "the habit holds")))
    else:
        rivals = [number for number, label in labels.items() if label != answer]
        rival = max(rivals, key=lambda number: (counts[labels[number]], len(shared[number - 1]), -number))
        steps.append(("compare_options", f'[P{nearest}] speaks for "{answer}", [P{rival}] for "{labels[rival]}".'))
        steps.append(("resolve_conflict", _support(nearest, evidence, answer, _suggestion(topic, answer))))
    if supporters and rng.random() < 0.25:
        steps.append(("verify_answer", f"{answer} agrees with {citing(supporters[:2])}."))
    return steps, answer


def _evidence(
    supporters: Sequence[int], shared: Sequence[Sequence[tuple[str, str]]], items: Sequence[ProfileItem]
) -> tuple[int | None, list[tuple[str, str]]]:
    """Give the supporter that shares most words with the query which no other label's item has, and its two words
    that tell best: in few of the others' items, in many of the supporters'."""
    own = [content_of(items[number - 1]).lower() for number in supporters]
    answer = {items[number - 1].label for number in supporters}
    others = [content_of(item).lower() for item in items if item.label not in answer]

    words = {word for number in supporters for word, _ in shared[number - 1]}
    spread = {
        word: (sum(word in text for text in others), -sum(word in text for text in own), -len(word), word)
        for word in words
    }

    def worth(number: int) -> tuple[int, int, int]:
        found = shared[number - 1]
        return (sum(spread[word][0] == 0 for word, _ in found), len(found), -number)

    nearest = max(supporters, key=worth, default=None)
    if nearest is None:
        return None, []
    return nearest, sorted(shared[nearest - 1], key=lambda pair: spread[pair[0]])[:2]


def _without_labels(
    query: str,
    shared: Sequence[Sequence[tuple[str, str]]],
    answer: str,
    rng: random.Random,
    telling: Sequence[str] = (),
) -> _Steps:
    """Give steps for a profile that is empty or whose items carry no label (LaMP-1); `telling` words of the input are
    named first."""
    topic = topic_words(query, [word.lower() for word in telling])
    steps: _Steps = []
    numbers = [number for number, words in enumerate(shared, start=1) if words][:3]
    if numbers:
        found = ", ".join(f"[P{n}] has {quoted_listing([form for _, form in shared[n - 1][:2]])}" for n in numbers)
        steps.append(("examine_examples", f"{found}."))
    if topic:
        steps.append(("analyze_query", f"The input {rng.choice(('mentions', 'speaks of'))} {listing(topic)}."))
    if numbers:
        words = [form for _, form in shared[numbers[0] - 1][:2]]
        steps.append(("infer_preference", f"[P{numbers[0]}] shows that this user knows {quoted_listing(words)}."))
    else:
        known = "The past items share no key word with the input" if shared else "Nothing is known about this user"
        steps.append(("resolve_conflict", f"{known}, so the input alone decides: {_suggestion(topic, answer)}."))
    if len(steps) < 2:
        steps.append(("verify_answer", f"{answer} is an allowed answer."))
    return steps


def _predicted_label(
    task: Task, query: str, items: Sequence[ProfileItem], shared: Sequence[Sequence[tuple[str, str]]]
) -> str:
    """Give the label with the most votes, one vote per item plus one per shared word; without any label the first
    one that the input names, else the task's first."""
    votes: Counter[str] = Counter()
    for item, words in zip(items, shared, strict=True):
        if item.label:
            votes[item.label] += 1 + len(words)
    if votes:
        return votes.most_common(1)[0][0]
    known = task.labels or ("unknown",)
    return next((label for label in known if names_label(query, label)), known[0])


def _agreement(labels: dict[int, str], counts: Counter[str], rng: random.Random) -> str:
    usual, usual_count = counts.most_common(1)[0]
    numbers = [number for number, label in labels.items() if label == usual]
    if len(counts) == 1:
        opening = rng.choice(("All agree", "No difference"))
        return f'{opening}: {citing_range(numbers)} are all "{usual}".'
    if usual_count == 1:
        return f"{rng.choice(('No two agree', 'All differ'))}: {citing_range(list(labels))}."
    return f'{citing(numbers)} are "{usual}", {usual_count} of {len(labels)}.'


def _first_pair(labels: dict[int, str], rng: random.Random) -> str:
    first, *others = labels
    other = next((number for number in others if labels[number] != labels[first]), None)
    said = f'[P{first}] is "{labels[first]}"'
    if other is None:
        return f'{said}, and [P{others[-1]}] is "{labels[first]}" {rng.choice(("too", "as well"))}.'
    return f'{said}, {rng.choice(("but", "while"))} [P{other}] is "{labels[other]}".'


def _support(number: int, evidence: Sequence[tuple[str, str]], answer: str, otherwise: str) -> str:
    """Say what speaks for the answer: the shared words of the item that carries it, or that there are none."""
    if evidence:
        words = quoted_listing([form for _, form in evidence])
        return f'[P{number}] shares {words} with the input and is "{answer}".'
    return f'[P{number}] is "{answer}" but shares no key word with the input; {otherwise}.'


def _suggestion(topic: Sequence[str], answer: str) -> str:
    verb = "suggests" if len(topic) == 1 else "suggest"
    return f"{listing(topic[:2])} {verb} {answer}" if topic else f"{answer} is the best guess"


# Generation: how the user's past titles look, measured, and the answer in that form.

_PREFIX = re.compile(r"([^\s:<>\"\[\]](?:[^:<>\"\[\]\n]{0,18}[^\s:<>\"\[\]])?): +(?=\S)")


@dataclass(frozen=True)
class _Form:
    """What can be measured on a title."""

    opening: str
    """Its first words as they stand, for quoting; empty where they cannot be quoted."""
    prefix: str | None
    """What stands before `: `."""
    is_lower: bool
    """Whether it goes on in lower case after the prefix."""
    words: int | None
    """Length in words; None where the prompt cuts it."""


def _generation(
    task: Task, query: str, items: Sequence[ProfileItem], gold: str | None, rng: random.Random
) -> tuple[_Steps, str]:
    """Take the form from the items and the matter from the input: how the user's own begin, the sentence of the input
    that the text is about, quoted, and the prefix that fits. No draft: the answer would only repeat it."""
    forms = {number: _form(item.title or item.text) for number, item in enumerate(items, start=1)}
    answer = gold if gold is not None else _predicted_text(query, forms)
    own = _form(answer)
    body = answer[len(own.prefix) + 1 :].strip() if own.prefix else answer

    steps: _Steps = []
    seen = most_similar(items, shared_words(query, items), limit=6)
    with_prefix = [number for number in seen if forms[number].prefix]
    if with_prefix:
        found = ", ".join(f'[P{number}] "{forms[number].prefix}"' for number in with_prefix)
        steps.append(("examine_examples", f"Prefixes: {found}."))
    elif quoted := [number for number in seen if forms[number].opening][:2]:
        verb = rng.choice(("begins", "opens with"))
        found = ", ".join(f'[P{number}] {verb} "{forms[number].opening}"' for number in quoted)
        steps.append(("examine_examples", f"{found}."))
    if seen:
        steps.append(("infer_preference", _style(forms)))
    else:
        steps.append(
            ("resolve_conflict", f"Nothing is known about this user, so the input alone gives {task.answer_form}.")
        )
    if span := telling_span(query, body):
        steps.append(("analyze_query", f'The input {rng.choice(("says", "has"))} "{span}".'))
    if own.prefix:
        same = [number for number, form in forms.items() if form.prefix == own.prefix]
        where = f" as in [P{same[0]}]" if same else ", which the input names" if names_label(query, own.prefix) else ""
        steps.append(("apply_preference", f"Prefix {own.prefix}{where or ', a new one'}."))
    else:
        first = "lower case" if own.is_lower else "a capital"
        steps.append(("apply_preference", f"No prefix, {first} first."))
    return steps, answer


def _form(text: str) -> _Form:
    text = text.strip()
    match = _PREFIX.match(text)
    prefix = match[1] if match else None
    rest = text[match.end() :] if match else text
    is_cut = text.endswith("…")
    opening = re.match(r"(?:[^\s\"<>\[\]…]{1,23}(?: |$)){1,3}", text)
    return _Form(
        opening=opening[0].rstrip(" ,;:") if opening else "",
        prefix=prefix,
        is_lower=rest[:1].islower(),
        words=None if is_cut else len(text.split()),
    )


def _style(forms: dict[int, _Form]) -> str:
    """Say how often the user sets a prefix and how the rest begins, over all shown items, as "always" says it."""
    lower = sum(form.is_lower for form in forms.values())
    prefixed = sum(form.prefix is not None for form in forms.values())
    case = (
        "in lower case" if 2 * lower > len(forms) else "with a capital" if 2 * lower < len(forms) else "in either case"
    )
    if not prefixed:
        return f"This user starts {case}."
    how = "always" if prefixed == len(forms) else "mostly" if 2 * prefixed > len(forms) else "sometimes"
    return f"This user {how} sets a prefix, then goes on {case}."


def _predicted_text(query: str, forms: dict[int, _Form]) -> str:
    """Give the input's first sentence at the user's length, with the nearest title's prefix where most have one."""
    lengths = sorted(form.words for form in forms.values() if form.words)
    limit = lengths[len(lengths) // 2] if lengths else 8
    sentence = re.split(r"(?<=[.!?])\s", query.strip(), maxsplit=1)[0].rstrip(".!?… ")
    prefixes = [form.prefix for form in forms.values() if form.prefix]
    words = sentence.split()[: max(limit, 3)]
    body = " ".join(words) or "untitled"
    if 2 * len(prefixes) <= len(forms):
        return body
    lower = 2 * sum(form.is_lower for form in forms.values()) > len(forms)
    return f"{prefixes[0]}: {body[:1].lower() + body[1:] if lower else body}"
