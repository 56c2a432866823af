"""What changed between two corpora: rows by id and field, examples by answer, tags with a test, schema.

Guarantee: every row of either corpus is counted once as the same, changed, moved, added or removed. Rows are compared
in DuckDB, so memory does not grow with the corpora. A row's id is the hash of how it was made, so a new teacher
revision makes new rows; what became of the examples is therefore told apart.

The tag test: chi-square of tags by corpus, its p-value from 2,000 permutations of users. A user's traces are kept
together (they are alike), and rows that are the same in both corpora are left out (they differ in nothing): within a
user who has rows in both the sides are swapped, users on one side only are dealt anew.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tagpr_data.corpus import RECORDS, Corpus, Kind

PERMUTATIONS = 2_000
_SHOWN = 20


@dataclass(frozen=True)
class RowChanges:
    """What became of the rows of one kind of table, matched by id."""

    kind: str
    same: int
    added: int
    removed: int
    changed: int
    """Rows with the same id and another value in some field, or in another split."""
    fields: dict[str, int]
    """Changed rows by field; `split` where the row moved."""
    examples: dict[str, list[str]]
    """First ids that were added, removed and changed (the latter as `id: fields`)."""


@dataclass(frozen=True)
class TagShift:
    """Steps of one tag in both corpora."""

    tag: str
    before: int
    after: int
    share_before: float
    share_after: float


@dataclass(frozen=True)
class Difference:
    """All that differs from corpus A to corpus B."""

    names: tuple[str, str]
    hashes: tuple[str, str]
    schema: list[str]
    """Changes of manifest and columns, one line each."""
    rows: list[RowChanges]
    ledger: dict[str, int]
    """Attempts that were kept in A and are rejected in B, and the other way."""
    answers: dict[str, int]
    """Examples by what became of their answers: same, other, only in A, only in B."""
    tags: list[TagShift]
    chi_square: float
    cramers_v: float
    p_value: float | None
    """None where only one corpus has steps that the other lacks, or neither."""

    @property
    def is_same(self) -> bool:
        """Whether nothing differs."""
        is_moved = any(
            change.added or change.removed or change.changed for change in self.rows
        )  # pairs have no hash here
        return self.hashes[0] == self.hashes[1] and not self.schema and not is_moved

    def as_json(self) -> str:
        """Give it as JSON."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"


def compare(a: Corpus, b: Corpus, seed: int = 0) -> Difference:
    """Compare corpus A with corpus B; `seed` is that of the permutations."""
    connection = a.connect()
    try:
        for kind in RECORDS:
            b.add_view(connection, kind, f"{kind}_b")
        rows = [_rows(connection, kind) for kind in RECORDS]
        ledger = _ledger(connection)
        answers = _answers(connection)
        tags, statistic, v, p = _tags(connection, seed)
    finally:
        connection.close()
    return Difference(
        names=(a.manifest.name, b.manifest.name),
        hashes=(a.manifest.content_hash, b.manifest.content_hash),
        schema=_schema(a, b),
        rows=[change for change in rows if change.same + change.added + change.removed + change.changed],
        ledger=ledger,
        answers=answers,
        tags=tags,
        chi_square=statistic,
        cramers_v=v,
        p_value=p,
    )


def markdown(difference: Difference) -> str:
    """Give the difference as Markdown, as a release note."""
    a, b = difference.names
    parts = [f"## {a} → {b}", f"Content `{difference.hashes[0][:12]}` → `{difference.hashes[1][:12]}`."]
    if difference.is_same:
        return "\n\n".join([*parts, "Nothing differs."]) + "\n"
    if difference.schema:
        parts.append("### Schema and settings\n\n" + "\n".join(f"- {_plain(line)}" for line in difference.schema))
    lines = ["| table | same | added | removed | changed | fields |", "| --- | ---: | ---: | ---: | ---: | --- |"]
    for change in difference.rows:
        fields = ", ".join(f"`{name}` {count:,}" for name, count in change.fields.items())
        counts = (change.same, change.added, change.removed, change.changed)
        lines.append(f"| {change.kind} | " + " | ".join(f"{count:,}" for count in counts) + f" | {fields} |")
    parts.append("### Rows\n\n" + "\n".join(lines))
    moved = [f"{count:,} {what}" for what, count in difference.ledger.items() if count]
    answered = [f"{count:,} {what}" for what, count in difference.answers.items() if count]
    parts.append("Examples with a trace: " + ", ".join(answered or ["none"]) + ".")
    if moved:
        parts.append("Attempts: " + ", ".join(moved) + ".")
    if difference.tags:
        lines = [
            "| tag | steps before | steps after | share before | share after | |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
        ]
        for tag in difference.tags:
            shift = 100 * (tag.share_after - tag.share_before)
            lines.append(
                f"| `{_plain(tag.tag)}` | {tag.before:,} | {tag.after:,} | {100 * tag.share_before:.1f} % "
                f"| {100 * tag.share_after:.1f} % | {shift:+.1f} |"
            )
        parts.append("### Tags\n\n" + "\n".join(lines))
        if difference.p_value is None:
            parts.append("No test: not both corpora have steps that the other lacks.")
        else:
            parts.append(
                f"Of the rows that differ: χ² = {difference.chi_square:.2f}, Cramér's V = {difference.cramers_v:.3f}, "
                f"p = {difference.p_value:.4f} ({PERMUTATIONS:,} permutations of users)."
            )
    for change in difference.rows:
        for what, ids in change.examples.items():
            if ids:
                shown = ", ".join(f"`{_plain(row)}`" for row in ids[:5])
                parts.append(f"{change.kind}, {what}: {shown}" + (" …" if len(ids) > 5 else ""))
    return "\n\n".join(parts) + "\n"


def permutation_test(
    before: "np.ndarray[Any, Any]", after: "np.ndarray[Any, Any]", seed: int = 0, permutations: int = PERMUTATIONS
) -> tuple[float, float, float | None]:
    """Give (chi-square, Cramér's V, p) of tag counts by user, both (U, T) int64: rows are users, columns tags.

    p is the share of permutations of users whose chi-square is at least as large, the observed one counted in; None
    where one side is empty.
    """
    total = before.sum(), after.sum()
    if not min(total):
        return 0.0, 0.0, None
    observed = _chi_square(before.sum(axis=0), after.sum(axis=0))
    in_both = (before.sum(axis=1) > 0) & (after.sum(axis=1) > 0)
    generator = np.random.default_rng(seed)
    alone = np.flatnonzero(~in_both)
    is_after = after[alone].sum(axis=1) > 0
    larger = 1
    for _ in range(permutations):
        swap = np.zeros(len(before), dtype=bool)
        swap[in_both] = generator.random(int(in_both.sum())) < 0.5
        swap[alone] = generator.permutation(is_after) != is_after
        one = np.where(swap[:, None], after, before).sum(axis=0)
        other = np.where(swap[:, None], before, after).sum(axis=0)
        larger += _chi_square(one, other) >= observed * (1 - 1e-12)
    degrees = min(2, int(((before + after).sum(axis=0) > 0).sum())) - 1
    v = float(np.sqrt(observed / (sum(total) * degrees))) if degrees else 0.0
    return float(observed), v, larger / (permutations + 1)


def _chi_square(one: "np.ndarray[Any, Any]", other: "np.ndarray[Any, Any]") -> float:
    """Pearson's chi-square of two rows of counts (T,); 0 where a row is empty."""
    table = np.stack([one, other]).astype(float)
    table = table[:, table.sum(axis=0) > 0]
    rows = table.sum(axis=1, keepdims=True)
    if not rows.all():
        return 0.0
    expected = rows * table.sum(axis=0, keepdims=True) / table.sum()
    return float(((table - expected) ** 2 / expected).sum())


def _rows(connection: Any, kind: Kind) -> RowChanges:
    key = ["profile_id", "position"] if kind == "profiles" else ["id"]
    columns = [*RECORDS[kind].model_fields]
    columns += [] if "split" in columns else ["split"]
    differs = ", ".join(f'CASE WHEN a."{name}" IS DISTINCT FROM b."{name}" THEN \'{name}\' END' for name in columns)
    on = " AND ".join(f'a."{name}" = b."{name}"' for name in key)
    shown = " || '/' || ".join(f'coalesce(a."{name}", b."{name}")::VARCHAR' for name in key)
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE changes AS
        SELECT {shown} AS id, a."{key[0]}" IS NULL AS is_new, b."{key[0]}" IS NULL AS is_gone,
               list_filter([{differs}], lambda name: name IS NOT NULL) AS fields
        FROM {kind} AS a FULL JOIN {kind}_b AS b ON {on}"""
    )
    counted = connection.execute(
        """SELECT count(*) FILTER (NOT is_new AND NOT is_gone AND len(fields) = 0), count(*) FILTER (is_new),
                  count(*) FILTER (is_gone), count(*) FILTER (NOT is_new AND NOT is_gone AND len(fields) > 0)
           FROM changes"""
    ).fetchone()
    is_changed = "NOT is_new AND NOT is_gone AND len(fields) > 0"
    fields = connection.execute(
        f"""SELECT field, count(*) FROM (SELECT unnest(fields) AS field FROM changes WHERE {is_changed})
            GROUP BY field ORDER BY field"""
    ).fetchall()
    examples: dict[str, list[str]] = {}
    for what, condition, text in (
        ("added", "is_new", "id"),
        ("removed", "is_gone", "id"),
        ("changed", is_changed, "id || ': ' || array_to_string(fields, ', ')"),
    ):
        found = connection.execute(
            f"SELECT {text} FROM changes WHERE {condition} ORDER BY id LIMIT {_SHOWN}"
        ).fetchall()
        examples[what] = [row[0] for row in found]
    same, added, removed, changed = counted
    return RowChanges(kind, same, added, removed, changed, dict(fields), examples)


def _ledger(connection: Any) -> dict[str, int]:
    """Attempts whose fate changed: they are removed from one table and added to the other."""
    lost, found = connection.execute(
        """SELECT (SELECT count(*) FROM traces JOIN rejected_b USING (id)),
                  (SELECT count(*) FROM rejected JOIN traces_b USING (id))"""
    ).fetchone()
    return {"kept before, rejected now": lost, "rejected before, kept now": found}


def _answers(connection: Any) -> dict[str, int]:
    answers = "SELECT example_id, list_sort(list_distinct(list(answer))) AS answers FROM {} GROUP BY example_id"
    row = connection.execute(
        f"""SELECT count(*) FILTER (a.answers = b.answers), count(*) FILTER (a.answers <> b.answers),
                   count(*) FILTER (b.answers IS NULL), count(*) FILTER (a.answers IS NULL)
            FROM ({answers.format("traces")}) AS a FULL JOIN ({answers.format("traces_b")}) AS b USING (example_id)"""
    ).fetchone()
    names = ("with the same answers", "with other answers", "no longer there", "new")
    return dict(zip(names, row, strict=True))


def _tags(connection: Any, seed: int) -> tuple[list[TagShift], float, float, float | None]:
    steps = "SELECT id, user_id, unnest(steps).tag AS tag FROM {}"
    shares = connection.execute(
        f"""SELECT tag, sum(before)::BIGINT, sum(after)::BIGINT
            FROM (SELECT tag, 1 AS before, 0 AS after FROM ({steps.format("traces")})
                  UNION ALL SELECT tag, 0, 1 FROM ({steps.format("traces_b")}))
            GROUP BY tag ORDER BY sum(before) + sum(after) DESC, tag"""
    ).fetchall()
    totals = sum(row[1] for row in shares), sum(row[2] for row in shares)
    shifts = [
        TagShift(tag, before, after, before / totals[0] if totals[0] else 0.0, after / totals[1] if totals[1] else 0.0)
        for tag, before, after in shares
    ]
    same = "SELECT a.id FROM traces AS a JOIN traces_b AS b ON a.id = b.id AND a.steps = b.steps"
    counts = connection.execute(
        f"""SELECT user_id, tag, sum(before)::BIGINT, sum(after)::BIGINT
            FROM (SELECT *, 1 AS before, 0 AS after FROM ({steps.format("traces")})
                  UNION ALL SELECT *, 0, 1 FROM ({steps.format("traces_b")}))
            WHERE id NOT IN ({same}) GROUP BY ALL ORDER BY ALL"""
    ).fetchall()
    before, after = _by_user(counts, [shift.tag for shift in shifts])
    return shifts, *permutation_test(before, after, seed)


def _by_user(counts: Sequence[tuple[str, str, int, int]], tags: list[str]) -> tuple[Any, Any]:
    users = {user: place for place, user in enumerate(sorted({row[0] for row in counts}))}
    tables = np.zeros((2, len(users), len(tags)), dtype=np.int64)
    for user, tag, before, after in counts:
        tables[:, users[user], tags.index(tag)] = before, after
    return tables[0], tables[1]


def _schema(a: Corpus, b: Corpus) -> list[str]:
    import pyarrow.parquet as pq

    one, other = a.manifest.model_dump(mode="json"), b.manifest.model_dump(mode="json")
    follows_from_rows = {
        "files",
        "content_hash",
        "candidates",
        "kept",
        "rejected",
        "acceptance",
        "claims",
        "grounded_claims",
    }
    lines = [
        f"{name}: {_short(before)} → {_short(after)}"
        for name in one
        if name not in follows_from_rows
        for name, before, after in _flat(name, one[name], other[name])
    ]
    for kind in RECORDS:
        columns = [
            {field.name: str(field.type) for field in pq.read_schema(corpus.folder / corpus.of(kind)[0].path)}
            if corpus.of(kind)
            else {}
            for corpus in (a, b)
        ]
        if columns[0] and columns[1]:
            for name in sorted(set(columns[0].items()) ^ set(columns[1].items())):
                where = "only before" if name[1] == columns[0].get(name[0]) else "only after"
                lines.append(f"{kind}.{name[0]} ({name[1]}): {where}")
        elif columns[0] or columns[1]:
            lines.append(f"{kind}: table {'removed' if columns[0] else 'added'}")
    return lines


def _flat(name: str, before: Any, after: Any) -> list[tuple[str, Any, Any]]:
    """Give (dotted name, before, after) for each value that differs; sections are gone into."""
    if before == after:
        return []
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            row for key in sorted({*before, *after}) for row in _flat(f"{name}.{key}", before.get(key), after.get(key))
        ]
    return [(name, before, after)]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _plain(text: str) -> str:
    return " ".join(text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;").replace("`", "'").split())
