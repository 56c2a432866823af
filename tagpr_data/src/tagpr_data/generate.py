"""Examples × attempts × teacher → candidates, durably.

Guarantee: a candidate is in the journal as soon as it arrived; after `kill -9` at any point the same call goes on
where it stopped, asks for nothing twice, and gives the same candidates as an uninterrupted run. A second process on
the same folder is refused. Price: prompts and candidates of one run are held in memory.
"""

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tagpr_data.dataset import Dataset
from tagpr_data.errors import TagprError
from tagpr_data.journal import Journal, folder_lock
from tagpr_data.prompts import PromptOptions, chat_prompt, prompt_hash, visible_input, visible_item
from tagpr_data.records import Candidate, Example, Message, ProfileItem, Record, Sampling, Sha256, Split
from tagpr_data.tables import canonical_json, sha256_text
from tagpr_data.tags import TagSet
from tagpr_data.teachers import Assignment, Teacher


class Prompt(Record):
    """One example made ready for a teacher; a row of the working file between the stages."""

    example_id: str
    """The example."""
    split: Split
    """Its split."""
    task: str
    """Its task."""
    user_id: str
    """Its user."""
    retriever: str
    """Which retriever chose the items."""
    k: int
    """Items asked for; 0 for the share that learns to do without a profile."""
    item_ids: tuple[str, ...]
    """Items in the prompt, `[P1]` first."""
    messages: tuple[Message, ...]
    """The prompt."""
    prompt_hash: Sha256
    """`prompts.prompt_hash(messages)`."""
    gold: str | None
    """The example's gold answer."""


@dataclass(frozen=True)
class Retrieval:
    """How items are chosen for a prompt."""

    retriever: str
    """Name in `retrieve.RETRIEVERS`."""
    k: int
    """Items per prompt."""
    empty_share: float
    """Share of the examples, drawn by id, whose prompt shows no item."""
    seed: int
    """Seed of the draw and of random retrieval."""


def make_prompts(
    dataset: Dataset, examples: Mapping[Split, Sequence[Example]], retrieval: Retrieval, options: PromptOptions,
    tagset: TagSet, on_prompt: Callable[[], object] = lambda: None,
) -> tuple[list[Prompt], dict[str, int]]:  # fmt: skip
    """Give the prompts of the examples in their order, and how many examples were left out, by reason.

    Left out are examples without gold, with a prompt that another one has already (one prompt is answered once), and
    generation examples whose prompt holds the gold answer word for word (from 4 words on).
    """
    prompts: list[Prompt] = []
    skipped = {"no-gold": 0, "gold-in-prompt": 0, "duplicate-prompt": 0}
    taken: set[str] = set()
    profiles = Profiles(dataset, [example for rows in examples.values() for example in rows])
    for split, rows in examples.items():
        for example in rows:
            on_prompt()
            if example.output is None:
                skipped["no-gold"] += 1
                continue
            task = dataset.task(example.task)
            is_empty = _share(retrieval.seed, "empty", example.id) < retrieval.empty_share
            k = 0 if is_empty else retrieval.k
            items = _retrieved(example, profiles, retrieval)[:k] if k else []
            messages = chat_prompt(task, example.input, items, options, tagset)
            identity = prompt_hash(messages)
            if task.kind == "generation" and _gives_away(messages, example.output):
                skipped["gold-in-prompt"] += 1
                continue
            if identity in taken:
                skipped["duplicate-prompt"] += 1
                continue
            taken.add(identity)
            prompts.append(
                Prompt(
                    example_id=example.id,
                    split=split,
                    task=task.name,
                    user_id=example.user_id,
                    retriever=retrieval.retriever,
                    k=k,
                    item_ids=tuple(item.item_id for item in items),
                    messages=messages,
                    prompt_hash=identity,
                    gold=example.output,
                )
            )
    return prompts, skipped


class Profiles:
    """The profiles of some examples, each read once however many examples look back into it."""

    def __init__(self, dataset: Dataset, examples: Sequence[Example]) -> None:
        self._dataset = dataset
        self._longest: dict[str, Example] = {}
        for example in examples:
            known = self._longest.get(example.profile_id)
            if known is None or known.profile_size < example.profile_size:
                self._longest[example.profile_id] = example
        self._items: dict[str, tuple[ProfileItem, ...]] = {}

    def items(self, example: Example) -> tuple[ProfileItem, ...]:
        """Give the items the example may look at, in profile order."""
        if example.profile_id not in self._items:
            self._items[example.profile_id] = self._dataset.profile(self._longest[example.profile_id])
        return self._items[example.profile_id][: example.profile_size]

    def chosen(self, example: Example, item_ids: Sequence[str]) -> tuple[ProfileItem, ...]:
        """Give the items of the example with these ids, in the order of the ids."""
        if not item_ids:
            return ()
        by_id = {item.item_id: item for item in self.items(example)}
        return tuple(by_id[item_id] for item_id in item_ids)


def retrieval_text(item: ProfileItem) -> str:
    """Give the text of an item that retrieval compares with the input: title and body."""
    return " ".join(part for part in (item.title, item.text) if part)


def generate(
    folder: Path, prompts: Sequence[Prompt], teacher: Teacher, dataset: Dataset, options: PromptOptions,
    sampling: Sampling, seed: int, attempts: int, concurrency: int = 1,
    on_candidate: Callable[[], object] = lambda: None,
) -> list[Candidate]:  # fmt: skip
    """Ask the teacher for every prompt and attempt that `folder/candidates.jsonl` does not hold yet, and give the
    candidates of this call in the order of `prompts`, then attempts. Answers of earlier settings stay in the file.
    """
    wanted = [(prompt, attempt) for prompt in prompts for attempt in range(attempts)]
    seeds = {(p.prompt_hash, n): derived_seed(seed, p.prompt_hash, str(n)) for p, n in wanted}
    ids = {key: attempt_id(key[0], teacher, sampling, seeds[key], key[1]) for key in seeds}
    examples = examples_of(dataset, prompts)
    profiles = Profiles(dataset, list(examples.values()))

    with folder_lock(folder), Journal(folder / "candidates.jsonl", Candidate) as journal:
        present = {row.id: row for row in journal.rows}

        async def answer(prompt: Prompt, attempt: int) -> None:
            example = examples[prompt.example_id]
            task = dataset.task(prompt.task)
            items = profiles.chosen(example, prompt.item_ids)
            key = (prompt.prompt_hash, attempt)
            reply = await teacher.write(
                Assignment(
                    task=task,
                    input=visible_input(example.input, options),
                    items=tuple(visible_item(task, item, options) for item in items),
                    messages=prompt.messages,
                    gold=prompt.gold,
                    sampling=sampling,
                    seed=seeds[key],
                    attempt=attempt,
                )
            )
            row = Candidate(
                id=ids[key], teacher=teacher.name, teacher_revision=teacher.revision, sampling=sampling,
                seed=seeds[key], attempt=attempt, text=reply.text, finish_reason=reply.finish_reason,
                input_tokens=reply.input_tokens, output_tokens=reply.output_tokens,
                **{field: getattr(prompt, field) for field in _SHARED_FIELDS},
            )  # fmt: skip
            journal.append(row)
            present[row.id] = row
            on_candidate()

        missing = [(p, n) for p, n in wanted if ids[(p.prompt_hash, n)] not in present]
        for _ in range(len(wanted) - len(missing)):
            on_candidate()
        asyncio.run(_work(iter(missing), answer, concurrency, teacher))
    return [present[ids[(prompt.prompt_hash, attempt)]] for prompt, attempt in wanted]


def examples_of(dataset: Dataset, prompts: Sequence[Prompt]) -> dict[str, Example]:
    """Give the examples behind the prompts by id."""
    wanted = {prompt.example_id for prompt in prompts}
    splits: set[Split] = {prompt.split for prompt in prompts}
    return {
        example.id: example for split in sorted(splits) for example in dataset.examples(split) if example.id in wanted
    }


def attempt_id(prompt: str, teacher: Teacher, sampling: Sampling, seed: int, attempt: int) -> str:
    """Give the identity of one attempt: the hash of prompt, teacher, revision, sampling, seed and attempt."""
    identity = [prompt, teacher.name, teacher.revision, sampling.model_dump(mode="json"), seed, attempt]
    return sha256_text(canonical_json(identity))


def derived_seed(seed: int, *parts: str) -> int:
    """Give a seed in [0, 2³¹) that depends on `seed` and all parts, the same on every machine."""
    digest = hashlib.sha256(canonical_json([seed, *parts]).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


_SHARED_FIELDS = tuple(field for field in Prompt.model_fields if field in Candidate.model_fields)


def _retrieved(example: Example, profiles: Profiles, retrieval: Retrieval) -> list[ProfileItem]:
    """Give the profile in the retriever's order, best first."""
    from tagpr_data.retrieve import rank

    profile = profiles.items(example)
    order = rank(
        retrieval.retriever,
        example.input,
        [retrieval_text(item) for item in profile],
        dates=[item.date for item in profile],
        seed=derived_seed(retrieval.seed, "rank", example.id),
    )
    return [profile[position] for position in order]


def _gives_away(messages: Sequence[Message], gold: str) -> bool:
    gold = gold.strip()
    return len(gold.split()) >= 4 and any(gold in message.content for message in messages)


def _share(seed: int, *parts: str) -> float:
    return random.Random(derived_seed(seed, *parts)).random()


async def _work(
    jobs: Iterator[tuple[Prompt, int]],
    answer: Callable[[Prompt, int], Awaitable[None]],
    concurrency: int,
    teacher: Teacher,
) -> None:
    """Run the jobs, at most `concurrency` at once. After an error no new job starts, but answers on their way are
    still taken in (they are paid for); then the first error is raised."""
    errors: list[TagprError] = []

    async def worker() -> None:
        for prompt, attempt in jobs:
            try:
                await answer(prompt, attempt)
            except TagprError as error:
                errors.append(error)
            if errors:
                return

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(worker())
    except ExceptionGroup as group_of_errors:
        raise group_of_errors.exceptions[0] from None
    finally:
        await teacher.close()
    if errors:
        raise errors[0]
