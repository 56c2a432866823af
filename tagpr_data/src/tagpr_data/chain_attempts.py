"""Untagged chains from anywhere → attempts on the examples of a data set, so that, tagged, they become a corpus.

A chain says which example it answers and which items of that user's profile it calls `[P1]`, `[P2]`, …; the prompt is
made of these as everywhere (`prompts.py`), whatever the chain's author was asked. Guarantee: what makes a prompt unfit
for a corpus is said before anything is tagged: one that holds the gold answer, or that another example has too. Price:
the examples of the data set stand in memory.
"""

from collections import Counter
from functools import cached_property

from tagpr_data.chains import Fault
from tagpr_data.dataset import Dataset
from tagpr_data.errors import InputError, shorten
from tagpr_data.generate import Profiles, attempt_id, gives_away
from tagpr_data.prompts import PromptOptions, chat_prompt, prompt_hash
from tagpr_data.records import AnsweringChain, Attempt, Example, Sampling
from tagpr_data.tags import TagSet

_PROFILES_HELD = 512


class ChainAttempts:
    """Gives the attempt that a chain is; one object for one pass over a file, as it counts the attempts on a prompt."""

    def __init__(self, dataset: Dataset, tagset: TagSet, options: PromptOptions = PromptOptions()) -> None:  # noqa: B008
        self._dataset, self._tagset, self._options = dataset, tagset, options
        self._profiles = Profiles(dataset, most=_PROFILES_HELD)
        self._example_of: dict[bytes, str] = {}
        self._attempts: Counter[tuple[bytes, str, str]] = Counter()

    def __call__(self, chain: AnsweringChain) -> Attempt | Fault:
        """Give the attempt, or why its prompt is unfit for a corpus. Raises InputError for an example or an item that
        the data set lacks."""
        example = self._examples.get(chain.example_id)
        if example is None:
            raise InputError(f"example_id {shorten(chain.example_id)} is not in the data set {self._dataset.folder}")
        known = {item.item_id for item in self._profiles.items(example)}
        if missing := [item_id for item_id in chain.item_ids if item_id not in known]:
            raise InputError(
                f"item_ids has {shorten(missing[0])}, which is none of the {len(known)} items before example "
                f"{shorten(chain.example_id)} in the data set {self._dataset.folder}"
            )
        if twice := [item_id for item_id, count in Counter(chain.item_ids).items() if count > 1]:
            raise InputError(f"item_ids has {shorten(twice[0])} twice; each item has one number")
        task = self._dataset.task(example.task)
        items = self._profiles.chosen(example, chain.item_ids)
        messages = chat_prompt(task, example.input, items, self._options, self._tagset)
        identity = prompt_hash(messages)
        key = bytes.fromhex(identity)
        if task.kind == "generation" and example.output is not None and gives_away(messages, example.output):
            return Fault("gold-in-prompt", "the prompt of its items holds the gold answer word for word")
        if self._example_of.setdefault(key, example.id) != example.id:
            return Fault("duplicate-prompt", f"the prompt is that of the example {self._example_of[key]}")
        attempt = self._attempts[key, chain.teacher, chain.teacher_revision]
        self._attempts[key, chain.teacher, chain.teacher_revision] += 1
        sampling = Sampling()
        return Attempt(
            id=attempt_id(identity, chain.teacher, chain.teacher_revision, sampling, 0, attempt),
            example_id=example.id, task=task.name, user_id=example.user_id, retriever="given", k=len(items),
            item_ids=chain.item_ids, messages=messages, prompt_hash=identity, teacher=chain.teacher,
            teacher_revision=chain.teacher_revision, sampling=sampling, seed=0, attempt=attempt, text=chain.text,
            finish_reason="stop", gold=example.output,
        )  # fmt: skip

    @cached_property
    def _examples(self) -> dict[str, Example]:
        return {example.id: example for split in self._dataset.splits for example in self._dataset.examples(split)}
