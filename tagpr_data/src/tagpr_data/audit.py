"""Does a data set give answers away, or test on what it trains on? One row for each question, split and task.

Guarantee: the same data set gives the same audit; nothing is sampled. Words are compared without case, punctuation and
white space; of a LaMP question only what its frame encloses. Near-duplicates of questions are found by MinHash and so
may be missed (`near_duplicates.py` says how rarely); all else is exact. Price: one pass over examples and profiles, the
profiles in memory as columns, and 256 bytes for each example.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from math import log
from typing import TYPE_CHECKING, Literal, cast, get_args

from tagpr_data.contamination import question_text
from tagpr_data.dataset import Dataset, late_examples
from tagpr_data.errors import CheckFailed, InputError
from tagpr_data.near_duplicates import LEAST_THRESHOLD, MOST_LEADERS, signatures, similarity
from tagpr_data.records import Audit, AuditCheck, AuditRow, Example, Split
from tagpr_data.tables import read_table
from tagpr_data.words import words_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import polars as pl

QUESTIONS: dict[AuditCheck, str] = {
    "gold-in-profile": "the gold answer stands word for word in an item of the own profile (text tasks, from 4 words)",
    "near-gold-in-profile": "a title or short text of the own profile has nearly the words of the gold answer",
    "near-duplicate-across-splits": "a question of another split has nearly the same words (from 5 words)",
    "user-in-several-splits": "the user has examples in another split; by design in a split by time",
    "item-after-query": "an item of the own profile is dated after the question",
    "duplicate-items": "two items of the profile have the same title, text and label",
    "empty-profile": "the profile is empty",
    "label-skew": "share of the commonest label: what a constant answer scores",
}
CHECKS: tuple[AuditCheck, ...] = get_args(AuditCheck)
LEAST_GOLD_WORDS = 4
LEAST_QUESTION_WORDS = 5
_SHOWN = 10
_CHUNK = 5_000


def audit(dataset: Dataset, near: float = 0.9, near_gold: float = 0.8) -> Audit:
    """Audit a data set. near: similarity from which two questions are near-duplicates (Jaccard over 3-word runs, at
    least 0.8); near_gold: share of common words (Jaccard) from which a text of the profile is near the gold."""
    import polars as pl

    if not LEAST_THRESHOLD <= near <= 1:
        raise InputError(f"near is {near}; expected {LEAST_THRESHOLD} to 1, below which pairs would be missed")
    if not 0 < near_gold <= 1:
        raise InputError(f"near_gold is {near_gold}; expected above 0, at most 1")
    examples = pl.concat(
        read_table(dataset.folder / f"examples/{split}.parquet", Example).with_columns(split=pl.lit(split))
        for split in dataset.splits
    )
    rows: list[AuditRow] = []
    cells = [
        (split, task.name) for split in dataset.splits for task in dataset.manifest.tasks
        if not examples.filter((pl.col("split") == split) & (pl.col("task") == task.name)).is_empty()
    ]  # fmt: skip
    texts = {task.name for task in dataset.manifest.tasks if task.labels is None}
    golds = _golds_in_profiles(dataset, examples.filter(pl.col("task").is_in(list(texts))), near_gold)
    repeated = _repeated_questions(examples, near)
    late = set(late_examples(examples, dataset.profiles)["id"])
    doubled = _doubled_items(dataset)
    splits_of = dict(examples.group_by("user_id").agg(pl.col("split").unique().sort()).iter_rows())
    for check in CHECKS:
        for split, task in cells:
            cell = examples.filter((pl.col("split") == split) & (pl.col("task") == task)).sort("id")
            ids: list[str] = cell["id"].to_list()
            if check in ("gold-in-profile", "near-gold-in-profile"):
                if task in texts:
                    asked = cell.filter(pl.col("output").is_not_null())["id"].to_list()
                    rows.append(_row(check, split, task, asked, golds[check]))
            elif check == "near-duplicate-across-splits":
                rows.append(_row(check, split, task, ids, repeated))
            elif check == "user-in-several-splits":
                users = cell["user_id"].unique().sort().to_list()
                others = {
                    user: f"also in {', '.join(other for other in splits_of[user] if other != split)}"
                    for user in users
                    if len(splits_of[user]) > 1
                }
                rows.append(_row(check, split, task, users, others))
            elif check == "item-after-query":
                dated = cell.filter(pl.col("date").is_not_null())["id"].to_list()
                rows.append(_row(check, split, task, dated, dict.fromkeys(late, "an item is dated later")))
            elif check == "duplicate-items":
                rows.append(_row(check, split, task, _profiles(cell), doubled))
            elif check == "empty-profile":
                empty = cell.filter(pl.col("profile_size") == 0)["id"].to_list()
                rows.append(_row(check, split, task, ids, dict.fromkeys(empty, "no item")))
            elif task not in texts:
                rows.append(_skew(split, task, cell["output"].drop_nulls().to_list()))
    return Audit(
        dataset=dataset.manifest.name,
        dataset_hash=dataset.manifest.content_hash,
        examples={split: examples.filter(pl.col("split") == split).height for split in dataset.splits},
        parameters={
            "near": near, "near_gold": near_gold, "least_gold_words": LEAST_GOLD_WORDS,
            "least_question_words": LEAST_QUESTION_WORDS,
        },
        rows=tuple(rows),
    )  # fmt: skip


def limits_from(texts: Sequence[str]) -> dict[AuditCheck, float]:
    """Read limits as `CHECK` (nothing may be found) or `CHECK=SHARE`. Raises InputError."""
    limits: dict[AuditCheck, float] = {}
    for text in texts:
        name, has_share, share = text.partition("=")
        if name not in CHECKS:
            raise InputError(f"--fail-on {text!r}: {name!r} is no check; known: {', '.join(CHECKS)}")
        try:
            limit = float(share) if has_share else 0.0
        except ValueError:
            limit = -1.0
        if not 0 <= limit <= 1:
            raise InputError(f"--fail-on {text!r}: {share!r} is no share; expected 0 to 1, as in {name}=0.05")
        limits[name] = limit
    return limits


def raise_for(found: Audit, limits: dict[AuditCheck, float]) -> None:
    """Raise CheckFailed that names the rows whose share is above the limit of their check."""
    over = [row for row in found.rows if row.check in limits and row.share > limits[row.check]]
    if over:
        lines = [
            f"{row.check}, {row.split}, {row.task}: {row.found} of {row.rows} ({row.share:.1%}, at most "
            f"{limits[row.check]:.1%}); {row.detail}"
            for row in over
        ]
        raise CheckFailed("\n  ".join([f"{found.dataset}: {len(over)} findings above their limit", *lines]))


def _row(check: AuditCheck, split: str, task: str, looked_at: Sequence[str], findings: dict[str, str]) -> AuditRow:
    found = [id_ for id_ in looked_at if id_ in findings]
    return AuditRow(
        check=check,
        split=cast(Split, split),
        task=task,
        found=len(found),
        rows=len(looked_at),
        share=len(found) / len(looked_at) if looked_at else 0.0,
        ids=tuple(found[:_SHOWN]),
        detail=f"{found[0]}: {findings[found[0]]}" if found else "",
    )


def _skew(split: str, task: str, labels: Sequence[str]) -> AuditRow:
    counts = Counter(labels)
    label, most = min(counts.items(), key=lambda entry: (-entry[1], entry[0])) if counts else ("", 0)
    total = len(labels)
    entropy = -sum(count / total * log(count / total) for count in counts.values())
    even = f"evenness {entropy / log(len(counts)):.2f} (1 is even)" if len(counts) > 1 else "no other label"
    return AuditRow(
        check="label-skew",
        split=cast(Split, split),
        task=task,
        found=most,
        rows=total,
        share=most / total if total else 0.0,
        ids=(),
        detail=f"{label!r} is the commonest of {len(counts)} labels; {even}" if counts else "",
    )


def _golds_in_profiles(
    dataset: Dataset, examples: "pl.DataFrame", near: float
) -> dict[Literal["gold-in-profile", "near-gold-in-profile"], dict[str, str]]:
    """Give (example id → where) of golds that stand in the example's own profile, and of those that nearly do."""
    exact: dict[str, str] = {}
    nearly: dict[str, str] = {}
    columns = ("id", "profile_id", "profile_size", "output")
    asked: dict[str, list[tuple[str, int, str]]] = {}
    for id_, profile_id, size, gold in examples.select(columns).iter_rows():
        if gold is not None and len(words_of(gold)) >= LEAST_GOLD_WORDS:
            asked.setdefault(profile_id, []).append((id_, size, gold))
    for profile_id, items in _items_of(dataset, asked):
        texts = [[f" {' '.join(words_of(part))} " for part in (title, text) if part] for _, title, text in items]
        sets = [[frozenset(part.split()) for part in parts] for parts in texts]
        for id_, size, gold in asked[profile_id]:
            words = words_of(gold)
            whole, wanted = f" {' '.join(words)} ", frozenset(words)
            for place in range(min(size, len(items))):
                if any(whole in part for part in texts[place]):
                    exact[id_] = f"item {items[place][0]} holds the gold {gold[:80]!r}"
                    break
                if id_ not in nearly and any(
                    _jaccard(wanted, part) >= near for part in sets[place] if len(part) <= 2 * len(wanted)
                ):
                    nearly[id_] = f"item {items[place][0]} is near the gold {gold[:80]!r}"
    return {
        "gold-in-profile": exact,
        "near-gold-in-profile": {id_: detail for id_, detail in nearly.items() if id_ not in exact},
    }


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    common = len(one & other)
    return common / (len(one) + len(other) - common) if common else 0.0


def _items_of(dataset: Dataset, wanted: Iterable[str]) -> Iterator[tuple[str, list[tuple[str, str | None, str]]]]:
    """Give (profile id, its items in order as id, title, text) of the wanted profiles."""
    import polars as pl

    for profile in dataset.profiles.filter(pl.col("profile_id").is_in(list(wanted))).partition_by(
        "profile_id", maintain_order=True
    ):
        yield profile["profile_id"][0], list(profile.select("item_id", "title", "text").iter_rows())


def _repeated_questions(examples: "pl.DataFrame", near: float) -> dict[str, str]:
    """Give (example id → which example of another split its question is like)."""
    import numpy as np

    if examples["split"].n_unique() < 2:
        return {}
    ids: list[str] = []
    splits: list[str] = []
    signature_parts: list[npt.NDArray[np.uint8]] = []
    band_parts: list[npt.NDArray[np.uint64]] = []
    for chunk in examples.select("id", "split", "task", "input").sort("id").iter_slices(_CHUNK):
        texts: list[str] = []
        for id_, split, task, question in chunk.iter_rows():
            text = question_text(task, question)
            if len(words_of(text)) >= LEAST_QUESTION_WORDS:
                ids.append(id_)
                splits.append(split)
                texts.append(text)
        one, bands = signatures(texts)
        signature_parts.append(one)
        band_parts.append(bands)
    signature, bands = np.concatenate(signature_parts), np.concatenate(band_parts)
    split_of = np.array([sorted(set(splits)).index(split) for split in splits])
    best: dict[int, tuple[float, int]] = {}
    for band in range(bands.shape[1]):
        for members in _groups(bands[:, band]):
            if len(set(split_of[members].tolist())) > 1:
                _note_pairs(members[:MOST_LEADERS], signature, split_of, near, best)
    return {ids[one]: f"is like {ids[other]} of {splits[other]} ({alike:.2f})" for one, (alike, other) in best.items()}


def _groups(column: "npt.NDArray[np.uint64]") -> "Iterator[npt.NDArray[np.int64]]":
    """Give the places of equal values, in order, for every value that occurs twice or more."""
    import numpy as np

    order = np.argsort(column, kind="stable")
    starts = np.flatnonzero(np.diff(column[order], prepend=column[order[:1]] + np.uint64(1)) != 0)
    for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
        if end - start > 1:
            yield order[start:end]


def _note_pairs(
    members: "npt.NDArray[np.int64]", signature: "npt.NDArray[np.uint8]", split_of: "npt.NDArray[np.int64]",
    near: float, best: dict[int, tuple[float, int]],
) -> None:  # fmt: skip
    """For each member, note the most similar one of another split, of equal ones the first."""
    for one in members.tolist():
        others = members[split_of[members] != split_of[one]]
        if not len(others):
            continue
        alike = similarity(signature[others], signature[one])
        place = int(alike.argmax())
        found = (float(alike[place]), int(others[place]))
        known = best.get(one, (0.0, 0))
        if found[0] >= near and (found[0], -found[1]) > (known[0], -known[1]):
            best[one] = found


def _doubled_items(dataset: Dataset) -> dict[str, str]:
    """Give (profile id → the first two equal items of it)."""
    import polars as pl

    doubled = (
        dataset.profiles.sort("profile_id", "position")
        .group_by("profile_id", "title", "text", "label", maintain_order=True)
        .agg(pl.col("item_id"))
        .filter(pl.col("item_id").list.len() > 1)
    )
    found: dict[str, str] = {}
    for profile_id, items in doubled.select("profile_id", "item_id").iter_rows():
        found.setdefault(profile_id, f"items {items[0]} and {items[1]} are equal")
    return found


def _profiles(cell: "pl.DataFrame") -> list[str]:
    return cell["profile_id"].unique().sort().to_list()
