"""The composite reward, R = α·answer + β·tags + γ·personal, as pure functions of one completion.

Every component lies in [0, 1]; R in [0, α+β+γ]. A completion whose think block is not closed, or that has no answer
after it, gets R = 0 whatever its components (the format gate). *answer* is the benchmark's own metric for one sample,
so what RL maximises is what evaluation reports. The paper names the three terms (its eq. 5) but not their form or
weights, as far as is public: form, penalties and default weights are ours.

The tags component is 0 when a hard rule of the grammar is broken, else 1 minus penalties, each in [0, 1] before its
weight: repetition (words that repeat an earlier 4-gram of the trace; steps beyond the second of one tag), copying
(words that stand in the prompt in runs of 8 or more), ungrounded (claims about cited items that do not hold), uncited
(no item cited although there are some), length (words beyond the limit).
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from tagpr_data import tags
from tagpr_data.config import Config
from tagpr_data.records import ProfileItem, Task

_REPEAT_WORDS = 4
_COPY_WORDS = 8
_WORD = re.compile(r"\w+")


class RewardWeights(Config):
    """Weights of the three components and of the penalties inside `tags`. One stage, one set."""

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
    length: float = Field(default=1.0, ge=0)
    """Penalty on words beyond `max_words`, full at twice as many."""
    max_words: int = Field(default=200, ge=1)
    """Words a trace may have without penalty."""


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
    """Whether the think block is closed and an answer follows."""
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
    gate_open = is_gate_open(completion, parsed)
    answer = metrics.reward(task, parsed.answer, gold) if gate_open else 0.0
    penalties = {} if parsed.violations else tag_penalties(parsed, items, prompt, weights, query_date)
    tag = tags_component(parsed, penalties, weights)
    personal = None if personal_score is None else personal_component(personal_score)
    total = weights.answer * answer + weights.tags * tag + weights.personal * (personal or 0.0)
    return Reward(total if gate_open else 0.0, answer, tag, personal, gate_open, penalties)


def is_gate_open(completion: str, parsed: tags.Parsed) -> bool:
    """Whether there is exactly one think block, closed, and an answer free of markup after it."""
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
    """Give each penalty of a valid trace, in [0, 1] before its weight."""
    words = [word for step in parsed.steps for word in _words(step.text)]
    crowded = sum(max(0, count - 2) for count in Counter(step.tag for step in parsed.steps).values())
    repeated = max(_repeated_share(words), crowded / len(parsed.steps))
    claims = tags.ground(parsed.steps, items, query_date)
    false = sum(not claim.holds for claim in claims)
    return {
        "repetition": repeated,
        "copying": _copied_share(words, _words(prompt)),
        "ungrounded": false / len(claims) if claims else 0.0,
        "uncited": float(bool(items) and not any(step.cites for step in parsed.steps)),
        "length": min(1.0, max(0, len(words) - weights.max_words) / weights.max_words),
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
    return _WORD.findall(text.lower())


def _repeated_share(words: Sequence[str]) -> float:
    """Share of 4-grams that occurred before."""
    grams = [tuple(words[start : start + _REPEAT_WORDS]) for start in range(len(words) - _REPEAT_WORDS + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def _copied_share(words: Sequence[str], source: Sequence[str]) -> float:
    """Share of words inside a run of 8 or more that stands in `source` too."""
    known = {tuple(source[start : start + _COPY_WORDS]) for start in range(len(source) - _COPY_WORDS + 1)}
    copied = [False] * len(words)
    for start in range(len(words) - _COPY_WORDS + 1):
        if tuple(words[start : start + _COPY_WORDS]) in known:
            copied[start : start + _COPY_WORDS] = [True] * _COPY_WORDS
    return sum(copied) / len(words) if words else 0.0
