"""The scripted teacher's better judgement on labels: what speaks for each label of the prompt's items, weighed, and a
trace that says what decided.

    score(label) = 1.5 · Σ 0.7^i over its items, i places after the first
                 + 0.4 · words that the input shares with its items and with no other label's
                 + 1.0 if the input names the label
                 + 0.2 · Σ ln(P(label | word) / P(label)) over the three words of the input that tell most

The probabilities are counts over what training users filed before (`LabelWords`); those of the user at hand are left
out, so that no training question meets its own answer there. Form and weights are ours: a logistic regression on the
labels that training prompts of the X server's log show, rounded (tagpr_data/README.md has the figures).

Guarantee: the answer is a shown label of highest score; what the trace names as deciding is the part of the score in
which the answer leads the next label most; every statement on an item is one that `tags.ground` looks up and finds
true; the last step ends with an item that carries the answer. Price: it knows no dates, as prompts show none, and the
words of a label it knows only where a data set was counted.
"""

import math
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from tagpr_data.dataset import Dataset
from tagpr_data.phrases import (
    citing,
    citing_range,
    content_of,
    content_words,
    is_quotable,
    listing,
    names_label,
    quoted_listing,
    shared_words,
    topic_words,
)
from tagpr_data.records import ProfileItem
from tagpr_data.tables import canonical_json, sha256_text

PLACE_WEIGHT, PLACE_DECAY, SHARED_WEIGHT, NAMED_WEIGHT, WORD_WEIGHT = 1.5, 0.7, 0.4, 1.0, 0.2
"""Weights of the score in the module docstring."""

_TELLING_WORDS = 3
_SMOOTHING = 2.0  # as many made-up items in which the word stands, spread as the labels are
_FEWEST_ITEMS = 2  # a word that stands in one item of others tells nothing
_CLEAR = 0.7  # ln 2: twice as frequent under the label as elsewhere

Steps = list[tuple[str, str]]


@dataclass(frozen=True)
class LabelWords:
    """In how many past items of training users each word stands, by label."""

    by_profile: Mapping[str, tuple[tuple[str, frozenset[str]], ...]]
    """Profile → label and words (lower case) of each of its items that were counted."""

    @classmethod
    def count(cls, dataset: Dataset, task: str) -> "LabelWords":
        """Count the items that the training prompts of a task may show: those before a profile's last training
        question. Nothing of validation or test is among them where splits go by time or by user."""
        seen: Counter[str] = Counter()
        for example in dataset.examples("train") if "train" in dataset.splits else ():
            if example.task == task:
                seen[example.profile_id] = max(seen[example.profile_id], example.profile_size)
        counted: dict[str, list[tuple[str, frozenset[str]]]] = defaultdict(list)
        columns = ("profile_id", "position", "title", "text", "label")
        for profile_id, position, title, text, label in dataset.profiles.select(columns).iter_rows():
            if label and position < seen[profile_id]:
                counted[profile_id].append((label, _words(f"{title or ''} {text}")))
        return cls({profile_id: tuple(items) for profile_id, items in sorted(counted.items())})

    @cached_property
    def hash(self) -> str:
        """Identity of the counts."""
        rows = [[name, [[label, sorted(words)] for label, words in items]] for name, items in self.by_profile.items()]
        return sha256_text(canonical_json(rows))

    def lifts(self, text: str, leave_out: str | None) -> dict[str, dict[str, float]]:
        """Give ln(P(label | word) / P(label)) for each counted word of a text, lower case → label → lift, without the
        items of the profile `leave_out`."""
        own = self.by_profile.get(leave_out or "", ())
        labels = Counter(self._labels)
        labels.subtract(label for label, _ in own)
        total = labels.total() + len(labels)
        share = {label: (count + 1) / total for label, count in labels.items()}
        lifts: dict[str, dict[str, float]] = {}
        for word in sorted(_words(text)):
            found = Counter(self._by_word.get(word, {}))
            found.subtract(label for label, words in own if word in words)
            items = found.total()
            if items >= _FEWEST_ITEMS:
                lifts[word] = {
                    label: math.log((found[label] + _SMOOTHING * part) / (items + _SMOOTHING) / part)
                    for label, part in share.items()
                }
        return lifts

    @cached_property
    def _labels(self) -> Counter[str]:
        return Counter(label for items in self.by_profile.values() for label, _ in items)

    @cached_property
    def _by_word(self) -> dict[str, Counter[str]]:
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for items in self.by_profile.values():
            for label, words in items:
                for word in words:
                    counts[word][label] += 1
        return counts


@dataclass(frozen=True)
class Evidence:
    """What speaks for one label."""

    label: str
    """The label."""
    items: tuple[int, ...]
    """Numbers of the items that carry it."""
    shared: tuple[tuple[int, tuple[str, ...]], ...]
    """Item → words it shares with the input and no other label's item has, as the item writes them."""
    typical: tuple[str, ...]
    """Words of the input, as it writes them, that stand clearly more often in others' items of this label."""
    parts: Mapping[str, float]
    """The score by part: place, shared, named, typical."""

    @property
    def score(self) -> float:
        """The sum."""
        return sum(self.parts.values())


def weigh(query: str, items: Sequence[ProfileItem], words: LabelWords | None = None) -> list[Evidence]:
    """Give the evidence for each quotable label among the items, highest score first; equal scores in the order of the
    items."""
    by_label: dict[str, list[int]] = defaultdict(list)
    for number, item in enumerate(items, start=1):
        if item.label and is_quotable(item.label):
            by_label[item.label].append(number)
    shared = shared_words(query, items)
    texts = [content_of(item).lower() for item in items]
    lifts = words.lifts(query, items[0].profile_id) if words and items else {}
    telling = sorted(
        lifts, key=lambda word: (-max((lifts[word].get(label, 0.0) for label in by_label), default=0), word)
    )
    telling = telling[:_TELLING_WORDS]
    found: list[Evidence] = []
    for label, numbers in by_label.items():
        others = " ".join(text for number, text in enumerate(texts, start=1) if number not in numbers)
        own = tuple(
            (number, tuple(form for word, form in shared[number - 1] if word not in others)) for number in numbers
        )
        lift = {word: lifts[word].get(label, 0.0) for word in telling}
        parts = {
            "place": PLACE_WEIGHT * sum(PLACE_DECAY ** (number - 1) for number in numbers),
            "shared": SHARED_WEIGHT * len({form.lower() for _, forms in own for form in forms}),
            "named": NAMED_WEIGHT * names_label(query, _short(label)),
            "typical": WORD_WEIGHT * sum(lift.values()),
        }
        typical = tuple(word for word in content_words(query) if lift.get(word.lower(), 0.0) >= _CLEAR)
        found.append(Evidence(label, tuple(numbers), own, typical, parts))
    return sorted(found, key=lambda evidence: -evidence.score)


def weighed_trace(query: str, evidence: Sequence[Evidence], rng: random.Random) -> tuple[Steps, str]:
    """Give the steps of a trace for the label that `evidence` (of `weigh`, not empty) puts first, and the label."""
    best = evidence[0]
    if len(evidence) == 1:
        return _unanimous(query, best, rng), best.label
    rival = evidence[1]
    decider = max(best.parts, key=lambda part: best.parts[part] - rival.parts[part])
    steps: Steps = [("examine_examples", _labels_read(evidence, rng))]
    look = _look(query, best, rival, rng)
    weighing = _weighing(best, rival, evidence, rng)
    steps += [look, weighing] if rng.random() < 0.5 else [weighing, look]
    if rng.random() < 0.3:
        steps.remove(weighing)
    steps.append(("resolve_conflict", _decision(best, rival, decider, evidence, rng)))
    return steps, best.label


def likeliest(query: str, labels: Sequence[str], words: LabelWords | None) -> str | None:
    """Give the label that the words of the input alone speak for: their three largest lifts; None where none tells."""
    lifts = words.lifts(query, None) if words else {}
    known = [label for label in labels if any(label in lift for lift in lifts.values())]
    telling = sorted(
        lifts, key=lambda word: (-max((lifts[word].get(label, 0.0) for label in known), default=0.0), word)
    )
    scores = {label: sum(lifts[word].get(label, 0.0) for word in telling[:_TELLING_WORDS]) for label in known}
    return max(scores, key=lambda label: scores[label], default=None)


def words_for(label: str, query: str, words: LabelWords | None) -> list[str]:
    """Give up to two words of the input that others' items of the label have clearly more often."""
    lifts = words.lifts(query, None) if words else {}
    clear = [word for word in content_words(query) if lifts.get(word.lower(), {}).get(label, 0.0) >= _CLEAR]
    best = sorted(clear, key=lambda word: -lifts[word.lower()][label])[:2]
    return [word for word in clear if word in best]


def _words(text: str) -> frozenset[str]:
    return frozenset(word.lower() for word in content_words(text))


def _short(label: str) -> str:
    """Give the last part of a path-like label: an input names `hw/xwin` by `xwin`."""
    return label.rpartition("/")[2] or label


def _unanimous(query: str, best: Evidence, rng: random.Random) -> Steps:
    label, last = best.label, best.items[0]
    steps: Steps = []
    number, forms = max(best.shared, key=lambda pair: (len(pair[1]), -pair[0]))
    habit = rng.choice(
        ("This user keeps to {0}.", "Only {0} so far.", "{0} is this user's habit.", "It is always {0}.")
    )
    if len(best.items) == 1:
        steps.append(("examine_examples", f'[P{last}] {_is(rng)} "{label}".'))
    else:
        opening = rng.choice(("", "", "All agree: ", "No difference: ", "One label: "))
        all_of = "both" if len(best.items) == 2 else "all"
        steps.append(("identify_patterns", f'{opening}{citing_range(best.items)} are {all_of} "{label}".'))
    if rng.random() < 0.7:
        steps.append(("analyze_query", _mentioned(query, best, rng)))
    steps.append(("infer_preference", habit.format(label)))
    if forms and rng.random() < 0.7:
        closing = f'[P{number}] shares {quoted_listing(forms[:2])} with the input, and [P{number}] is "{label}".'
    else:
        closing = rng.choice(
            ("Nothing speaks against it", "The input gives no other hint", "So it stays", "The same here")
        )
        closing += f': [P{last}] is "{label}".'
    steps.append(("apply_preference", closing))
    return steps


def _labels_read(evidence: Sequence[Evidence], rng: random.Random) -> str:
    """Read the labels off: label by label or item by item, from the first item on or towards it."""
    shown = {number: one.label for one in evidence for number in one.items}
    numbers = sorted(shown)
    if len(numbers) <= 6 and rng.random() < 0.4:
        order = numbers if rng.random() < 0.6 else numbers[::-1]
        verb = _is(rng)
        return ", ".join(f'[P{number}] {verb} "{shown[number]}"' for number in order) + "."
    groups = sorted(evidence, key=lambda one: one.items[0])[:4]
    if rng.random() < 0.4:
        groups = groups[::-1]
    said = [f'{citing(one.items)} {"is" if len(one.items) == 1 else "are"} "{one.label}"' for one in groups]
    return rng.choice((", ", "; ")).join(said) + "."


def _is(rng: random.Random) -> str:
    return rng.choice(("is", "is", "is filed under", "was filed under", "was"))


def _look(query: str, best: Evidence, rival: Evidence, rng: random.Random) -> tuple[str, str]:
    """Say what the input holds: words that tell, where there are some."""
    for one in (best, rival):
        if one.typical and one.parts["typical"] > 0 and (one is best or rng.random() < 0.5):
            return "analyze_query", _typical(one, rng)
    return "analyze_query", _mentioned(query, best, rng)


def _typical(one: Evidence, rng: random.Random) -> str:
    words = one.typical[:2]
    verb = rng.choice(("points to", "is typical of", "is often seen in"))
    if len(words) > 1:
        verb = {"points to": "point to", "is typical of": "are typical of"}.get(verb, "are often seen in")
    return f"{listing(words)} {verb} {one.label}."


def _mentioned(query: str, best: Evidence, rng: random.Random) -> str:
    if best.typical and rng.random() < 0.5:
        return _typical(best, rng)
    first = [form.lower() for _, forms in best.shared for form in forms]
    topic = topic_words(query, first, limit=rng.choice((1, 2, 2, 3)))
    if not topic:
        return "The input holds no key word."
    opening = rng.choice(("The input mentions", "The input speaks of", "Key words:", "This is about", "Asked about:"))
    return f"{opening} {listing(topic)}."


def _weighing(best: Evidence, rival: Evidence, evidence: Sequence[Evidence], rng: random.Random) -> tuple[str, str]:
    """Say that the items disagree, or how far they agree."""
    total, first = sum(len(one.items) for one in evidence), min(evidence, key=lambda one: one.items[0])
    most = max(evidence, key=lambda one: len(one.items))
    if len(evidence) == total:
        numbers = sorted(number for one in evidence for number in one.items)
        opening = rng.choice(("No two agree", "All differ", "Every item differs"))
        return "identify_patterns", f"{opening}: {citing_range(numbers)}."
    if len(most.items) > 1 and rng.random() < 0.5:
        share = rng.choice((f"{len(most.items)} of {total}", f"{len(most.items)} items"))
        return "identify_patterns", f'{share}, {citing(most.items)}, are "{most.label}".'
    if rng.random() < 0.5:
        pair = (best.items[0], rival.items[0])
        opening = rng.choice(("Divided", "They disagree", "No agreement"))
        return "identify_patterns", f"{opening}: [P{min(pair)}] against [P{max(pair)}]."
    pair = [best.label, rival.label] if rng.random() < 0.5 else [rival.label, best.label]
    verb = rng.choice(("or", "against"))
    tail = f"; the first item says {first.label}" if rng.random() < 0.4 else ""
    return "compare_options", f"{pair[0]} {verb} {pair[1]}{tail}."


def _decision(best: Evidence, rival: Evidence, decider: str, evidence: Sequence[Evidence], rng: random.Random) -> str:
    """Say what decides, in the part of the score where the answer leads most, and end with an item that carries it."""
    label, number = best.label, best.items[0]
    ending = f'[P{number}] is "{label}".'
    if decider == "shared":
        number, forms = max(best.shared, key=lambda pair: (len(pair[1]), -pair[0]))
        words = quoted_listing(forms[:2])
        said = rng.choice(
            ("[P{0}] shares {1} with the input", "[P{0}] has {1} as the input has", "The input repeats [P{0}]'s {1}")
        )
        return f'{said.format(number, words)}, and [P{number}] is "{label}".'
    if decider == "named":
        said = rng.choice(("The input names {0} itself", "{0} stands in the input", "{0} is named"))
        return f"{said.format(_short(label))}: {ending}"
    if decider == "typical":
        words = listing(best.typical[:2]) if best.typical else ""
        if words:
            tips = "tips" if len(best.typical[:2]) == 1 else "tip"
            said = rng.choice((f"{words} {tips} the scales", f"Its words decide, {words}", f"{words} for {label}"))
        else:
            said = f"The input sounds less like {rival.label}"
        return f"{said}: {ending}"
    total = sum(len(one.items) for one in evidence)
    is_first = number == min(one.items[0] for one in evidence)
    is_most = len(best.items) > max(len(one.items) for one in evidence if one is not best)
    count = f"{len(best.items)} of {total}"
    if is_first and is_most:
        said = rng.choice(
            (f"{count} and the first item agree", f"First and most, {count}", "Count and first item agree")
        )
    elif is_first:
        said = rng.choice(("The first item weighs most", "The first item decides", "What comes first counts"))
    elif is_most:
        said = rng.choice((f"{count} outweigh the first item", f"The majority counts, {count}", f"More items, {count}"))
    else:
        said = rng.choice(("Taken together it weighs more", "The earlier places count"))
    return f"{said}: {ending}"
