"""The same answers under the ROUGE dialects that papers on LaMP report, and whether they crown the same winner.

official       LaMP's evaluator: no stemming, the median of 1,000 bootstrap means (seed and order are arguments here).
mean           the same scores, averaged plainly; what most readers believe `official` to be.
stemmed        Porter-stemmed tokens, averaged.
character-segmented set-based
               lower case; a word of a-z and 0-9, and every other visible character, is one token; *distinct* tokens
               are compared, so repetition costs nothing; ROUGE-L counts the distinct tokens of one longest common
               subsequence. This follows the family of scorers made for Chinese that some papers use; the tokens are
               ours (no dictionary), so it shows the direction, not those papers' last digit.

Guarantee: systems are compared on the examples all of them answered. Price: one pass per distinct (answer, gold).
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from tagpr_data.errors import InputError
from tagpr_data.lamp.metrics import bootstrap_median, rouge, rouge_tokens

METRICS = ("rouge-1", "rouge-L")
DIALECTS = ("official", "mean", "stemmed", "character-segmented set-based")
MEANINGS = {
    "official": "no stemming, median of 1,000 bootstrap means",
    "mean": "no stemming, plain mean",
    "stemmed": "Porter stemmer, plain mean",
    "character-segmented set-based": "distinct tokens, other scripts by character, plain mean",
}
_CHARACTER_SET_TOKEN = re.compile(r"[a-z0-9]+(?:\.[0-9]+)?%?|[^\sa-z0-9]")


@dataclass(frozen=True)
class DialectReport:
    """Scores of several systems under every dialect."""

    systems: tuple[str, ...]
    """Names, in the given order."""
    scores: Mapping[tuple[str, str], tuple[float, ...]]
    """(dialect, metric) → one score a system, in [0, 1]."""
    n: int
    """Examples that all systems answered."""

    def winner(self, dialect: str, metric: str) -> str:
        """Give the best system; the first of equals."""
        scores = self.scores[dialect, metric]
        return self.systems[scores.index(max(scores))]

    def has_flip(self, metric: str) -> bool:
        """Whether no system is best, or one of equals, in every dialect."""
        columns = [self.scores[dialect, metric] for dialect in DIALECTS]
        return not any(
            all(math.isclose(column[place], max(column)) for column in columns) for place in range(len(self.systems))
        )


def compare_dialects(
    systems: Mapping[str, Mapping[str, str]], golds: Mapping[str, str], seed: int = 0
) -> DialectReport:
    """Score systems (name → example id → answer) in every dialect. Raises InputError without a common example."""
    common = [key for key in sorted(golds) if all(key in answers for answers in systems.values())]
    if not common or not systems:
        raise InputError(f"the {len(systems)} systems share no example with a gold answer; dialects need one")
    scores: dict[tuple[str, str], list[float]] = {(dialect, name): [] for dialect in DIALECTS for name in METRICS}
    for answers in systems.values():
        pairs = [(answers[key].strip(), golds[key].strip()) for key in common]
        plain = _columns(rouge, pairs)
        # official order: rouge1, rouge2 (drawn, not reported), rougeL
        columns = {
            "official": bootstrap_median(plain, seed, (0, 1)),
            "mean": _means(plain),
            "stemmed": _means(_columns(stemmed_rouge, pairs)),
            "character-segmented set-based": _means(_columns(character_set_rouge, pairs)),
        }
        for dialect, values in columns.items():
            for name, value in zip(METRICS, values, strict=True):
                scores[dialect, name].append(value)
    return DialectReport(tuple(systems), {key: tuple(values) for key, values in scores.items()}, len(common))


def stemmed_rouge(prediction: str, gold: str) -> tuple[float, float]:
    """Give ROUGE-1 and ROUGE-L F of Porter-stemmed tokens (tokens of up to three characters stay as they are)."""
    return rouge(_stemmed(prediction), _stemmed(gold))


def character_set_rouge(prediction: str, gold: str) -> tuple[float, float]:
    """Give ROUGE-1 and ROUGE-L F over distinct tokens; see the module for what a token is."""
    given, wanted = (_CHARACTER_SET_TOKEN.findall(text.lower()) for text in (prediction, gold))
    sizes = len(set(given)), len(set(wanted))
    return _f(len(set(given) & set(wanted)), *sizes), _f(len(set(_subsequence(given, wanted))), *sizes)


def _columns(
    scorer: Callable[[str, str], tuple[float, float]], pairs: Sequence[tuple[str, str]]
) -> tuple[list[float], list[float]]:
    known = {pair: scorer(*pair) for pair in set(pairs)}
    return [known[pair][0] for pair in pairs], [known[pair][1] for pair in pairs]


def _means(columns: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) / len(column) for column in columns]


def _stemmed(text: str) -> str:
    return " ".join(_stem(token) if len(token) > 3 else token for token in rouge_tokens(text))


@lru_cache(maxsize=200_000)
def _stem(token: str) -> str:
    return _stemmer().stem(token)


@lru_cache(maxsize=1)
def _stemmer():  # noqa: ANN202 - nltk has no types
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer()


def _f(overlap: int, given: int, wanted: int) -> float:
    return 2 * overlap / (given + wanted) if overlap else 0.0


def _subsequence(first: list[str], second: list[str]) -> list[str]:
    """Give one longest common subsequence, in time and memory |first| · |second|."""
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, token in enumerate(first):
        for j, other in enumerate(second):
            table[i + 1][j + 1] = table[i][j] + 1 if token == other else max(table[i][j + 1], table[i + 1][j])
    found: list[str] = []
    i, j = len(first), len(second)
    while i and j:
        if first[i - 1] == second[j - 1]:
            found.append(first[i - 1])
            i, j = i - 1, j - 1
        elif table[i][j - 1] > table[i - 1][j]:
            j -= 1
        else:
            i -= 1
    return found
