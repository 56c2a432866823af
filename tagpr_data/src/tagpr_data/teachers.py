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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tagpr_data import tags
from tagpr_data.chat_server import ChatServer
from tagpr_data.constrain import Constraint, request_fields
from tagpr_data.prompts import PromptOptions, chat_prompt
from tagpr_data.records import FinishReason, Message, ProfileItem, Sampling, Step, Task
from tagpr_data.tables import canonical_json, sha256_file, sha256_text
from tagpr_data.tags import TagSet
from tagpr_data.vllm_chat import VllmServer


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

    @property
    def name(self) -> str:
        """Name in rows and manifest."""
        habit = f"-habit-{self.habit_share:g}" if self.habit_share else ""
        return "scripted" + _suffix(self.hindsight, self.blind_attempts) + habit

    @property
    def revision(self) -> str:
        """Hash of this file: other rules, other revision."""
        return sha256_file(Path(__file__))[:16]

    async def write(self, assignment: Assignment) -> Reply:
        """Answer one assignment; never fails, counts no tokens."""
        is_told = self.hindsight and assignment.attempt >= self.blind_attempts
        by_habit = random.Random(f"habit/{assignment.seed}").random() < self.habit_share
        gold = assignment.gold if is_told and not by_habit else None
        text = scripted_trace(assignment.task, assignment.input, assignment.items, gold, assignment.seed, by_habit)
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
    task: Task, input_text: str, items: Sequence[ProfileItem], gold: str | None, seed: int, by_habit: bool = False
) -> str:
    """Give a tagged trace for one prompt: towards `gold`, or without it towards the teacher's own prediction, which
    `by_habit` is the most frequent label (generation knows no such habit).

    `items` and `input_text` are what the prompt shows. Deterministic in its arguments.
    """
    rng = random.Random(seed)
    if task.kind == "generation":
        steps, answer = _generation(task, input_text, items, gold, rng)
    else:
        steps, answer = _classification(task, input_text, items, gold, rng, by_habit and gold is None)
    return tags.render([Step(tag=tag, text=text) for tag, text in steps], answer)


_Steps = list[tuple[str, str]]


# Classification and rating: labels decide, shared words break ties.


def _classification(
    task: Task, query: str, items: Sequence[ProfileItem], gold: str | None, rng: random.Random, by_habit: bool
) -> tuple[_Steps, str]:
    shared = _shared_words(query, items)
    answer = gold if gold is not None else _predicted_label(task, query, items, shared)
    if not any(_is_quotable(item.label) for item in items):
        return _without_labels(query, shared, answer, rng), answer

    seen = _most_similar(items, shared, limit=6)
    labels = {number: label for number in seen if _is_quotable(label := items[number - 1].label) and label}
    counts = Counter(labels.values())
    usual, usual_count = counts.most_common(1)[0]
    if by_habit:
        answer = usual
    supporters = [number for number, label in labels.items() if label == answer]
    nearest, evidence = _evidence(supporters, shared, items)
    topic = _topic(query, [word for word, _ in evidence])

    steps: _Steps = [("examine_examples", ", ".join(f'[P{n}] is "{label}"' for n, label in labels.items()) + ".")]
    if len(labels) > 1:
        steps.append(("identify_patterns", _agreement(labels, counts, rng)))
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
        steps.append(("analyze_query", f"The input {rng.choice(('mentions', 'speaks of'))} {_listing(topic)}."))
    if nearest is None:
        why = f"the input names {answer} itself" if _names(query, answer) else _suggestion(topic, answer)
        steps.append(("resolve_conflict", f"No past item is {answer}, but {why}."))
    elif decided:
        steps.append(("apply_preference", _support(nearest, evidence, answer, "the habit holds")))
    else:
        rivals = [number for number, label in labels.items() if label != answer]
        rival = max(rivals, key=lambda number: (counts[labels[number]], len(shared[number - 1]), -number))
        steps.append(("compare_options", f'[P{nearest}] speaks for "{answer}", [P{rival}] for "{labels[rival]}".'))
        steps.append(("resolve_conflict", _support(nearest, evidence, answer, _suggestion(topic, answer))))
    if supporters and rng.random() < 0.25:
        steps.append(("verify_answer", f"{answer} agrees with {_cited(supporters[:2])}."))
    return steps, answer


def _evidence(
    supporters: Sequence[int], shared: Sequence[Sequence[tuple[str, str]]], items: Sequence[ProfileItem]
) -> tuple[int | None, list[tuple[str, str]]]:
    """Give the supporter that shares most words with the query which no other label's item has, and its two words
    that tell best: in few of the others' items, in many of the supporters'."""
    own = [_content(items[number - 1]).lower() for number in supporters]
    answer = {items[number - 1].label for number in supporters}
    others = [_content(item).lower() for item in items if item.label not in answer]

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


def _without_labels(query: str, shared: Sequence[Sequence[tuple[str, str]]], answer: str, rng: random.Random) -> _Steps:
    """Give steps for a profile that is empty or whose items carry no label (LaMP-1)."""
    topic = _topic(query, [])
    steps: _Steps = []
    numbers = [number for number, words in enumerate(shared, start=1) if words][:3]
    if numbers:
        found = ", ".join(f"[P{n}] has {_quoted_listing([form for _, form in shared[n - 1][:2]])}" for n in numbers)
        steps.append(("examine_examples", f"{found}."))
    if topic:
        steps.append(("analyze_query", f"The input {rng.choice(('mentions', 'speaks of'))} {_listing(topic)}."))
    if numbers:
        words = [form for _, form in shared[numbers[0] - 1][:2]]
        steps.append(("infer_preference", f"[P{numbers[0]}] shows that this user knows {_quoted_listing(words)}."))
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
    return next((label for label in known if _names(query, label)), known[0])


def _agreement(labels: dict[int, str], counts: Counter[str], rng: random.Random) -> str:
    usual, usual_count = counts.most_common(1)[0]
    numbers = [number for number, label in labels.items() if label == usual]
    if len(counts) == 1:
        opening = rng.choice(("All agree", "No difference"))
        return f'{opening}: {_range(numbers)} are all "{usual}".'
    if usual_count == 1:
        return f"{rng.choice(('No two agree', 'All differ'))}: {_range(list(labels))}."
    return f'{_cited(numbers)} are "{usual}", {usual_count} of {len(labels)}.'


def _support(number: int, evidence: Sequence[tuple[str, str]], answer: str, otherwise: str) -> str:
    """Say what speaks for the answer: the shared words of the item that carries it, or that there are none."""
    if evidence:
        words = _quoted_listing([form for _, form in evidence])
        return f'[P{number}] shares {words} with the input and is "{answer}".'
    return f'[P{number}] is "{answer}" but shares no key word with the input; {otherwise}.'


def _suggestion(topic: Sequence[str], answer: str) -> str:
    verb = "suggests" if len(topic) == 1 else "suggest"
    return f"{_listing(topic[:2])} {verb} {answer}" if topic else f"{answer} is the best guess"


# Generation: how the user's past titles look, measured, and the answer in that form.

_PREFIX = re.compile(r"([^\s:<>\"\[\]][^:<>\"\[\]\n]{0,19}): +(?=\S)")


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
    forms = {number: _form(item.title or item.text) for number, item in enumerate(items, start=1)}
    answer = gold if gold is not None else _predicted_text(query, forms)
    own = _form(answer)
    in_answer = {word.lower() for word in _content_words(answer)}
    topic = _topic(query, [word.lower() for word in _content_words(query) if word.lower() in in_answer])
    body = answer[len(own.prefix) + 1 :].strip() if own.prefix else answer

    steps: _Steps = []
    shared = _shared_words(query, items)
    seen = _most_similar(items, shared, limit=6)
    quoted = [number for number in seen if forms[number].opening][: 3 if rng.random() < 0.3 else 2]
    if quoted:
        verb = rng.choice(("begins", "opens with"))
        found = ", ".join(f'[P{number}] {verb} "{forms[number].opening}"' for number in quoted)
        steps.append(("examine_examples", f"{found}."))
    with_prefix = [number for number in seen if forms[number].prefix]
    without = [number for number in seen if not forms[number].prefix]
    if len(seen) > 1:
        steps.append(("identify_patterns", _habit(seen, with_prefix, without, forms)))
    if not seen:
        steps.append(
            ("resolve_conflict", f"Nothing is known about this user, so the input alone gives {task.answer_form}.")
        )
    elif with_prefix and without:
        choice = "here one fits" if own.prefix else "here none is needed"
        steps.append(("resolve_conflict", f"[P{with_prefix[0]}] has a prefix, [P{without[0]}] has none; {choice}."))
    else:
        steps.append(("infer_preference", _style(seen, with_prefix, forms)))
    if topic:
        steps.append(("analyze_query", f"The input {rng.choice(('mentions', 'speaks of'))} {_listing(topic)}."))
    if own.prefix:
        if len(body.split()) <= 12 and not re.search(r"\[P|<", body):
            steps.append(("draft_answer", body))
        same = [number for number, form in forms.items() if form.prefix == own.prefix]
        where = f" as in [P{same[0]}]" if same else ", which the input names" if _names(query, own.prefix) else ""
        steps.append(("apply_preference", f"Prefix {own.prefix}{where or ', a new one'}."))
    else:
        first = "lower case" if own.is_lower else "a capital"
        steps.append(("apply_preference", f"No prefix, {_count(len(body.split()), 'word')}, {first} first."))
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


def _habit(seen: list[int], with_prefix: list[int], without: list[int], forms: dict[int, _Form]) -> str:
    if not without:
        habit = f"{_range(seen)} all have a prefix"
    elif not with_prefix:
        habit = f"{_range(seen)} have no prefix"
    else:
        share = f"{len(with_prefix)} of {len(seen)}"
        if len(with_prefix) == 1:
            habit = f"{share} has a prefix: {_cited(with_prefix)}, not {_cited(without[:1])}"
        else:
            habit = f"{share} have a prefix, as {_cited(with_prefix[:2])}"
    lengths = [length for number in seen if (length := forms[number].words) is not None]
    if len(lengths) < len(seen):
        return f"{habit}."
    low, high = min(lengths), max(lengths)
    return f"{habit}; {low} to {high} words." if low < high else f"{habit}; {_count(low, 'word')} each."


def _style(seen: list[int], with_prefix: list[int], forms: dict[int, _Form]) -> str:
    lower = sum(forms[number].is_lower for number in seen)
    case = "in lower case" if 2 * lower > len(seen) else "with a capital" if 2 * lower < len(seen) else "in either case"
    return f"This user sets a prefix, then goes on {case}." if with_prefix else f"This user starts {case}."


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


# Words, citations, small grammar.

_WORD = re.compile(r"[^\W\d_](?:[\w'./+-]*\w)?")
_HASH = re.compile(r"[0-9a-f]{7,}")
_CODE = re.compile(r"\w_\w|[a-z][A-Z]|[A-Za-z]\d|/")
_COMMON = frozenset(
    re.findall(
        r"\S+",
        """
        afterwards already cherry commit currently existing however picked rather similarly therefore
        actually add added adds allow always avoid change changed changes check correct fix fixed fixes instead
        make makes made move never remove removed removes
        about after again all also and any are aren't because been before being both but can can't cannot could did
        didn't does doesn't don't down each else even ever for from get gets got had has hasn't have having her here
        his how i.e if into isn't it's its itself just like may might more most much must need needs new not now off
        old one only other our out over own same see set should since so some still such than that that's the their
        them then there these they this those through too two under until up use used uses using very was wasn't way
        we well were what when where whether which while who why will with without won't would yet you your
        """,
    )
)


def _content_words(text: str) -> list[str]:
    """Give the telling words of a text in order, each once, as they stand; 3 to 20 characters."""
    found: dict[str, str] = {}
    for word in _WORD.findall(text):
        if 3 <= len(word) <= 20 and word.lower() not in _COMMON and not _HASH.fullmatch(word):
            found.setdefault(word.lower(), word)
    return list(found.values())


def _shared_words(query: str, items: Sequence[ProfileItem]) -> list[list[tuple[str, str]]]:
    """Give for each item the words of the query that stand in it, rarest among the items first: (lower case, as in
    the item)."""
    wanted = {word.lower() for word in _content_words(query)}
    texts = [_content(item).lower() for item in items]
    spread = {word: sum(word in text for text in texts) for word in wanted}
    shared: list[list[tuple[str, str]]] = []
    for item in items:
        own = {word.lower(): word for word in _content_words(_content(item)) if word.lower() in wanted}
        shared.append(sorted(own.items(), key=lambda pair: (spread[pair[0]], -len(pair[0]), pair[0])))
    return shared


def _content(item: ProfileItem) -> str:
    return f"{item.title or ''}\n{item.text}"


def _topic(query: str, first: Sequence[str], limit: int = 2) -> list[str]:
    """Give up to `limit` telling words of the query in its order: those in `first` (lower case), then names of code
    (`glXWait`, `fb_copy`), then long words, which are rarer than short ones."""
    words = _content_words(query)
    by_worth = sorted(words, key=lambda word: (word.lower() not in first, not _CODE.search(word), -len(word)))
    return [word for word in words if word in by_worth[:limit]]


def _names(query: str, label: str) -> bool:
    """Whether the label stands in the query as a word of its own."""
    return re.search(rf"(?<!\w){re.escape(label.lower())}(?!\w)", query.lower()) is not None


def _most_similar(items: Sequence[ProfileItem], shared: Sequence[Sequence[tuple[str, str]]], limit: int) -> list[int]:
    """Give the numbers of the `limit` items that share most words with the query, in prompt order."""
    numbers = sorted(range(1, len(items) + 1), key=lambda number: (-len(shared[number - 1]), number))
    return sorted(numbers[:limit])


def _is_quotable(label: str | None) -> bool:
    return bool(label) and not re.search(r"[\"<>\[\]\n…]", label or "")


def _cited(numbers: Sequence[int]) -> str:
    return _listing([f"[P{number}]" for number in numbers])


def _range(numbers: Sequence[int]) -> str:
    """Cite ascending numbers, as a range where they leave none out."""
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"[P{numbers[0]}] to [P{numbers[-1]}]"
    return _cited(numbers)


def _quoted_listing(words: Sequence[str]) -> str:
    return _listing([f'"{word}"' for word in words])


def _listing(words: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(words[:-1]), words[-1]) if part) if words else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
