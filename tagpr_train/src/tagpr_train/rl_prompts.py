"""What reinforcement learning asks: the examples of a data set under the prompts of an evaluation, in a fixed order.

Guarantee: a question's prompt is the one `tagpr-eval run` makes of the same example with the same retriever, k, seed
and prompt options; the order depends on the seed alone. While learning, retriever, k and the order of the items may
be drawn for each question (`vary_retrievers`, `vary_k`, `shuffle_items`), by seed and example: the same ones in every
pass. Examples without gold, or with a prompt that leaves no room for a completion, are left out and counted.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tagpr_data import pairs
from tagpr_data.dataset import Dataset
from tagpr_data.errors import InputError
from tagpr_data.generate import Profiles, retrieval_text
from tagpr_data.prompts import chat_prompt, visible_item
from tagpr_data.records import Example, Message, ProfileItem, Split, Task
from tagpr_data.retrieve import rank
from tagpr_data.tables import sha256_text
from tagpr_data.tags import TagSet
from tagpr_train.config import Rl


@dataclass(frozen=True, slots=True)
class Question:
    """One example, ready to be answered and judged."""

    example: Example
    """Its id, user, input, gold and date."""
    task: Task
    """Its task."""
    messages: tuple[Message, ...]
    """The prompt, as in evaluation."""
    items: tuple[ProfileItem, ...]
    """The items in the prompt as it shows them, [P1] first."""
    profile: tuple[ProfileItem, ...]
    """All items the example may look at; what a reward model knows the user by."""
    bare: tuple[Message, ...]
    """The prompt without profile, which a reward model reads."""

    @property
    def gold(self) -> str:
        """The reference output."""
        assert self.example.output is not None, "examples without gold are left out"
        return self.example.output


def questions(
    dataset: Dataset,
    split: Split,
    number: int,
    config: Rl,
    tagset: TagSet,
    fits: Callable[[Sequence[Message]], bool],
) -> tuple[list[Question], dict[str, int]]:
    """Give the questions of at most `number` examples of a split in file order, and how many of them were left out by
    reason. InputError for an unknown task and where nothing is left."""
    known = {task.name for task in dataset.manifest.tasks}
    if unknown := set(config.tasks or ()) - known:
        raise InputError(f"tasks {sorted(unknown)} are not in {dataset.folder}; its tasks: {', '.join(sorted(known))}")
    if split not in dataset.splits:
        raise InputError(f"{dataset.folder} has no split {split!r}; it has: {', '.join(dataset.splits)}")
    examples = [row for row in dataset.examples(split) if config.tasks is None or row.task in config.tasks]
    examples = draw(examples, number)
    profiles = Profiles(dataset, examples)
    rows: list[Question] = []
    left_out: Counter[str] = Counter()
    for example in examples:
        if example.output is None:
            left_out["no gold"] += 1
            continue
        row = _question(dataset, example, profiles.items(example), split, config, tagset)
        if fits(row.messages):
            rows.append(row)
        else:
            left_out["prompt too long"] += 1
    if not rows:
        raise InputError(f"no example of split {split!r} in {dataset.folder} can be asked; left out: {dict(left_out)}")
    return rows, dict(left_out)


def draw(examples: Sequence[Example], number: int) -> list[Example]:
    """Give `number` examples in the given order, drawn by the hash of their id, as an evaluation draws them."""
    chosen = {row.id for row in sorted(examples, key=lambda row: sha256_text(row.id))[:number]}
    return [row for row in examples if row.id in chosen]


def shown_by(example: Example, split: Split, config: Rl) -> tuple[str, int]:
    """Give the retriever and the number of items that a question's prompt is made with."""
    if split != config.split:
        return config.retriever, config.k
    drawn = random.Random(f"{config.seed}/{example.id}")
    return drawn.choice(config.vary_retrievers or (config.retriever,)), drawn.choice(config.vary_k or (config.k,))


def order(number: int, prompts: int, copies: int, repeats: int, batches: int, seed: int) -> Iterator[int]:
    """Give row indices for `batches` generation batches: `prompts` different rows, each `copies` times in a run, and
    each batch `repeats` times. Rows come in passes over all `number` of them, every pass in its own order."""
    drawn = _passes(number, seed)
    for _ in range(batches):
        batch = [next(drawn) for _ in range(prompts)]
        for _ in range(repeats):
            for row in batch:
                yield from [row] * copies


def places(count: int, per_forward: int, rank: int, ranks: int) -> list[int]:
    """Give which groups of a generation batch a rank reads, `count` for each of `ranks`.

    The batch is cut into forward passes of `per_forward` groups a rank, so that every pass of all ranks together holds
    the groups that one process' pass would hold. 0 where a pass holds no whole groups: each rank has a run of them.
    """
    if per_forward == 0:
        return list(range(rank * count, (rank + 1) * count))
    starts = range(rank * per_forward, ranks * count, ranks * per_forward)
    return [place for start in starts for place in range(start, start + per_forward)]


def _passes(number: int, seed: int) -> Iterator[int]:
    sweep = 0
    while True:
        rows = list(range(number))
        random.Random(f"{seed}/{sweep}").shuffle(rows)
        yield from rows
        sweep += 1


def _question(
    dataset: Dataset,
    example: Example,
    profile: tuple[ProfileItem, ...],
    split: Split,
    config: Rl,
    tagset: TagSet,
) -> Question:
    task = dataset.task(example.task)
    retriever, k = shown_by(example, split, config)
    shown: list[ProfileItem] = []
    if retriever == "full":
        shown = list(profile)
    elif k:
        texts = [retrieval_text(item) for item in profile]
        dates = [item.date for item in profile]
        ranking = rank(retriever, example.input, texts, dates=dates, seed=config.seed)
        shown = [profile[position] for position in ranking[:k]]
    if config.shuffle_items and split == config.split:
        random.Random(f"items/{config.seed}/{example.id}").shuffle(shown)
    return Question(
        example=example,
        task=task,
        messages=chat_prompt(task, example.input, shown, config.prompt, tagset),
        items=tuple(visible_item(task, item, config.prompt) for item in shown),
        profile=profile,
        bare=pairs.question(task, example.input, config.prompt),
    )
