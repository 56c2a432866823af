"""The data of the sample browser in a report: every sample with all that a reader needs to judge it.

Texts that samples share (inputs, profile items) are stored once; a sample is a short row of numbers and its
completion. Guarantee: plain JSON values only, no nan. Price: about the size of the completions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tagpr_data.records import ProfileItem, Task
from tagpr_data.tables import sha256_text
from tagpr_eval.sample_scores import FLAGS, Evidence

if TYPE_CHECKING:
    import polars as pl

SAMPLE_FIELDS = (
    "cell", "example", "seed", "items", "text", "answer", "problem", "strict", "parsed", "valid", "violations", "tags",
    "flags", "claims", "grounded",
)  # fmt: skip
"""What stands at each place of a sample's row. cell, example: indices. items: indices of the prompt's items, or their
ids where the data set does not have them. strict, parsed: worth in [0, 1] or null. tags: indices of the steps' tags.
flags: bit i is failure i of `FLAGS`."""


@dataclass(frozen=True)
class Shown:
    """One cell to be shown."""

    task: Task
    """Its task."""
    model: str
    """Its model."""
    setting: str
    """Retriever, k, style and protocol in one line."""
    frame: "pl.DataFrame"
    """Its scored predictions (`scores.score`)."""
    evidence: Evidence
    """What is known of its prompts."""


def sample_data(cells: Sequence[Shown], tag_names: Sequence[str], max_samples: int) -> dict[str, Any]:
    """Give the browser's data. Where there are more than `max_samples`, examples are drawn by the hash of their id,
    the same ones in every cell, so that models can still be read side by side."""
    total = sum(cell.frame.height for cell in cells)
    kept = _kept_examples(cells, max_samples)
    pool = _Pool()
    samples = [
        _sample(place, row, cell, pool, tag_names)
        for place, cell in enumerate(cells)
        for row in cell.frame.iter_rows(named=True)
        if kept is None or row["example_id"] in kept
    ]
    return {
        "fields": SAMPLE_FIELDS,
        "tags": list(tag_names),
        "flags": [name.removeprefix("is_").replace("_", " ") for name in FLAGS],
        "cells": [{"task": cell.task.name, "model": cell.model, "setting": cell.setting} for cell in cells],
        "examples": pool.examples,
        "items": pool.items,
        "samples": samples,
        "total": total,
    }


class _Pool:
    """Texts that several samples share."""

    def __init__(self) -> None:
        self.examples: list[dict[str, Any]] = []
        self.items: list[list[str | None]] = []
        self._example_places: dict[tuple[str, str], int] = {}
        self._item_places: dict[tuple[str, str], int] = {}

    def example(self, row: dict[str, Any], cell: Shown) -> int:
        key = (cell.task.name, row["example_id"])
        if key not in self._example_places:
            known = cell.evidence.examples.get(row["example_id"])
            self._example_places[key] = len(self.examples)
            self.examples.append(
                {
                    "id": row["example_id"],
                    "user": row["user_id"],
                    "size": row["profile_size"],
                    "gold": row["gold"],
                    "question": cell.task.question,
                    "input": known.input if known else None,
                    "date": known.date if known else None,
                }
            )
        return self._example_places[key]

    def item(self, item: ProfileItem) -> int:
        key = (item.profile_id, item.item_id)
        if key not in self._item_places:
            self._item_places[key] = len(self.items)
            self.items.append([item.title, item.text, item.label, item.date])
        return self._item_places[key]


def _kept_examples(cells: Sequence[Shown], max_samples: int) -> set[str] | None:
    """Ids of the examples to keep; None keeps all."""
    sizes: dict[str, int] = {}
    for cell in cells:
        for example_id in cell.frame["example_id"]:
            sizes[example_id] = sizes.get(example_id, 0) + 1
    if sum(sizes.values()) <= max_samples:
        return None
    kept: set[str] = set()
    room = max_samples
    for example_id in sorted(sizes, key=sha256_text):
        room -= sizes[example_id]
        if room < 0:
            break
        kept.add(example_id)
    return kept


def _sample(place: int, row: dict[str, Any], cell: Shown, pool: _Pool, tag_names: Sequence[str]) -> list[Any]:
    items = cell.evidence.prompt_items(row["profile_id"], row["item_ids"])
    return [
        place,
        pool.example(row, cell),
        row["seed"],
        row["item_ids"] if items is None else [pool.item(item) for item in items],
        row["text"],
        row["answer"],
        row["problem"],
        _worth(row["strict_reward"]),
        _worth(row["parsed_reward"]),
        row["is_valid_trace"],
        row["violations"] or [],
        sorted({tag_names.index(tag) for tag in row["step_tags"] or () if tag in tag_names}),
        sum(1 << bit for bit, flag in enumerate(FLAGS) if row[flag]),
        row["claims"],
        row["grounded_claims"],
    ]


def _worth(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(value, 4)
