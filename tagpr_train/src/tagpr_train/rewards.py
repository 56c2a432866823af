"""The composite reward, R = α·answer + β·tags + γ·personal, as pure functions of one completion.

Every component lies in [0, 1]; R in [0, α+β+γ]. A completion whose think block is not closed, or that has no answer
after it, gets R = 0 whatever its components (the format gate; `format_gate = "trace"` asks for every rule of the tag
grammar, `"answer"` for an answer without any reasoning). *answer* is the benchmark's own metric for one sample, so what
RL maximises is what evaluation reports. The paper names the three terms (its eq. 5) but not their form or weights, as
far as is public: form, gates, penalties and default weights are ours.

The tags component is 0 when a hard rule of the grammar is broken, else 1 minus penalties, each in [0, 1] before its
weight: repetition (words that repeat an earlier 4-gram of the trace; steps beyond the second of one tag), copying
(words that stand in the prompt in runs of 8 or more, or more than half of all in runs of 4), ungrounded (claims about
cited items that do not hold), uncited (no item cited although there are some), thin (steps of fewer words than a
sentence has), length (words beyond the limit), padding (what the metric of the answer does not read). Words are
compared without the disguises of Unicode. A lie that cites nothing, and new words within the limit, cost nothing here.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Literal

from pydantic import Field

from tagpr_data import tags
from tagpr_data.config import Config
from tagpr_data.records import ProfileItem, Task

_RUN_WORDS = 4  # half of a trace may stand in the prompt in runs this long, but no copy with every fifth word changed
_COPY_WORDS = 8
_LONG_WORD = 10  # characters a word; what has no words, as signs and pictures, is measured by it
_WORD = re.compile(r"\w+")
_CITATION = re.compile(r"\[P\d+\]")
_INVISIBLE = re.compile("[" + "".join(f"\\U{low:08x}-\\U{high:08x}" for low, high in tags.INVISIBLE[1:]) + "]")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_UNREAD = re.compile(r"[^a-zA-Z0-9 ]| (?= )")  # by ROUGE
_PLAIN_RATING = re.compile(r"[+-]?\d{1,6}(\.\d{1,6})?", re.ASCII)
_LOOK_ALIKES = str.maketrans("авеікмнорстухԁһјѕοαενρυχ", "abeikmhopctyxdhjsoaevpyx")


FormatGate = Literal["block", "trace", "answer"]


class RewardWeights(Config):
    """Weights of the three components and of the penalties inside `tags`, and the gate before them; for one stage."""

    format_gate: FormatGate = "block"
    """What a completion must have to earn anything: a closed think block with an answer after it (`block`), a trace
    that breaks no rule of the tag grammar (`trace`), without which nothing keeps the tags once their weight is 0, or an
    answer of one line and no tag (`answer`), for models that do not reason: the control of what reasoning adds."""
    answer: float = Field(default=1.0, ge=0)
    """α, the task metric."""
    tags: float = Field(default=0.3, ge=0)
    """β, the tag-based constraints; 0 in the exploratory stage."""
    personal: float = Field(default=0.3, ge=0)
    """γ, the reward model with user embeddings; 0 in the exploratory stage."""
    repetition: float = Field(default=1.0, ge=0)
    """Penalty on the share of repeated words, and on steps beyond two of one tag."""
    copying: float = Field(default=1.0, ge=0)
    """Penalty on the share of words copied from the prompt in long runs."""
    ungrounded: float = Field(default=0.5, ge=0)
    """Penalty on the share of checkable claims that do not hold."""
    uncited: float = Field(default=0.5, ge=0)
    """Penalty when no item is cited although the prompt has some."""
    thin: float = Field(default=1.0, ge=0)
    """Penalty on the share of words that steps lack of `min_step_words`."""
    length: float = Field(default=1.0, ge=0)
    """Penalty on words beyond `max_words`, full at twice as many."""
    max_words: int = Field(default=200, ge=1)
    """Words a trace may have without penalty; ten characters count as a word at least."""
    min_step_words: int = Field(default=2, ge=0)
    """Words beside citations that a step must have to say something."""
    padding: float = Field(default=1.0, ge=0)
    """Penalty on the share of the answer that its metric does not read: pictures and other scripts around a title,
    a rating in other digits or with a thousand zeros."""


@dataclass(frozen=True, slots=True)
class Reward:
    """What one completion earned."""

    total: float
    """R; 0 when the format gate is shut."""
    answer: float
    """Task metric in [0, 1]; 0 when the gate is shut."""
    tags: float
    """Tag component in [0, 1]."""
    personal: float | None
    """PRMU component in [0, 1]; None where no score was given (weight 0)."""
    gate_open: bool
    """Whether the completion has the form that `format_gate` asks for."""
    penalties: dict[str, float]
    """Each penalty of the tag component before its weight, in [0, 1]; empty when a hard rule is broken."""


def composite(
    task: Task,
    completion: str,
    gold: str,
    items: Sequence[ProfileItem],
    prompt: str,
    tagset: tags.TagSet,
    weights: RewardWeights,
    personal_score: float | None = None,
    query_date: str | None = None,
) -> Reward:
    """Score one completion. `items` are those in the prompt, [P1] first; `prompt` is the user turn's text;
    `personal_score` is the PRMU's score standardised over its training pairs (`personal_component`)."""
    from tagpr_data.lamp import metrics  # numpy; the settings above are read by commands that must start fast

    parsed = tags.parse(completion, tagset, k=len(items))
    gate_open = is_gate_open(completion, parsed, weights.format_gate, tagset.names)
    answer = metrics.reward(task, parsed.answer, gold) if gate_open else 0.0
    penalties = {} if parsed.violations else tag_penalties(parsed, items, prompt, weights, query_date)
    if penalties:
        penalties["padding"] = _padded_share(task, parsed.answer, gold)
    tag = tags_component(parsed, penalties, weights)
    personal = None if personal_score is None else personal_component(personal_score)
    total = weights.answer * answer + weights.tags * tag + weights.personal * (personal or 0.0)
    return Reward(total if gate_open else 0.0, answer, tag, personal, gate_open, penalties)


def is_gate_open(completion: str, parsed: tags.Parsed, gate: FormatGate = "block", names: Sequence[str] = ()) -> bool:
    """Whether there is exactly one think block, closed, and an answer free of markup after it; for the gate `trace`,
    whether no rule of the grammar is broken at all; for the gate `answer`, whether one line is all that is said, with
    no mark of a think block or of the tags `names`, so that nothing can be reasoned before it."""
    if gate == "trace":
        return not parsed.violations
    if gate == "answer":
        marks = (f"<{slash}{name}>" for name in ("think", *names) for slash in ("", "/"))
        is_one_line = len(completion.strip().splitlines()) == 1 and tags.shows(parsed.answer)
        return is_one_line and not any(mark in completion for mark in marks)
    shut = {"no-think", "unclosed-think", "several-think", "empty-answer", "tag-in-answer", "text-before-think"}
    return completion.count("<think>") == 1 and not any(violation.code in shut for violation in parsed.violations)


def tags_component(parsed: tags.Parsed, penalties: dict[str, float], weights: RewardWeights) -> float:
    """Give the tag component in [0, 1] from the penalties of `tag_penalties`; 0 when a hard rule is broken."""
    if parsed.violations:
        return 0.0
    return max(0.0, 1.0 - sum(getattr(weights, name) * value for name, value in penalties.items()))


def personal_component(standardised_score: float) -> float:
    """Give σ(score), in [0, 1]; the score is standardised, so 0.5 is an average completion. NaN gives 0."""
    if math.isnan(standardised_score):
        return 0.0
    if standardised_score >= 0:
        return 1.0 / (1.0 + math.exp(-min(standardised_score, 700.0)))
    return math.exp(max(standardised_score, -700.0)) / (1.0 + math.exp(max(standardised_score, -700.0)))


def tag_penalties(
    parsed: tags.Parsed,
    items: Sequence[ProfileItem],
    prompt: str,
    weights: RewardWeights,
    query_date: str | None = None,
) -> dict[str, float]:
    """Give each penalty on the steps of a valid trace, in [0, 1] before its weight."""
    words = [word for step in parsed.steps for word in _words(step.text)]
    crowded = sum(max(0, count - 2) for count in Counter(step.tag for step in parsed.steps).values())
    runs = _grams(words, _RUN_WORDS)
    distinct = set(runs)
    repeated = max(1.0 - len(distinct) / len(runs) if runs else 0.0, crowded / len(parsed.steps))
    is_copied = not distinct.isdisjoint(_runs(prompt, _RUN_WORDS))
    claims = tags.ground(parsed.steps, items, query_date)
    false = sum(not claim.holds for claim in claims)
    lacking = [weights.min_step_words - _words_up_to(weights.min_step_words, step.text) for step in parsed.steps]
    size = max(len(words), sum(len(step.text) for step in parsed.steps) / _LONG_WORD)
    return {
        "repetition": repeated,
        "copying": _copied_share(words, prompt) if is_copied else 0.0,
        "ungrounded": false / len(claims) if claims else 0.0,
        "uncited": float(bool(items) and not any(step.cites for step in parsed.steps)),
        "thin": sum(lacking) / max(1, weights.min_step_words * len(parsed.steps)),
        "length": min(1.0, max(0.0, size - weights.max_words) / weights.max_words),
    }


def overlong(tokens: int, max_tokens: int, soft_zone: int) -> float:
    """Give how far a completion has gone into the last `soft_zone` tokens before `max_tokens`, in [0, 1]; 0 without a
    zone."""
    return min(1.0, max(0, tokens - (max_tokens - soft_zone)) / soft_zone) if soft_zone else 0.0


def standardise(rewards: Sequence[float], group_size: int) -> list[float]:
    """Give each reward minus its group's mean, over the group's standard deviation (population); 0 in a group
    without variance. `rewards` (groups x group_size, flattened). For the log beside raw and weighted values."""
    if len(rewards) % group_size:
        raise ValueError(f"{len(rewards)} rewards do not make groups of {group_size}")
    result: list[float] = []
    for start in range(0, len(rewards), group_size):
        group = rewards[start : start + group_size]
        mean = math.fsum(group) / group_size
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in group) / group_size)
        result += [(value - mean) / deviation if deviation > 1e-8 else 0.0 for value in group]
    return result


def zero_variance_share(rewards: Sequence[float], group_size: int) -> float:
    """Give the share of groups whose rewards are all equal: they teach a group-relative method nothing."""
    groups = [rewards[start : start + group_size] for start in range(0, len(rewards), group_size)]
    return sum(max(group) - min(group) <= 1e-8 for group in groups) / len(groups) if groups else 0.0


def _words(text: str) -> list[str]:
    """Give the words in lower case; look-alike letters, wide forms and invisible characters hide nothing."""
    text = text.lower()
    if not text.isascii():
        text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text)).translate(_LOOK_ALIKES)
    return _WORD.findall(text)


def _words_up_to(most: int, text: str) -> int:
    """Count the words of a text without its citations, `most` at most."""
    return sum(1 for _ in islice(_WORD.finditer(_CITATION.sub("", text)), most))


def _copied_share(words: Sequence[str], prompt: str) -> float:
    """Share of words inside a run of 8 or more that stands in the prompt too; or, where it is more, how far the share
    in runs of 4 or more is beyond a half."""
    return max(_share_in_runs(words, prompt, _COPY_WORDS), 2 * _share_in_runs(words, prompt, _RUN_WORDS) - 1)


def _share_in_runs(words: Sequence[str], prompt: str, length: int) -> float:
    known, copied, end = _runs(prompt, length), 0, 0
    for start in [start for start, run in enumerate(_grams(words, length)) if run in known]:
        copied += start + length - max(start, end)
        end = start + length
    return copied / len(words) if words else 0.0


@lru_cache(maxsize=32)  # a group's completions share their prompt
def _runs(text: str, length: int) -> frozenset[tuple[str, ...]]:
    return frozenset(_grams(_words(text), length))


def _grams(words: Sequence[str], length: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[start:] for start in range(length)), strict=False))


def _padded_share(task: Task, answer: str, gold: str) -> float:
    """Share of the answer's characters that the task's metric passes over: of a text those that are no letters a-z,
    digits or single blanks, beyond a third of the rest or what the gold has of them (an invisible one always counts);
    a rating that is not written plainly is padding as a whole. A label is compared as it is, so nothing pads it."""
    if task.kind == "rating":
        return float(not _PLAIN_RATING.fullmatch(answer))
    if task.kind == "classification" or not answer:
        return 0.0
    unread = len(_UNREAD.findall(answer))
    allowed = max((len(answer) - unread) / 3, len(_UNREAD.findall(gold)))
    hidden = len(_INVISIBLE.findall(answer)) + len(_CONTROL.findall(answer))
    return min(1.0, (hidden + max(0.0, unread - allowed)) / len(answer))
