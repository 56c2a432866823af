"""What is in a corpus, counted: one query a file in `statistics/`, the answers as tables.

Guarantee: the same corpus gives the same numbers to the last digit (scores are summed as whole millionths). Price: one
pass over the files per query, in DuckDB's memory limit.
"""

import json
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
    return Statistics(**answers)


def _rows(connection: Any, query: str) -> list[Row]:
    result = connection.execute(query)
    names = [column[0] for column in result.description]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]
