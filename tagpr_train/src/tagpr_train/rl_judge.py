"""From completions to rewards: the composite reward, the PRMU's score, the penalty for length, and all that is logged.

Every component is kept raw (in [0, 1]), weighted (behind the format gate, as it enters the reward) and normalised
(within its group), with the share of groups in which it does not vary: a mean alone hides that a reward has stopped
teaching. The penalty for length is DAPO's soft one, as far as the shape goes; its weight is ours.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tagpr_data import tags
from tagpr_data.data_source import fetch
from tagpr_data.errors import CheckFailed, InputError
from tagpr_data.records import Rollout
from tagpr_data.tags import TagSet
from tagpr_train import rewards
from tagpr_train.config import Rl
from tagpr_train.rewards import Reward
from tagpr_train.rl_prompts import Question

if TYPE_CHECKING:
    from tagpr_data.prmu_client import RemotePRMU
    from tagpr_train.prmu import PRMU

COMPONENTS = ("answer", "tags", "personal", "overlong")
GATE_FILE = "prmu_eval.json"


@dataclass(frozen=True, slots=True)
class Judged:
    """One completion and what it earned."""

    question: Question
    """What was asked."""
    text: str
    """The completion."""
    tokens: int
    """Its length."""
    parsed: tags.Parsed
    """How it was read."""
    reward: Reward
    """Components and gate."""
    overlong: float
    """In [0, 1]."""

    def raw(self, component: str) -> float:
        """Give a component as it is, in [0, 1]."""
        return self.overlong if component == "overlong" else getattr(self.reward, component) or 0.0

    def gated(self, component: str) -> float:
        """Give a component as it enters the reward before its weight: 0 behind a shut gate, and length as a loss."""
        if component == "overlong":
            return -self.overlong
        return self.raw(component) if self.reward.gate_open else 0.0


class Judge:
    """Rewards completions; holds the PRMU and the vectors of users it has met."""

    def __init__(self, config: Rl, tagset: TagSet, max_tokens: int, prmu: "PRMU | RemotePRMU | None" = None) -> None:
        self._tagset = tagset
        self._max_tokens = max_tokens
        self._soft_zone = config.overlong_tokens
        self._prmu = prmu
        self._users: dict[str, Any] = {}
        self._weights = config.weights
        overlong = config.overlong_weight if config.overlong_tokens else 0.0
        self.weights = {
            "answer": config.weights.answer,
            "tags": config.weights.tags,
            "personal": config.weights.personal,
            "overlong": overlong,
        }
        """Weight of each of `COMPONENTS`."""

    def __call__(self, questions: Sequence[Question], texts: Sequence[str], lengths: Sequence[int]) -> list[Judged]:
        """Judge completions; `lengths` in tokens, the end token included."""
        scores = self._personal(questions, texts)
        judged: list[Judged] = []
        for question, text, length, score in zip(questions, texts, lengths, scores, strict=True):
            reward = rewards.composite(
                question.task,
                text,
                question.gold,
                question.items,
                question.messages[-1].content,
                self._tagset,
                self._weights,
                score,
                question.example.date,
            )
            parsed = tags.parse(text, self._tagset, k=len(question.items))
            overlong = rewards.overlong(length, self._max_tokens, self._soft_zone)
            judged.append(Judged(question, text, length, parsed, reward, overlong))
        return judged

    def total(self, judged: Judged) -> float:
        """Give the reward: the weighted sum behind the gate, less the penalty for length."""
        return sum(weight * judged.gated(name) for name, weight in self.weights.items())

    def totals(self, judged: Sequence[Judged]) -> list[float]:
        """Give all rewards."""
        return [self.total(row) for row in judged]

    def figures(self, judged: Sequence[Judged], group_size: int) -> dict[str, float]:
        """Give the means of a generation batch (whole groups) by name: every component that has a weight raw, weighted
        and normalised (mean size), and its share of groups without variance; each penalty; answers by task; tags."""
        count = len(judged)
        totals = self.totals(judged)
        figures = {
            "reward": sum(totals) / count,
            "zero_variance": rewards.zero_variance_share(totals, group_size),
            "gate_open": sum(row.reward.gate_open for row in judged) / count,
            "valid": sum(row.parsed.is_valid for row in judged) / count,
        }
        for name in COMPONENTS:
            if (name == "personal" and self._prmu is None) or (name == "overlong" and not self._soft_zone):
                continue
            gated = [row.gated(name) for row in judged]
            figures[f"{name}_raw"] = sum(row.raw(name) for row in judged) / count
            figures[f"{name}_weighted"] = self.weights[name] * sum(gated) / count
            figures[f"{name}_normalised"] = sum(map(abs, rewards.standardise(gated, group_size))) / count
            figures[f"{name}_zero_variance"] = rewards.zero_variance_share(gated, group_size)
        penalties = [row.reward.penalties for row in judged if row.reward.penalties]
        for name in penalties[0] if penalties else ():
            figures[f"penalty_{name}"] = sum(penalty[name] for penalty in penalties) / len(penalties)
        by_task: dict[str, list[float]] = {}
        for row in judged:
            by_task.setdefault(row.question.task.name, []).append(row.reward.answer)
        figures |= {f"answer_raw/{task}": sum(values) / len(values) for task, values in sorted(by_task.items())}
        used = Counter(step.tag for row in judged for step in row.parsed.steps)
        return figures | {f"tag/{name}": used[name] / count for name in self._tagset.names}

    def rollouts(self, step: int, judged: Sequence[Judged], group_size: int, redrawn: Sequence[int]) -> list[Rollout]:
        """Give the rows of the completions table; `redrawn` counts per group."""
        totals = self.totals(judged)
        normalised = rewards.standardise(totals, group_size)
        return [
            Rollout(
                step=step, row=place, example_id=row.question.example.id, task=row.question.task.name,
                user_id=row.question.example.user_id, text=row.text, tokens=row.tokens, steps=row.parsed.steps,
                violations=tuple(violation.code for violation in row.parsed.violations), answer=row.parsed.answer,
                gold=row.question.gold, gate_open=row.reward.gate_open, answer_reward=row.reward.answer,
                tags_reward=row.reward.tags, personal_reward=row.reward.personal, overlong=row.overlong,
                reward=totals[place], normalised=normalised[place], redrawn=redrawn[place // group_size],
            )
            for place, row in enumerate(judged)
        ]  # fmt: skip

    def _personal(self, questions: Sequence[Question], texts: Sequence[str]) -> Sequence[float | None]:
        if self._prmu is None:
            return [None] * len(texts)
        for question in questions:
            if question.example.id not in self._users:
                user = self._prmu.embed_user(question.example.user_id, question.profile)
                self._users[question.example.id] = user
        users = [self._users[question.example.id] for question in questions]
        scores = self._prmu.score_batch(users, [question.bare for question in questions], texts)
        return self._prmu.standardised(scores)


def load_prmu(config: Rl) -> "PRMU | RemotePRMU | None":
    """Load the PRMU, or connect to it, where its component counts, after its gate. CheckFailed with the figures when it
    did not pass."""
    if config.weights.personal == 0:
        return None
    assert config.prmu is not None, "the settings see to it"
    if config.prmu.startswith(("http://", "https://")):
        from tagpr_data.prmu_client import RemotePRMU

        remote = RemotePRMU(config.prmu)
        if not config.ignore_gate:
            check_gate(config.prmu, remote.about.get("evaluation"), f"what {config.prmu} says of it")
        return remote
    from tagpr_train.prmu import PRMU

    folder = Path(config.prmu) if Path(config.prmu).is_dir() else fetch("PRMU", config.prmu, "model")
    if not config.ignore_gate:
        path = next((place / GATE_FILE for place in (folder, folder.parent) if (place / GATE_FILE).is_file()), None)
        check_gate(config.prmu, None if path is None else _read(path), str(path))
    return PRMU.from_pretrained(folder)


def content_of(prmu: "PRMU | RemotePRMU | None") -> dict[str, str]:
    """Give the content hash of what `load_prmu` gave as `prmu`, the same for a served one; {} without one."""
    if prmu is None:
        return {}
    from tagpr_data.prmu_client import RemotePRMU
    from tagpr_train.pretrained import content_hash

    served = isinstance(prmu, RemotePRMU)
    return {"prmu": str(prmu.about["weights"]) if served else content_hash(Path(str(prmu.name_or_path)))}


def check_gate(name: str, evaluation: Any, source: str) -> None:
    """Refuse a PRMU that does not tell users apart, by its evaluation from `source`; InputError without one."""
    if evaluation is None:
        raise InputError(f"{name} has no {GATE_FILE}: run tagpr-train prmu-eval on it, or set ignore_gate = true")
    from tagpr_train import prmu_eval

    try:
        verdict = prmu_eval.gate(evaluation)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{source} is not the evaluation of a PRMU; make it again (tagpr-train prmu-eval)") from None
    if not verdict.passed:
        raise CheckFailed(
            f"the PRMU in {name} did not pass its gate, so its reward may not be about the user: "
            f"{'; '.join(verdict.reasons)}. Train it longer, or set ignore_gate = true"
        )


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}  # which is the evaluation of nothing
