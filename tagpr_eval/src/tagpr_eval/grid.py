"""The cells of an evaluation and the prompts in them. Pure: a data set and settings in, questions out.

    cell       one (task, retriever, k, style, seed, protocol); every model answers every cell
    question   one example in one cell: the items shown, the prompt, its hash

The control `wrong-user` shows what `controls.wrong_user` lends, ranked by BM25 as if it were one's own; the control
`none` shows no item. Both are ours; the paper's controls are unknown.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tagpr_data.controls import Loan, wrong_user
from tagpr_data.dataset import Dataset
from tagpr_data.errors import InputError
from tagpr_data.generate import Profiles, retrieval_text
from tagpr_data.prompts import PromptOptions, Style, chat_prompt, prompt_hash
from tagpr_data.records import Example, Message, ProfileItem, Protocol
from tagpr_data.retrieve import RETRIEVERS, Encode, rank
from tagpr_data.tables import sha256_text
from tagpr_data.tags import TagSet
from tagpr_eval.config import EvaluationConfig

WRONG_USER = "wrong-user"
WHOLE_PROFILE = "full"
"""Retriever that shows all items in profile order, and in the cells of baselines, which read the whole profile. Its k
is always 0: there is nothing to ask for."""


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
    protocol: Protocol = "generation"
    """How the answer is got."""

    @property
    def name(self) -> str:
        """Name in file names and in lighteval's tables; it says the protocol where that is not generation."""
        suffix = "" if self.protocol == "generation" else f".{self.protocol}"
        return f"{self.task}.{self.retriever}.k{self.k}.{self.style}.seed{self.seed}{suffix}"


@dataclass(frozen=True, slots=True)
class Question:
    """One example in one cell."""

    cell: Cell
    """Where."""
    example: Example
    """What is asked."""
    profile_id: str
    """Whose items the cell shows."""
    item_ids: tuple[str, ...]
    """Items in the prompt, `[P1]` first; fewer than k where the profile is shorter."""
    messages: tuple[Message, ...]
    """The prompt."""
    prompt_hash: str
    """Its identity."""


def cells(config: EvaluationConfig, tasks: Sequence[str]) -> list[Cell]:
    """Give the cells in table order. `full` has one cell whatever the ks; k = 0 of any other retriever is the control
    `none`, which has no other k. Protocol log-likelihood has style direct only: it scores what follows at once."""
    known = {*RETRIEVERS, WRONG_USER}
    for retriever in config.retrievers:
        if retriever not in known:
            raise InputError(f"retriever {retriever!r} is unknown; known: {', '.join(sorted(known))}")
    shown: list[tuple[str, int]] = []
    for retriever in config.retrievers:
        for k in config.k:
            if retriever == WHOLE_PROFILE:
                pair = (retriever, 0)
            else:
                pair = ("none", 0) if k == 0 or retriever == "none" else (retriever, k)
            if pair not in shown:
                shown.append(pair)
    return [
        Cell(task, retriever, k, style, seed, protocol)
        for task in tasks
        for style in config.all_styles()
        for retriever, k in shown
        for seed in config.seeds
        for protocol in config.protocols
        if style == "direct" or protocol == "generation"
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
    chosen = {row.id for row in sorted(examples, key=lambda row: draw_order(row.id))[:number]}
    return [row for row in examples if row.id in chosen]


def draw_order(example_id: str) -> str:
    """Give what examples are sorted by to be drawn: the hash of their id, which knows nothing of their content."""
    return sha256_text(example_id)


class Prompter:
    """Makes the questions of cells about `examples`; rankings are made once and kept. Wrong users are drawn from
    `pool`, the whole split, so that they stay the same when fewer examples are asked about. `encode` gives vectors to
    the retrievers dense and hybrid; `system_prompt` stands before the style's own instruction."""

    def __init__(
        self,
        dataset: Dataset,
        examples: Sequence[Example],
        pool: Sequence[Example],
        tagset: TagSet,
        encode: Encode | None = None,
        system_prompt: str | None = None,
    ) -> None:
        self._system_prompt = system_prompt
        self._dataset = dataset
        self._tagset = tagset
        self._examples = examples
        self._pool = pool
        self._encode = encode
        self._profiles = Profiles(dataset, pool)
        self._rankings: dict[tuple[str, int, str], list[ProfileItem]] = {}
        self._loans: dict[int, dict[str, Loan]] = {}

    def questions(self, cell: Cell, options: PromptOptions) -> list[Question]:
        """Give one question per example of the cell's task."""
        return [self._question(cell, row, self._shown(cell, row), options) for row in self._of(cell)]

    def baseline_questions(self, cell: Cell, options: PromptOptions) -> list[Question]:
        """Give the questions of a baseline's cell: it reads no prompt, so theirs shows no item."""
        return [self._question(cell, row, (), options) for row in self._of(cell)]

    def profile(self, example: Example, retriever: str, seed: int) -> tuple[ProfileItem, ...]:
        """Give the whole profile a cell looks at: one's own, or what the wrong user lends."""
        if retriever != WRONG_USER:
            return self._profiles.items(example)
        loan = self._loan(example, seed)
        return self._profiles.items(loan.lender)[loan.start : loan.stop]

    def _loan(self, example: Example, seed: int) -> Loan:
        if seed not in self._loans:
            self._loans[seed] = wrong_user(self._pool, seed)
        return self._loans[seed][example.id]

    def _of(self, cell: Cell) -> list[Example]:
        return [row for row in self._examples if row.task == cell.task]

    def _question(self, cell: Cell, example: Example, items: Sequence[ProfileItem], options: PromptOptions) -> Question:
        messages = chat_prompt(self._dataset.task(cell.task), example.input, items, options, self._tagset)
        if self._system_prompt is not None:
            first = messages[0].model_copy(update={"content": f"{self._system_prompt}\n\n{messages[0].content}"})
            messages = (first, *messages[1:])
        whose = self._loan(example, cell.seed).lender if cell.retriever == WRONG_USER else example
        item_ids = tuple(item.item_id for item in items)
        return Question(cell, example, whose.profile_id, item_ids, messages, prompt_hash(messages))

    def _shown(self, cell: Cell, example: Example) -> Sequence[ProfileItem]:
        """The items in the prompt, best first; all there are where there are fewer than k."""
        if cell.retriever == WHOLE_PROFILE:
            return self._profiles.items(example)
        return self._ranked(example, cell.retriever, cell.seed)[: cell.k] if cell.k else ()

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
                    encode=self._encode,
                )
            except InputError as error:
                raise InputError(f"example {example.id}, profile {example.profile_id}: {error}") from None
            self._rankings[key] = [profile[position] for position in order]
        return self._rankings[key]
