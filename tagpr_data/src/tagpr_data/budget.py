"""What generation costs: prices, limits, what was used, and a forecast of the whole from a part of it.

Guarantee: limits count all answers a folder holds, those of earlier calls too, so a restarted command never spends
its budget twice. Samples never pass their limit; tokens and money may pass it by as much as the last answers on their
way cost more than the mean before them. Where a server counts no tokens, four characters count as one (ours).
"""

import math
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist

from tagpr_data.errors import InputError
from tagpr_data.records import Attempt

Price = tuple[float, float]
"""Price of a million tokens read, and of a million written."""

FREE: Price = (0.0, 0.0)
_CHARACTERS_PER_TOKEN = 4


def read_prices(path: Path | None, max_cost: float | None) -> dict[str, Price]:
    """Read model name → prices of a million tokens read and written; needed where the cost is limited."""
    if path is None:
        if max_cost is not None:
            raise InputError("--max-cost needs --prices: a TOML file with [MODEL] input = …, output = …")
        return {}
    if not path.is_file():
        raise InputError(f"price file {path} does not exist")
    try:
        sections = tomllib.loads(path.read_text(encoding="utf-8"))
        prices = {name: (float(row["input"]), float(row["output"])) for name, row in sections.items()}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"price file {path}: {error!r}; each [MODEL] has the numbers input and output") from None
    for name, price in prices.items():
        if not all(math.isfinite(value) and value >= 0 for value in price):
            raise InputError(f"price file {path}: [{name}] has the prices {price}; expected numbers from 0")
    return prices


@dataclass(frozen=True)
class Limits:
    """When generation stops; None is no limit. All answers that the folder holds count."""

    max_samples: int | None = None
    """Most answers."""
    max_tokens: int | None = None
    """Most tokens, read and written."""
    max_cost: float | None = None
    """Most money, in the unit of the prices."""


NO_LIMITS = Limits()


@dataclass
class Usage:
    """What some answers used."""

    answers: int = 0
    accepted: int = 0
    """Answers that pass the rules that look at one answer alone."""
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    uncounted: int = 0
    """Answers whose tokens were estimated, as the server counted none."""

    @property
    def tokens(self) -> int:
        """Tokens read and written."""
        return self.input_tokens + self.output_tokens

    def add(self, row: Attempt, price: Price) -> None:
        """Count one answer."""
        read, written, is_counted = tokens_of(row)
        self.answers += 1
        self.input_tokens += read
        self.output_tokens += written
        self.cost += cost_of(read, written, price)
        self.uncounted += not is_counted


def tokens_of(row: Attempt) -> tuple[int, int, bool]:
    """Give tokens read, tokens written, and whether the teacher counted them; a row that is marked as free of tokens
    (both counts 0) is counted."""
    read = row.input_tokens
    written = row.output_tokens
    if read is not None and written is not None:
        return read, written, True
    asked = sum(len(message.content) for message in row.messages)
    read = asked // _CHARACTERS_PER_TOKEN if read is None else read
    return read, len(row.text) // _CHARACTERS_PER_TOKEN if written is None else written, False


def cost_of(input_tokens: float, output_tokens: float, price: Price) -> float:
    """Give the price of so many tokens."""
    return (input_tokens * price[0] + output_tokens * price[1]) / 1e6


class Purse:
    """What was spent and what answers on their way will cost, held against the limits."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.spent = Usage()
        self._held: Counter[Price] = Counter()
        self._by_price: dict[Price, Usage] = {}

    def pay(self, row: Attempt, price: Price) -> None:
        """Count an answer that arrived."""
        self.spent.add(row, price)
        self._by_price.setdefault(price, Usage()).add(row, price)

    def hold(self, price: Price, most: Usage) -> bool:
        """Set aside what one more answer is expected to cost; False when a limit does not allow it. `most` is what
        the first answer may use, before there is a mean."""
        limits = self.limits
        if limits == NO_LIMITS:
            self._held[price] += 1
            return True
        expected = self._expected(price, most)
        under_way = [(count, self._expected(held, most)) for held, count in self._held.items()]
        samples = self.spent.answers + sum(self._held.values()) + 1
        tokens = self.spent.tokens + expected.tokens + sum(count * usage.tokens for count, usage in under_way)
        cost = self.spent.cost + expected.cost + sum(count * usage.cost for count, usage in under_way)
        is_over = (
            (limits.max_samples is not None and samples > limits.max_samples)
            or (limits.max_tokens is not None and tokens > limits.max_tokens)
            or (limits.max_cost is not None and cost > limits.max_cost + 1e-12)
        )
        if is_over:
            return False
        self._held[price] += 1
        return True

    def release(self, price: Price) -> None:
        """Give back what was set aside for one answer: it arrived and is paid, or it failed."""
        self._held[price] -= 1

    def _expected(self, price: Price, most: Usage) -> Usage:
        known = self._by_price.get(price)
        if known is None:
            return most
        count = known.answers
        return Usage(1, 0, round(known.input_tokens / count), round(known.output_tokens / count), known.cost / count)


@dataclass(frozen=True)
class Interval:
    """An expected total and the bounds it lies between with 95 % probability."""

    expected: float
    low: float
    high: float


@dataclass(frozen=True)
class Forecast:
    """What a whole generation will use, the pilot and earlier answers included."""

    prompts: int
    """Prompts of the pilot."""
    answers: Interval
    tokens: Interval
    cost: Interval
    hours: Interval | None
    """Time still to come; None when the pilot was answered by an earlier call."""
    acceptance: float
    """Share of the pilot's answers that pass the rules."""


@dataclass
class Pilot:
    """What the prompts of a pilot used, one entry a prompt and teacher."""

    by_prompt: dict[tuple[int, int], Usage] = field(default_factory=dict)
    """(teacher, row of the prompt) → used."""
    seconds: dict[int, list[float]] = field(default_factory=dict)
    """Teacher → seconds each answer of this call took."""
    wall_seconds: dict[int, float] = field(default_factory=dict)
    """Teacher → seconds its part of the pilot took."""


def forecast(pilot: Pilot, prompts: int, remaining: Mapping[int, int], is_one_after_another: bool) -> Forecast:
    """Give the forecast for `prompts` prompts; `remaining`: teacher → answers of the pilot's prompts that would be
    asked of a whole run if every prompt used as many, less those that are there.

    Intervals are Student's t over prompts, with the correction for a finite population; that of the time comes from
    the spread of single answers, at the pilot's concurrency.
    """
    rows = sorted({row for _, row in pilot.by_prompt})
    of_row: dict[int, list[Usage]] = {row: [] for row in rows}
    for (_, row), usage in pilot.by_prompt.items():
        of_row[row].append(usage)
    per_prompt = list(of_row.values())
    answered = sum(usage.answers for usages in per_prompt for usage in usages)
    accepted = sum(usage.accepted for usages in per_prompt for usage in usages)
    times = [time for teacher in pilot.seconds if (time := _hours(pilot, teacher, remaining.get(teacher, 0)))]
    hours = None
    if times:
        join = sum if is_one_after_another else max
        hours = Interval(*(join(getattr(time, name) for time in times) for name in ("expected", "low", "high")))
    return Forecast(
        prompts=len(rows),
        answers=total_from_sample([sum(usage.answers for usage in usages) for usages in per_prompt], prompts),
        tokens=total_from_sample([sum(usage.tokens for usage in usages) for usages in per_prompt], prompts),
        cost=total_from_sample([sum(usage.cost for usage in usages) for usages in per_prompt], prompts),
        hours=hours,
        acceptance=accepted / answered if answered else 0.0,
    )


def total_from_sample(values: Sequence[float], population: int) -> Interval:
    """Give the total over `population` values of which `values` are a random part."""
    count = len(values)
    if not count:
        return Interval(0.0, 0.0, math.inf)
    mean = sum(values) / count
    half = _half_width(values) * math.sqrt(max(0.0, 1 - count / population)) if count < population else 0.0
    return Interval(mean * population, max(sum(values), (mean - half) * population), (mean + half) * population)


def _hours(pilot: Pilot, teacher: int, remaining: int) -> Interval | None:
    seconds = pilot.seconds[teacher]
    if not seconds:
        return None
    mean = sum(seconds) / len(seconds)
    share = _half_width(seconds) / mean if mean > 0 else 0.0
    hours = remaining * pilot.wall_seconds[teacher] / len(seconds) / 3600
    return Interval(hours, hours * max(0.0, 1 - share), hours * (1 + share))


def _half_width(values: Sequence[float]) -> float:
    """Half of the 95 % interval of a mean; infinite for a single value."""
    count = len(values)
    if count < 2:
        return math.inf
    mean = sum(values) / count
    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    return _t_quantile(count - 1) * math.sqrt(variance / count)


def _t_quantile(degrees: int) -> float:
    """The 97.5 % quantile of Student's t by Cornish and Fisher's expansion: within 0.1 % from 5 degrees on."""
    z = NormalDist().inv_cdf(0.975)
    return (
        z
        + (z**3 + z) / (4 * degrees)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
    )
