"""What is in a corpus, counted: one query a file in `statistics/`, the answers as tables; what a kept trace took.

Guarantee: the same corpus gives the same numbers to the last digit (scores are summed as whole millionths). Price: one
pass over the files per query, in DuckDB's memory limit.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tagpr_data.corpus import SPLIT_ORDER, Corpus
from tagpr_data.errors import InputError
from tagpr_data.select import REASONS

QUERIES = Path(__file__).parent / "statistics"

Row = dict[str, Any]


@dataclass(frozen=True)
class Statistics:
    """The answers by query: each a list of rows, the columns named in the SQL file."""

    sizes: list[Row]
    lengths: list[Row]
    tags: list[Row]
    tasks: list[Row]
    attempts: list[Row]
    """Rows of `attempts.sql` with what `with_costs` adds."""
    reasons: list[Row]
    personal: list[Row]
    users: list[Row]
    pairs: list[Row]

    def as_json(self) -> str:
        """Give all answers as JSON."""
        return json.dumps(vars(self), indent=2, ensure_ascii=False) + "\n"


def statistics(corpus: Corpus) -> Statistics:
    """Count what is in a corpus. Raises InputError for rows that cannot be counted (a score that is no number, a
    damaged page)."""
    import duckdb

    connection = corpus.connect()
    try:
        answers = {path.stem: _rows(connection, path.read_text(encoding="utf-8")) for path in QUERIES.glob("*.sql")}
    except duckdb.Error as error:
        raise InputError(
            f"{corpus.folder} cannot be counted: {str(error).splitlines()[0]}; what is wrong is told by: "
            f"tagpr-data validate {corpus.folder}"
        ) from None
    finally:
        connection.close()
    kinds = ("traces", "rejected")
    answers["sizes"].sort(key=lambda row: (kinds.index(row["kind"]), SPLIT_ORDER.index(row["split"])))
    order = [*REASONS]
    answers["reasons"].sort(
        key=lambda row: (order.index(row["reason"]) if row["reason"] in REASONS else len(order), row["reason"])
    )
    answers["pairs"].sort(key=lambda row: SPLIT_ORDER.index(row["split"]))
    prices: Mapping[str, Sequence[float]] = corpus.manifest.parameters.get("prices", {})
    answers["attempts"] = [row | with_costs(row, prices) for row in answers["attempts"]]
    return Statistics(**answers)


def with_costs(row: Mapping[str, Any], prices: Mapping[str, Sequence[float]]) -> Row:
    """Give what rows of attempts took: `tokens_per_kept`, `cost`, `cost_per_kept`, each None where it is not known.

    `row` has teacher, attempts, kept, rows_with_token_counts, input_tokens and output_tokens; all its attempts count,
    the rejected ones too. `prices`: model → price of a million tokens read, and written.
    """
    kept = row["kept"]
    is_counted = row["rows_with_token_counts"] == row["attempts"]
    model = max((name for name in prices if _is_of_model(row["teacher"], name)), key=len, default=None)
    cost = None
    if is_counted and model is not None:
        read, written = prices[model]
        cost = (row["input_tokens"] * read + row["output_tokens"] * written) / 1e6
    return {
        "tokens_per_kept": (row["input_tokens"] + row["output_tokens"]) / kept if kept and is_counted else None,
        "cost": cost,
        "cost_per_kept": cost / kept if kept and cost is not None else None,
    }


def _is_of_model(teacher: str, model: str) -> bool:
    """Whether a teacher's name is a model's, with or without what it adds about hindsight."""
    return teacher == model or teacher.startswith(f"{model}-hindsight")


def _rows(connection: Any, query: str) -> list[Row]:
    result = connection.execute(query)
    names = [column[0] for column in result.description]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]
