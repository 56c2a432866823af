"""Candidates → kept traces and a ledger of the rejected, each with one reason.

Guarantee: every candidate comes out exactly once, so kept + rejected = candidates; the result does not depend on
the order of the candidates. The rules are ours.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pydantic import Field

from tagpr_data import tags
from tagpr_data.config import Config
from tagpr_data.lamp.metrics import reward
from tagpr_data.records import Candidate, ProfileItem, Rejected, Step, Task, TaskKind, Trace
from tagpr_data.tags import TagSet

REASONS: dict[str, str] = {
    "cut-off": "the completion was cut at its length limit or ended in an error",
    "grammar": "the text breaks the tag grammar; the detail names the first violation and all codes",
    "no-gold": "the example has no gold answer to be measured against",
    "leaks-gold": "a step speaks of the gold answer as given (`the gold is …`)",
    "too-long": "the trace has more characters than allowed",
    "low-score": "the answer scores below the task's threshold",
    "ungrounded": "a claim about a cited item does not hold",
    "unsupported": "no item of the prompt carries the answer as its label, so the profile cannot speak for it",
    "duplicate": "another candidate of this user and task has the same text",
    "not-best": "another attempt on the same prompt was better",
}
"""Every reason for rejection, in the order they are tried."""

LEAKS = ("the gold", "gold answer", "gold label", "correct answer is given", "reference answer", "ground truth")
"""Phrases (lower case) by which a teacher with hindsight gives itself away."""


class Selection(Config):
    """Which candidates are good enough."""

    min_score: dict[TaskKind, float] = Field(default={"classification": 1.0, "rating": 1.0, "generation": 0.3})
    """Least reward (`lamp.metrics.reward`) by kind of task."""
    max_characters: int = 4000
    """Longest completion."""
    best_of: int = 1
    """Traces kept per prompt."""
    require_grounded: bool = True
    """Whether one claim that does not hold is enough to reject."""
    require_support: bool = False
    """Whether a label must be carried by an item of the prompt, where items are labelled: what a teacher with
    hindsight argues without any is guesswork, and a small model learns to guess from it. Prompts without items are
    exempt."""


@dataclass(frozen=True)
class Judged:
    """One candidate after the rules that look at it alone."""

    candidate: Candidate
    steps: tuple[Step, ...]
    answer: str
    score: float
    claims: int
    grounded_claims: int
    reason: str | None
    detail: str


def judge(
    candidate: Candidate, task: Task, items: Sequence[ProfileItem], date: str | None, rules: Selection, tagset: TagSet
) -> Judged:
    """Apply the rules to one candidate; `items` are those of the prompt, `date` is the query's."""
    parsed = tags.parse(candidate.text, tagset, k=len(items))
    claims = tags.ground(parsed.steps, items, date)
    false = [claim for claim in claims if not claim.holds]
    score = 0.0
    if candidate.gold is not None and parsed.is_valid:
        score = reward(task, parsed.answer, candidate.gold)
    reason, detail = _fault(candidate, task, parsed, false, score, rules)
    labels = {item.label for item in items if item.label is not None} if task.labels else set[str]()
    if reason is None and rules.require_support and labels and parsed.answer not in labels:
        reason, detail = "unsupported", f"the answer {parsed.answer!r} is not among {sorted(labels)}"
    return Judged(
        candidate=candidate,
        steps=parsed.steps,
        answer=parsed.answer,
        score=score,
        claims=len(claims),
        grounded_claims=len(claims) - len(false),
        reason=reason,
        detail=detail,
    )


def select(
    candidates: Sequence[Candidate],
    judged_by: Callable[[Candidate], Judged],
    rules: Selection,
) -> tuple[list[Trace], list[Rejected]]:
    """Give (kept, rejected), both sorted by id. `judged_by` applies `judge` with the candidate's task and items."""
    judged = sorted((judged_by(candidate) for candidate in candidates), key=_quality)
    seen: set[tuple[str, str, str]] = set()
    kept_by_prompt: dict[str, int] = {}
    traces: list[Trace] = []
    rejected: list[Rejected] = []
    for row in judged:
        candidate, reason, detail = row.candidate, row.reason, row.detail
        text = (candidate.task, candidate.user_id, candidate.text)
        taken = kept_by_prompt.get(candidate.prompt_hash, 0)
        if reason is None and text in seen:
            reason, detail = "duplicate", "the same text was kept before"
        elif reason is None and taken >= rules.best_of:
            reason, detail = "not-best", f"{rules.best_of} better of this prompt kept; score {row.score:.3f}"
        fields = dict(candidate)
        if reason is not None:
            rejected.append(Rejected(**fields, reason=reason, detail=detail))
            continue
        seen.add(text)
        kept_by_prompt[candidate.prompt_hash] = taken + 1
        traces.append(
            Trace(
                **fields,
                steps=row.steps,
                answer=row.answer,
                score=row.score,
                claims=row.claims,
                grounded_claims=row.grounded_claims,
            )
        )
    return sorted(traces, key=lambda trace: trace.id), sorted(rejected, key=lambda row: row.id)


def count_reasons(rejected: Sequence[Rejected]) -> dict[str, int]:
    """Give the number of rejected candidates by reason, only reasons that occur, in the order of `REASONS`."""
    counts = Counter(row.reason for row in rejected)
    order = [*REASONS, *sorted(counts.keys() - REASONS.keys())]
    return {reason: counts[reason] for reason in order if counts[reason]}


def acceptance(traces: Sequence[Trace], rejected: Sequence[Rejected]) -> dict[str, float]:
    """Give the share of candidates kept, by task."""
    kept: dict[str, int] = {}
    total: dict[str, int] = {}
    for row in (*traces, *rejected):
        total[row.task] = total.get(row.task, 0) + 1
        kept[row.task] = kept.get(row.task, 0) + isinstance(row, Trace)
    return {task: kept[task] / total[task] for task in sorted(total)}


def _fault(
    candidate: Candidate, task: Task, parsed: tags.Parsed, false: Sequence[tags.Claim], score: float, rules: Selection
) -> tuple[str | None, str]:
    """Give the first rule that is broken and what was found, or (None, "")."""
    if candidate.finish_reason != "stop":
        return "cut-off", f"finish reason {candidate.finish_reason}"
    if parsed.violations:
        first = parsed.violations[0]
        codes = ", ".join(sorted({violation.code for violation in parsed.violations}))
        return "grammar", f"{first.code} at {first.position}: {first.message} (all: {codes})"
    if candidate.gold is None:
        return "no-gold", "the example has no output"
    words = " ".join(step.text for step in parsed.steps).lower()
    leak = next((phrase for phrase in LEAKS if phrase in words), None)
    if leak:
        return "leaks-gold", f"a step says {leak!r}"
    if len(candidate.text) > rules.max_characters:
        return "too-long", f"{len(candidate.text)} characters, at most {rules.max_characters}"
    threshold = rules.min_score[task.kind]
    if score < threshold:
        return "low-score", f"score {score:.3f}, at least {threshold:g}"
    if false and rules.require_grounded:
        return "ungrounded", f"step {false[0].step}, [P{false[0].item}]: {false[0].reason}"
    return None, ""


def _quality(row: Judged) -> tuple[float, float, int, int, str]:
    """Best first: score, groundedness, shortness, attempt; the id makes the order total."""
    grounded = row.grounded_claims / row.claims if row.claims else 1.0
    return (-row.score, -grounded, len(row.candidate.text), row.candidate.attempt, row.candidate.id)
