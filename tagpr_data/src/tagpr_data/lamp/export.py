"""Rankings and official prompts of a whole LaMP question file, row by row into one output file.

Guarantee: the output appears under its name only when it is whole; what the official code would crash on, or do
silently, is counted. Price: one row in memory at a time, and its ranking.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tagpr_data.errors import CheckFailed, InputError
from tagpr_data.lamp.files import LampQuestion, read_questions, write_json_lines
from tagpr_data.lamp.prompts import LampTokenizer, corpus, find_query, official_prompt, query
from tagpr_data.retrieve import rank

NOTES = {
    "no_marker": "inputs without the task's marker: the whole input was the query",
    "empty_profile": "questions with an empty profile",
    "short_profile": "questions with fewer than k items: all were taken",
    "profile_dropped": "prompts without any item, because no item fitted the budget (the official fallback)",
}
"""What `Export.notes` counts, in words."""


@dataclass(frozen=True, slots=True)
class Export:
    """What an export wrote."""

    rows: int
    """Questions written."""
    notes: Counter[str]
    """How many of them met a case of NOTES."""


@dataclass(frozen=True, slots=True)
class Ranker:
    """Which questions are ranked and how."""

    task: str
    questions: Path
    retriever: str
    seed: int = 0
    on_bytes: Callable[[int], object] | None = None
    """Told how many bytes of the file each read brought."""

    def ranked(self, notes: Counter[str]) -> Iterator[tuple[LampQuestion, list[int]]]:
        """Yield each question with the positions of its items, best first. InputError names the row."""
        rank(self.retriever, "", [])  # an unknown name is refused before the file is opened
        index = -1
        for index, question in enumerate(read_questions(self.questions, self.task, self.on_bytes)):
            notes["no_marker"] += find_query(self.task, question.input) is None
            notes["empty_profile"] += not question.profile
            try:
                yield question, ranking(self.task, question, self.retriever, self.seed)
            except InputError as error:
                raise InputError(f"{self.questions}, row {index} (id {question.id!r}): {error}") from None
        if index < 0:
            raise CheckFailed(f"{self.questions} holds no question; nothing was written")


def ranking(task: str, question: LampQuestion, retriever: str, seed: int) -> list[int]:
    """Rank one question's profile: positions, best first; an empty profile gives an empty list."""
    if not question.profile:
        return []
    dates = [item.get("date") for item in question.profile]
    return rank(retriever, query(task, question.input), corpus(task, question.profile), dates=dates, seed=seed)


def write_rankings(path: Path, ranker: Ranker) -> Export:
    """Write `{"question id": ["item id", … best first]}` for every question."""
    notes: Counter[str] = Counter()
    rows = 0

    def lines() -> Iterator[str]:
        nonlocal rows
        before = "{"
        for question, positions in ranker.ranked(notes):
            item_ids = [question.profile[position]["id"] for position in positions]
            yield f"{before}{json.dumps(question.id)}: {json.dumps(item_ids)}"
            before = ","
            rows += 1
        yield "}" if rows else "{}"

    write_json_lines(_output(path), lines())
    return Export(rows, notes)


def write_prompts(path: Path, ranker: Ranker, tokenizer: LampTokenizer, k: int, max_length: int) -> Export:
    """Write one line `{"id", "prompt"}` a question: the official prompt of its first `k` items (k = 0: the raw input)
    within `max_length` tokens."""
    if k < 0 or max_length < 1:
        raise InputError(f"k is {k} and max_length {max_length}; k must be at least 0 and max_length at least 1")
    notes: Counter[str] = Counter()
    rows = 0

    def lines() -> Iterator[str]:
        nonlocal rows
        for question, positions in ranker.ranked(notes):
            items = [question.profile[position] for position in positions[:k]]
            prompt = official_prompt(ranker.task, question.input, items, tokenizer, max_length)
            notes["short_profile"] += 0 < len(question.profile) < k
            notes["profile_dropped"] += bool(items) and prompt == question.input
            yield json.dumps({"id": question.id, "prompt": prompt})
            rows += 1

    write_json_lines(_output(path), lines())
    return Export(rows, notes)


def _output(path: Path) -> Path:
    """Refuse what renaming would destroy or cannot replace: a folder, a device."""
    if path.exists() and not path.is_file():
        raise InputError(f"output {path} is not a regular file; give the name of a file to write")
    return path
