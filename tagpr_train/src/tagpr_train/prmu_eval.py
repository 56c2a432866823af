"""How good is a PRMU, and does it know the person? Pair accuracy, the user-swap test, baselines, calibration; the gate.

Every pair is scored three times: for its user as known when the example was asked, for another user (`swapped`), and
for the average user (`user_off`: what is left when the user is not known at all). A model that knows the person is
right with the first, and loses it with the other two. Two baselines that never see the person are fitted on the
training pairs: `length`, a logistic regression on differences in characters, log characters and words; `text`, one on
hashed words of the completion and word pairs of prompt and completion. Accuracy is the share of pairs with
score(chosen) > score(rejected), a tie counts half. Intervals: 95 %, percentile bootstrap over users, seed fixed.

What RL may use is decided by `gate`: on pairs of right and wrong user, of unseen users where there are any, swapping
users must lower the accuracy, and each baseline must be beaten, both with an interval of the paired difference above
0. The tests and the gate are ours; the paper reports none that is public.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tagpr_data.pairs import PairFolder
from tagpr_data.records import PairSplit, PreferencePair
from tagpr_data.tables import write_text
from tagpr_train.prmu import PRMU

Floats = npt.NDArray[np.float64]

HELD_OUT: tuple[PairSplit, ...] = ("unseen", "seen")
"""Splits that are evaluated; the first with pairs of right and wrong user decides the gate."""

_RESAMPLES = 2000
_BINS = 10
_FEATURES = 1 << 16
_WORDS = 40  # of prompt and completion that the text baseline looks at
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class PairScores:
    """Scores in nats of pairs in their order, (n, 2) each: chosen, rejected."""

    right: Floats
    """For the user whose preference it is."""
    swapped: Floats
    """For the pair's other user."""
    user_off: Floats
    """For the average user."""


@dataclass(frozen=True)
class GateResult:
    """Whether a PRMU may be used as a reward."""

    passed: bool
    """True when every reason speaks for it."""
    reasons: tuple[str, ...]
    """One sentence with figures for each condition, whether met or not."""


def evaluate(model: PRMU, folder: PairFolder) -> dict[str, Any]:
    """Give the whole evaluation as plain JSON values; layout as in `write`. Splits without pairs are left out."""
    baselines = {"length": length_baseline(folder.pairs("train")), "text": text_baseline(folder.pairs("train"))}
    splits: dict[str, Any] = {}
    for split in HELD_OUT:
        pairs = folder.pairs(split)
        if not pairs:
            continue
        scores = pair_scores(model, folder, pairs)
        columns = {name: _wins(getattr(scores, name)) for name in ("right", "swapped", "user_off")}
        columns |= {name: _wins(baseline(pairs)) for name, baseline in baselines.items()}
        groups = {"all": list(range(len(pairs)))}
        for number, pair in enumerate(pairs):
            for group in (f"kind {pair.kind}", f"task {pair.task}", f"task {pair.task}, kind {pair.kind}"):
                groups.setdefault(group, []).append(number)
        users = [pair.user_id for pair in pairs]
        splits[split] = {
            "pairs": len(pairs),
            "users": len(set(users)),
            "groups": {group: _table(columns, users, np.array(rows)) for group, rows in sorted(groups.items())},
            "by_user": _by_user(columns["right"], users),
            "calibration": calibration(scores.right),
            "metric_correlation": _metric_correlation(scores.right, pairs),
        }
    return {"format_version": 1, "pairs_hash": folder.manifest.content_hash, "splits": splits}


def gate(evaluation: Mapping[str, Any]) -> GateResult:
    """Decide whether a PRMU with this evaluation may steer RL; see the module docstring."""
    for split in HELD_OUT:
        group = evaluation["splits"].get(split, {}).get("groups", {}).get("kind user")
        if group is None:
            continue
        reasons: list[str] = []
        passed = True
        for column, what in (
            ("swapped", "with users swapped"),
            ("length", "of the length-only baseline"),
            ("text", "of the prompt-only baseline"),
        ):
            loss, low, high = (group["right_minus"][column][key] for key in ("estimate", "low", "high"))
            passed &= low > 0
            reasons.append(
                f"{'ok' if low > 0 else 'NOT MET'}: pair accuracy {group['right']['estimate']:.3f} against "
                f"{group[column]['estimate']:.3f} {what}, difference {loss:+.3f} [{low:+.3f}, {high:+.3f}] "
                f"({split} users, {group['pairs']} pairs of {group['users']} users)"
            )
        return GateResult(bool(passed), tuple(reasons))
    return GateResult(
        False, ("NOT MET: there are no held-out pairs of kind `user`, so nothing shows that it knows users",)
    )


def pair_scores(model: PRMU, folder: PairFolder, pairs: Sequence[PreferencePair], batch_size: int = 64) -> PairScores:
    """Score both completions of each pair for its user, for its other user, and for the average user."""
    vectors: dict[tuple[str, str, int], Any] = {}

    def vector(user: str, profile_id: str, size: int) -> Any:
        key = (user, profile_id, size)
        if key not in vectors:
            vectors[key] = model.embed_user(user, folder.profile(profile_id, size))
        return vectors[key]

    average = model.embed_user(())
    whose = (
        [vector(pair.user_id, pair.profile_id, pair.profile_size) for pair in pairs],
        [vector(pair.other_user_id, pair.other_profile_id, pair.other_profile_size) for pair in pairs],
        [average for _ in pairs],
    )
    prompts = [pair.prompt for pair in pairs for _ in range(2)]
    completions = [text for pair in pairs for text in (pair.chosen, pair.rejected)]
    right, swapped, user_off = (
        np.array(
            model.score_batch([user for user in users for _ in range(2)], prompts, completions, batch_size)
        ).reshape(-1, 2)
        for users in whose
    )
    return PairScores(right, swapped, user_off)


def length_baseline(training: Sequence[PreferencePair]) -> Callable[[Sequence[PreferencePair]], Floats]:
    """Fit a judge that sees lengths only; it gives (n, 2) scores."""

    def lengths(text: str) -> list[float]:
        return [len(text) / 100, float(np.log1p(len(text))), len(text.split()) / 20]

    differences = np.array([np.subtract(lengths(pair.chosen), lengths(pair.rejected)) for pair in training])
    weights = _logistic(differences)

    def judge(pairs: Sequence[PreferencePair]) -> Floats:
        return np.array([[np.dot(lengths(text), weights) for text in (p.chosen, p.rejected)] for p in pairs])

    return judge


def text_baseline(training: Sequence[PreferencePair], epochs: int = 3) -> Callable[[Sequence[PreferencePair]], Floats]:
    """Fit a judge that sees prompt and completion, but not the person; it gives (n, 2) scores. A logistic regression
    on hashed features, by AdaGrad in the order of the pairs."""
    weights = np.zeros(_FEATURES)
    squares = np.full(_FEATURES, 1e-8)
    features = [(_hashed(pair, pair.chosen), _hashed(pair, pair.rejected)) for pair in training]
    for _ in range(epochs):
        for chosen, rejected in features:
            step = 1.0 / (1.0 + np.exp(np.clip(weights[chosen].sum() - weights[rejected].sum(), -30, 30)))
            for rows, sign in ((chosen, 1.0), (rejected, -1.0)):
                squares[rows] += step * step
                weights[rows] += sign * 0.1 * step / np.sqrt(squares[rows])

    def judge(pairs: Sequence[PreferencePair]) -> Floats:
        return np.array([[weights[_hashed(p, text)].sum() for text in (p.chosen, p.rejected)] for p in pairs])

    return judge


def calibration(scores: Floats) -> dict[str, Any]:
    """Give how often the preferred completion is right against how sure the model is. scores (n, 2) → expected
    calibration error and bins of confidence σ(|difference|) in [0.5, 1]."""
    difference = scores[:, 0] - scores[:, 1]
    confidence = 1.0 / (1.0 + np.exp(-np.abs(difference)))
    hits = _wins(scores)
    place = np.minimum(((confidence - 0.5) * 2 * _BINS).astype(int), _BINS - 1)
    bins = [
        {"confidence": float(confidence[place == n].mean()), "accuracy": float(hits[place == n].mean()),
         "pairs": int((place == n).sum())}
        for n in range(_BINS)
        if (place == n).any()
    ]  # fmt: skip
    error = sum(row["pairs"] * abs(row["confidence"] - row["accuracy"]) for row in bins) / len(hits)
    return {"expected_calibration_error": error, "bins": bins}


def bootstrap(values: Floats, users: Sequence[str], seed: int = 0) -> dict[str, float]:
    """Give mean and 95 % interval of values by pair, (n,), resampling users with all their pairs."""
    names, place = np.unique(np.array(users), return_inverse=True)
    sums = np.bincount(place, weights=values)
    counts = np.bincount(place)
    draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=_RESAMPLES)
    means = (draws @ sums) / (draws @ counts)
    low, high = np.quantile(means, [0.025, 0.975])
    return {"estimate": float(values.mean()), "low": float(low), "high": float(high)}


def headline(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Give the figures a run's manifest shows: accuracies by split and the gate."""
    verdict = gate(evaluation)
    figures = {
        f"accuracy_{split}": {
            group: row["right"]["estimate"]
            for group, row in found["groups"].items()
            if group == "all" or group.startswith("kind ")
        }
        for split, found in evaluation["splits"].items()
    }
    return {**figures, "gate_passed": verdict.passed, "gate": list(verdict.reasons)}


def write(folder: Path, evaluation: Mapping[str, Any]) -> None:
    """Write prmu_eval.json, prmu_eval.md (the table) and prmu_eval.svg (accuracies with intervals)."""
    write_text(folder / "prmu_eval.json", json.dumps(evaluation, indent=1, sort_keys=True) + "\n")
    write_text(folder / "prmu_eval.md", table(evaluation))
    write_text(folder / "prmu_eval.svg", plot(evaluation))


def table(evaluation: Mapping[str, Any]) -> str:
    """Give the evaluation as Markdown."""
    lines = [
        "| users | pairs | n | right user | swapped user | user off | length only | prompt only | right − swapped |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for split, found in evaluation["splits"].items():
        for group, row in found["groups"].items():
            cells = [f"{row[column]['estimate']:.3f}" for column in ("swapped", "user_off", "length", "text")]
            lost = row["right_minus"]["swapped"]
            lines.append(
                f"| {split} | {group} | {row['pairs']} | {_interval(row['right'])} | {' | '.join(cells)} | "
                f"{lost['estimate']:+.3f} [{lost['low']:+.3f}, {lost['high']:+.3f}] |"
            )
    verdict = gate(evaluation)
    lines += ["", f"Gate for RL: {'passed' if verdict.passed else 'NOT passed'}.", ""]
    lines += [f"- {reason}" for reason in verdict.reasons]
    for split, found in evaluation["splits"].items():
        users, ece = found["by_user"], found["calibration"]["expected_calibration_error"]
        rho = ", ".join(f"{task} {value:+.2f}" for task, value in found["metric_correlation"].items())
        lines += [
            "",
            f"{split}: accuracy by user: lowest {users['lowest']:.2f}, median {users['median']:.2f} of "
            f"{users['users']}; expected calibration error {ece:.3f}; rank correlation with the task metric: {rho}.",
        ]
    return "\n".join(lines) + "\n"


def plot(evaluation: Mapping[str, Any]) -> str:
    """Give an SVG of pair accuracies by kind, with intervals; the dashed line is chance."""
    bars = [
        (f"{split}, {group.removeprefix('kind ')}, {name}", row[column])
        for split, found in evaluation["splits"].items()
        for group, row in found["groups"].items()
        if group.startswith("kind ")
        for column, name in (("right", "right user"), ("swapped", "swapped"), ("user_off", "user off"))
    ]
    left, width, step = 230, 400, 22
    height = step * len(bars) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 70} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<line x1="{left + width / 2}" x2="{left + width / 2}" y1="8" y2="{height - 28}" stroke="#888" '
        'stroke-dasharray="4 3"/>',
    ]
    for number, (label, value) in enumerate(bars):
        middle = 20 + step * number
        colour = "#2a6f97" if label.endswith("right user") else "#b8c4cc"
        parts += [
            f'<text x="{left - 8}" y="{middle + 4}" text-anchor="end">{label}</text>',
            f'<rect x="{left}" y="{middle - 7}" width="{width * value["estimate"]:.1f}" height="14" fill="{colour}"/>',
            f'<line x1="{left + width * value["low"]:.1f}" x2="{left + width * value["high"]:.1f}" y1="{middle}" '
            f'y2="{middle}" stroke="#222"/>',
            f'<text x="{left + width + 8}" y="{middle + 4}">{value["estimate"]:.3f}</text>',
        ]
    for tick in (0.0, 0.5, 1.0):
        parts.append(f'<text x="{left + width * tick}" y="{height - 8}" text-anchor="middle">{tick:g}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _table(columns: Mapping[str, Floats], users: Sequence[str], rows: npt.NDArray[np.int64]) -> dict[str, Any]:
    own = [users[int(row)] for row in rows]
    right = columns["right"][rows]
    return {
        "pairs": len(rows),
        "users": len(set(own)),
        **{name: bootstrap(values[rows], own) for name, values in columns.items()},
        "right_minus": {
            name: bootstrap(right - values[rows], own) for name, values in columns.items() if name != "right"
        },
    }


def _wins(scores: Floats) -> Floats:
    """(n, 2) → (n,): 1 where chosen scores higher, 0.5 at a tie."""
    return (np.sign(scores[:, 0] - scores[:, 1]) + 1) / 2


def _by_user(hits: Floats, users: Sequence[str]) -> dict[str, Any]:
    means = {user: float(hits[[other == user for other in users]].mean()) for user in sorted(set(users))}
    values = list(means.values())
    return {"users": len(means), "lowest": min(values), "median": float(np.median(values)), "accuracy": means}


def _metric_correlation(scores: Floats, pairs: Sequence[PreferencePair]) -> dict[str, float]:
    """Give Spearman's rank correlation of score and task metric over all completions, by task; 0 where one of them
    is constant."""
    found: dict[str, float] = {}
    for task in sorted({pair.task for pair in pairs}):
        rows = [number for number, pair in enumerate(pairs) if pair.task == task]
        metric = np.array([[pairs[row].chosen_score, pairs[row].rejected_score] for row in rows]).ravel()
        first, second = _ranks(scores[rows].ravel()), _ranks(metric)
        varied = first.std() > 0 and second.std() > 0
        found[task] = float(np.corrcoef(first, second)[0, 1]) if varied else 0.0
    return found


def _ranks(values: Floats) -> Floats:
    """Give ranks from 0, equal values sharing their mean rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts + 1) / 2)[place]


def _logistic(differences: Floats, ridge: float = 1e-3, rounds: int = 25) -> Floats:
    """Fit P(first wins) = σ(w · difference) to pairs all won by the first, by Newton's method. (n, d) → (d,)."""
    weights = np.zeros(differences.shape[1])
    for _ in range(rounds):
        chance = 1.0 / (1.0 + np.exp(-np.clip(differences @ weights, -30, 30)))
        gradient = differences.T @ (1 - chance) / len(differences) - ridge * weights
        curvature = (differences.T * (chance * (1 - chance))) @ differences / len(differences)
        weights = weights + np.linalg.solve(curvature + ridge * np.eye(len(weights)), gradient)
    return weights


def _hashed(pair: PreferencePair, text: str) -> npt.NDArray[np.int64]:
    asked = dict.fromkeys(_WORD.findall(pair.prompt[-1].content.lower())[-_WORDS:])
    said = dict.fromkeys(_WORD.findall(text)[-_WORDS:])
    names = [*said, *(f"{first}\0{second}" for first in asked for second in said)]
    return np.array(sorted({_place(f"{pair.task}\0{name}") for name in names}), dtype=np.int64)


def _place(name: str) -> int:
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=4).digest()
    return int.from_bytes(digest, "little") % _FEATURES


def _interval(value: Mapping[str, float]) -> str:
    return f"{value['estimate']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
