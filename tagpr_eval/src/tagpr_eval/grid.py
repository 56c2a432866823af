"""The cells of an evaluation and the prompts in them. Pure: a data set and settings in, questions out.

    cell       one (task, retriever, k, style, seed); every model answers every cell
    question   one example in one cell: the items shown, the prompt, its hash

The control `wrong-user` shows items of another user of the same task: users stand in a circle in an order drawn by
the seed, and the wrong one is the next who has at least as many items (only the first so many are looked at), or else
the one with most; ranked by BM25 as if they were one's own.
The control `none` shows no item. Both are ours; the paper's controls are unknown.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tagpr_data.dataset import Dataset
from tagpr_data.errors import InputError
from tagpr_data.generate import Profiles, retrieval_text
from tagpr_data.prompts import PromptOptions, Style, chat_prompt, prompt_hash
from tagpr_data.records import Example, Message, ProfileItem, Task
from tagpr_data.retrieve import RETRIEVERS, rank
from tagpr_data.tables import sha256_text
from tagpr_data.tags import TagSet
from tagpr_eval.config import EvaluationConfig

WRONG_USER = "wrong-user"
WHOLE_PROFILE = "full"
"""Retriever in the cells of baselines, which read the whole profile; k is 0 there, as no prompt shows anything."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One column of the grid."""

    task: str
    """Task name."""
    retriever: str
    """Name in `retrieve.RETRIEVERS`, or `wrong-user`."""
    k: int
    """Items asked for."""
    style: Style
    """Prompt style."""
    seed: int
    """Seed of retrieval and sampling."""

    @property
    def name(self) -> str:
        """Name in file names and in lighteval's tables."""
        return f"{self.task}.{self.retriever}.k{self.k}.{self.style}.seed{self.seed}"


@dataclass(frozen=True, slots=True)
class Question:
    """One example in one cell."""

    cell: Cell
    """Where."""
    example: Example
    """What is asked."""
    item_ids: tuple[str, ...]
    """Items in the prompt, `[P1]` first; fewer than k where the profile is shorter."""
    messages: tuple[Message, ...]
    """The prompt."""
    prompt_hash: str
    """Its identity."""


def cells(config: EvaluationConfig, tasks: Sequence[str]) -> list[Cell]:
    """Give the cells in table order. k = 0 of any retriever is the control `none`, which has no other k."""
    known = {*RETRIEVERS, WRONG_USER}
    for retriever in config.retrievers:
        if retriever not in known:
            raise InputError(f"retriever {retriever!r} is unknown; known: {', '.join(sorted(known))}")
    shown: list[tuple[str, int]] = []
    for retriever in config.retrievers:
        for k in config.k:
            pair = ("none", 0) if k == 0 or retriever == "none" else (retriever, k)
            if pair not in shown:
                shown.append(pair)
    return [
        Cell(task, retriever, k, style, seed)
        for task in tasks
        for style in config.styles
        for retriever, k in shown
        for seed in config.seeds
    ]


def baseline_cells(grid: Sequence[Cell], reads_profile: bool) -> list[Cell]:
    """Give the cells of a baseline: one per task, and one with the wrong user where the grid has that control and
    the baseline `reads_profile`."""
    tasks = list(dict.fromkeys(cell.task for cell in grid))
    retrievers = [WHOLE_PROFILE]
    if reads_profile and any(cell.retriever == WRONG_USER for cell in grid):
        retrievers.append(WRONG_USER)
    return [Cell(task, retriever, 0, "direct", grid[0].seed) for task in tasks for retriever in retrievers]


def draw(examples: Sequence[Example], number: int | None) -> list[Example]:
    """Give `number` examples in the given order, drawn by the hash of their id: a larger draw holds a smaller one."""
    if number is None or number >= len(examples):
        return list(examples)
    chosen = {row.id for row in sorted(examples, key=lambda row: sha256_text(row.id))[:number]}
    return [row for row in examples if row.id in chosen]


class Prompter:
    """Makes the questions of cells about `examples`; rankings are made once and kept. Wrong users are drawn from
    `pool`, the whole split, so that they stay the same when fewer examples are asked about."""

    def __init__(self, dataset: Dataset, examples: Sequence[Example], pool: Sequence[Example], tagset: TagSet) -> None:
        self._dataset = dataset
        self._tagset = tagset
        self._examples = examples
        self._pool = pool
        self._profiles = Profiles(dataset, pool)
        self._rankings: dict[tuple[str, int, str], list[ProfileItem]] = {}
        self._circles: dict[tuple[str, int], list[Example]] = {}

    def questions(
        self, cell: Cell, options: PromptOptions, on_question: Callable[[], object] = lambda: None
    ) -> list[Question]:
        """Give one question per example of the cell's task."""
        task = self._dataset.task(cell.task)
        return [
            self._question(cell, task, row, options, on_question) for row in self._examples if row.task == task.name
        ]

    def profile(self, example: Example, retriever: str, seed: int) -> tuple[ProfileItem, ...]:
        """Give the whole profile a cell looks at: one's own, or the wrong user's, cut to the same length."""
        if retriever != WRONG_USER:
            return self._profiles.items(example)
        other = self._wrong_user(example, seed)
        return self._profiles.items(other)[: example.profile_size]

    def _question(
        self, cell: Cell, task: Task, example: Example, options: PromptOptions, on_question: Callable[[], object]
    ) -> Question:
        items = self._ranked(example, cell.retriever, cell.seed)[: cell.k] if cell.k else []
        messages = chat_prompt(task, example.input, items, options, self._tagset)
        on_question()
        return Question(cell, example, tuple(item.item_id for item in items), messages, prompt_hash(messages))

    def _ranked(self, example: Example, retriever: str, seed: int) -> list[ProfileItem]:
        key = (retriever, seed, example.id)
        if key not in self._rankings:
            profile = self.profile(example, retriever, seed)
            try:
                order = rank(
                    "bm25" if retriever == WRONG_USER else retriever,
                    example.input,
                    [retrieval_text(item) for item in profile],
                    dates=[item.date for item in profile],
                    seed=seed,
                )
            except InputError as error:
                raise InputError(f"example {example.id}, profile {example.profile_id}: {error}") from None
            self._rankings[key] = [profile[position] for position in order]
        return self._rankings[key]

    def _wrong_user(self, example: Example, seed: int) -> Example:
        """The next user on the circle who has enough items, by the example that looks at most of them."""
        circle = self._circle(example.task, seed)
        own = next(place for place, row in enumerate(circle) if row.user_id == example.user_id)
        others = circle[own + 1 :] + circle[:own]
        if not others:
            raise InputError(
                f"the control {WRONG_USER} needs two users, but all examples of task {example.task} are of "
                f"user {example.user_id}"
            )
        enough = (row for row in others if row.profile_size >= example.profile_size)
        return next(enough, None) or max(others, key=lambda row: row.profile_size)

    def _circle(self, task: str, seed: int) -> list[Example]:
        """The users of a task in an order drawn by `seed`; of each, the example that looks at most items."""
        if (task, seed) not in self._circles:
            longest: dict[str, Example] = {}
            for row in self._pool:
                if row.task == task and row.profile_size > getattr(longest.get(row.user_id), "profile_size", -1):
                    longest[row.user_id] = row
            by_lot = sorted(longest.values(), key=lambda row: sha256_text(f"{seed}\n{row.user_id}"))
            self._circles[task, seed] = by_lot
        return self._circles[task, seed]
