"""LaMP's metrics, twice on the same predictions, and the reward that training takes from them.

exact     plain means. Deterministic, independent of the order of samples. A rating that is not a finite number
          counts as the worst one for its gold.
official  the official evaluator to the last bit: ratings pass through float32 and one that is not finite fails the
          whole file; ROUGE is the median of 1,000 bootstrap means and depends on the seed and on the order of samples
          (the official code draws its seed and its order anew in each process; here both are arguments).

In both, as officially: outputs are stripped; a label is looked up exactly, and two unknown labels are EQUAL (so golds
of another label list make garbage right: see the count `unknown_gold`); macro-F1 averages over the whole label list;
an unreadable rating becomes the worst of 1 and 5 for its gold; ROUGE knows only the characters a-z and 0-9, no stemmer.
Price: ROUGE-L takes time proportional to |gold| · |prediction| / 64, the official mode 2,000 passes over the scores.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from tagpr_data.errors import CheckFailed, InputError, shorten
from tagpr_data.records import Task

Mode = Literal["exact", "official"]
MODES: tuple[Mode, ...] = ("exact", "official")

COUNTS: tuple[str, ...] = (
    "empty",
    "unparseable",
    "out_of_range",
    "unknown_label",
    "non_finite",
    "no_rouge_tokens",
    "unknown_gold",
)
"""What is counted beside the metrics; the first six are kinds of predictions, and each prediction is at most one of
them. empty: nothing but white space. unparseable: no number. non_finite: nan, infinite or beyond float32.
out_of_range: a number outside 1…5. unknown_label: not in the label list. no_rouge_tokens: text without a-z or 0-9,
scored 0. unknown_gold: golds that are not in the label list."""

_RESAMPLES = 1000
_TOKEN = re.compile(r"[a-z0-9]+")

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scores:
    """What `evaluate` gives."""

    metrics: dict[str, float]
    """`accuracy`, `f1` | `MAE`, `RMSE` | `rouge-1`, `rouge-L`; ROUGE in [0, 1]."""
    counts: dict[str, int]
    """One number for each of COUNTS."""
    n: int
    """Samples scored."""


class RougeScores(NamedTuple):
    """F-measures of one prediction, each in [0, 1]."""

    rouge1: float
    rouge2: float
    rouge_l: float
    rouge_lsum: float


def evaluate(
    task: Task,
    golds: Mapping[str, str],
    predictions: Mapping[str, str],
    mode: Mode = "exact",
    seed: int | None = None,
    *,
    order: Sequence[str] | None = None,
) -> Scores:
    """Score predictions by id against golds by id.

    `seed` (numpy's, 0 … 2³²-1, default 0) and `order` (all ids, default: as in `golds`) matter to official ROUGE only.
    Raises CheckFailed when the ids differ, there are none, a gold rating is no number, or (official) a prediction
    is not finite; InputError for a mode, seed or order that cannot be.
    """
    if mode not in MODES:
        raise InputError(f"mode {mode!r} is unknown; known: {', '.join(MODES)}")
    ids = _matched_ids(golds, predictions, order)
    right = [golds[key].strip() for key in ids]
    given = [predictions[key].strip() for key in ids]
    counts: dict[str, int] = dict.fromkeys(COUNTS, 0)
    counts["empty"] = sum(not text for text in given)
    if task.kind == "classification":
        metrics = _classification(_labels(task), right, given, counts)
    elif task.kind == "rating":
        metrics = _rating(_labels(task), ids, right, given, mode, counts)
    else:
        metrics = _generation(right, given, mode, 0 if seed is None else seed, counts)
    return Scores(metrics, counts, len(ids))


def reward(task: Task, prediction: str, gold: str) -> float:
    """Give the worth in [0, 1] of one prediction: 1 or 0 for a label, 1 - |error| / (highest - lowest rating) cut at
    0 for a rating (unreadable or not finite: the worst rating for the gold), mean of ROUGE-1 and ROUGE-L else."""
    prediction, gold = prediction.strip(), gold.strip()
    if task.kind == "classification":
        return float(prediction == gold)
    if task.kind == "rating":
        lowest, highest = _bounds(_labels(task))
        wanted = _gold_rating(gold, "gold")
        value = _number(prediction)
        error = abs((value if value is not None and _is_finite(value) else _worst(wanted, lowest, highest)) - wanted)
        return max(0.0, 1.0 - error / (highest - lowest))
    return sum(rouge(prediction, gold)) / 2


def rouge(prediction: str, gold: str) -> tuple[float, float]:
    """Give the F-measures of ROUGE-1 and ROUGE-L (official tokens: lower case, a-z and 0-9, no stemmer)."""
    given, wanted = rouge_tokens(prediction), rouge_tokens(gold)
    return _ngram_f(given, wanted, 1), _lcs_f(given, wanted)


def rouge_all(prediction: str, gold: str) -> RougeScores:
    """Give all four F-measures of the official scorer; ROUGE-Lsum takes lines as sentences."""
    given, wanted = rouge_tokens(prediction), rouge_tokens(gold)
    return RougeScores(
        _ngram_f(given, wanted, 1), _ngram_f(given, wanted, 2), _lcs_f(given, wanted), _lcs_sum_f(prediction, gold)
    )


def rouge_tokens(text: str) -> list[str]:
    """Give the official scorer's tokens."""
    return _TOKEN.findall(text.lower())


def bootstrap_median(columns: Sequence[Sequence[float]], seed: int, draws_before: Sequence[int]) -> list[float]:
    """Give the median of 1,000 bootstrap means for each column of per-sample scores (all of one length n ≥ 1).

    One legacy numpy generator serves all columns in turn; `draws_before[i]` whole bootstraps are drawn and thrown away
    before column i, for the score types the official evaluator resamples and does not report. Bit-equal to numpy's
    mean over rows, which adds row after row.
    """
    generator = np.random.RandomState(seed)
    medians: list[float] = []
    for column, skipped in zip(columns, draws_before, strict=True):
        scores: Floats = np.asarray(column, dtype=np.float64)
        for _ in range(skipped):
            for _ in _resamples(generator, len(scores)):
                pass
        means = [_sum_in_order(scores[block]) / len(scores) for block in _resamples(generator, len(scores))]
        medians.append(float(np.percentile(np.concatenate(means), 50)))
    return medians


def _matched_ids(golds: Mapping[str, str], predictions: Mapping[str, str], order: Sequence[str] | None) -> list[str]:
    missing = [key for key in golds if key not in predictions]
    extra = [key for key in predictions if key not in golds]
    problems = [
        f"{len(keys)} {what} (for example {', '.join(repr(key) for key in keys[:3])})"
        for keys, what in ((missing, "golds have no prediction"), (extra, "predictions have no gold"))
        if keys
    ]
    if problems:
        raise CheckFailed(f"the ids of golds and predictions differ: {'; '.join(problems)}; they must be the same")
    if not golds:
        raise CheckFailed("there is nothing to score: no golds and no predictions")
    if order is None:
        return list(golds)
    if len(order) != len(golds) or set(order) != set(golds):
        raise InputError(f"order has {len(order)} ids; it must name each of the {len(golds)} gold ids once")
    return list(order)


def _labels(task: Task) -> tuple[str, ...]:
    if not task.labels:
        raise InputError(f"task {task.name} is a {task.kind} task without labels; its definition must list them")
    return task.labels


def _classification(
    labels: tuple[str, ...], right: list[str], given: list[str], counts: dict[str, int]
) -> dict[str, float]:
    places = {label: place for place, label in enumerate(labels)}
    wanted = np.array([places.get(text, -1) for text in right])
    found = np.array([places.get(text, -1) for text in given])
    counts["unknown_label"] = int(np.sum(found == -1)) - counts["empty"]
    counts["unknown_gold"] = int(np.sum(wanted == -1))
    size = len(labels)
    hits = np.bincount(wanted[(wanted == found) & (wanted >= 0)], minlength=size)
    support = np.bincount(wanted[wanted >= 0], minlength=size) + np.bincount(found[found >= 0], minlength=size)
    f1: Floats = np.divide(2.0 * hits, support, out=np.zeros(size), where=support > 0)
    return {"accuracy": float(np.mean(wanted == found)), "f1": float(np.mean(f1))}


def _rating(
    labels: tuple[str, ...], ids: list[str], right: list[str], given: list[str], mode: Mode, counts: dict[str, int]
) -> dict[str, float]:
    lowest, highest = _bounds(labels)
    wanted = [_gold_rating(text, f"gold of id {key!r}") for key, text in zip(ids, right, strict=True)]
    found: list[float] = []
    for key, text, gold in zip(ids, given, wanted, strict=True):
        value = _number(text)
        if value is None:
            counts["unparseable"] += bool(text)
            value = _worst(gold, lowest, highest)
        elif not _is_finite(value):
            counts["non_finite"] += 1
            if mode == "official":
                raise CheckFailed(
                    f"prediction {shorten(text)} of id {key!r} is not finite in float32: the official evaluator fails "
                    "on the whole file; mode exact counts it as the worst rating"
                )
            value = _worst(gold, lowest, highest)
        elif not lowest <= value <= highest:
            counts["out_of_range"] += 1
        found.append(value)
    if mode == "official":
        errors: Floats = _through_float32(wanted) - _through_float32(found)
        return {"MAE": float(np.mean(np.abs(errors))), "RMSE": float(np.sqrt(np.mean(errors**2)))}
    exact = [there - here for there, here in zip(wanted, found, strict=True)]
    mae = math.fsum(map(abs, exact)) / len(exact)
    return {"MAE": mae, "RMSE": math.sqrt(math.fsum(error * error for error in exact) / len(exact))}


def _through_float32(values: list[float]) -> Floats:
    return np.array(values, dtype=np.float32).astype(np.float64)


def _bounds(labels: tuple[str, ...]) -> tuple[float, float]:
    values = [float(label) for label in labels]
    return min(values), max(values)


def _gold_rating(text: str, what: str) -> float:
    value = _number(text)
    if value is None or not _is_finite(value):
        raise CheckFailed(f"{what} is {shorten(text)}; a rating must be a finite number")
    return value


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _is_finite(value: float) -> bool:
    """Whether it is finite as float32, which it becomes in the official evaluator."""
    return abs(value) < 3.4028235677973366e38  # halfway between the largest float32 and 2^128: rounds to infinity


def _worst(gold: float, lowest: float, highest: float) -> float:
    return lowest if abs(lowest - gold) > abs(highest - gold) else highest


def _generation(right: list[str], given: list[str], mode: Mode, seed: int, counts: dict[str, int]) -> dict[str, float]:
    pairs = [rouge(prediction, gold) for prediction, gold in zip(given, right, strict=True)]
    counts["no_rouge_tokens"] = sum(bool(text) and not _TOKEN.search(text.lower()) for text in given)
    rouge1, rouge_l = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    if mode == "official":
        if not 0 <= seed < 2**32:
            raise InputError(f"seed {seed} is not one numpy takes; it must lie in 0 … {2**32 - 1}")
        # order of the score types: rouge1, rouge2 (drawn, not reported), rougeL, rougeLsum (after the last we need)
        rouge_1, rouge_L = bootstrap_median((rouge1, rouge_l), seed, (0, 1))  # noqa: N806
        return {"rouge-1": rouge_1, "rouge-L": rouge_L}
    return {"rouge-1": math.fsum(rouge1) / len(pairs), "rouge-L": math.fsum(rouge_l) / len(pairs)}


def _resamples(generator: np.random.RandomState, n: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the 1,000 draws of n positions with replacement, in blocks of rows that keep memory small."""
    rows = max(1, min(_RESAMPLES, 4_000_000 // n))
    for start in range(0, _RESAMPLES, rows):
        yield generator.randint(0, n, size=(min(rows, _RESAMPLES - start), n), dtype=np.int64)


def _sum_in_order(rows: Floats) -> Floats:
    """Add each row from left to right, as numpy does over the first axis of the official score matrix."""
    return np.add.accumulate(rows, axis=1)[:, -1]


def _f_measure(overlap: int, given: int, wanted: int) -> float:
    precision, recall = overlap / max(given, 1), overlap / max(wanted, 1)
    return 2 * precision * recall / (precision + recall) if overlap else 0.0


def _ngram_f(given: list[str], wanted: list[str], n: int) -> float:
    found, there = _ngrams(given, n), _ngrams(wanted, n)
    overlap = sum(min(count, there[gram]) for gram, count in found.items() if gram in there)
    return _f_measure(overlap, len(given) - n + 1, len(wanted) - n + 1)


def _ngrams(tokens: list[str], n: int) -> Counter[Any]:
    return Counter(tokens) if n == 1 else Counter(zip(*(tokens[start:] for start in range(n)), strict=False))


def _lcs_f(given: list[str], wanted: list[str]) -> float:
    return _f_measure(_lcs_length(given, wanted), len(given), len(wanted))


def _lcs_length(first: list[str], second: list[str]) -> int:
    """Length of the longest common subsequence; one bit per token of `first` (Hyyrö 2004, bit-vector recurrence)."""
    masks: dict[str, int] = {}
    for place, token in enumerate(first):
        masks[token] = masks.get(token, 0) | 1 << place
    row = everything = (1 << len(first)) - 1
    for token in second:
        matches = row & masks.get(token, 0)
        row = ((row + matches) | (row - matches)) & everything
    return len(first) - row.bit_count()


def _lcs_sum_f(prediction: str, gold: str) -> float:
    """ROUGE-Lsum: for each gold line the union of its longest common subsequences with all prediction lines, each
    token counted at most as often as it occurs on either side."""
    given = [rouge_tokens(line) for line in prediction.split("\n") if line]
    wanted = [rouge_tokens(line) for line in gold.split("\n") if line]
    left_given = Counter(token for line in given for token in line)
    left_wanted = Counter(token for line in wanted for token in line)
    sizes = left_given.total(), left_wanted.total()
    hits = 0
    for line in wanted:
        places = sorted({place for other in given for place in _lcs_places(line, other)})
        for token in (line[place] for place in places):
            if left_given[token] > 0 and left_wanted[token] > 0:
                hits += 1
                left_given[token] -= 1
                left_wanted[token] -= 1
    return _f_measure(hits, *sizes)


def _lcs_places(line: list[str], other: list[str]) -> list[int]:
    """Places in `line` of one longest common subsequence: the one found by walking back from the ends, along `line`
    where leaving out its last token keeps more, else along `other`, as the official scorer does."""
    table = [[0] * (len(other) + 1) for _ in range(len(line) + 1)]
    for i, token in enumerate(line):
        for j, candidate in enumerate(other):
            table[i + 1][j + 1] = table[i][j] + 1 if token == candidate else max(table[i][j + 1], table[i + 1][j])
    places: list[int] = []
    i, j = len(line), len(other)
    while i and j:
        if line[i - 1] == other[j - 1]:
            places.append(i - 1)
            i, j = i - 1, j - 1
        elif table[i][j - 1] > table[i - 1][j]:
            j -= 1
        else:
            i -= 1
    return places
